"""Panels on both databases: links by digest alone, the newest word counts, nothing after the end."""

from __future__ import annotations

import pytest

from luthier.core.errors import ConflictError, NotFoundError
from luthier.core.results.human_eval import RatedAnswer, Rater, Rating, RatingItem, RatingPanel
from luthier.features.human_eval.store import RatingPanelStore
from luthier.platform.auth.store import AccessStore
from luthier.platform.db.database import Database

PROJECT, OTHER, PANEL = "default", "proj-other", "panel-1"


@pytest.fixture
def store(database: Database) -> RatingPanelStore:
    AccessStore(database).add_project(OTHER, "other")
    return RatingPanelStore(database)


def items(number: int = 3) -> list[RatingItem]:
    answers = (RatedAnswer(system="base", text="one"), RatedAnswer(system="tuned", text="two"))
    return [RatingItem(item=n, row_id=f"r:{n}", prompt="Why?", answers=answers) for n in range(number)]


def rater(number: int, panel_id: str = PANEL) -> Rater:
    return Rater(rater_id=f"rater-{number}", panel_id=panel_id, name=f"rater {number}")


@pytest.fixture
def panel(store: RatingPanelStore) -> RatingPanel:
    made = RatingPanel(
        panel_id=PANEL, name="n", kind="pairwise", systems=("base", "tuned"), source="s", seed=1, num_items=3
    )
    return store.add(PROJECT, made, items(), [(rater(1), "d1"), (rater(2), "d2")])


def said(item: int, who: int = 1, preference: str = "a") -> Rating:
    return Rating.model_validate({"item": item, "rater_id": f"rater-{who}", "preference": preference})


def test_a_panel_is_kept_whole_and_found_in_its_own_project_alone(store: RatingPanelStore, panel: RatingPanel) -> None:
    assert store.get(PROJECT, PANEL) == panel
    assert panel.created_at > 0
    assert store.items(PANEL) == items()
    assert store.item(PANEL, 2) == items()[2]
    assert [one.name for one in store.raters(PANEL)] == ["rater 1", "rater 2"]
    with pytest.raises(NotFoundError, match="no panel"):
        store.get(OTHER, PANEL)
    with pytest.raises(NotFoundError, match="nearest: panel-1"):
        store.get(PROJECT, "panel-2")
    with pytest.raises(NotFoundError, match="no item 9"):
        store.item(PANEL, 9)
    assert store.list(OTHER) == []


def test_the_list_counts_raters_and_ratings(store: RatingPanelStore, panel: RatingPanel) -> None:
    store.keep(PANEL, said(0))
    store.keep(PANEL, said(0, who=2))
    (counts,) = store.list(PROJECT)
    assert (counts.panel, counts.num_raters, counts.num_ratings) == (panel, 2, 2)


def test_a_link_lets_in_until_it_is_replaced_or_revoked(store: RatingPanelStore, panel: RatingPanel) -> None:
    found = store.by_link("d1")
    assert found is not None
    assert (found[0].name, found[1]) == ("rater 1", panel)
    assert store.by_link("d3") is None
    store.change_link(PANEL, "rater-1", "d3")
    assert store.by_link("d1") is None
    assert store.by_link("d3") is not None
    store.keep(PANEL, said(0))
    assert not store.change_link(PANEL, "rater-1", None).has_link
    assert store.by_link("d3") is None
    assert store.by_link("none:rater-1") is None, "what stands in place of a digest lets nobody in"
    assert len(store.ratings(PANEL)) == 1, "what was said stays"
    assert [one.has_link for one in store.raters(PANEL)] == [False, True]
    with pytest.raises(NotFoundError):
        store.change_link(PANEL, "rater-9", "d9")


def test_the_newest_word_counts_and_can_be_taken_back(store: RatingPanelStore, panel: RatingPanel) -> None:
    store.keep(PANEL, said(0))
    store.keep(PANEL, said(1))
    store.keep(PANEL, said(0, preference="b"))
    kept = {one.item: one.preference for one in store.ratings(PANEL, "rater-1")}
    assert kept == {0: "b", 1: "a"}
    assert store.ratings(PANEL, "rater-2") == []
    assert {store.take_back(PANEL, "rater-1"), store.take_back(PANEL, "rater-1")} == {0, 1}
    assert store.take_back(PANEL, "rater-1") is None


def test_a_closed_panel_takes_nothing_more(store: RatingPanelStore, panel: RatingPanel) -> None:
    store.keep(PANEL, said(0))
    assert store.close(PROJECT, PANEL).closed_at is not None
    for attempt in (
        lambda: store.keep(PANEL, said(1)),
        lambda: store.take_back(PANEL, "rater-1"),
        lambda: store.add_rater(rater(3), "d3"),
        lambda: store.change_link(PANEL, "rater-1", "d4"),
        lambda: store.keep_all(PANEL, [rater(4)], [said(1, who=4)]),
        lambda: store.close(PROJECT, PANEL),
    ):
        with pytest.raises(ConflictError, match="closed"):
            attempt()
    store.change_link(PANEL, "rater-1", None)
    assert [one.item for one in store.ratings(PANEL)] == [0]
    assert len(store.raters(PANEL)) == 2
    with pytest.raises(NotFoundError):
        store.close(OTHER, PANEL)


def test_raters_have_names_of_their_own(store: RatingPanelStore, panel: RatingPanel) -> None:
    assert store.add_rater(rater(3), "d3").has_link
    with pytest.raises(ConflictError, match="already"):
        store.add_rater(rater(3).model_copy(update={"rater_id": "rater-4"}), "d4")


def test_what_comes_from_elsewhere_is_kept_whole_or_not_at_all(store: RatingPanelStore, panel: RatingPanel) -> None:
    earlier = said(1, who=5).model_copy(update={"rated_at": 1000.0})
    store.keep_all(PANEL, [rater(5)], [said(0, who=5), earlier])
    assert [(one.item, one.rated_at < 2000) for one in store.ratings(PANEL, "rater-5")] == [(1, True), (0, False)]
    assert store.raters(PANEL)[-1].has_link is False
    with pytest.raises(Exception):  # noqa: B017, PT011 - whatever the database says of an item that is not there
        store.keep_all(PANEL, [rater(6)], [said(0, who=6), said(99, who=6)])
    assert len(store.raters(PANEL)) == 3
    assert store.ratings(PANEL, "rater-6") == []
