"""Calibration of a judge against people: agreement on the same items, compared with that between people.

The consensus of people on a pair is the most frequent preference, else a tie; on a score it is their mean,
rounded for kappa. The agreement between people is that of one of them, drawn for each item by a digest, with the
consensus of the others: a person in place of the judge.

Cohen, 1960 (kappa); Cohen, 1968 (quadratic weights); Krippendorff, "Content Analysis", chapter 12 (alpha).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from luthier.core.estimate import Estimate
from luthier.core.ids import sha256_document
from luthier.core.ports import Engine, Progress
from luthier.core.records.calibration import (
    FEWEST_ITEMS,
    LOWEST_KAPPA,
    MAX_NO_VERDICT_FRACTION,
    Calibration,
    JudgeBias,
    Measure,
    NoVerdictKind,
    Target,
)
from luthier.core.results.human_eval import RatingRow, RatingsTable
from luthier.core.results.suite import Confusion, Criterion
from luthier.core.text.counted import counted
from luthier.ml.evaluation.agreement import cohen_kappa, krippendorff_alpha, spearman
from luthier.ml.evaluation.judge.bias import (
    bias_of,
    bias_sentences,
    missing_sentence,
    pair_statistics,
    people_statistics,
)
from luthier.ml.evaluation.judge.verdicts import (
    CALIBRATED_CRITERION,
    NoVerdict,
    Pair,
    form_digest,
    judge_answers,
    judge_pairs,
)
from luthier.ml.evaluation.panel import PREFERENCE_VALUES, matrix, value_of
from luthier.ml.evaluation.statistics import Interval

_PREFERENCES: Final = ("a", "tie", "b")
_SCORES: Final = ("1", "2", "3", "4", "5")
_FEWEST_FOR_CORRELATION: Final = 4


@dataclass(frozen=True, slots=True)
class Occasion:
    """The metadata of a calibration.

    Attributes:
        calibration_ids: the id of each calibration, by its target.
        created_at: ISO 8601, UTC.
        judge: name of the judge.
        source: the origin of the ratings, for display.
        cautions: cautions known in advance.
    """

    calibration_ids: Mapping[Target, str]
    created_at: str
    judge: str
    source: str
    cautions: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Item:
    """The ratings of one item as numbers, by rater; and the judge's verdict, or why there is none."""

    number: int
    said: Mapping[str, float]
    judged: float | NoVerdictKind

    @property
    def verdict(self) -> float:
        """The judge's verdict as a number."""
        assert not isinstance(self.judged, str)
        return self.judged


def targets_of(table: RatingsTable) -> tuple[Target, ...]:
    """The targets for which a table of ratings can calibrate a judge."""
    return ("preference",) if table.kind == "pairwise" else table.real.criteria


def calibrate(engine: Engine, table: RatingsTable, occasion: Occasion, progress: Progress) -> tuple[Calibration, ...]:
    """One calibration per target of the table; attention checks are excluded.

    Args:
        engine: the judge.
        table: the ratings.
        occasion: ids, names and sources for the calibrations.
        progress: shows the judge's replies.
    """
    real = table.real
    if table.kind == "pairwise":
        return (_of_pairs(engine, real, occasion, progress),)
    items = real.by_item()
    answers = [(rows[0].prompt, rows[0].answer_a) for rows in items.values()]
    found = judge_answers(engine, real.criteria, answers, progress)
    return tuple(
        _calibration(
            criterion,
            [_scored(number, rows, criterion, one) for (number, rows), one in zip(items.items(), found, strict=True)],
            real,
            occasion,
        )
        for criterion in real.criteria
    )


def _of_pairs(engine: Engine, real: RatingsTable, occasion: Occasion, progress: Progress) -> Calibration:
    items = real.by_item()
    pairs = [Pair(rows[0].prompt, rows[0].answer_a, rows[0].answer_b or "") for rows in items.values()]
    verdicts = judge_pairs(engine, CALIBRATED_CRITERION, pairs, progress)
    known: list[_Item] = []
    for (number, rows), verdict in zip(items.items(), verdicts, strict=True):
        said = {row.rater: PREFERENCE_VALUES[row.preference] for row in rows if row.preference is not None}
        word = verdict.preference
        # `word` is None only without a verdict, which is checked first.
        judged: float | NoVerdictKind = verdict.no_verdict or (0.0 if word is None else PREFERENCE_VALUES[word])
        known.append(_Item(number, said, judged))
    # From -1, 0, 1 to points 0, 0.5, 1, as the judge's are.
    people = [(_majority(list(item.said.values())) + 1) / 2 for item in known]
    bias = bias_of(pair_statistics(pairs, verdicts), people=people_statistics(pairs, people))
    return _calibration("preference", known, real, occasion, bias)


def _scored(
    number: int, rows: Sequence[RatingRow], criterion: Criterion, found: Mapping[Criterion, int] | NoVerdict
) -> _Item:
    said = {row.rater: float(score) for row in rows if (score := row.score(criterion)) is not None}
    return _Item(number, said, found.kind if isinstance(found, NoVerdict) else float(found[criterion]))


def _calibration(
    target: Target, items: Sequence[_Item], real: RatingsTable, occasion: Occasion, bias: JudgeBias | None = None
) -> Calibration:
    rated = [item for item in items if item.said]
    judged = [item for item in rated if not isinstance(item.judged, str)]
    missing: Counter[NoVerdictKind] = Counter(item.judged for item in rated if isinstance(item.judged, str))
    measure: Measure = "kappa" if target == "preference" else "quadratic kappa"
    verdicts = [item.verdict for item in judged]
    agreement = _kappa(target, [_consensus(target, item.said) for item in judged], verdicts)
    people = _people(target, rated)
    reasons = _reasons(measure, agreement, len(judged), missing, len(rated))
    raters = sorted({rater for item in rated for rater in item.said})
    lost = missing_sentence(occasion.judge, len(rated), missing, "items")
    return Calibration(
        calibration_id=occasion.calibration_ids[target],
        created_at=occasion.created_at,
        judge=occasion.judge,
        form=form_digest(),
        target=target,
        source=occasion.source,
        num_items=len(judged),
        num_raters=len(raters),
        num_ratings=sum(len(item.said) for item in rated),
        no_verdict=dict(missing),
        measure=measure,
        agreement=agreement,
        people=people,
        alpha=_alpha(target, real, raters),
        correlation=_correlation(target, judged),
        table=_table(target, rated),
        bias=bias,
        may_enter_gate=not reasons,
        reasons=tuple(reasons) or (_passing(measure, agreement, len(judged)),),
        cautions=(
            *occasion.cautions,
            *bias_sentences(occasion.judge, bias),
            *([lost] if lost else ()),
            *_about_people(measure, agreement, people),
        ),
    )


def _majority(values: Sequence[float]) -> float:
    """The most frequent preference of a pair; a tie (0) if there are several."""
    (word, most), *others = Counter(values).most_common()
    return 0.0 if others and others[0][1] == most else word


def _consensus(target: Target, said: Mapping[str, float]) -> float:
    values = list(said.values())
    # Rounds half up: bankers' rounding would treat mean scores of 2.5 and 3.5 differently.
    return _majority(values) if target == "preference" else float(int(sum(values) / len(values) + 0.5))


def _kappa(target: Target, one: Sequence[float], other: Sequence[float]) -> Estimate | None:
    """None if agreement beyond chance is undefined: fewer than two items, or all the same."""
    # Kappa would divide by 0: all agreement is expected by chance.
    if len(one) < 2 or len({*one, *other}) < 2:
        return None
    if target == "preference":
        return _estimate(cohen_kappa(one, other))
    return _estimate(cohen_kappa(one, other, weights="quadratic", labels=[float(score) for score in _SCORES]))


def _people(target: Target, rated: Sequence[_Item]) -> Estimate | None:
    """One of the raters of each item against the consensus of the others."""
    ones, others = [], []
    for item in rated:
        if len(item.said) < 2:
            continue
        names = sorted(item.said)
        # By a digest: the same rater on every machine, and no rater favoured.
        chosen = names[int(sha256_document([item.number, names])[:8], 16) % len(names)]
        ones.append(item.said[chosen])
        others.append(_consensus(target, {name: value for name, value in item.said.items() if name != chosen}))
    return _kappa(target, ones, others)


def _alpha(target: Target, real: RatingsTable, raters: Sequence[str]) -> Estimate | None:
    ratings = matrix(real, raters, value_of(None if target == "preference" else target))
    # [raters, items]; items with one rating are not informative.
    ratings = ratings[:, (~np.isnan(ratings)).sum(axis=0) >= 2]
    if ratings.shape[1] < 2 or np.nanmin(ratings) == np.nanmax(ratings):
        return None
    return _estimate(krippendorff_alpha(ratings, "nominal" if target == "preference" else "ordinal"))


def _correlation(target: Target, judged: Sequence[_Item]) -> Estimate | None:
    if target == "preference":
        return None
    means = [sum(item.said.values()) / len(item.said) for item in judged]
    verdicts = [item.verdict for item in judged]
    if len(judged) < _FEWEST_FOR_CORRELATION or min(len(set(means)), len(set(verdicts))) < 2:
        return None
    return _estimate(spearman(means, verdicts))


def _table(target: Target, rated: Sequence[_Item]) -> Confusion:
    labels = _PREFERENCES if target == "preference" else _SCORES
    places = {PREFERENCE_VALUES[name]: place for place, name in enumerate(_PREFERENCES)}
    if target != "preference":
        places = {float(label): place for place, label in enumerate(labels)}
    counts = np.zeros((len(labels), len(labels) + 1), dtype=int)
    for item in rated:
        # The last column counts items without a verdict.
        column = len(labels) if isinstance(item.judged, str) else places[item.judged]
        counts[places[_consensus(target, item.said)], column] += 1
    return Confusion(labels=labels, counts=tuple(tuple(row) for row in counts.tolist()))


def _reasons(
    measure: Measure, agreement: Estimate | None, num_items: int, missing: Counter[NoVerdictKind], num_rated: int
) -> list[str]:
    """Why the judge may not be used in a gate; empty if it may."""
    found = []
    if num_items < FEWEST_ITEMS:
        found.append(
            f"It was compared with people on {counted(num_items, 'item')}; at least {FEWEST_ITEMS} are needed."
        )
    if agreement is None and num_items > 1:
        found.append("People and judge give every item the same rating: agreement beyond chance cannot be measured.")
    if agreement is not None and agreement.low < LOWEST_KAPPA:
        found.append(
            f"Its agreement with people is {measure} {_words(agreement)}: it must be at least {LOWEST_KAPPA} at the "
            "interval's low end."
        )
    if missing.total() > MAX_NO_VERDICT_FRACTION * num_rated:
        found.append(
            f"It gave no verdict on {missing.total():,} of {num_rated:,} items; at most "
            f"{MAX_NO_VERDICT_FRACTION:.0%} may be missing."
        )
    return found


def _passing(measure: Measure, agreement: Estimate | None, num_items: int) -> str:
    assert agreement is not None
    return (
        f"Its agreement with people on {counted(num_items, 'item')} is {measure} {_words(agreement)}, and so at least "
        f"{LOWEST_KAPPA} even at the interval's low end."
    )


def _about_people(measure: Measure, agreement: Estimate | None, people: Estimate | None) -> tuple[str, ...]:
    if people is None:
        return ("How far people agree with each other is not known here: no item has several raters who differ.",)
    # Even the upper end for people is below the threshold for a judge.
    if people.high < LOWEST_KAPPA:
        return (
            f"One person agrees with the others by {measure} {_words(people)} only: better instructions for people "
            "come before a better judge.",
        )
    if agreement is not None and agreement.value > people.high:
        return ("The judge agrees with the people's consensus more than one of them does with the others.",)
    return ()


def _words(estimate: Estimate) -> str:
    return f"{estimate.value:.2f} [{estimate.low:.2f}, {estimate.high:.2f}]"


def _estimate(found: Interval) -> Estimate | None:
    return Estimate.of(found) if np.isfinite(found).all() else None
