"""Who reads and who clicks: caught where it can be seen, and careful raters let alone."""

from __future__ import annotations

import numpy as np
import pytest

from luthier.core.results.human_eval import Rater, RatingPanel, RatingRow, RatingsTable
from luthier.ml.evaluation.panel import panel_figures, rater_reports, report

NAMES = ("Ada", "Ben", "Cleo", "Random")
CHOICES = ("a", "b", "tie")


def simulated(seed: int, *, num_items: int = 40, num_checks: int = 4, slips: float = 0.15) -> RatingsTable:
    """Three who read and slip at times, and one who clicks; of each item there is a truth, mostly no tie."""
    drawn = np.random.default_rng(seed)
    truth = drawn.choice(CHOICES, size=num_items, p=(0.4, 0.45, 0.15))
    rows = []
    for name in NAMES:
        for item in range(num_items + num_checks):
            is_check = item >= num_items
            meant = "a" if is_check else str(truth[item])
            is_random = name == "Random" or drawn.random() < (0.03 if is_check else slips)
            said = str(drawn.choice(CHOICES)) if is_random else meant
            rows.append(_row(name, item, said, "ab"[int(drawn.integers(2))], is_check))
    return RatingsTable(tuple(rows))


def _row(name: str, item: int, said: str, shown_first: str, is_check: bool, seconds: float = 20.0) -> RatingRow:
    values = {"panel_id": "panel-1", "kind": "pairwise", "item": item, "row_id": f"r:{item}", "rater": name}
    texts = {"prompt": "Why?", "system_a": "base", "answer_a": "so", "system_b": "tuned", "answer_b": "thus"}
    passed = said == "a" if is_check else None
    rated = {"preference": said, "shown_first": shown_first, "is_check": is_check, "passed": passed, "seconds": seconds}
    return RatingRow.model_validate(values | texts | rated)


def panel_of(table: RatingsTable) -> tuple[RatingPanel, list[Rater]]:
    num_items = len(table.by_item())
    checks = len({row.item for row in table.rows if row.is_check})
    panel = RatingPanel(
        panel_id="panel-1",
        name="n",
        kind="pairwise",
        systems=("base", "tuned"),
        source="s",
        seed=0,
        num_items=num_items,
        num_checks=checks,
    )
    people = [Rater(rater_id=f"rater-{n}", panel_id="panel-1", name=name) for n, name in enumerate(table.raters)]
    return panel, people


def caught_in(table: RatingsTable) -> tuple[str, ...]:
    return tuple(one.name for one in rater_reports(*panel_of(table), table) if one.caught)


def rates(num_panels: int, num_checks: int) -> tuple[float, float]:
    """How often the one who clicks is caught, and how often one who reads is."""
    found = [caught_in(simulated(seed, num_checks=num_checks)) for seed in range(num_panels)]
    clickers = sum("Random" in one for one in found) / num_panels
    careful = sum(len(set(one) - {"Random"}) for one in found) / (3 * num_panels)
    return clickers, careful


@pytest.mark.parametrize(("num_checks", "least"), [(4, 0.8), (0, 0.5)])
def test_clickers_are_caught_and_readers_let_alone(num_checks: int, least: float) -> None:
    clickers, careful = rates(12, num_checks)
    assert clickers >= least
    assert careful == 0


@pytest.mark.drill
@pytest.mark.parametrize(("num_checks", "least"), [(4, 0.9), (0, 0.5)])
def test_rates_of_catching_over_many_panels(num_checks: int, least: float) -> None:
    clickers, careful = rates(200, num_checks)
    assert clickers >= least, f"{num_checks} checks: {clickers:.1%} of clickers caught"
    assert careful <= 0.01, f"{num_checks} checks: {careful:.1%} of readers caught"


def test_of_two_who_disagree_nobody_is_blamed() -> None:
    table = simulated(0, num_checks=0).where(lambda row: row.rater in ("Ada", "Random"))
    assert caught_in(table) == ()


def test_one_failed_check_proves_nothing() -> None:
    table = simulated(1)
    first = next(n for n, row in enumerate(table.rows) if row.rater == "Ada" and row.is_check)
    slipped = table.rows[first].model_copy(update={"preference": "b", "passed": False})
    rows = (*table.rows[:first], slipped, *table.rows[first + 1 :])
    assert "Ada" not in caught_in(RatingsTable(rows))


def test_haste_sameness_and_drift_are_noted_not_punished() -> None:
    drawn = np.random.default_rng(3)
    rows = []
    for item in range(60):
        truth = "ab"[int(drawn.integers(2))]
        rows.append(_row("Ada", item, truth, "ab"[item % 2], False))
        rows.append(_row("Ben", item, truth, "ab"[item % 2], False, seconds=0.1))
        tired = truth if drawn.random() > item / 60 else "tie"
        rows.append(_row("Cleo", item, tired, "ab"[item % 2], False))
        rows.append(_row("Dora", item, "tie", "ab"[item % 2], False))
    table = RatingsTable(tuple(rows))
    reports = {one.name: one for one in rater_reports(*panel_of(table), table)}
    assert any("words a minute" in note for note in reports["Ben"].notes)
    assert any("agreement with the others" in note and "falls" in note for note in reports["Cleo"].notes)
    assert any("'tie' for 100%" in note for note in reports["Dora"].notes)
    assert reports["Ada"].median_seconds == 20.0


def test_a_report_says_what_it_does_not_know() -> None:
    table = simulated(2, num_checks=0).where(lambda row: row.rater == "Ada" and row.item < 20)
    panel, people = panel_of(table)
    found = report(panel.model_copy(update={"num_items": 40, "num_same": 3, "num_left_out": 1}), people, table)
    told = "\n".join(found.cautions)
    for words in (
        "Ada (20 of 40)",
        "3 pairs are not shown",
        "1 row was too long",
        "no attention checks",
        "One rater",
    ):
        assert words in told
    assert found.everyone.agreements == ()


def test_more_raters_of_a_row_do_not_make_it_surer() -> None:
    """Intervals draw rows: ten people who all repeat one opinion know no more than one of them."""
    one = simulated(4, num_checks=0).where(lambda row: row.rater == "Ada")
    many = RatingsTable(tuple(row.model_copy(update={"rater": f"r{n}"}) for n in range(10) for row in one.rows))
    (single,), (repeated,) = panel_figures(one).win_rates, panel_figures(many).win_rates
    assert single.rate.value == pytest.approx(repeated.rate.value)
    assert repeated.rate.high - repeated.rate.low == pytest.approx(single.rate.high - single.rate.low, rel=0.02)


def test_scores_that_nobody_gave_keep_their_place_on_the_scale() -> None:
    """Two raters who used 1, 2 and 5 alone: from 2 to 5 is three times as far as from 1 to 2."""
    said = {"Ada": [1, 2, 5, 5, 2, 1, 5, 2, 1, 5], "Ben": [1, 5, 5, 5, 2, 2, 5, 2, 1, 2]}
    values = {"panel_id": "panel-1", "kind": "likert", "prompt": "Why?", "system_a": "base", "answer_a": "so"}
    rows = [
        RatingRow.model_validate(values | {"item": item, "row_id": f"r:{item}", "rater": name, "accuracy": score})
        for name, scores in said.items()
        for item, score in enumerate(scores)
    ]
    agreements = panel_figures(RatingsTable(tuple(rows))).agreements
    (kappa,) = (one for one in agreements if one.measure == "cohen_kappa")
    ada, ben = (np.array(scores, dtype=float) for scores in said.values())
    # With squared distances: what raters differ by, over what any rating of one and any of the other differ by.
    by_chance = ((ada[:, None] - ben[None, :]) ** 2).mean()
    assert kappa.estimate.value == pytest.approx(1 - ((ada - ben) ** 2).mean() / by_chance)
