"""A panel from answers to figures: blind, in an order of each rater's own, and honest about who does not read."""

from __future__ import annotations

import sqlite3
from collections import Counter
from contextlib import closing
from pathlib import Path

import pytest
from tests.assessed import answered_rows, careful, clicking, make_panel, rate_all
from tests.fixtures.service import chat_row, write_rows
from tests.vacuous import nonempty

from luthier.core.access import Caller
from luthier.core.errors import ConflictError, LeakageError, NotFoundError, RequestError
from luthier.core.results.human_eval import RatingItem
from luthier.features.human_eval import rating_view as rating_desk
from luthier.features.human_eval import service as rating_links
from luthier.features.human_eval import service as rating_panels
from luthier.features.human_eval.items import CHECK_SYSTEM, answer_rows, answers_of, make_items
from luthier.features.human_eval.service import MAX_INSTRUCTIONS_CHARACTERS, create_panel, panel_report, ratings_table
from luthier.platform.home.context import Context
from luthier.testing.records import make_evaluation

ME = Caller()


def test_items_are_pairs_of_all_systems_with_checks_among_them() -> None:
    items, num_same = make_items("pairwise", answered_rows(5, ("a", "b", "c")), attention=0.1, seed=1)
    real = [item for item in items if item.check is None]
    assert (len(real), len(items) - len(real), num_same) == (15, 2, 0)
    assert [item.item for item in items] == list(range(17))
    assert {tuple(a.system for a in item.answers) for item in real} == {("a", "b"), ("a", "c"), ("b", "c")}
    for item in items:
        if item.check is not None:
            assert item.check.how == "garbled"
            good, garbled = (answer.text for answer in item.answers)
            assert sorted(good.split()[2:]) == sorted(garbled.split()[2:]) or good.split() != garbled.split()
            assert {answer.system for answer in item.answers} == {CHECK_SYSTEM}
    again, _ = make_items("pairwise", answered_rows(5, ("a", "b", "c")), attention=0.1, seed=1)
    assert items == again


def test_without_references_checks_say_what_to_choose() -> None:
    items, _ = make_items("pairwise", answered_rows(5, with_references=False), attention=0.2, seed=1)
    checks = [item for item in items if item.check is not None]
    assert {item.check.how for item in checks if item.check} == {"instructed"}
    assert all("choose the answer with this sentence" in item.answers[0].text for item in checks)
    scored, _ = make_items("likert", answered_rows(20), attention=0.1, seed=1)
    checks = [item for item in scored if item.check is not None]
    assert len(checks) == 4
    assert all(nonempty(f"give {item.check.score} to" in item.answers[0].text for item in checks if item.check))
    assert len({item.check.score for item in checks if item.check}) == 4


def test_pairs_of_the_same_text_are_counted_and_not_shown(context: Context) -> None:
    answered = answered_rows(3)
    same = answered.rows[0].__class__(**{**_fields(answered.rows[0]), "answers": {"base": "x", "tuned": "x "}})
    mixed = answered.__class__(answered.systems, answered.source, (same, *answered.rows[1:]))
    made = create_panel(context, ME, mixed, kind="pairwise", attention=0)
    assert (made.panel.num_items, made.panel.num_same) == (2, 1)
    with pytest.raises(RequestError, match="0 items to rate; pairs whose answers are the same text: 1"):
        create_panel(context, ME, answered.__class__(answered.systems, "s", (same,)), kind="pairwise")


def _fields(row: object) -> dict[str, object]:
    return {name: getattr(row, name) for name in ("row_id", "prompt", "messages", "reference", "answers")}


def test_each_rater_has_an_order_and_sides_of_their_own_the_same_whenever_they_come(context: Context) -> None:
    made = make_panel(context, num_rows=20)
    orders = [rating_desk.order_of(made.panel, link.rater.rater_id) for link in made.links]
    assert all(sorted(order) == list(range(made.panel.num_items)) for order in orders)
    assert len({tuple(order) for order in orders}) == 3
    for link in nonempty(made.links):
        sides = [rating_desk.shown_first(made.panel, link.rater.rater_id, n) for n in range(made.panel.num_items)]
        assert abs(sides.count("a") - sides.count("b")) <= 1
        assert sides == [
            rating_desk.shown_first(made.panel, link.rater.rater_id, n) for n in range(made.panel.num_items)
        ]


def test_what_is_chosen_by_its_place_is_kept_by_its_system(context: Context) -> None:
    made = make_panel(context, attention=0)
    rate_all(context, made, 0, lambda _: "b")
    table = ratings_table(context, "default", made.panel.panel_id)
    assert {row.preference for row in table.rows} == {"b"}
    assert Counter(row.shown_first for row in table.rows) == {"a": 6, "b": 6}


def test_a_rater_who_stops_midway_goes_on_where_they_stopped(context: Context) -> None:
    made = make_panel(context)
    assert rate_all(context, made, 0, careful("pairwise"), most=5) == 5
    rater, panel = rating_links.rater_of_token(context, made.links[0].token) or (None, None)
    assert rater is not None
    assert panel is not None
    desk = rating_desk.next_item(context, panel, rater)
    assert desk.item is not None
    assert (desk.num_rated, desk.item.item) == (5, rating_desk.order_of(panel, rater.rater_id)[5])
    report = panel_report(context, ME, panel.panel_id)
    assert any("stopped after 5" in note for note in report.raters[0].notes)
    assert any("Ada (5 of" in caution for caution in report.cautions)
    rate_all(context, made, 0, careful("pairwise"))
    assert panel_report(context, ME, panel.panel_id).raters[0].is_done


def test_the_same_form_sent_twice_is_one_rating_and_undo_leads_back(context: Context) -> None:
    made = make_panel(context)
    rater, panel = rating_links.rater_of_token(context, made.links[0].token) or pytest.fail("the link lets nobody in")
    item = rating_desk.order_of(panel, rater.rater_id)[0]
    for _ in range(2):
        rating_desk.keep_preference(context, panel, rater, item, "first")
    assert len(context.rating_panels.ratings(panel.panel_id)) == 1
    assert rating_desk.take_back(context, panel, rater) == item
    desk = rating_desk.next_item(context, panel, rater)
    assert desk.item is not None
    assert (desk.item.item, desk.num_rated) == (item, 0)


@pytest.mark.parametrize(
    ("kind", "choice", "scores", "item"),
    [
        ("pairwise", "third", None, 0),
        ("pairwise", "first", None, 999),
        ("pairwise", None, {"relevance": 3, "coherence": 3, "accuracy": 3}, 0),
        ("likert", None, {"relevance": 3, "coherence": 3}, 0),
        ("likert", None, {"relevance": 3, "coherence": 3, "accuracy": 6}, 0),
        ("likert", "first", None, 0),
    ],
)
def test_what_no_page_asks_for_is_refused(
    context: Context, kind: str, choice: str | None, scores: dict[str, int] | None, item: int
) -> None:
    made = make_panel(context, kind=kind)  # type: ignore[arg-type]
    rater = made.links[0].rater

    def attempt() -> None:
        if choice is not None:
            rating_desk.keep_preference(context, made.panel, rater, item, choice)
        else:
            rating_desk.keep_scores(context, made.panel, rater, item, scores or {})  # type: ignore[arg-type]

    with pytest.raises(RequestError):
        attempt()
    assert not context.rating_panels.ratings(made.panel.panel_id)


def test_comments_that_are_too_long_are_refused_not_cut(context: Context) -> None:
    made = make_panel(context)
    with pytest.raises(RequestError, match="2,001 characters"):
        rating_desk.keep_preference(context, made.panel, made.links[0].rater, 0, "tie", comment="x" * 2001)


@pytest.mark.parametrize("kind", ["pairwise", "likert"])
def test_who_clicks_at_random_is_named_and_figures_stand_with_and_without(context: Context, kind: str) -> None:
    made = make_panel(context, kind=kind, num_rows=30, raters=("Ada", "Ben", "Cleo"))  # type: ignore[arg-type]
    rate_all(context, made, 0, careful(kind, seed=1))  # type: ignore[arg-type]
    rate_all(context, made, 1, careful(kind, seed=2))  # type: ignore[arg-type]
    rate_all(context, made, 2, clicking(kind, seed=3))  # type: ignore[arg-type]
    report = panel_report(context, ME, made.panel.panel_id)
    assert report.caught == ("Cleo",)
    assert any("attention checks" in reason for reason in report.raters[2].caught)
    assert report.without_caught is not None
    assert report.everyone.num_ratings > report.without_caught.num_ratings > 0
    with_, without = (found.agreements[0].estimate.value for found in (report.everyone, report.without_caught))
    assert without > with_ + 0.1
    assert any("nothing is dropped" in caution for caution in report.cautions)


def test_without_checks_a_clicker_stands_out_by_agreeing_with_nobody(context: Context) -> None:
    made = make_panel(context, num_rows=40, attention=0)
    for place in (0, 1):
        rate_all(context, made, place, careful("pairwise", seed=place, noise=0.05))
    rate_all(context, made, 2, clicking("pairwise", seed=3))
    report = panel_report(context, ME, made.panel.panel_id)
    assert report.caught == ("Cleo",)
    assert "no more than chance" in report.raters[2].caught[0]
    assert any("no attention checks" in caution for caution in report.cautions)


def test_who_always_takes_the_left_side_is_caught(context: Context) -> None:
    made = make_panel(context, num_rows=20, attention=0)
    rater, panel = rating_links.rater_of_token(context, made.links[0].token) or pytest.fail("the link lets nobody in")
    for item in range(panel.num_items):
        rating_desk.keep_preference(context, panel, rater, item, "first")
    (reason,) = panel_report(context, ME, panel.panel_id).raters[0].caught
    assert "shown first in 20 of 20" in reason


def test_one_sided_ratings_say_that_kappa_tells_little(context: Context) -> None:
    made = make_panel(context, num_rows=40, raters=("Ada", "Ben"))

    def mostly_b(odd: int) -> object:
        def says(item: RatingItem) -> str:
            if item.check is not None:
                return item.check.preference or "tie"
            return "a" if item.item == odd else "b"

        return says

    rate_all(context, made, 0, mostly_b(0))  # type: ignore[arg-type]
    rate_all(context, made, 1, mostly_b(1))  # type: ignore[arg-type]
    report = panel_report(context, ME, made.panel.panel_id)
    assert report.caught == ()
    agreement = report.everyone.agreements[0]
    assert agreement.raw > 0.9
    assert agreement.estimate.value < 0.4
    assert "the same answer" in agreement.caution
    (rate,) = report.everyone.win_rates
    assert (rate.system, rate.word) == ("tuned", "better")
    assert rate.rate.value > 0.9


def test_more_than_two_systems_are_ranked(context: Context) -> None:
    made = make_panel(context, num_rows=10, systems=("worst", "middle", "best"), raters=2)
    order = {"worst": 0, "middle": 1, "best": 2}

    def says(item: RatingItem) -> str:
        if item.check is not None:
            return item.check.preference or "tie"
        first, second = (order[answer.system] for answer in item.answers)
        return "a" if first > second else "b"

    for place in (0, 1):
        rate_all(context, made, place, says)
    found = panel_report(context, ME, made.panel.panel_id).everyone
    assert [one.system for one in found.standings] == ["best", "middle", "worst"]
    assert len(found.win_rates) == 3


def test_scores_have_means_and_paired_differences(context: Context) -> None:
    made = make_panel(context, kind="likert", num_rows=25, raters=2)
    for place in (0, 1):
        rate_all(context, made, place, careful("likert", seed=place, noise=0.1))
    found = panel_report(context, ME, made.panel.panel_id).everyone
    assert {(one.system, one.criterion) for one in found.scores} == {
        (system, name) for system in ("base", "tuned") for name in ("relevance", "coherence", "accuracy")
    }
    for one in nonempty(found.differences):
        by_system = {s.system: s.mean.value for s in found.scores if s.criterion == one.criterion}
        assert one.difference.value == pytest.approx(by_system["tuned"] - by_system["base"])
    assert {one.measure for one in found.agreements} == {"krippendorff_alpha", "cohen_kappa"}


def test_an_empty_panel_has_a_report(context: Context) -> None:
    made = make_panel(context)
    report = panel_report(context, ME, made.panel.panel_id)
    assert report.everyone.num_ratings == 0
    assert report.caught == ()


def test_other_projects_find_nothing(context: Context) -> None:
    other = Caller(project_id=context.access.add_project("proj-other", "other").project_id)
    made = make_panel(context)
    panel_id, rater_id = made.panel.panel_id, made.links[0].rater.rater_id
    for attempt in (
        lambda: panel_report(context, other, panel_id),
        lambda: ratings_table(context, other.project_id, panel_id),
        lambda: rating_panels.close_panel(context, other, panel_id),
        lambda: rating_links.add_rater(context, other, panel_id, "Eve"),
        lambda: rating_links.renew_link(context, other, panel_id, rater_id),
        lambda: rating_links.revoke_link(context, other, panel_id, rater_id),
    ):
        with pytest.raises(NotFoundError):
            attempt()


def test_links_are_renewed_revoked_and_added(context: Context) -> None:
    made = make_panel(context)
    panel_id, first = made.panel.panel_id, made.links[0]
    again = rating_links.renew_link(context, ME, panel_id, first.rater.rater_id)
    assert rating_links.rater_of_token(context, first.token) is None
    assert rating_links.rater_of_token(context, again.token) is not None
    rating_links.revoke_link(context, ME, panel_id, first.rater.rater_id)
    assert rating_links.rater_of_token(context, again.token) is None
    added = rating_links.add_rater(context, ME, panel_id, " Dora ")
    assert added.rater.name == "Dora"
    with pytest.raises(ConflictError):
        rating_links.add_rater(context, ME, panel_id, "Dora")
    with pytest.raises(RequestError):
        rating_links.add_rater(context, ME, panel_id, "\n")
    # By SQLite: rows are in the write-ahead log first, and closing a file of its own would take its locks away.
    with closing(sqlite3.connect(context.settings.database_path)) as database:
        text = "\n".join(database.iterdump())
    assert panel_id in text
    assert all(link.token not in text for link in (*made.links, again, added)), "only digests are kept"


@pytest.mark.parametrize(
    "wrong",
    [
        {"raters": 0},
        {"raters": 101},
        {"raters": ["Ada", "Ada"]},
        {"raters": ["Ada", ""]},
        {"attention": 0.6},
        {"name": "\x00"},
        {"instructions": "x" * (MAX_INSTRUCTIONS_CHARACTERS + 1)},
    ],
)
def test_panels_that_cannot_be_are_refused(context: Context, wrong: dict[str, object]) -> None:
    with pytest.raises(RequestError):
        create_panel(context, ME, answered_rows(3), kind="pairwise", **wrong)  # type: ignore[arg-type]
    assert rating_panels.list_panels(context, ME) == []


def test_one_system_alone_can_only_be_scored(context: Context) -> None:
    with pytest.raises(RequestError, match="two systems"):
        create_panel(context, ME, answered_rows(3, ("base",)), kind="pairwise")
    assert create_panel(context, ME, answered_rows(3, ("base",)), kind="likert").panel.num_items == 5


def test_answers_come_from_an_evaluation(context: Context) -> None:
    evaluation = make_evaluation(run_id=None)
    names = tuple(system.name for system in evaluation.systems if system.samples)
    found = answers_of(evaluation, most_rows=1)
    assert (found.systems, len(found.rows)) == (names, 1)
    assert set(found.rows[0].answers) == set(names)
    with pytest.raises(RequestError, match="has no answers"):
        answers_of(evaluation, ["nobody", names[0]])
    with pytest.raises(RequestError, match="each named once"):
        answers_of(evaluation, [names[0], names[0]])


def test_raters_see_the_tool_calls_of_an_answer() -> None:
    calls = ({"id": "c1", "type": "function", "function": {"name": "price", "arguments": '{"wood": "maple"}'}}, {})
    evaluation = make_evaluation("eval-1")
    changed = {"output": "", "tool_calls": calls}
    calling = [
        one.model_copy(update={"samples": tuple(sample.model_copy(update=changed) for sample in one.samples)})
        for one in evaluation.systems
    ]
    found = answers_of(evaluation.model_copy(update={"systems": tuple(calling)}), most_rows=1)
    (row,) = found.rows
    written = '<tool_call>{"name": "price", "arguments": {"wood": "maple"}}</tool_call>'
    assert list(row.answers.values()) == [written] * len(found.systems)


def test_systems_answer_rows_now(context: Context, tiny_model: Path, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "rows.jsonl", [chat_row(n) for n in range(4)])
    found = answer_rows(context, [str(tiny_model)], data, most_rows=3, max_new_tokens=4)
    assert (len(found.rows), found.num_left_out) == (3, 0)
    assert found.rows[0].prompt.startswith("What comes after")
    assert found.rows[0].reference.startswith("After")
    text = write_rows(tmp_path / "text.jsonl", [{"text": "only text"}])
    with pytest.raises(RequestError, match="no prompt"):
        answer_rows(context, [str(tiny_model)], text)


def test_rows_that_a_run_was_trained_on_are_refused(
    context: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from luthier.features.evaluations import leakage
    from luthier.ml.data.rows.formats import load_file

    data = write_rows(tmp_path / "rows.jsonl", [chat_row(n) for n in range(4)])
    monkeypatch.setattr(leakage, "training_rows", lambda *_: list(load_file(data).examples))
    with pytest.raises(LeakageError, match="4 of 4"):
        answer_rows(context, ["smollm2-135m-instruct"], data)
