"""Inter-rater agreement: beyond chance (kappa, alpha), rank correlation, and drift over time.

Every coefficient is a formula over sums of per-item contributions, so its interval comes from the same bootstrap and
jackknife over items as that of any metric. If raters agree on every item, all resamples are equal; the lower end then
comes from Wilson's interval of the share of items, assuming chance-level disagreement on the others. If chance itself
could not disagree, agreement is `UNDEFINED`, which is NaN.

Sources: Cohen, "A coefficient of agreement for nominal scales", 1960, and "Weighted kappa", 1968; Fleiss, "Measuring
nominal scale agreement among many raters", 1971; Krippendorff, "Content Analysis", 4th edition 2018, chapter 12;
Bonett and Wright, "Sample size requirements for estimating Pearson, Kendall and Spearman correlations", 2000.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import linregress, norm, rankdata, t

from luthier.core.errors import RequestError
from luthier.core.records.bounds import CORRELATION
from luthier.ml.evaluation.statistics import Interval, resampled_sums
from luthier.ml.evaluation.statistics.intervals import TAIL, percentiles, widened
from luthier.ml.evaluation.statistics.resampling import Aggregate, Array, share_ends, spread_of

Level = Literal["nominal", "ordinal", "interval"]
Weights = Literal["linear", "quadratic"]
Label = str | float

UNDEFINED = Interval(math.nan, math.nan, math.nan)
"""The agreement if it is undefined: the same rating everywhere, or no item rated twice."""

_NUM_RESAMPLES = 4_000
_MIN_FOR_CORRELATION = 3
_MIN_FOR_DRIFT = 3


class Drift(NamedTuple):
    """The trend of a rater's deviation over the order of rating.

    Attributes:
        slope: rating points per item.
        low: lower end of the slope's 95% interval.
        high: upper end.
        p_value: of the null hypothesis of no trend.
    """

    slope: float
    low: float
    high: float
    p_value: float


def cohen_kappa(
    a: Sequence[Label] | NDArray[Any],
    b: Sequence[Label] | NDArray[Any],
    *,
    weights: Weights | None = None,
    labels: Sequence[Label] | None = None,
) -> Interval:
    """Agreement of two raters beyond chance, with the interval over items: 1 is full, 0 that of chance.

    Args:
        a: the labels of the first rater, one per item.
        b: those of the second rater, for the same items.
        weights: the cost of disagreements by the distance of label positions; None counts every disagreement equally.
        labels: all labels in order; by default the labels that occur, sorted.

    Raises:
        RequestError: different numbers of items, none, or an unknown label.
    """
    if len(a) != len(b) or not len(a):
        raise RequestError(f"{len(a)} and {len(b)} ratings", expected="two ratings of each item", do="pair them up")
    known = list(labels) if labels is not None else sorted(set(a) | set(b))
    unknown = sorted({str(label) for label in [*a, *b]} - {str(label) for label in known})
    if unknown:
        raise RequestError(f"labels {unknown}", expected=f"labels among {known}", do="name all labels in `labels`")
    place = {label: index for index, label in enumerate(known)}
    size = len(known)
    apart = np.abs(np.arange(size)[:, None] - np.arange(size)[None, :]).astype(np.float64)
    cost = {None: (apart > 0).astype(np.float64), "linear": apart, "quadratic": apart**2}[weights]
    # Each item falls into one cell of the table [size, size], flattened: its statistics are a one-hot vector.
    cells = [place[x] * size + place[y] for x, y in zip(a, b, strict=True)]

    def kappa(sums: Array) -> Array:
        table = sums.reshape(*sums.shape[:-1], size, size)
        by_a, by_b = table.sum(axis=-1), table.sum(axis=-2)
        # Expected cost if the raters were independent: outer product of the margins, weighted by cost.
        expected = np.einsum("...i,...j,ij->...", by_a, by_b, cost) / table.sum(axis=(-1, -2))
        return _one_minus((table * cost).sum(axis=(-1, -2)), expected)

    stats = np.zeros((len(cells), size * size))
    stats[np.arange(len(cells)), cells] = 1.0
    by_a, by_b = (np.bincount([place[label] for label in rater], minlength=size) / len(cells) for rater in (a, b))
    chance = float(by_a @ by_b)
    if weights is None:
        return _of_shares(float(kappa(stats.sum(axis=0))), len(cells), chance)
    return _interval(stats, kappa, by_chance=chance)


def fleiss_kappa(counts: ArrayLike) -> Interval:
    """Agreement of many raters beyond chance, with the interval over items.

    Args:
        counts: [items, labels], how many raters gave each label to each item; the same number of ratings for every
            item, at least two.

    Raises:
        RequestError: no items, fewer than two ratings an item, unequal numbers of them, or a negative count.
    """
    table = np.asarray(counts, dtype=np.float64)
    per_item = table.sum(axis=1) if table.ndim == 2 and len(table) else np.zeros(1)
    num_raters = per_item[0]
    if num_raters < 2 or (per_item != num_raters).any() or (table < 0).any():
        raise RequestError(
            f"items with {sorted(set(per_item.tolist()))} ratings",
            expected="[items, labels] with the same number of ratings for every item, at least two",
            do="use krippendorff_alpha where some ratings are missing",
        )
    # Agreeing pairs of raters among all pairs of an item, [items]: sum of c (c - 1) over n (n - 1).
    agreeing = ((table**2).sum(axis=1) - num_raters) / (num_raters * (num_raters - 1))

    def kappa(sums: Array) -> Array:
        num_items = sums[..., -1]
        shares = sums[..., :-2] / (num_items * num_raters)[..., None]
        return _one_minus(1 - sums[..., -2] / num_items, 1 - (shares**2).sum(axis=-1))

    stats = np.column_stack([table, agreeing, np.ones(len(table))])
    shares = table.sum(axis=0) / table.sum()
    return _interval(stats, kappa, by_chance=float(shares @ shares))


def krippendorff_alpha(ratings: Sequence[Sequence[Any]] | NDArray[Any], level: Level) -> Interval:
    """Agreement of any number of raters, with missing ratings allowed, with the interval over items.

    Items with fewer than two ratings carry no information and are skipped.

    Args:
        ratings: [raters, items], None or NaN for a missing rating.
        level: "nominal" for labels, "ordinal" for ranks, "interval" for numbers whose distances count.

    Raises:
        RequestError: raters have different numbers of items, or ratings are not numbers where numbers are needed.
    """
    if len({len(rater) for rater in ratings}) != 1:
        raise RequestError("raters with different numbers of items", expected="[raters, items]", do="fill up with None")
    by_item = [[value for value in item if not _is_missing(value)] for item in zip(*ratings, strict=True)]
    paired = [item for item in by_item if len(item) >= 2]
    if not paired:
        return UNDEFINED
    if level == "interval" and not all(isinstance(value, int | float | np.number) for item in paired for value in item):
        raise RequestError("ratings that are not numbers", expected="numbers", do="use the level nominal or ordinal")
    domain = sorted({value for item in paired for value in item})
    place = {value: index for index, value in enumerate(domain)}
    counts = np.zeros((len(paired), len(domain)))
    for row, item in enumerate(paired):
        for value in item:
            counts[row, place[value]] += 1
    shares = counts.sum(axis=0) / counts.sum()
    stats, alpha = _moments(counts, domain) if level == "interval" else _coincidences(counts, level)
    return _interval(stats, alpha, by_chance=float(shares @ shares))


def pearson(x: Sequence[float] | NDArray[Any], y: Sequence[float] | NDArray[Any]) -> Interval:
    """Correlation of two series of numbers, with the interval over items.

    Raises:
        RequestError: fewer than three items, different lengths, or a constant series.
    """
    return _correlation(np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64), of_ranks=False)


def spearman(x: Sequence[float] | NDArray[Any], y: Sequence[float] | NDArray[Any]) -> Interval:
    """Correlation of ranks (equal values share their mean rank), with the interval over items.

    Raises:
        RequestError: fewer than three items, different lengths, or a constant series.
    """
    ranks_x, ranks_y = (rankdata(values).astype(np.float64) for values in (x, y))
    return _correlation(ranks_x, ranks_y, of_ranks=True)


def deviations(ratings: ArrayLike) -> Array:
    """The difference of each rating from the mean of the other raters for the same item: [raters, items].

    NaN if the rating is missing (NaN), or no other rater has rated the item.
    """
    given = np.asarray(ratings, dtype=np.float64)
    there = ~np.isnan(given)
    num_others = there.sum(axis=0) - there
    # The sum of the others is the sum of all less one's own, so no loop over raters is needed.
    others = (np.nansum(given, axis=0) - np.where(there, given, 0.0)) / np.where(num_others > 0, num_others, np.nan)
    result: Array = given - others
    return result


def drift_of(values_in_order: Sequence[float] | NDArray[Any]) -> Drift:
    """Whether a rater becomes milder or stricter: a linear fit of the deviations, in the order of rating.

    NaN is skipped but keeps its position in the order.

    Raises:
        RequestError: fewer than three values.
    """
    values = np.asarray(values_in_order, dtype=np.float64)
    places = np.flatnonzero(~np.isnan(values))
    if len(places) < _MIN_FOR_DRIFT:
        raise RequestError(f"{len(places)} values", expected="at least three in order", do="wait for more ratings")
    if np.ptp(values[places]) == 0:
        return Drift(0.0, 0.0, 0.0, 1.0)
    found = linregress(places, values[places])
    half, slope = float(t.isf(TAIL, len(places) - 2)) * float(found.stderr), float(found.slope)
    return Drift(slope, slope - half, slope + half, float(found.pvalue))


def _moments(counts: Array, domain: Sequence[float]) -> tuple[Array, Aggregate]:
    """Statistics [items, 4] and formula of alpha for numbers: squared distances need no table of all values."""
    values = np.asarray(domain, dtype=np.float64)
    # Centred first: sums of squares of large values would cancel in the difference below.
    values = values - values.mean()
    size, total, squares = counts.sum(axis=1), counts @ values, counts @ values**2
    # Sum of squared differences over all ordered pairs of an item, by its moments.
    within = 2 * (size * squares - total**2) / (size - 1)

    def alpha(sums: Array) -> Array:
        observed, num, total, squares = (sums[..., place] for place in range(4))
        with np.errstate(all="ignore"):
            return _one_minus(observed, 2 * (num * squares - total**2) / (num - 1))

    return np.column_stack([within, size, total, squares]), alpha


def _coincidences(counts: Array, level: Level) -> tuple[Array, Aggregate]:
    """Statistics [items, values^2] and formula of alpha: counts of value pairs, each item weighted by its ratings."""
    size = counts.shape[1]
    # [items, values, values]; a rating is not paired with itself, so the diagonal loses one pair per rating.
    met = counts[:, :, None] * counts[:, None, :] - counts[:, :, None] * np.eye(size)
    met /= (counts.sum(axis=1) - 1)[:, None, None]

    def alpha(sums: Array) -> Array:
        table = sums.reshape(*sums.shape[:-1], size, size)
        by_value = table.sum(axis=-1)
        if level == "nominal":
            cost = 1 - np.eye(size)
        else:
            # The distance of ranks is the number of ratings between them.
            middle = np.cumsum(by_value, axis=-1) - by_value / 2
            cost = (middle[..., :, None] - middle[..., None, :]) ** 2
        expected = (by_value[..., :, None] * by_value[..., None, :] * cost).sum(axis=(-1, -2))
        with np.errstate(all="ignore"):
            return _one_minus((table * cost).sum(axis=(-1, -2)), expected / (by_value.sum(axis=-1) - 1))

    return met.reshape(len(counts), size * size), alpha


def _one_minus(observed: Array, expected: Array) -> Array:
    """1 - observed / expected disagreement; NaN if chance itself could not disagree (only one value)."""
    with np.errstate(all="ignore"):
        result: Array = np.where(expected > 0, 1 - observed / expected, np.nan)
    return result


def _of_shares(kappa: float, num_items: int, by_chance: float) -> Interval:
    """Of two raters without weights: Wilson's interval of the share of items with equal ratings, chance taken out.

    With few disagreements the bootstrap is too narrow (with 20 items at 0.9 it covers the truth in 61 of 100 studies)
    and the jackknife too wide; this one covers it in 92 to 98 (docs/statistics.md).
    """
    if math.isnan(kappa):
        return UNDEFINED
    # Back from kappa to the number of items with equal ratings; rounding removes the float error.
    equal = round((kappa * (1 - by_chance) + by_chance) * num_items)
    low, high = share_ends(equal, num_items, TAIL)
    return Interval(
        kappa, max((low - by_chance) / (1 - by_chance), -1.0), min((high - by_chance) / (1 - by_chance), 1.0)
    )


def _interval(stats: Array, coefficient: Aggregate, *, by_chance: float) -> Interval:
    """by_chance: the probability of equal ratings by chance."""
    value = float(coefficient(stats.sum(axis=0)))
    if math.isnan(value):
        return UNDEFINED
    resampled = coefficient(resampled_sums(stats, seed=0, num_resamples=_NUM_RESAMPLES))
    # Resamples with only one value are not informative.
    ends = percentiles(resampled[np.isfinite(resampled)])
    low, high = widened(ends, value, spread_of(stats, coefficient), CORRELATION)
    if value > 1 - 1e-12:
        share, _ = share_ends(len(stats), len(stats), TAIL)
        low = min(low, 1 - (1 - share) / (1 - by_chance))
    return Interval(value, low, high)


def _correlation(x: Array, y: Array, *, of_ranks: bool) -> Interval:
    """On Fisher's scale, the wider of the intervals from the items and from normal theory."""
    num = len(x)
    if x.shape != y.shape or x.ndim != 1 or num < _MIN_FOR_CORRELATION or np.ptp(x) == 0 or np.ptp(y) == 0:
        raise RequestError(
            f"{len(x)} and {len(y)} values, {len(set(x.tolist()))} and {len(set(y.tolist()))} different",
            expected="the same items in both, at least three, and values that differ",
            do="rate more items; a rater who gives one value to all cannot be correlated with",
        )
    # Centred: the variance from moments loses its digits where the mean is large. [items, 6].
    stats = np.column_stack([x := x - x.mean(), y := y - y.mean(), x * x, y * y, x * y, np.ones(num)])
    # Perfect correlation is infinite on Fisher's scale, so it is slightly reduced.
    most = 1 - 1 / (2 * num)

    def on_scale(sums: Array) -> Array:
        mean = sums[..., :5] / sums[..., 5:]
        spread = (mean[..., 2] - mean[..., 0] ** 2) * (mean[..., 3] - mean[..., 1] ** 2)
        with np.errstate(all="ignore"):
            r = (mean[..., 4] - mean[..., 0] * mean[..., 1]) / np.sqrt(np.maximum(spread, 0.0))
        result: Array = np.arctanh(np.clip(r, -most, most))
        return result

    centre = float(on_scale(stats.sum(axis=0)))
    resampled = on_scale(resampled_sums(stats, seed=0, num_resamples=_NUM_RESAMPLES))
    # The jackknife does not help: a single outlier makes it useless (-0.24 to 0.97 for 0.92).
    low, high = percentiles(resampled[np.isfinite(resampled)])
    r = float(np.corrcoef(x, y)[0, 1])
    # Variance of Fisher's z: 1 / (n - 3) for Pearson, Bonett and Wright's for Spearman.
    variance = (1 + r**2 / 2 if of_ranks else 1.0) / (num - 3) if num > 3 else math.inf
    half = float(norm.isf(TAIL)) * math.sqrt(variance)
    low, high = math.tanh(min(low, centre - half)), math.tanh(max(high, centre + half))
    return Interval(r, min(low, r), max(high, r))


def _is_missing(value: Any) -> bool:
    return value is None or (isinstance(value, float | np.floating) and math.isnan(value))
