"""The report of a panel of human raters: figures of the systems, agreement, and possibly careless raters.

Ratings of one row are not independent: intervals and tests draw rows, each with all ratings of it.

Attention checks, agreement with the others, position habits, speed and drift indicate careless raters. No rater is
excluded: they are listed with the reason, and figures are given with and without them. The rules and their limitations
are in docs/human_eval.md.

Sources: Meade and Craig, "Identifying Careless Responses in Survey Data", 2012 (checks, long strings); Chmielewski and
Kucker, "An MTurk Crisis?", 2020 (one failed check proves nothing).
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

from luthier.core.errors import RequestError
from luthier.core.estimate import Estimate
from luthier.core.records.bounds import UNIT, Bounds
from luthier.core.results.human_eval import Rater, RatingPanel, RatingRow, RatingsTable
from luthier.core.results.human_eval_report import (
    Agreement,
    AgreementMeasure,
    Drift,
    MeanScore,
    PanelFigures,
    PanelReport,
    RaterReport,
    ScoreDifference,
    SystemStrength,
    WinRate,
)
from luthier.core.results.suite import Criterion
from luthier.core.text.counted import counted
from luthier.ml.evaluation import statistics
from luthier.ml.evaluation.agreement import cohen_kappa, drift_of, fleiss_kappa, krippendorff_alpha
from luthier.ml.evaluation.metrics.protocol import mean_of_sums
from luthier.ml.evaluation.ranking import bradley_terry

Array = NDArray[np.float64]
_Test = tuple[dict[str, Any], statistics.Difference, int]
"""A comparison of two systems: fields of its record, the difference, and its rows."""
PREFERENCE_VALUES: Final = {"a": 1.0, "tie": 0.0, "b": -1.0}


def overall(row: RatingRow) -> float:
    """A rating as one number: 1, 0 or -1 for the first answer, a tie, the second; for scores their mean."""
    if row.preference is not None:
        return PREFERENCE_VALUES[row.preference]
    scores = [score for name in ("relevance", "coherence", "accuracy", "helpfulness") if (score := _score(row, name))]
    return sum(scores) / len(scores)


def value_of(criterion: Criterion | None) -> Callable[[RatingRow], float]:
    """A function from a rating to a number: the score for a criterion, or with None the preference."""

    def value(row: RatingRow) -> float:
        found = overall(row) if criterion is None else row.score(criterion)
        return float("nan") if found is None else float(found)

    return value


def matrix(table: RatingsTable, raters: Sequence[str], value: Callable[[RatingRow], float]) -> Array:
    """[raters, items], NaN for missing ratings; items in order of their numbers."""
    items = {number: place for place, number in enumerate(sorted({row.item for row in table.rows}))}
    rows = {name: place for place, name in enumerate(raters)}
    found = np.full((len(raters), len(items)), np.nan)
    for row in table.rows:
        if row.rater in rows:
            found[rows[row.rater], items[row.item]] = value(row)
    return found


def against_others(table: RatingsTable, rater: str, others: Sequence[str]) -> tuple[Array, Array]:
    """A rater's ratings and the mean of the others, for each item that both have rated, in the rater's order."""
    said = table.by_item()
    own, mean = [], []
    for row in table.rows:
        if row.rater != rater:
            continue
        theirs = [overall(one) for one in said[row.item] if one.rater in others and one.rater != rater]
        if theirs:
            # In the order of rating, as needed for drift.
            own.append(overall(row))
            mean.append(sum(theirs) / len(theirs))
    return np.array(own), np.array(mean)


def _score(row: RatingRow, name: str) -> int | None:
    found: int | None = getattr(row, name)
    return found


_SEED: Final = 0
_SCORES: Final = Bounds(1.0, 5.0)
"""The scores of people for a criterion."""
_PARADOX_RAW: Final = 0.75
_PARADOX_BELOW: Final = 0.4
_PARADOX_SHARE: Final = 0.75


def panel_figures(table: RatingsTable) -> PanelFigures:
    """All figures of the real items that were rated.

    Args:
        table: all ratings; attention checks are excluded here.
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
    """Alpha and, if defined, kappa of all items with at least two ratings."""
    raters = table.raters
    ratings = matrix(table, raters, value_of(criterion))
    # [raters, items], NaN for missing ratings: only items with two ratings are informative.
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
                # The whole scale: without the scores that nobody gave, 2 and 5 would be neighbours.
                scale = None if criterion is None else (1.0, 2.0, 3.0, 4.0, 5.0)
                kappa = cohen_kappa(whole[0], whole[1], weights=weights, labels=scale)
                found.append(("cohen_kappa", kappa, whole.shape[1]))
            else:
                counts = np.stack([(whole == value).sum(axis=0) for value in categories], axis=1)
                found.append(("fleiss_kappa", fleiss_kappa(counts), whole.shape[1]))
    share = max(Counter(known.tolist()).values()) / len(known)
    return [
        Agreement(
            measure=measure,
            criterion=criterion,
            estimate=Estimate.of(interval),
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
        f"Raters agreed in {raw:.0%} of pairs, and {share:.0%} of ratings are the same answer: with so little "
        "variation, agreement beyond chance is low in any case. Look at the share, not at this."
    )


def _raw(ratings: Array) -> float:
    """The share of equal pairs among all pairs of ratings of one item."""
    same = pairs = 0
    for column in ratings.T:
        counts = Counter(column[~np.isnan(column)].tolist())
        number = counts.total()
        pairs += number * (number - 1)
        same += sum(count * (count - 1) for count in counts.values())
    return same / pairs


def _win_rates(table: RatingsTable) -> tuple[WinRate, ...]:
    """Each system against each previous one, in the order of their names."""
    found: list[_Test] = []
    for against, system in itertools.combinations(table.systems, 2):
        rows = [row for row in table.rows if {row.system_a, row.system_b} == {against, system}]
        if not rows:
            continue
        wins = np.array([_won(row, system) for row in rows])
        own = np.stack([np.where(wins == 1, 1.0, np.where(wins == 0, 0.5, 0.0)), np.ones(len(rows))], axis=1)
        # The other side's points on the same rows, so that the paired test compares the rate with one half.
        theirs = np.stack([1 - own[:, 0], own[:, 1]], axis=1)
        # Several ratings of one row are drawn together.
        clusters = [row.row_id for row in rows]
        rate = statistics.bootstrap_interval(own, mean_of_sums, bounds=UNIT, seed=_SEED, clusters=clusters)
        difference = statistics.paired_bootstrap(own, theirs, mean_of_sums, bounds=UNIT, seed=_SEED, clusters=clusters)
        num = Counter(wins.tolist())
        counts = {"num_wins": num[1], "num_losses": num[-1], "num_ties": num[0], "rate": Estimate.of(rate)}
        names = {"system": system, "against": against, "num_rows": len(set(clusters))}
        found.append((names | counts, difference, len(set(clusters))))
    return tuple(WinRate.model_validate(one) for one in _judged(found))


def _ranking(table: RatingsTable) -> dict[str, Any]:
    """All systems, strongest first; two systems have only their win rate."""
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
    except RequestError as error:  # systems that were never compared: too few ratings yet
        return {"ranking_caution": f"There is no ranking yet: {error.came}."}
    found = [
        SystemStrength(system=name, value=one.value, low=_finite(one.low), high=_finite(one.high))
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
            found.append(MeanScore(system=system, criterion=criterion, num_ratings=len(stats), mean=Estimate.of(mean)))
    return tuple(found)


def _differences(table: RatingsTable) -> tuple[ScoreDifference, ...]:
    """Each system minus each previous one, over the rows with ratings of both answers."""
    found: list[_Test] = []
    for criterion, (against, system) in itertools.product(table.criteria, itertools.combinations(table.systems, 2)):
        sides = [dict(_by_row(*_sums(table, name, criterion))) for name in (system, against)]
        shared = [row_id for row_id in sides[0] if row_id in sides[1]]
        if not shared:
            continue
        own, theirs = (np.array([side[row_id] for row_id in shared]) for side in sides)
        difference = statistics.paired_bootstrap(own, theirs, mean_of_sums, bounds=_SCORES, seed=_SEED)
        apart = Estimate(value=difference.difference, low=difference.low, high=difference.high)
        names = {"system": system, "against": against, "criterion": criterion, "difference": apart}
        found.append((names, difference, len(shared)))
    return tuple(ScoreDifference.model_validate(one) for one in _judged(found))


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
    """1 if the system is preferred, 0 for a tie, -1 if the other one is."""
    if row.preference == "tie":
        return 0
    preferred = row.system_a if row.preference == "a" else row.system_b
    return 1 if preferred == system else -1


def _judged(found: Sequence[_Test]) -> Iterator[dict[str, Any]]:
    """The fields of each test with what follows from it; p-values are adjusted for their number (Holm, 1979)."""
    adjusted = statistics.holm([one.p_value for _, one, _ in found])
    for (fields, difference, num_rows), p_value in zip(found, adjusted, strict=True):
        one = difference._replace(p_value=p_value)
        word, needed = statistics.verdict_word(one, higher_is_better=True), _needed(one, num_rows)
        yield fields | {"p_value": p_value, "word": word, "rows_needed": needed}


def _needed(difference: statistics.Difference, num_rows: int) -> int | None:
    if statistics.is_settled(difference):
        return None
    return statistics.rows_needed(difference.difference, difference.standard_error, num_rows)


MIN_FAILED: Final = 2
FAILED_SHARE: Final = 1 / 3
"""Raters who fail at least two checks, and a third of them, count as careless."""
NEAR_ZERO: Final = 0.2
"""If the others agree significantly more than this, a rater who does not agree with them is an outlier."""
MIN_COMPARED: Final = 10
SIDE_SHARE: Final = 0.85
SIDE_P: Final = 0.001
LONG_STRING_SHARE: Final = 0.9
MAX_WORDS_A_SECOND: Final = 15.0
"""900 words a minute; people read some 240 (Brysbaert, "How many words do we read per minute?", 2019)."""
DRIFT_P: Final = 0.01


def rater_reports(panel: RatingPanel, people: Sequence[Rater], table: RatingsTable) -> tuple[RaterReport, ...]:
    """One report per rater, in the order of the panel."""
    plain = {one.name: _plain_reasons(table.where(lambda row, name=one.name: row.rater == name)) for one in people}  # type: ignore[misc]
    # Compared only with raters who are not suspect themselves: two careless raters would make each other look normal.
    trusted = [name for name, reasons in plain.items() if not reasons]
    return tuple(_report(panel, one, table, plain[one.name], trusted) for one in people)


def _report(
    panel: RatingPanel, rater: Rater, table: RatingsTable, reasons: list[str], trusted: Sequence[str]
) -> RaterReport:
    own = table.where(lambda row: row.rater == rater.name)
    checks = [row.passed for row in own.rows if row.is_check]
    others = [name for name in trusted if name != rater.name]
    said, mean = against_others(table.real, rater.name, others)
    agreement = _alpha(np.stack([said, mean])) if len(said) >= 2 else None
    caught = list(reasons)
    if agreement is not None and _stands_alone(table.real, agreement, len(said), others):
        caught.append(
            f"agrees with the others no more than chance would: alpha {agreement.value:.2f} "
            f"[{agreement.low:.2f}, {agreement.high:.2f}]"
        )
    drift = _drift(panel, said, mean)
    word, share = _majority_answer(own.real.rows)
    seconds = [row.seconds for row in own.rows if row.seconds is not None]
    return RaterReport(
        rater_id=rater.rater_id,
        name=rater.name,
        has_link=rater.has_link,
        num_rated=len(own.rows),
        num_items=panel.num_items,
        num_checks=len(checks),
        num_failed=checks.count(False),
        median_seconds=float(np.median(seconds)) if seconds else None,
        agreement=agreement,
        most_said=word,
        most_said_share=share,
        drift=drift,
        caught=tuple(caught),
        notes=_notes(panel, own, word, share, drift),
    )


def _plain_reasons(own: RatingsTable) -> list[str]:
    """Figures of a single rater's ratings."""
    reasons = []
    checks = [row.passed for row in own.rows if row.is_check]
    num_failed = checks.count(False)
    if num_failed >= MIN_FAILED and num_failed >= FAILED_SHARE * len(checks):
        reasons.append(f"failed {num_failed} of {len(checks)} attention checks")
    sided = [row.preference == row.shown_first for row in own.real.rows if row.preference in ("a", "b")]
    num_first = sided.count(True)
    most = max(num_first, len(sided) - num_first)
    # Both a large share and a small p-value: 6 of 6 may be chance, and 530 of 1,000 is not a habit.
    if sided and most >= SIDE_SHARE * len(sided) and binomtest(most, len(sided)).pvalue < SIDE_P:
        side = "first" if num_first == most else "second"
        reasons.append(f"chose the answer shown {side} in {most} of {len(sided)} pairs, where sides are random")
    return reasons


def _stands_alone(table: RatingsTable, agreement: Estimate, num_compared: int, others: Sequence[str]) -> bool:
    """Whether the others agree with each other, but with this rater only at chance level, by both intervals."""
    if num_compared < MIN_COMPARED or len(others) < 2 or agreement.low > 0:
        return False
    among = _alpha(matrix(table.where(lambda row: row.rater in others), others, overall))
    return among is not None and among.low > max(NEAR_ZERO, agreement.high)


def _alpha(ratings: np.ndarray) -> Estimate | None:
    """Krippendorff's alpha for intervals; None if all ratings are equal, which carry no information."""
    known = ratings[~np.isnan(ratings)]
    if not len(known) or np.ptp(known) == 0:
        return None
    found = krippendorff_alpha(ratings, "interval")
    return Estimate.of(found) if np.isfinite(found).all() else None


def _drift(panel: RatingPanel, said: np.ndarray, mean: np.ndarray) -> Drift | None:
    if len(said) < MIN_COMPARED:
        return None
    # For scores the deviation from the others; for preferences (-1 to 1) the agreement with them, 0 to 1.
    values = said - mean if panel.kind == "likert" else 1 - np.abs(said - mean) / 2
    if np.ptp(values) == 0:
        return None
    found = drift_of(values)
    return Drift(slope=found.slope, p_value=found.p_value)


def _majority_answer(rows: Sequence[RatingRow]) -> tuple[str, float | None]:
    """The most frequent answer as displayed: a side, a tie, or all the scores of an item."""
    if not rows:
        return "", None
    words = Counter(_on_page(row) for row in rows)
    word, number = words.most_common(1)[0]
    return word, number / len(rows)


def _on_page(row: RatingRow) -> str:
    if row.preference is None:
        scores = (row.relevance, row.coherence, row.accuracy, row.helpfulness)
        return ", ".join(str(score) for score in scores if score is not None)
    if row.preference == "tie":
        return "tie"
    return "first" if row.preference == row.shown_first else "second"


def _notes(
    panel: RatingPanel, own: RatingsTable, word: str, share: float | None, drift: Drift | None
) -> tuple[str, ...]:
    notes = []
    if own.rows and len(own.rows) < panel.num_items:
        notes.append(f"stopped after {len(own.rows)} of {panel.num_items} items, or is not done yet")
    if share is not None and share >= LONG_STRING_SHARE and len(own.real.rows) >= MIN_COMPARED:
        notes.append(f"answered {word!r} for {share:.0%} of items")
    paces = [_num_words(row) / row.seconds for row in own.rows if row.seconds]
    if paces and (pace := float(np.median(paces))) > MAX_WORDS_A_SECOND:
        notes.append(f"took too little time to read: {60 * pace:,.0f} words a minute in the median")
    if drift is not None and drift.p_value < DRIFT_P:
        what = "the score, compared with the others'," if panel.kind == "likert" else "agreement with the others"
        notes.append(f"{what} {'rises' if drift.slope > 0 else 'falls'} over time: {drift.slope:+.3f} per item")
    return tuple(notes)


def _num_words(row: RatingRow) -> int:
    return len(f"{row.prompt} {row.answer_a} {row.answer_b or ''}".split())


def report(panel: RatingPanel, people: Sequence[Rater], table: RatingsTable) -> PanelReport:
    """All figures of a panel so far."""
    reports, everyone = rater_reports(panel, people, table), panel_figures(table)
    caught = [one.name for one in reports if one.caught]
    without = table.without(caught)
    num_tests = len(everyone.win_rates) + len(everyone.differences)
    adjusted = [f"{num_tests} comparisons were made; p-values are adjusted for that (Holm)."] if num_tests > 1 else []
    return PanelReport(
        panel=panel,
        raters=reports,
        everyone=everyone,
        without_caught=panel_figures(without) if caught and without.rows else None,
        cautions=(*_cautions(panel, reports, table), *adjusted),
    )


def _cautions(panel: RatingPanel, reports: Sequence[RaterReport], table: RatingsTable) -> tuple[str, ...]:
    found = []
    if caught := [one.name for one in reports if one.caught]:
        whom = ", ".join(caught)
        verb = "seems" if len(caught) == 1 else "seem"
        if len(caught) == len({row.rater for row in table.rows}):
            found.append(f"{whom} {verb} not to read, and no one else has rated: these figures mean nothing.")
        else:
            found.append(f"{whom} {verb} not to read: figures are given with and without them, nothing is dropped.")
    behind = [one for one in reports if not one.is_done]
    if table.rows and behind:
        counts = ", ".join(f"{one.name} ({one.num_rated} of {one.num_items})" for one in behind)
        found.append(f"Not all raters have finished: {counts}. Items with more ratings have more weight.")
    if panel.num_same:
        pairs = counted(panel.num_same, "pair is", "pairs are")
        found.append(f"{pairs} not shown, because both answers are the same text; the win rate is of the others alone.")
    if panel.num_left_out:
        rows = counted(panel.num_left_out, "row was", "rows were")
        found.append(f"{rows} too long for one of the systems and not rated.")
    if panel.num_forgotten:
        found.append(f"Rows that are not rated, because their texts were forgotten: {panel.num_forgotten:,}.")
    if panel.num_checks == 0:
        found.append("There are no attention checks: who clicks at random is seen only by disagreeing with others.")
    if len(reports) < 2:
        found.append("One rater: whether others would say the same is not known.")
    return tuple(found)
