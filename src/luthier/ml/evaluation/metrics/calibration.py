"""Calibration of class probabilities.

Plain functions of numpy arrays: class probabilities of a head or a classifier, or a language model's likelihoods of
labels. Calibration asks whether 80% of the rows answered with a confidence of 0.8 are right.

The calibration error is a mean of absolute values, so noise alone increases it: a perfectly calibrated model has an
error above 0 on any finite number of rows. The debiased estimate subtracts what normal noise with each bin's variance
adds to its absolute value. Its interval is that of a normal mean over bins (delta method), since a bootstrap would
count the noise twice, and extends to 0 if Hosmer and Lemeshow's test does not reject calibration: there the noise of an
absolute value is not normal.

Sources: Guo et al., "On Calibration of Modern Neural Networks", 2017 (reliability, temperature); Nguyen and O'Connor,
"Posterior calibration and exploratory analysis for natural language processing models", 2015 (bins of equal mass);
Kumar, Liang and Ma, "Verified Uncertainty Calibration", 2019 (debiasing); Hosmer and Lemeshow, "Goodness of fit tests
for the multiple logistic regression model", 1980; Brier, "Verification of Forecasts Expressed in Terms of Probability",
1950.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import Final, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from luthier.core.errors import RequestError
from luthier.core.evaluation import ReliabilityBin
from luthier.core.records.bounds import Bounds
from luthier.ml.evaluation.metrics.protocol import mean_of_sums
from luthier.ml.evaluation.statistics.intervals import LEVEL, TAIL, Interval, bootstrap_interval

Array = NDArray[np.float64]
Indices = NDArray[np.int64]
Bins = Literal["equal_mass", "equal_width"]

NUM_BINS: Final = 10
MIN_ROWS_PER_BIN: Final = 10
"""Rows of a bin of equal mass: with fewer its accuracy is mostly noise."""
_SUM_TOLERANCE: Final = 1e-3
"""Tolerance for the sum of a row's probabilities, for half precision."""


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


def bins_of(
    confidence: ArrayLike, num_bins: int = NUM_BINS, bins: Bins = "equal_mass", *, num_groups: int | None = None
) -> Indices:
    """The bin of each row, from low to high confidence: [rows].

    Bins of equal width are [low, high), the last one closed. Bins of equal mass have nearly equal numbers of rows,
    without splitting equal confidences, and there are fewer of them if a bin would have less than `MIN_ROWS_PER_BIN`
    rows.

    Args:
        confidence: from 0 to 1, [rows].
        num_bins: maximum number of bins.
        bins: equal width or equal mass.
        num_groups: groups of the rows, which then decide how many bins there are; None where every row counts by
            itself.
    """
    values = np.asarray(confidence, dtype=np.float64)
    if bins == "equal_width":
        # A confidence of 1 falls into the last bin, which is closed.
        return np.minimum((values * num_bins).astype(np.int64), num_bins - 1)
    number = max(1, min(num_bins, (len(values) if num_groups is None else num_groups) // MIN_ROWS_PER_BIN))
    # Borders between bins at equal ranks; `unique` drops borders that are equal, so that rows of one confidence stay
    # together.
    inner = np.sort(values)[[len(values) * place // number for place in range(1, number)]]
    return np.searchsorted(np.unique(inner), values, side="right").astype(np.int64)


def reliability_bins(
    probabilities: ArrayLike,
    labels: ArrayLike,
    *,
    num_bins: int = NUM_BINS,
    bins: Bins = "equal_mass",
    clusters: Sequence[Hashable] | None = None,
) -> tuple[ReliabilityBin, ...]:
    """Mean confidence and accuracy of each bin that has rows, from low to high confidence.

    Args:
        probabilities: [rows, classes].
        labels: [rows], the index of each row's class.
        num_bins: maximum number of bins.
        bins: see `bins_of`. The ends of a bin of equal mass are the lowest and highest confidence in it.
        clusters: the group of each row; None where every row counts by itself.

    Raises:
        RequestError: no rows, other shapes, or values that are not probabilities.
    """
    confidence, is_right = confidence_of(probabilities, labels)
    where = bins_of(confidence, num_bins, bins, num_groups=None if clusters is None else len(set(clusters)))
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
    clusters: Sequence[Hashable] | None = None,
) -> Interval:
    """Mean distance of confidence and accuracy over bins, weighted by their rows, with its 95% interval.

    Args:
        probabilities: [rows, classes].
        labels: [rows], the index of each row's class.
        num_bins: maximum number of bins.
        bins: see `bins_of`.
        debiased: whether to subtract the effect of noise; otherwise the usual estimate, which is too high for few rows.
        clusters: the group of each row; None where every row counts by itself.

    Raises:
        RequestError: no rows, other shapes, or values that are not probabilities.
    """
    from scipy.special import ndtri

    confidence, is_right = confidence_of(probabilities, labels)
    groups = np.arange(len(confidence)) if clusters is None else np.array(group_numbers(clusters))
    num_groups = int(groups.max()) + 1
    where = bins_of(confidence, num_bins, bins, num_groups=num_groups)
    gaps, counts = is_right - confidence, np.bincount(where).astype(np.float64)
    means = np.bincount(where, gaps) / np.maximum(counts, 1.0)
    # [groups, bins]: by how much the rows of a group move the sum of gaps of each bin.
    pulls = np.zeros((num_groups, len(counts)))
    np.add.at(pulls, (groups, where), gaps - means[where])
    spread = _spread_of_groups(pulls, groups, where, counts)
    value = float(_mean_distance(counts, means, spread if debiased else None))
    # Bins are independent once rows are divided, so the variances of the weighted gaps add up.
    variance = float(((counts / len(confidence)) ** 2 * spread**2).sum())
    if clusters is not None and num_groups > 1:
        # But for groups that have rows in several of them.
        moved = pulls @ np.sign(means) / len(confidence)
        variance = max(variance, float((moved**2).sum()) * num_groups / (num_groups - 1))
    half = -float(ndtri(TAIL)) * math.sqrt(variance)
    # An estimate that is never negative would exclude 0 for calibrated systems, too: the test decides whether 0 belongs
    # to the interval.
    low = 0.0 if _may_be_calibrated(confidence, is_right, where, groups) else max(0.0, value - half)
    return Interval(value, low, min(1.0, value + half))


def _spread_of_groups(pulls: Array, groups: Indices, where: Indices, counts: Array) -> Array:
    """Standard error of each bin's mean gap, from what its groups add to it: [bins]; 0 for a bin with one group.

    Where every row is a group of its own this is `_spread`.

    Source: Liang and Zeger, "Longitudinal data analysis using generalized linear models", 1986 (the variance of sums by
    group), with G / (G - 1) for G groups.
    """
    # Pairs of group and bin that have rows.
    inside = np.unique(np.stack([groups, where]), axis=1)
    num = np.bincount(inside[1], minlength=len(counts)).astype(np.float64)
    variance = (pulls**2).sum(axis=0) / np.maximum(counts, 1.0) ** 2
    result: Array = np.sqrt(variance * num / np.maximum(num - 1.0, 1.0))
    return result


def _may_be_calibrated(confidence: Array, is_right: Array, where: Indices, groups: Indices) -> bool:
    """Whether Hosmer and Lemeshow's test, for confidences not fitted to these rows, does not reject calibration.

    Rows of a group may err together: the noise of a bin then has their covariances, by the correlation that all groups
    show.
    """
    from scipy.special import chdtrc

    gaps, noise = (np.bincount(where, values) for values in (is_right - confidence, confidence * (1 - confidence)))
    # A bin with full confidence has no noise: any wrong answer in it is proof.
    if (gaps[noise <= 0] != 0).any():
        return False
    if int(groups.max()) + 1 < len(confidence):
        # The standard deviation of each row's answer, if its confidence is right: [rows].
        own = np.sqrt(confidence * (1 - confidence))
        together = np.zeros((int(groups.max()) + 1, len(gaps)))
        np.add.at(together, (groups, where), own)
        pairs = (together**2).sum(axis=0) - noise
        noise = noise + _correlation_in_groups((is_right - confidence)[own > 0] / own[own > 0], groups[own > 0]) * pairs
    known = noise > 0
    return bool(chdtrc(max(1, int(known.sum())), float((gaps[known] ** 2 / noise[known]).sum())) > 1 - LEVEL)


def _correlation_in_groups(residuals: Array, groups: Indices) -> float:
    """The mean product of two standardised residuals of one group, from 0 to 1; 0 where no two rows share one."""
    num = np.bincount(groups)
    pairs = float((num * (num - 1.0)).sum())
    if not pairs:
        return 0.0
    products = np.bincount(groups, residuals) ** 2 - np.bincount(groups, residuals**2)
    return min(1.0, max(0.0, float(products.sum()) / pairs))


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
    return _mean_distance(counts, gaps / num, _spread(counts, gaps, squares) if debiased else None)


def _mean_distance(counts: Array, means: Array, spread: Array | None) -> Array:
    """The mean of |mean gap| over bins, weighted by their rows: three times [..., bins] -> [...].

    Args:
        counts: rows of each bin.
        means: mean gap of each bin.
        spread: the standard error of each mean gap, whose effect is subtracted; None subtracts nothing.
    """
    distances = np.abs(means)
    if spread is not None:
        # The mean of |gap| exceeds |mean gap| by the noise of the bin: that excess, of a normal variable around the
        # observed gap, is subtracted once.
        distances = distances - (_mean_absolute(means, spread) - distances)
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


def group_numbers(clusters: Sequence[Hashable]) -> tuple[int, ...]:
    """The number of each row's group, in the order in which groups first appear."""
    places: dict[Hashable, int] = {}
    return tuple(places.setdefault(one, len(places)) for one in clusters)


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


def _shown(values: Sequence[float] | Array) -> str:
    return ", ".join(f"{value:.3g}" for value in list(values)[:5]) + (", ..." if len(values) > 5 else "")
