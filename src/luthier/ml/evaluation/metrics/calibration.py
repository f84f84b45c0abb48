"""Calibration of class probabilities, and selective classification.

Plain functions of numpy arrays: class probabilities of a head or a classifier, or a language model's likelihoods of
labels. Calibration asks whether 80% of the rows answered with a confidence of 0.8 are right. Selective classification
answers only rows above a confidence threshold and passes the rest to a person.

The calibration error is a mean of absolute values, so noise alone increases it: a perfectly calibrated model has an
error above 0 on any finite number of rows. The debiased estimate subtracts what normal noise with each bin's variance
adds to its absolute value. Its interval is that of a normal mean over bins (delta method), since a bootstrap would
count the noise twice, and extends to 0 if Hosmer and Lemeshow's test does not reject calibration: there the noise of an
absolute value is not normal.

A threshold is never evaluated on the rows that chose it: it comes from separate rows, or each fold of the rows uses a
threshold from the other folds.

Sources: Guo et al., "On Calibration of Modern Neural Networks", 2017 (reliability, temperature); Nguyen and O'Connor,
"Posterior calibration and exploratory analysis for natural language processing models", 2015 (bins of equal mass);
Kumar, Liang and Ma, "Verified Uncertainty Calibration", 2019 (debiasing); Hosmer and Lemeshow, "Goodness of fit tests
for the multiple logistic regression model", 1980; Brier, "Verification of Forecasts Expressed in Terms of Probability",
1950; Geifman and El-Yaniv, "Selective Classification for Deep Neural Networks", 2017 (risk and coverage); Clopper and
Pearson, "The Use of Confidence or Fiducial Limits Illustrated in the Case of the Binomial", 1934; Hoeffding, "On the
Distribution of the Number of Successes in Independent Trials", 1956 (validity of that interval if rows have different
probabilities of being right).
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import Final, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from luthier.core.errors import RequestError
from luthier.core.evaluation import ReliabilityBin
from luthier.core.records.bounds import UNIT, Bounds
from luthier.ml.evaluation.metrics.protocol import mean_of_sums
from luthier.ml.evaluation.statistics.intervals import LEVEL, TAIL, Interval, bootstrap_interval

Array = NDArray[np.float64]
Indices = NDArray[np.int64]
Bins = Literal["equal_mass", "equal_width"]

NUM_BINS: Final = 10
MIN_ROWS_PER_BIN: Final = 10
"""Rows of a bin of equal mass: with fewer its accuracy is mostly noise."""
NUM_FOLDS: Final = 5
_SUM_TOLERANCE: Final = 1e-3
"""Tolerance for the sum of a row's probabilities, for half precision."""


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


def softmax(log_likelihoods: Array) -> Array:
    """Probabilities of the classes of each row: [rows, classes] -> [rows, classes]."""
    # The maximum is subtracted, so that the largest exponent is 0: whole answers reach -1000 nats and would underflow.
    shifted = np.exp(log_likelihoods - log_likelihoods.max(axis=1, keepdims=True))
    result: Array = shifted / shifted.sum(axis=1, keepdims=True)
    return result


def confidence_of(probabilities: ArrayLike, labels: ArrayLike) -> tuple[Array, Array]:
    """The probability of each row's likeliest class, and 1 if that class is right, otherwise 0: both [rows].

    Args:
        probabilities: [rows, classes].
        labels: [rows], the index of each row's class; an index outside the classes is never right.

    Raises:
        RequestError: no rows, other shapes, or values that are not probabilities.
    """
    given, own = _checked(probabilities, labels)
    return given.max(axis=1), (given.argmax(axis=1) == own).astype(np.float64)


def bins_of(confidence: ArrayLike, num_bins: int = NUM_BINS, bins: Bins = "equal_mass") -> Indices:
    """The bin of each row, from low to high confidence: [rows].

    Bins of equal width are [low, high), the last one closed. Bins of equal mass have nearly equal numbers of rows,
    without splitting equal confidences, and there are fewer of them if a bin would have less than `MIN_ROWS_PER_BIN`
    rows.
    """
    values = np.asarray(confidence, dtype=np.float64)
    if bins == "equal_width":
        # A confidence of 1 falls into the last bin, which is closed.
        return np.minimum((values * num_bins).astype(np.int64), num_bins - 1)
    number = max(1, min(num_bins, len(values) // MIN_ROWS_PER_BIN))
    # Borders between bins at equal ranks; `unique` drops borders that are equal, so that rows of one confidence stay
    # together.
    inner = np.sort(values)[[len(values) * place // number for place in range(1, number)]]
    return np.searchsorted(np.unique(inner), values, side="right").astype(np.int64)


def reliability_bins(
    probabilities: ArrayLike, labels: ArrayLike, *, num_bins: int = NUM_BINS, bins: Bins = "equal_mass"
) -> tuple[ReliabilityBin, ...]:
    """Mean confidence and accuracy of each bin that has rows, from low to high confidence.

    Args:
        probabilities: [rows, classes].
        labels: [rows], the index of each row's class.
        num_bins: maximum number of bins.
        bins: see `bins_of`. The ends of a bin of equal mass are the lowest and highest confidence in it.

    Raises:
        RequestError: no rows, other shapes, or values that are not probabilities.
    """
    confidence, is_right = confidence_of(probabilities, labels)
    where = bins_of(confidence, num_bins, bins)
    found = []
    for place in np.unique(where).tolist():
        inside = where == place
        low, high = (
            (place / num_bins, (place + 1) / num_bins)
            if bins == "equal_width"
            else (float(confidence[inside].min()), float(confidence[inside].max()))
        )
        found.append(
            ReliabilityBin(
                low=low,
                high=high,
                num_rows=int(inside.sum()),
                confidence=float(confidence[inside].mean()),
                accuracy=float(is_right[inside].mean()),
            )
        )
    return tuple(found)


def expected_calibration_error(
    probabilities: ArrayLike,
    labels: ArrayLike,
    *,
    num_bins: int = NUM_BINS,
    bins: Bins = "equal_mass",
    debiased: bool = True,
) -> Interval:
    """Mean distance of confidence and accuracy over bins, weighted by their rows, with its 95% interval.

    Args:
        probabilities: [rows, classes].
        labels: [rows], the index of each row's class.
        num_bins: maximum number of bins.
        bins: see `bins_of`.
        debiased: whether to subtract the effect of noise; otherwise the usual estimate, which is too high for few rows.

    Raises:
        RequestError: no rows, other shapes, or values that are not probabilities.
    """
    from scipy.special import ndtri

    confidence, is_right = confidence_of(probabilities, labels)
    where = bins_of(confidence, num_bins, bins)
    sums = calibration_statistics(confidence, is_right, where, int(where.max()) + 1).sum(axis=0)
    counts, gaps, squares = np.split(sums, 3)
    value, weight = float(calibration_error_of(sums, debiased=debiased)), counts / len(confidence)
    # Bins are independent once rows are divided, so the variances of the weighted gaps add up.
    half = -float(ndtri(TAIL)) * math.sqrt(float((weight**2 * _spread(counts, gaps, squares) ** 2).sum()))
    # An estimate that is never negative would exclude 0 for calibrated systems, too: the test decides whether 0 belongs
    # to the interval.
    low = 0.0 if _may_be_calibrated(confidence, is_right, where) else max(0.0, value - half)
    return Interval(value, low, min(1.0, value + half))


def _may_be_calibrated(confidence: Array, is_right: Array, where: Indices) -> bool:
    """Whether Hosmer and Lemeshow's test, for confidences not fitted to these rows, does not reject calibration."""
    from scipy.special import chdtrc

    gaps, noise = (np.bincount(where, values) for values in (is_right - confidence, confidence * (1 - confidence)))
    # A bin with full confidence has no noise: any wrong answer in it is proof.
    if (gaps[noise <= 0] != 0).any():
        return False
    known = noise > 0
    return bool(chdtrc(max(1, int(known.sum())), float((gaps[known] ** 2 / noise[known]).sum())) > 1 - LEVEL)


def calibration_statistics(confidence: Array, is_right: Array, where: Indices, num_bins: int) -> Array:
    """For each row, in its bin: one, right minus confidence, and the square of that: [rows, 3 * bins].

    Args:
        confidence: from 0 to 1, [rows].
        is_right: 1 for a right answer, else 0, [rows].
        where: the bin of each row, [rows].
        num_bins: of all bins.
    """
    stats = np.zeros((len(confidence), 3 * num_bins))
    rows, gaps = np.arange(len(confidence)), is_right - confidence
    # One-hot in the row's bin, so that sums over any resample contain each bin's count, gap and squared gap.
    for number, values in enumerate((np.ones(len(gaps)), gaps, gaps**2)):
        stats[rows, number * num_bins + where] = values
    return stats


def calibration_error_of(sums: Array, *, debiased: bool) -> Array:
    """The error, from sums of `calibration_statistics`: [..., 3 * bins] -> [...]."""
    counts, gaps, squares = np.split(sums, 3, axis=-1)
    # Not a maximum with 1: sums may be means over several trainings, with counts below 1.
    num = np.where(counts > 0, counts, 1.0)
    means = gaps / num
    distances = np.abs(means)
    if debiased:
        # The mean of |gap| exceeds |mean gap| by the noise of the bin: that excess, of a normal variable around the
        # observed gap, is subtracted once.
        distances = distances - (_mean_absolute(means, _spread(counts, gaps, squares)) - distances)
    total = counts.sum(axis=-1)
    result: Array = np.maximum((counts * distances).sum(axis=-1) / np.where(total > 0, total, 1.0), 0.0)
    return result


def _spread(counts: Array, gaps: Array, squares: Array) -> Array:
    """Standard error of each bin's mean gap, from its sums; 0 for a bin with one row."""
    num = np.where(counts > 0, counts, 1.0)
    # Rounding may make the difference of two nearly equal numbers negative.
    variance = np.maximum(squares / num - (gaps / num) ** 2, 0.0)
    result: Array = np.sqrt(variance / np.maximum(counts - 1.0, 1.0))
    return result


def _mean_absolute(mean: Array, spread: Array) -> Array:
    """Mean of the absolute value of a normal variable."""
    from scipy.special import ndtr

    safe = np.where(spread > 0, spread, 1.0)
    ratio = mean / safe
    # Mean of a folded normal distribution with this mean and spread.
    folded = safe * math.sqrt(2 / math.pi) * np.exp(-(ratio**2) / 2) + mean * (1 - 2 * ndtr(-ratio))
    result: Array = np.where(spread > 0, folded, np.abs(mean))
    return result


def brier_score(
    probabilities: ArrayLike, labels: ArrayLike, *, seed: int = 0, clusters: Sequence[Hashable] | None = None
) -> Interval:
    """Mean squared distance of probabilities and truth, summed over classes: 0 (certain and right) to 2.

    For two classes it is twice what libraries call the Brier score of the second one.

    Args:
        probabilities: [rows, classes].
        labels: [rows], the index of each row's class.
        seed: of the resampling.
        clusters: the group of each row; None where every row counts by itself.

    Raises:
        RequestError: no rows, other shapes, or values that are not probabilities.
    """
    distances = brier_distances(*_checked(probabilities, labels))
    stats = np.stack([distances, np.ones(len(distances))], axis=1)
    return bootstrap_interval(stats, mean_of_sums, bounds=Bounds(0.0, 2.0), seed=seed, clusters=clusters)


def brier_distances(probabilities: Array, labels: Indices) -> Array:
    """[rows, classes] and [rows] -> [rows]: squared distance of each row's probabilities from its own class."""
    truth = labels[:, None] == np.arange(probabilities.shape[1])
    result: Array = ((probabilities - truth) ** 2).sum(axis=1)
    return result


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


def group_numbers(clusters: Sequence[Hashable]) -> tuple[int, ...]:
    """The number of each row's group, in the order in which groups first appear."""
    places: dict[Hashable, int] = {}
    return tuple(places.setdefault(one, len(places)) for one in clusters)


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


def _checked(probabilities: ArrayLike, labels: ArrayLike) -> tuple[Array, Indices]:
    given, own = np.asarray(probabilities, dtype=np.float64), np.asarray(labels)
    if given.ndim != 2 or own.shape != given.shape[:1] or not given.size:
        raise RequestError(
            f"probabilities of shape {list(given.shape)} and labels of shape {list(own.shape)}",
            expected="[rows, classes] and [rows], at least one row and one class",
            do="pass the probabilities of all classes for each row",
        )
    wrong = ~np.isfinite(given).all(axis=1)
    with np.errstate(invalid="ignore"):
        wrong |= (given < 0).any(axis=1) | (np.abs(given.sum(axis=1) - 1) > _SUM_TOLERANCE)
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        raise RequestError(
            f"row {row} has the probabilities {_shown(given[row])}",
            expected="finite values from 0 on that sum to 1",
            do="pass softmax of the logits, not the logits",
        )
    return given, own.astype(np.int64)


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


def _shown(values: Sequence[float] | Array) -> str:
    return ", ".join(f"{value:.3g}" for value in list(values)[:5]) + (", ..." if len(values) > 5 else "")
