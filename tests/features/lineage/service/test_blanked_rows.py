"""Work that reads stored rows later takes no `[forgotten]` for somebody's text, and says how many rows it left out."""

from __future__ import annotations

import pytest
from tests.assessed import make_panel, rate_all

from luthier.core.access import Caller
from luthier.core.errors import RequestError
from luthier.core.evaluation import Evaluation
from luthier.features.human_eval import rating_view
from luthier.features.human_eval.files import preference_pairs
from luthier.features.human_eval.items import answers_of
from luthier.features.human_eval.service import create_panel, panel_report, rater_of_token
from luthier.features.judges.service import people_ratings
from luthier.features.lineage.forget import forget_row
from luthier.platform.db.stored_texts import FORGOTTEN
from luthier.platform.home.context import Context
from luthier.testing.records import make_evaluation

ME = Caller()


def with_rows(num_rows: int) -> Evaluation:
    made = make_evaluation()

    def samples(name: str) -> tuple:  # type: ignore[type-arg]
        (one,) = made.systems[0].samples
        return tuple(
            one.model_copy(
                update={
                    "row_id": f"t.jsonl:{number}",
                    "prompt": f"Where is order {number} of Ann Example?",
                    "reference": f"Order {number} is at the door.",
                    "output": f"{name} has seen order {number}.",
                }
            )
            for number in range(num_rows)
        )

    systems = tuple(one.model_copy(update={"samples": samples(one.name)}) for one in made.systems)
    return made.model_copy(update={"systems": systems})


def test_a_forgotten_item_of_a_panel_is_not_shown_judged_or_trained_on(context: Context) -> None:
    made = make_panel(context, num_rows=6, attention=0.0)
    panel_id = made.panel.panel_id
    for place in (0, 1):
        rate_all(context, made, place, lambda _: "a")
    items = context.rating_panels.items(panel_id)
    asked, said = items[2], items[4]
    forget_row(context, ME, asked.prompt)
    forget_row(context, ME, said.answers[1].text)
    assert context.rating_panels.item(panel_id, said.item).answers[1].text == FORGOTTEN
    # A rater who comes later.
    found = rater_of_token(context, made.links[2].token)
    assert found is not None
    shown = set[int]()
    for item in items:
        view = rating_view.next_item(context, found[1], found[0])
        if view.item is not None:
            shown.add(view.item.item)
            rating_view.keep_preference(context, found[1], found[0], view.item.item, "tie")
        assert item.check is None
    assert shown == {item.item for item in items} - {asked.item, said.item}
    assert rating_view.next_item(context, found[1], found[0]).item is None
    # The judge is compared on the others, and the figures of people stay.
    table, _, cautions = people_ratings(context, "default", panel=panel_id)
    assert set(table.by_item()) == shown
    assert cautions == ("Items that are left out, because their texts were forgotten: 2.",)
    pairs = preference_pairs(context, ME, panel_id, with_caught=True)
    assert pairs.left_out == {"its texts were forgotten": 2}
    assert len(pairs.rows) == 4
    assert all(FORGOTTEN not in row.values() for row in pairs.rows)
    assert {row.num_rated for row in panel_report(context, ME, panel_id).raters} == {4, 6}


def test_scores_of_a_forgotten_answer_make_no_pair(context: Context) -> None:
    made = make_panel(context, kind="likert", num_rows=2, attention=0.0)
    for place in range(3):
        rate_all(
            context, made, place,
            lambda item: dict.fromkeys(made.panel.criteria, 5 if item.answers[0].system == "tuned" else 1),
        )  # fmt: skip
    assert len(preference_pairs(context, ME, made.panel.panel_id, with_caught=True).rows) == 2
    last = context.rating_panels.items(made.panel.panel_id)[-1]
    forget_row(context, ME, last.answers[0].text)
    pairs = preference_pairs(context, ME, made.panel.panel_id, with_caught=True)
    assert (len(pairs.rows), pairs.left_out) == (1, {"its texts were forgotten": 1})


def test_a_panel_of_an_evaluation_leaves_out_what_was_forgotten(context: Context) -> None:
    context.evaluations.save(with_rows(4))
    evaluation_id = with_rows(4).evaluation_id
    for words in ("Where is order 1 of Ann Example?", "tuned has seen order 2.", "Order 3 is at the door."):
        forget_row(context, ME, words)
    answered = answers_of(context.evaluations.get(evaluation_id), ("base", "tuned"))
    assert [row.row_id for row in answered.rows] == ["t.jsonl:0", "t.jsonl:3"]
    assert [row.reference for row in answered.rows] == ["Order 0 is at the door.", ""]
    assert answered.num_forgotten == 2
    made = create_panel(context, ME, answered, kind="pairwise", attention=0.0)
    assert (made.panel.num_items, made.panel.num_forgotten) == (2, 2)
    cautions = panel_report(context, ME, made.panel.panel_id).cautions
    assert "Rows that are not rated, because their texts were forgotten: 2." in cautions
    forget_row(context, ME, "of Ann Example?")
    with pytest.raises(RequestError, match="were forgotten"):
        answers_of(context.evaluations.get(evaluation_id), ("base", "tuned"))
