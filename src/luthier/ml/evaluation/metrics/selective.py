"""Selective classification: rows above a confidence threshold are answered alone, the rest goes to a person.

A threshold is never evaluated on the rows that chose it: it comes from separate rows, or each fold of the rows uses a
threshold from the other folds.

Sources: Geifman and El-Yaniv, "Selective Classification for Deep Neural Networks", 2017 (risk and coverage); Clopper
and Pearson, "The Use of Confidence or Fiducial Limits Illustrated in the Case of the Binomial", 1934; Hoeffding, "On
the Distribution of the Number of Successes in Independent Trials", 1956 (validity of that interval if rows have
different probabilities of being right).
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from luthier.core.errors import RequestError
from luthier.core.records.bounds import UNIT
from luthier.ml.evaluation.metrics.calibration import group_numbers
from luthier.ml.evaluation.metrics.protocol import mean_of_sums
from luthier.ml.evaluation.statistics.intervals import TAIL, Interval, bootstrap_interval

Array = NDArray[np.float64]

NUM_FOLDS: Final = 5


class RiskCoverage(NamedTuple):
    """Accuracy of the rows at or above each occurring confidence, highest first: all [thresholds].

    Attributes:
        threshold: the confidence threshold.
        share: the share of answered rows.
        accuracy: the share of these that are right (1 - risk).
    """

    threshold: Array
    share: Array
    accuracy: Array


class SelectiveAccuracy(NamedTuple):
    """Selective accuracy at a threshold, measured on rows that did not choose the threshold.

    Attributes:
        threshold: the threshold to use, chosen on all rows or on the given other rows; None if no threshold reaches the
            accuracy.
        num_rows: total number of rows.
        num_answered: rows at or above that threshold, or the threshold of their fold.
        num_right: the number of these that are right.
        share: answered rows among all, with Clopper and Pearson's 95% interval.
        accuracy: right rows among the answered ones, with the same interval; None if no row was answered.
    """

    threshold: float | None
    num_rows: int
    num_answered: int
    num_right: int
    share: Interval
    accuracy: Interval | None


def risk_coverage_curve(confidence: ArrayLike, is_right: ArrayLike) -> RiskCoverage:
    """Accuracy of a system on its most confident rows, by coverage.

    Args:
        confidence: [rows].
        is_right: [rows], 1 if the answer is right, 0 if it is wrong.

    Raises:
        RequestError: no rows, other shapes, or values that are not finite.
    """
    sure, right = _checked_answers(confidence, is_right)
    order = np.argsort(-sure, kind="stable")
    sure, right = sure[order], right[order]
    # Rows of equal confidence are answered together: the curve has no point between them.
    last = np.flatnonzero(np.append(sure[1:] != sure[:-1], True))
    answered = last + 1.0
    return RiskCoverage(sure[last], answered / len(sure), np.cumsum(right)[last] / answered)


def threshold_for_accuracy(confidence: ArrayLike, is_right: ArrayLike, accuracy: float) -> float | None:
    """The lowest confidence threshold with that accuracy; None if there is none.

    Accuracies are those of Laplace's rule of succession, (right + 1) / (answered + 2), so that three right answers do
    not show 90%: it takes eight. The rows that choose it do not show its accuracy (`selective_accuracy`).

    Args:
        confidence: [rows].
        is_right: [rows], 1 if the answer is right, 0 if it is wrong.
        accuracy: the required accuracy, in (0, 1).

    Raises:
        RequestError: no rows, other shapes, values that are not finite, or an accuracy out of range.
    """
    if not 0 < accuracy < 1:
        raise RequestError(
            f"an accuracy of {accuracy:g} for answers without a person",
            expected="above 0 and below 1: no number of rows shows that an answer is never wrong",
            do="ask for example for 0.95",
        )
    curve = risk_coverage_curve(confidence, is_right)
    answered = curve.share * np.size(confidence)
    # 1e-12: an accuracy that is reached exactly must not be missed by rounding.
    reaches = np.flatnonzero((curve.accuracy * answered + 1) / (answered + 2) >= accuracy - 1e-12)
    # The curve goes from the most confident row down: its last point that reaches the accuracy answers the most rows.
    return float(curve.threshold[reaches[-1]]) if len(reaches) else None


def selective_accuracy(
    confidence: ArrayLike,
    is_right: ArrayLike,
    accuracy: float,
    *,
    chosen_on: tuple[ArrayLike, ArrayLike] | None = None,
    num_folds: int = NUM_FOLDS,
    seed: int = 0,
    clusters: Sequence[Hashable] | None = None,
) -> SelectiveAccuracy:
    """The share of rows that can be answered alone at an accuracy, measured on rows that did not choose the threshold.

    Args:
        confidence: [rows].
        is_right: [rows], 1 if the answer is right, 0 if it is wrong.
        accuracy: the required accuracy, in (0, 1).
        chosen_on: confidence and answers of other rows, [other rows] each, that choose the threshold; None uses folds
            of the rows themselves.
        num_folds: number of folds; each uses the threshold that the others choose.
        seed: of the assignment to folds.
        clusters: the group of each row; rows of one group are in one fold, and count together in the intervals. None
            where every row counts by itself.

    Raises:
        RequestError: fewer than two rows to divide, none, other shapes, values that are not finite, or an accuracy out
            of range.
    """
    sure, right = _checked_answers(confidence, is_right)
    if chosen_on is not None:
        threshold = threshold_for_accuracy(*chosen_on, accuracy)
        return _selective(threshold, sure >= (math.inf if threshold is None else threshold), right, clusters)
    if len(sure) < 2:
        raise RequestError(
            f"{len(sure)} row to choose and to evaluate a threshold by",
            expected="at least two: one to choose it, one to evaluate it",
            do="evaluate more held-out rows",
        )
    threshold = threshold_for_accuracy(sure, right, accuracy)
    # [rows]: each row by itself, or the number of its group.
    places = np.array(range(len(sure)) if clusters is None else group_numbers(clusters))
    num_places = int(places.max()) + 1
    fold = (np.random.default_rng(seed).permutation(num_places) % min(num_folds, num_places))[places]
    answered = np.zeros(len(sure), dtype=bool)
    # Without a threshold to use nothing is answered, even if some folds would have chosen one.
    for number in np.unique(fold).tolist() if threshold is not None else ():
        inside = fold == number
        chosen = threshold_for_accuracy(sure[~inside], right[~inside], accuracy)
        answered |= inside & (sure >= (math.inf if chosen is None else chosen))
    return _selective(threshold, answered, right, clusters)


def _selective(
    threshold: float | None, answered: NDArray[np.bool_], right: Array, clusters: Sequence[Hashable] | None
) -> SelectiveAccuracy:
    """Which rows are answered alone, and which of these are right: both [rows]."""
    num_answered, num_right = int(answered.sum()), int(right[answered].sum())
    of_answered = None if clusters is None else [clusters[row] for row in np.flatnonzero(answered).tolist()]
    return SelectiveAccuracy(
        threshold=threshold,
        num_rows=len(right),
        num_answered=num_answered,
        num_right=num_right,
        share=_share_of(answered.astype(np.float64), clusters),
        accuracy=_share_of(right[answered], of_answered) if num_answered else None,
    )


def _share_of(hits: Array, clusters: Sequence[Hashable] | None) -> Interval:
    """The share of rows that are 1, with the exact interval; with groups, with the wider of that and theirs."""
    exact = clopper_pearson(int(hits.sum()), len(hits))
    if clusters is None:
        return exact
    stats = np.stack([hits, np.ones(len(hits))], axis=1)
    found = bootstrap_interval(stats, mean_of_sums, bounds=UNIT, seed=0, clusters=clusters)
    return Interval(exact.value, min(exact.low, found.low), max(exact.high, found.high))


def clopper_pearson(num_right: int, num_rows: int, tail: float = TAIL) -> Interval:
    """The exact interval of a share, with coverage of at least 1 - 2 `tail`.

    Args:
        num_right: rows that are right.
        num_rows: total number of rows, at least 1.
        tail: excluded probability on each side.
    """
    from scipy.special import betaincinv

    # The ends are quantiles of beta distributions, which are degenerate where no row or every row is right.
    low = float(betaincinv(num_right, num_rows - num_right + 1, tail)) if num_right else 0.0
    high = float(betaincinv(num_right + 1, num_rows - num_right, 1 - tail)) if num_right < num_rows else 1.0
    return Interval(num_right / num_rows, low, high)


def _checked_answers(confidence: ArrayLike, is_right: ArrayLike) -> tuple[Array, Array]:
    sure, right = (np.asarray(values, dtype=np.float64) for values in (confidence, is_right))
    if sure.ndim != 1 or sure.shape != right.shape or not sure.size:
        raise RequestError(
            f"confidences of shape {list(sure.shape)} and answers of shape {list(right.shape)}",
            expected="one confidence and one answer for each row, at least one row",
            do="pass both for all rows",
        )
    if not np.isfinite(sure).all() or not np.isin(right, (0.0, 1.0)).all():
        raise RequestError(
            "confidences that are not finite, or answers that are neither right (1) nor wrong (0)",
            expected="a finite confidence and 0 or 1 for each row",
            do="look for NaN in the probabilities",
        )
    return sure, right
