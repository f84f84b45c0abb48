"""A learning curve: a power law through a few points, how far it can be trusted, and its chart.

L(n) = a + b * n ** -c, fitted as `statistics.power_law` says. Intervals are those of a parametric bootstrap: the points
are drawn again around the fit with the noise that the residuals show, which itself is drawn again since few residuals
show it. In the chart the extrapolated part is drawn separately.

Sources: Hestness et al., 2017, "Deep Learning Scaling is Predictable, Empirically", arXiv:1712.00409. Efron &
Tibshirani, 1993, "An Introduction to the Bootstrap", section 6.5.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t

from luthier.core.errors import RequestError
from luthier.core.estimate import Estimate
from luthier.core.workflows.learning_curve import CurveFit, CurvePoint, Gain, LearningCurve
from luthier.ml.charts.figures import count
from luthier.ml.charts.spec import Axis, Plot, Series, points_of
from luthier.ml.charts.svg import write_chart
from luthier.ml.evaluation.statistics.power_law import Floats, fit_power_laws

MIN_SIZES: Final = 3
MIN_POINTS: Final = 4
_NUM_UNKNOWNS: Final = 3
_NUM_DRAWS: Final = 2000
_LITTLE: Final = 0.01
"""Twice the rows for less than a hundredth of the loss: enough of them."""
_MAX_TIMES: Final = 1024
_UNCLEAR_RATIO: Final = 4.0
_SAME_SIZE: Final = 1.05

_Law = tuple[float, float, float]
Word = Literal["useful", "flat", "rising", "unclear"]


def fit_power_law(points: Sequence[CurvePoint], *, seed: int = 0) -> CurveFit:
    """The law through the points, with 95% intervals.

    Raises:
        RequestError: fewer than four points, fewer than three sizes, or a point that is not a number.
    """
    _check(points)
    sizes, losses = _arrays(points)
    (floor, scale, exponent), drawn, noise = _bootstrap(sizes, losses, seed)
    rows = round(float(sizes.max()))
    gains = tuple(_gain((floor, scale, exponent), drawn, rows, more) for more in _steps(rows))
    word, words = _judged(sizes, losses, noise, gains, rows)
    return CurveFit(
        word=word,
        words=words,
        floor=_interval(floor, drawn[0]),
        scale=scale,
        exponent=_interval(exponent, drawn[2]),
        noise=noise,
        num_rows=rows,
        gains=gains,
        enough_rows=_enough(floor, scale, exponent, rows) if word == "useful" else None,
    )


def curve_band(points: Sequence[CurvePoint], at_rows: Floats, *, seed: int = 0) -> tuple[Floats, Floats, Floats]:
    """Fitted loss at each number of rows, and the ends of its 95% interval, for a chart.

    Raises:
        RequestError: fewer than four points, fewer than three sizes, or a point that is not a number.
    """
    _check(points)
    law, (floors, scales, exponents), _ = _bootstrap(*_arrays(points), seed)
    # [draws, rows]
    curves = floors[:, None] + scales[:, None] * at_rows[None] ** -exponents[:, None]
    low, high = np.percentile(curves, [2.5, 97.5], axis=0)
    return law[0] + law[1] * at_rows ** -law[2], low, high


def _arrays(points: Sequence[CurvePoint]) -> tuple[Floats, Floats]:
    return np.array([float(point.num_rows) for point in points]), np.array([point.loss for point in points])


def _bootstrap(sizes: Floats, losses: Floats, seed: int) -> tuple[_Law, tuple[Floats, Floats, Floats], float]:
    """The best law, those of the points drawn again, and the noise of a point."""
    floor, scale, exponent = (float(values[0]) for values in fit_power_laws(sizes, losses[None]))
    fitted = floor + scale * sizes**-exponent
    freedom = len(sizes) - _NUM_UNKNOWNS
    noise = math.sqrt(float(np.sum((losses - fitted) ** 2)) / freedom)
    draw = np.random.default_rng(seed)
    # [draws, 1]: one noise level a draw from its posterior (scaled inverse chi-square), as in a t interval.
    noises = noise * np.sqrt(freedom / draw.chisquare(freedom, size=(_NUM_DRAWS, 1)))
    drawn = fit_power_laws(sizes, fitted + noises * draw.standard_normal((_NUM_DRAWS, len(sizes))))
    return (floor, scale, exponent), drawn, noise


def _check(points: Sequence[CurvePoint]) -> None:
    num_sizes = len(set(_alike(_arrays(points)[0]).tolist()))
    if len(points) < MIN_POINTS or num_sizes < MIN_SIZES:
        raise RequestError(
            f"{len(points)} points of {num_sizes} sizes",
            expected=f"at least {MIN_POINTS} points of {MIN_SIZES} sizes: a power law has three unknowns",
            do="let more of the runs finish",
        )
    bad = [point for point in points if not (math.isfinite(point.loss) and point.loss > 0 and point.num_rows > 0)]
    if bad:
        raise RequestError(
            f"a loss of {bad[0].loss} at {bad[0].num_rows} rows",
            expected="a finite loss above 0 at a number of rows above 0",
            do="check that run: it may have diverged",
        )


def _gain(law: _Law, drawn: tuple[Floats, Floats, Floats], rows: int, more: int) -> Gain:
    def at(floor: Floats | float, scale: Floats | float, exponent: Floats | float, size: int) -> Floats:
        return np.asarray(floor + scale * float(size) ** -np.asarray(exponent))

    then, now = at(*law, rows + more), at(*law, rows)
    many_then = at(*drawn, rows + more)
    return Gain(
        more_rows=more,
        loss=_interval(float(then), many_then),
        bought=_interval(float(now - then), at(*drawn, rows) - many_then),
    )


def _interval(value: float, draws: Floats) -> Estimate:
    # The draws may be skewed so much that the point estimate is outside their percentiles.
    low, high = np.percentile(draws, [2.5, 97.5])
    return Estimate(value=value, low=min(float(low), value), high=max(float(high), value))


def _steps(rows: int) -> tuple[int, int, int]:
    """More rows to report: about a quarter more, as a round number; twice as many; four times as many."""
    wanted = max(1.0, rows / 4)
    unit = 10 ** math.floor(math.log10(wanted))
    return max(step * unit for step in (1, 2, 5) if step * unit <= wanted), rows, 3 * rows


def _judged(sizes: Floats, losses: Floats, noise: float, gains: Sequence[Gain], rows: int) -> tuple[Word, str]:
    """Whether the law is good to act on, and if not, why."""
    alike = _alike(sizes)
    first, last = losses[alike == 0], losses[alike == alike.max()]
    fall = float(first.mean() - last.mean())
    # Standard error of a difference of two means, in units of the noise of one run.
    of_two_means = math.sqrt(1 / len(first) + 1 / len(last))
    doubt = float(t.ppf(0.975, len(sizes) - _NUM_UNKNOWNS)) * noise * of_two_means
    from_to = f"from {round(float(sizes.min())):,} to {rows:,} rows"
    # a law that only falls leaves a rise among the residuals, so here the noise is that of runs of one size
    if fall < -min(doubt, _between_repeats(sizes, losses) * of_two_means):
        return "rising", (
            f"the fit shows nothing: the loss rises by {-fall:.3g} {from_to}; more rows would hardly help here "
            "(look at the learning rate, and at whether the rows are similar)"
        )
    if fall <= doubt:
        return "flat", (
            f"the fit shows nothing: {from_to} the loss falls by {fall:.3g}, no more than the noise explains "
            f"({doubt:.3g}); either more rows of this kind would not help, or more runs are needed to see how much"
        )
    twice = gains[1].bought
    if twice.high > _UNCLEAR_RATIO * max(twice.low, 1e-12):
        return "unclear", (
            f"the fit says little: twice the rows would buy between {twice.low:.2g} and {twice.high:.2g}, "
            "too wide a range to act on"
        )
    some = gains[0]
    return "useful", (
        f"{some.more_rows:,} more rows would buy about {some.bought.value:.2g} nats a learned token "
        f"[{some.bought.low:.2g}, {some.bought.high:.2g}], twice the rows {twice.value:.2g} "
        f"[{twice.low:.2g}, {twice.high:.2g}]"
    )


def _alike(sizes: Floats) -> NDArray[np.int64]:
    """Groups of sizes that differ by rounding only: a number for each, the same for neighbours within a twentieth."""
    order = np.argsort(sizes, kind="stable")
    numbers = np.zeros(len(sizes), dtype=np.int64)
    number = 0
    for before, index in pairwise(order):
        number += int(sizes[index] > _SAME_SIZE * sizes[before])
        numbers[index] = number
    return numbers


def _between_repeats(sizes: Floats, losses: Floats) -> float:
    """How far a run may be from others of its size at 95%; infinite where no size has two."""
    alike = _alike(sizes)
    freedom = len(sizes) - len(np.unique(alike))
    if not freedom:
        return math.inf
    squares = sum(float(np.sum((losses[alike == n] - losses[alike == n].mean()) ** 2)) for n in np.unique(alike))
    return float(t.ppf(0.975, freedom)) * math.sqrt(squares / freedom)


def _enough(floor: float, scale: float, exponent: float, rows: int) -> int | None:
    """The number of rows from which twice as many buy less than a hundredth of the loss."""
    for quarter in range(4 * round(math.log2(_MAX_TIMES)) + 1):
        size = rows * 2 ** (quarter / 4)
        falling = scale * size**-exponent
        if falling * (1 - 2**-exponent) < _LITTLE * (floor + falling):
            return round(size)
    return None


_WIDTH: Final = 620
_HEIGHT: Final = 360
_BEYOND: Final = 4.0
_CLOSEST: Final = 0.85


def write_learning_curve_chart(path: Path, curve: LearningCurve) -> None:
    """Validation loss against training rows, both measured and expected up to four times the rows.

    Raises:
        RequestError: the file cannot be written to, or where no run has ended.
    """
    sizes = np.array([float(point.num_rows) for point in curve.points])
    losses = np.array([point.loss for point in curve.points])
    series, y = [], Axis("nats a learned token")
    if curve.fit is not None:
        # Evenly spread on the logarithmic axis.
        rows = np.geomspace(sizes.min(), sizes.max() * _BEYOND, 200)
        middle, low, high = curve_band(curve.points, rows)
        inside = rows <= sizes.max()
        for is_known, name in ((inside, "power law, 95% band"), (~inside, "expected beyond")):
            points, band = points_of(rows[is_known], middle[is_known]), points_of(low[is_known], high[is_known])
            series.append(Series(name, points, intervals=band, is_dashed=name == "expected beyond"))
        # a band that is wide far out must not press the points flat
        room = 0.6 * float(losses.max() - losses.min()) + 0.02 * float(losses.max())
        least = max(0.0, float(min(middle.min(), losses.min())) - room)
        y = Axis("nats a learned token", low=least, high=float(losses.max()) + room)
    series.append(Series("runs", points_of(sizes, losses), "base", "dots", radius_pixels=4.0))
    ends = [*sizes.tolist(), *([sizes.max() * 2, sizes.max() * 4] if curve.fit else [])]
    words = curve.fit.words if curve.fit else "too few runs for a law"
    chart = Plot(
        "learning-curve",
        "Validation loss by training rows",
        Axis("training rows", scale="log", ticks=[(value, count(round(value))) for value in _apart(ends)]),
        y,
        series,
        description=f"{len(sizes)} runs; {words}.",
        width_pixels=_WIDTH,
        height_pixels=_HEIGHT,
    )
    write_chart(chart, path)


def _apart(sizes: Sequence[float]) -> list[float]:
    """The sizes, the larger of those that are too close together for two labels."""
    shown: list[float] = []
    for size in sorted(sizes, reverse=True):
        if not shown or size < _CLOSEST * shown[-1]:
            shown.append(size)
    return shown[::-1]
