"""What ratings say of systems, and how far raters agree: every figure with its interval.

Ratings of one row are not independent: intervals and tests draw rows, each with all that was said of it.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any, Final, Literal

import numpy as np

from luthier.core.errors import RequestError
from luthier.core.records.bounds import UNIT, Bounds
from luthier.core.results.human_eval import RatingRow, RatingsTable
from luthier.core.results.human_eval_report import (
    Agreement,
    AgreementMeasure,
    Estimate,
    MeanScore,
    PanelFigures,
    ScoreDifference,
    Standing,
    WinRate,
)
from luthier.core.results.suite import Criterion
from luthier.ml.evaluation import statistics
from luthier.ml.evaluation.agreement import cohen_kappa, fleiss_kappa, krippendorff_alpha
from luthier.ml.evaluation.metrics.protocol import mean_of_sums
from luthier.ml.evaluation.panel.values import Array, matrix, value_of
from luthier.ml.evaluation.ranking import bradley_terry

_SEED: Final = 0
_SCORES: Final = Bounds(1.0, 5.0)
"""What people give an answer for a criterion."""
_PARADOX_RAW: Final = 0.75
_PARADOX_BELOW: Final = 0.4
_PARADOX_SHARE: Final = 0.75


def panel_figures(table: RatingsTable) -> PanelFigures:
    """All figures of the real items that were rated.

    Args:
        table: attention checks are left out here.
    """
    real = table.real
    criteria: Sequence[Criterion | None] = (None,) if table.kind == "pairwise" else real.criteria
    agreements = [one for criterion in criteria for one in _agreements(real, criterion)]
    common = {"num_raters": len(real.raters), "num_ratings": len(real.rows), "agreements": tuple(agreements)}
    if not real.rows:
        return PanelFigures.model_validate(common)
    if table.kind == "pairwise":
        return PanelFigures.model_validate(common | {"win_rates": _win_rates(real)} | _ranking(real))
    return PanelFigures.model_validate(common | {"scores": _scores(real), "differences": _differences(real)})


def _agreements(table: RatingsTable, criterion: Criterion | None) -> list[Agreement]:
    """Alpha, and where it can be had kappa, of all items that at least two have rated."""
    raters = table.raters
    ratings = matrix(table, raters, value_of(criterion))
    # [raters, items], NaN where a rater has not rated: only items with two ratings say something of agreement.
    ratings = ratings[:, (~np.isnan(ratings)).sum(axis=0) >= 2]
    if len(raters) < 2 or ratings.shape[1] < 2:
        return []
    known = ratings[~np.isnan(ratings)]
    raw, categories = _raw(ratings), sorted(set(known.tolist()))
    level: Literal["nominal", "ordinal"] = "nominal" if criterion is None else "ordinal"
    found: list[tuple[AgreementMeasure, statistics.Interval, int]] = []
    if len(categories) > 1:
        found.append(("krippendorff_alpha", krippendorff_alpha(ratings, level), ratings.shape[1]))
        # Kappa needs every rating of an item; alpha does not.
        whole = ratings[:, ~np.isnan(ratings).any(axis=0)]
        if whole.shape[1] >= 2 and np.ptp(whole) > 0:
            if len(raters) == 2:
                weights: Literal["quadratic"] | None = None if criterion is None else "quadratic"
                found.append(("cohen_kappa", cohen_kappa(whole[0], whole[1], weights=weights), whole.shape[1]))
            else:
                counts = np.stack([(whole == value).sum(axis=0) for value in categories], axis=1)
                found.append(("fleiss_kappa", fleiss_kappa(counts), whole.shape[1]))
    share = max(Counter(known.tolist()).values()) / len(known)
    return [
        Agreement(
            measure=measure,
            criterion=criterion,
            estimate=_estimate(interval),
            raw=raw,
            num_items=num_items,
            num_raters=len(raters),
            caution=_paradox(interval.value, raw, share),
        )
        for measure, interval, num_items in found
        if np.isfinite(interval).all()
    ]


def _paradox(value: float, raw: float, share: float) -> str:
    """Feinstein and Cicchetti, "High agreement but low kappa: I. The problems of two paradoxes", 1990."""
    if raw < _PARADOX_RAW or value >= _PARADOX_BELOW or share < _PARADOX_SHARE:
        return ""
    return (
        f"Raters said the same in {raw:.0%} of pairs, and {share:.0%} of ratings are one and the same answer: with so "
        "little to tell apart, agreement beyond chance is low whatever the raters do. Look at the share, not at this."
    )


def _raw(ratings: Array) -> float:
    """Of all pairs of ratings of one item, the share that says the same."""
    same = pairs = 0
    for column in ratings.T:
        counts = Counter(column[~np.isnan(column)].tolist())
        number = counts.total()
        pairs += number * (number - 1)
        same += sum(count * (count - 1) for count in counts.values())
    return same / pairs


def _win_rates(table: RatingsTable) -> tuple[WinRate, ...]:
    """Each system against each one before it, in the order of their names."""
    found = []
    for against, system in itertools.combinations(table.systems, 2):
        rows = [row for row in table.rows if {row.system_a, row.system_b} == {against, system}]
        if not rows:
            continue
        wins = np.array([_won(row, system) for row in rows])
        own = np.stack([np.where(wins == 1, 1.0, np.where(wins == 0, 0.5, 0.0)), np.ones(len(rows))], axis=1)
        # The other side's points on the same rows, so that the paired test asks whether the rate differs from a half.
        theirs = np.stack([1 - own[:, 0], own[:, 1]], axis=1)
        # Several ratings of one row are drawn together.
        clusters = [row.row_id for row in rows]
        rate = statistics.bootstrap_interval(own, mean_of_sums, bounds=UNIT, seed=_SEED, clusters=clusters)
        difference = statistics.paired_bootstrap(own, theirs, mean_of_sums, bounds=UNIT, seed=_SEED, clusters=clusters)
        found.append(
            WinRate(
                system=system,
                against=against,
                num_rows=len(set(clusters)),
                num_wins=int((wins == 1).sum()),
                num_losses=int((wins == -1).sum()),
                num_ties=int((wins == 0).sum()),
                rate=_estimate(rate),
                p_value=difference.p_value,
                word=statistics.verdict_word(difference, higher_is_better=True),
                rows_needed=_needed(difference, len(set(clusters))),
            )
        )
    return tuple(found)


def _ranking(table: RatingsTable) -> dict[str, Any]:
    """All systems, the strongest first; two have only their win rate."""
    names, rows = table.systems, sorted({row.row_id for row in table.rows})
    if len(names) < 3:
        return {}
    place = {name: number for number, name in enumerate(names)}
    which = {row_id: number for number, row_id in enumerate(rows)}
    wins = np.zeros((len(rows), len(names), len(names)))
    for row in table.rows:
        if row.system_b is not None:
            first, second, won = place[row.system_a], place[row.system_b], _won(row, row.system_a)
            # [rows, systems, systems]: -1, 0 and 1 become 0, half and a whole win.
            wins[which[row.row_id], first, second] += (1 + won) / 2
            wins[which[row.row_id], second, first] += (1 - won) / 2
    try:
        ranking = bradley_terry(wins)
    except RequestError as error:  # systems that never met: too little is rated yet
        return {"ranking_caution": f"There is no ranking yet: {error.came}."}
    found = [
        Standing(system=name, value=one.value, low=_finite(one.low), high=_finite(one.high))
        for name, one in zip(names, ranking.strengths, strict=True)
    ]
    caution = (
        "Some systems were preferred to others without exception, so that their strength has no upper or lower end; "
        "half a win was added to each side of every pair."
    )
    standings = tuple(sorted(found, key=lambda one: -one.value))
    return {"standings": standings, "ranking_caution": caution if ranking.is_penalised else ""}


def _finite(end: float) -> float | None:
    return end if math.isfinite(end) else None


def _scores(table: RatingsTable) -> tuple[MeanScore, ...]:
    found = []
    for criterion in table.criteria:
        for system in table.systems:
            stats, clusters = _sums(table, system, criterion)
            mean = statistics.bootstrap_interval(stats, mean_of_sums, bounds=_SCORES, seed=_SEED, clusters=clusters)
            found.append(MeanScore(system=system, criterion=criterion, num_ratings=len(stats), mean=_estimate(mean)))
    return tuple(found)


def _differences(table: RatingsTable) -> tuple[ScoreDifference, ...]:
    """Each system less each one before it, over the rows of which both answers were rated."""
    found = []
    for criterion, (against, system) in itertools.product(table.criteria, itertools.combinations(table.systems, 2)):
        sides = [dict(_by_row(*_sums(table, name, criterion))) for name in (system, against)]
        shared = [row_id for row_id in sides[0] if row_id in sides[1]]
        if not shared:
            continue
        own, theirs = (np.array([side[row_id] for row_id in shared]) for side in sides)
        difference = statistics.paired_bootstrap(own, theirs, mean_of_sums, bounds=_SCORES, seed=_SEED)
        found.append(
            ScoreDifference(
                system=system,
                against=against,
                criterion=criterion,
                difference=Estimate(value=difference.difference, low=difference.low, high=difference.high),
                p_value=difference.p_value,
                word=statistics.verdict_word(difference, higher_is_better=True),
                rows_needed=_needed(difference, len(shared)),
            )
        )
    return tuple(found)


def _sums(table: RatingsTable, system: str, criterion: Criterion) -> tuple[Array, list[str]]:
    """[ratings, 2] (score, one) of a system's answers, and the row of each."""
    rows = [(row, score) for row in table.rows if row.system_a == system if (score := row.score(criterion)) is not None]
    return np.array([[float(score), 1.0] for _, score in rows]), [row.row_id for row, _ in rows]


def _by_row(stats: Array, clusters: Sequence[str]) -> list[tuple[str, Array]]:
    found: dict[str, Array] = {}
    for row_id, sums in zip(clusters, stats, strict=True):
        found[row_id] = found.get(row_id, np.zeros(2)) + sums
    return list(found.items())


def _won(row: RatingRow, system: str) -> int:
    """1 where the system is preferred, 0 for a tie, -1 where the other one is."""
    if row.preference == "tie":
        return 0
    preferred = row.system_a if row.preference == "a" else row.system_b
    return 1 if preferred == system else -1


def _needed(difference: statistics.Difference, num_rows: int) -> int | None:
    if statistics.is_settled(difference):
        return None
    return statistics.rows_needed(difference.difference, difference.standard_error, num_rows)


def _estimate(interval: statistics.Interval) -> Estimate:
    return Estimate(value=interval.value, low=interval.low, high=interval.high)
