"""Figures of several trainings of one recipe: rows and seeds are two sources of chance.

A training with another seed gives another figure, and so do other rows. The half-widths of both are combined as
the legs of a right triangle, each with the quantile for its own number of values: with two trainings that is
12.7 standard errors for the seeds, since two values say next to nothing about a spread. Where trainings agree to the
last digit, only the rows count. Half-widths are combined on the scale of the figure's bounds (`core.bounds`), so that
12.7 standard errors stay within the figure's range.

Sources: Bouthillier et al., "Accounting for Variance in Machine Learning Benchmarks", 2021, arXiv:2103.03098 (the seed
moves figures by as much as many a reported gain); Zou and Donner, "Construction of confidence limits about effect
measures: a general approach", 2008, section 2 (how half-widths of independent parts are joined).
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np

from luthier.core.errors import RequestError
from luthier.core.records.bounds import Bounds
from luthier.ml.evaluation.statistics.intervals import (
    TAIL,
    Difference,
    Interval,
    difference_of,
    in_agreement,
    interval_of,
)
from luthier.ml.evaluation.statistics.resampling import (
    NUM_RESAMPLES,
    Aggregate,
    Array,
    cluster_sums,
    resampled_sums,
    same_rows,
)


class _Seeds(NamedTuple):
    """Spread of a mean over trainings.

    Attributes:
        standard_error: of the mean, in the figure's unit or on the linked scale.
        num_seeds: trainings that it was estimated from.
    """

    standard_error: float
    num_seeds: int

    def half_width(self, tail: float) -> float:
        """Of the two-sided interval that leaves `tail` out at each side; 0 for a system that is not trained."""
        from scipy.special import stdtrit

        return -float(stdtrit(self.num_seeds - 1, tail)) * self.standard_error if self.standard_error else 0.0


def over_seeds(
    per_seed: Sequence[Array],
    aggregate: Aggregate,
    *,
    bounds: Bounds,
    seed: int,
    num_resamples: int = NUM_RESAMPLES,
    clusters: Sequence[Hashable] | None = None,
) -> Interval:
    """The mean figure of several trainings, with an interval that holds for other trainings and other rows.

    Args:
        per_seed: [rows, k] of each training, the same rows in the same order.
        aggregate: sums [..., k] -> figures [...].
        bounds: what the figure can be.
        seed: of the resampling.
        num_resamples: draws of the rows.
        clusters: the source of each row; None where every row is its own.

    Raises:
        RequestError: fewer than two trainings, different rows, or not one source a row.
    """
    if len(per_seed) < 2:
        raise RequestError(
            f"{len(per_seed)} trainings", expected="at least two, or their spread cannot be seen", do="train more seeds"
        )
    side = _Side(per_seed, aggregate)
    # [rows, seeds * k]: all trainings see the same draw of rows, so only the rows vary in the resamples.
    together = side.columns
    sums = resampled_sums(together, seed=seed, num_resamples=num_resamples, clusters=clusters)
    units = cluster_sums(together, clusters)
    rows = interval_of(together.sum(axis=0), sums, side.mean_figure, bounds=bounds, rows=units)
    return _Joint(rows, [side.spread()], bounds, len(units)).interval()


def difference_over_seeds(
    per_seed_a: Sequence[Array],
    per_seed_b: Sequence[Array],
    aggregate: Aggregate,
    *,
    bounds: Bounds,
    seed: int,
    num_resamples: int = NUM_RESAMPLES,
    clusters: Sequence[Hashable] | None = None,
) -> Difference:
    """Mean figure of A's trainings minus that of B's, on the same rows.

    A system that is not trained, such as the base model, has one array. Seeds of both sides are independent of each
    other. The p-value is that of the joined interval, and never below that of the rows alone (`difference_of`: exact
    for shares, with its floors): it is below 5% just where the 95% interval leaves out 0.

    Args:
        per_seed_a: [rows, k] of each training of A.
        per_seed_b: [rows, k] of each training of B, the same rows in the same order.
        aggregate: sums [..., k] -> figures [...].
        bounds: what one figure can be.
        seed: of the resampling.
        num_resamples: draws of the rows.
        clusters: the source of each row; None where every row is its own.

    Raises:
        RequestError: no array for a side, one for both, or different rows.
    """
    if min(len(per_seed_a), len(per_seed_b)) < 1 or len(per_seed_a) + len(per_seed_b) < 3:
        raise RequestError(
            f"{len(per_seed_a)} and {len(per_seed_b)} trainings",
            expected="at least two of one system, and one of the other",
            do="train more seeds, or use paired_bootstrap for one training of each",
        )
    same_rows(per_seed_a[0], per_seed_b[0])
    side_a, side_b = _Side(per_seed_a, aggregate), _Side(per_seed_b, aggregate)
    together = np.concatenate([side_a.columns, side_b.columns], axis=1)
    width = side_a.columns.shape[1]
    sums = resampled_sums(together, seed=seed, num_resamples=num_resamples, clusters=clusters)
    units = cluster_sums(together, clusters)
    rows = difference_of(
        together.sum(axis=0),
        sums,
        slice(0, width),
        slice(width, None),
        side_a.mean_figure,
        len(units),
        bounds=bounds,
        rows=units,
        num_different=int((side_a.mean_of(units[:, :width]) != side_b.mean_of(units[:, width:])).any(axis=1).sum()),
    )
    spreads = [side_a.spread(), side_b.spread()]
    if not any(spread.standard_error for spread in spreads):
        return rows
    joint = _Joint(Interval(*rows[:3]), spreads, bounds.of_differences, len(units))
    # Seeds only add uncertainty: the p-value is never below that of the rows, whose floors apply here, too.
    p_value = max(joint.p_value(), rows.p_value)
    error = math.hypot(rows.standard_error, *(spread.standard_error for spread in spreads))
    return in_agreement(Difference(*joint.interval(), p_value, error))


class _Side:
    """One system's trainings.

    Attributes:
        columns: [rows, trainings * k], all of them side by side; one alone where all of them say the same of every
            row, so that what is known of one such figure (a share's exact interval) holds for it.
    """

    def __init__(self, per_seed: Sequence[Array], aggregate: Aggregate) -> None:
        for stats in per_seed:
            same_rows(per_seed[0], stats)
        self._per_seed, self._aggregate = per_seed, aggregate
        all_equal = all(np.array_equal(stats, per_seed[0]) for stats in per_seed)
        self.columns = per_seed[0] if all_equal else np.concatenate(per_seed, axis=1)

    def _parts(self, columns: Array) -> list[Array]:
        """[..., trainings * k] -> [..., k] of each training; as many as there are columns for."""
        return np.split(columns, columns.shape[-1] // self._per_seed[0].shape[1], axis=-1)

    def mean_of(self, rows: Array) -> Array:
        """Statistics of rows, averaged over trainings: [rows, trainings * k] -> [rows, k]."""
        result: Array = np.mean(self._parts(rows), axis=0)
        return result

    def mean_figure(self, sums: Array) -> Array:
        """Sums of trainings side by side -> the mean of their figures: [..., trainings * k] -> [...]."""
        result: Array = np.mean([self._aggregate(part) for part in self._parts(sums)], axis=0)
        return result

    def spread(self) -> _Seeds:
        """How much the mean would move with other seeds."""
        figures = [float(self._aggregate(stats.sum(axis=0))) for stats in self._per_seed]
        num = len(figures)
        # ddof=1: the unbiased variance. One training shows no spread, which counts as 0.
        return _Seeds(float(np.std(figures, ddof=1)) / math.sqrt(num) if num > 1 else 0.0, num)


class _Joint:
    """The interval of the rows and the spreads of the seeds, on the scale of the bounds' link."""

    def __init__(self, rows: Interval, spreads: Sequence[_Seeds], bounds: Bounds, num_rows: int) -> None:
        self._rows, self._bounds = rows, bounds
        largest = max((spread.standard_error for spread in spreads), default=0.0)
        # A value at the very end has an infinite link; rows cannot resolve a position closer than a quarter of a row.
        quarter = bounds.width / (4 * num_rows) if math.isfinite(bounds.width) else 0.0
        place = bounds.inside(rows.value, max(largest, quarter))
        self._centre, slope = bounds.link(place), bounds.slope(place)
        # Delta method: a standard error on the linked scale is the plain one times the link's slope.
        self._spreads = [spread._replace(standard_error=spread.standard_error * slope) for spread in spreads]

    def interval(self) -> Interval:
        """Half-widths joined as the sides of a right angle, to either side."""
        among_seeds = [spread.half_width(TAIL) for spread in self._spreads]
        value, low, high = self._rows
        if not any(among_seeds):
            return self._rows
        below = self._centre - math.hypot(self._centre - self._bounds.link(low), *among_seeds)
        above = self._centre + math.hypot(self._bounds.link(high) - self._centre, *among_seeds)
        return Interval(value, min(low, self._bounds.unlink(below)), max(high, self._bounds.unlink(above)))

    def p_value(self) -> float:
        """The level at which the interval just reaches 0; the rows' half-width grows with the normal quantile."""
        from scipy.optimize import brentq
        from scipy.special import ndtri

        link, (value, low, high) = self._bounds.link, self._rows
        nearer = link(low) if value > 0 else link(high)
        distance = abs(self._centre - link(0.0))
        # An end of the bounds itself, as where all rows say the same, has no place on the linked scale: seeds alone.
        row_error = abs(self._centre - nearer) / -float(ndtri(TAIL)) if math.isfinite(nearer) else 0.0

        def beyond(log_tail: float) -> float:
            tail = math.exp(log_tail)
            parts = [spread.half_width(tail) for spread in self._spreads]
            return math.hypot(-float(ndtri(tail)) * row_error, *parts) - distance

        # The tail is sought on a logarithmic scale, since p-values range over many powers of ten.
        least, most = math.log(1e-12), math.log(0.5)
        if distance == 0 or beyond(most) >= 0:
            return 1.0
        return 2 * math.exp(least if beyond(least) <= 0 else float(brentq(beyond, least, most)))
