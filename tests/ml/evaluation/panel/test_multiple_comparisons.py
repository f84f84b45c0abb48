"""Several comparisons of one panel are several tests: a difference that one of them shows by chance is no verdict."""

from __future__ import annotations

from itertools import combinations

import pytest

from luthier.core.results.human_eval import Rater, RatingPanel, RatingRow, RatingsTable
from luthier.ml.evaluation.panel import panel_figures, report

NUM_ROWS = 30
SYSTEMS = ("one", "three", "two")
LEVEL = 0.05


def pair(first: str, second: str, num_second: int) -> list[RatingRow]:
    """Ratings of one person of two systems, of which the second is preferred in so many rows."""
    return [
        RatingRow.model_validate(
            {
                "panel_id": "panel-1",
                "kind": "pairwise",
                "item": row,
                "row_id": f"r:{first}:{row}",
                "rater": "Ada",
                "prompt": "Why?",
                "system_a": first,
                "answer_a": "so",
                "system_b": second,
                "answer_b": "thus",
                "preference": "b" if row < num_second else "a",
                "shown_first": "a",
                "is_check": False,
                "passed": None,
                "seconds": 20.0,
            }
        )
        for row in range(NUM_ROWS)
    ]


def p_values(rows: list[RatingRow]) -> dict[tuple[str, str], float]:
    return {(one.against, one.system): one.p_value for one in panel_figures(RatingsTable(tuple(rows))).win_rates}


@pytest.fixture(scope="module")
def barely() -> int:
    """So many wins that a panel of two systems just calls the second one better."""
    return next(
        num for num in range(NUM_ROWS // 2, NUM_ROWS) if p_values(pair("one", "two", num))["one", "two"] < LEVEL
    )


def test_a_pair_alone_is_better_and_among_three_it_is_not(barely: int) -> None:
    alone = RatingsTable(tuple(pair("one", "two", barely)))
    (rate,) = panel_figures(alone).win_rates
    assert (rate.system, rate.word) == ("two", "better")
    half = NUM_ROWS // 2
    rows = [*pair("one", "two", barely), *pair("one", "three", half), *pair("three", "two", half)]
    found = {(one.against, one.system): one for one in panel_figures(RatingsTable(tuple(rows))).win_rates}
    assert list(found) == list(combinations(SYSTEMS, 2))
    assert {one.word for one in found.values()} == {"not distinguishable"}
    among = found["one", "two"]
    # Holm: the smallest of three p-values is multiplied by three.
    assert among.p_value == pytest.approx(3 * rate.p_value)
    assert among.rate == rate.rate, "the interval is that of the pair alone"
    assert among.rows_needed is not None


def test_the_report_says_that_p_values_are_adjusted(barely: int) -> None:
    rows = [*pair("one", "two", barely), *pair("one", "three", 15), *pair("three", "two", 15)]
    panel = RatingPanel(
        panel_id="panel-1", name="n", kind="pairwise", systems=SYSTEMS, source="s", seed=0, num_items=90, num_checks=0
    )
    people = [Rater(rater_id="rater-1", panel_id="panel-1", name="Ada")]
    said = "3 comparisons were made; p-values are adjusted for that (Holm)."
    assert said in report(panel, people, RatingsTable(tuple(rows))).cautions
    alone = report(panel, people, RatingsTable(tuple(pair("one", "two", barely))))
    assert not any("Holm" in one for one in alone.cautions)
