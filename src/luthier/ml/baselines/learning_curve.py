"""Would more rows help? The best quick baseline, fitted on a quarter, half and the whole of the training rows.

All fits answer the same held-out rows. Quarters and halves are those of one to four partitions of the rows, so that a
size has several draws that share no row, and their spread shows what the choice of rows does. A power law with a floor
goes through the three figures (`statistics.power_law`); its interval is that of a bootstrap which draws the held-out
rows again, the same for all fits, and the figures again by the spread of the draws.

The curve is that of a baseline, not of the tuned model: it says whether these rows still hold something that more of
them would show. `luthier plan --learning-curve` trains the model itself on shares of the rows.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Final, Literal, NamedTuple

import numpy as np

from luthier.core.dataset import Example
from luthier.core.estimate import Estimate
from luthier.core.evaluation import RowsCurve, RowsPoint
from luthier.core.ports import Progress
from luthier.core.records.bounds import Bounds
from luthier.ml.baselines.predict import QUICK, BaselineSet, Predictions
from luthier.ml.baselines.rows import NotApplicable, TaskRow, prompt_text, task_rows
from luthier.ml.charts.judged_rows import metric_title
from luthier.ml.evaluation.metrics.protocol import Array, MetricDefinition, Observations
from luthier.ml.evaluation.metrics.registry import bounds_of
from luthier.ml.evaluation.statistics import resampled_sums
from luthier.ml.evaluation.statistics.power_law import fit_power_laws

MIN_ROWS: Final = 40
"""Training rows below which a quarter is too few to fit anything on."""
MIN_HELD_OUT: Final = 20
_EXPONENTS: Final = np.concatenate([-np.geomspace(1.0, 0.05, 20), np.geomspace(0.05, 6.0, 40)])
"""From "each row brings as much as the one before" to a curve that has nearly reached its floor."""
WORTHWHILE: Final = 0.02
"""Of the width of a metric: a smaller gain of twice the rows is not worth collecting them."""
_NEARLY_ALL: Final = 0.95
"""Of the training rows; a ridge regression leaves out the few whose answers are not numbers."""
_PARTS: Final = (4, 2)
"""Of a partition of the rows: its quarters, then its halves."""
_MAX_PARTITIONS: Final = 4
_NUM_RESAMPLES: Final = 2_000
_OWN_NOISE: Final = 0.5
"""Of the variance that the choice of rows gives a size, the share that is not common to all sizes.

Quarters and halves of one partition are the whole set together: to first order their mean is off by what the whole is
off by, and differences of sizes are surer than the spread of the draws says. Half of it kept intervals honest in
simulated studies (tests/ml/baselines/test_learning_curve.py).
"""

Word = Literal["more_rows", "enough_rows", "unclear"]


class _Fit(NamedTuple):
    """Statistics [held-out rows, k] of one fit on some of the rows."""

    parts: int
    partition: int
    statistics: Array


def learning_curve(
    train: Sequence[Example],
    held_out: Sequence[Example],
    baselines: BaselineSet,
    metric: MetricDefinition,
    *,
    seconds: float,
    progress: Progress,
    canonical: Callable[[str], str] | None = None,
    clusters: Sequence[Hashable] | None = None,
) -> RowsCurve | None:
    """The curve of the quick baseline that has the best figure; None where none of them fits the rows.

    Args:
        train: the training rows.
        held_out: the evaluated rows, each with a text answer.
        baselines: what was fitted on all training rows and answered the held-out ones.
        metric: one that looks at text.
        seconds: that the fits may take, by the time that the fit on all rows took.
        progress: shows the fits.
        canonical: the one form of an answer that can be written in several ways, such as a set of labels; answers and
            references are compared in it. None compares them as they are written.
        clusters: the group of each evaluated row; None where every row counts by itself.
    """
    known = [one for one in baselines.predictions if one.name in QUICK]
    bounds = bounds_of(metric)
    if not known or not math.isfinite(bounds.width):
        return None
    better = max if metric.higher_is_better else min
    best = better(known, key=lambda one: _figure(metric, _observed(one.outputs, held_out, canonical)))
    rows = QUICK[best.name].rows(task_rows(train))
    if len(rows) < MIN_ROWS or len(held_out) < MIN_HELD_OUT:
        few = (
            f"{len(rows):,} to train on, {len(held_out):,} to evaluate with; at least {MIN_ROWS} and {MIN_HELD_OUT} "
            "are needed"
        )
        return _without(metric, f"Whether more rows would help is unclear from so few rows ({few}).")
    # A partition is fitted twice: as quarters, and as halves.
    num_partitions = min(_MAX_PARTITIONS, int(seconds / (len(_PARTS) * max(best.seconds, 1e-9))))
    if num_partitions < 1:
        wanted = f"{len(_PARTS) * best.seconds:.0f} s, and {max(seconds, 0.0):.0f} s were left for baselines"
        return _without(metric, f"Whether more rows would help was not measured: it would have taken {wanted}.")
    try:
        fits = _fits(best, rows, held_out, metric, num_partitions, progress, canonical)
    except NotApplicable as reason:
        why = f"a quarter of the {len(rows):,} rows is too few for a {best.name}: {reason}"
        return _without(metric, f"Whether more rows would help is unclear: {why}.")
    curve = curve_of(fits, len(rows), metric, bounds, best.name, clusters)
    # What twice the fitted rows would bring may be there already; that they would bring nothing holds for more, too.
    if curve.word == "enough_rows" or len(rows) >= _NEARLY_ALL * len(train):
        return curve
    there = sum(example.prompt is not None and example.reference is not None for example in train)
    if len(rows) >= _NEARLY_ALL * there:
        return curve
    why = f"a {best.name} was fitted on {len(rows):,} of {there:,} rows, so that it takes some seconds only"
    advice = f"Whether more rows would help is unclear: {why}."
    unknown = {"more_rows": None, "expected_gain": None, "expected": None}
    return curve.model_copy(update={"word": "unclear", "advice": advice, **unknown})


def _without(metric: MetricDefinition, advice: str) -> RowsCurve:
    return RowsCurve(metric=metric.name, word="unclear", advice=advice)


def _observed(
    outputs: Sequence[str], held_out: Sequence[Example], canonical: Callable[[str], str] | None
) -> Observations:
    references = [example.reference or "" for example in held_out]
    if canonical is not None:
        outputs, references = list(map(canonical, outputs)), list(map(canonical, references))
    return Observations(
        outputs=outputs,
        references=references,
        prompts=[prompt_text(example) for example in held_out],
        first_outputs=outputs,
    )


def _figure(metric: MetricDefinition, observed: Observations) -> float:
    return float(metric.aggregate(metric.statistics(observed).sum(axis=0)))


def _fits(
    best: Predictions,
    rows: Sequence[TaskRow],
    held_out: Sequence[Example],
    metric: MetricDefinition,
    num_partitions: int,
    progress: Progress,
    canonical: Callable[[str], str] | None,
) -> list[_Fit]:
    """The fits on all rows (known already), on quarters and on halves.

    Raises:
        NotApplicable: a method cannot be fitted on a part of the rows.
    """
    prompts = [prompt_text(example) for example in held_out]
    found = [_Fit(1, 0, metric.statistics(_observed(best.outputs, held_out, canonical)))]
    with progress.task("Fitting on parts of the rows", num_partitions * sum(_PARTS), "fits") as task:
        for partition, parts, own in _parts(rows, num_partitions):
            outputs = QUICK[best.name].texts(own, prompts)
            found.append(_Fit(parts, partition, metric.statistics(_observed(outputs, held_out, canonical))))
            task.advance()
    return found


def _parts(rows: Sequence[TaskRow], num_partitions: int) -> Iterator[tuple[int, int, Sequence[TaskRow]]]:
    """Each part of each partition: the partition, of how many parts, and its rows in the order of the rows.

    Rows are shuffled by a hash of their content: equal rows give equal parts on every machine.
    """
    for partition in range(num_partitions):
        keys = [
            hashlib.sha256(f"{partition}\0{row.prompt}\0{row.answer}".encode("utf-8", "surrogatepass")).digest()
            for row in rows
        ]
        order = sorted(range(len(rows)), key=lambda number: (keys[number], number))
        for parts in _PARTS:
            for first in range(parts):
                yield partition, parts, [rows[number] for number in sorted(order[first::parts])]


def curve_of(
    fits: Sequence[_Fit],
    num_rows: int,
    metric: MetricDefinition,
    bounds: Bounds,
    system: str,
    clusters: Sequence[Hashable] | None = None,
    *,
    seed: int = 0,
) -> RowsCurve:
    """The points, the law through them, and the advice.

    Args:
        fits: one on all rows, and at least two on each smaller part.
        num_rows: training rows in all.
        metric: the metric that decides; with both bounds.
        bounds: those of the metric.
        system: the baseline's name.
        clusters: the group of each evaluated row; None where every row counts by itself.
        seed: of all draws.
    """
    parts = sorted({fit.parts for fit in fits}, reverse=True)  # the smallest size first
    sizes = np.array([num_rows / one for one in parts])
    of_size = [[place for place, fit in enumerate(fits) if fit.parts == one] for one in parts]
    width = fits[0].statistics.shape[1]
    together = np.concatenate([fit.statistics for fit in fits], axis=1)  # [rows, fits * k]
    # One set of draws for all fits: the held-out rows are common to them, so differences of sizes are paired.
    sums = resampled_sums(together, seed=seed, num_resamples=_NUM_RESAMPLES, clusters=clusters)
    whole = metric.aggregate(together.sum(axis=0).reshape(len(fits), width))  # [fits]
    drawn = metric.aggregate(sums.reshape(_NUM_RESAMPLES, len(fits), width))  # [resamples, fits]
    values = np.array([whole[places].mean() for places in of_size])  # [sizes]
    means = np.stack([drawn[:, places].mean(axis=1) for places in of_size], axis=1)  # [resamples, sizes]
    scattered = np.clip(means + _noise(fits, whole, parts, np.random.default_rng(seed)), bounds.lower, bounds.upper)
    low, high = np.percentile(scattered, [2.5, 97.5], axis=0)
    points = tuple(
        RowsPoint(
            rows=round(size),
            value=float(value),
            low=min(float(low[place]), float(value)),
            high=max(float(high[place]), float(value)),
            num_draws=len(of_size[place]),
        )
        for place, (size, value) in enumerate(zip(sizes, values, strict=True))
    )
    # Distances from the best figure that there can be, which a law can bring down to 0.
    best = bounds.upper if metric.higher_is_better else bounds.lower
    worthwhile = WORTHWHILE * bounds.width
    gain, more = _expected(sizes, np.abs(best - values)[None], np.abs(best - scattered), worthwhile)
    word: Word = "unclear"
    if gain.high < worthwhile:
        word = "enough_rows"
    elif gain.low > 0 and gain.value >= worthwhile:
        word = "more_rows"
    return RowsCurve(
        system=system,
        metric=metric.name,
        points=points,
        word=word,
        advice=_advice(word, points, more, gain, worthwhile, metric, system),
        more_rows=more if word == "more_rows" else None,
        expected_gain=gain,
        expected=_expected_point(points[-1], gain, 1.0 if metric.higher_is_better else -1.0),
    )


def _expected_point(now: RowsPoint, gain: Estimate, sign: float) -> RowsPoint:
    """Today's figure with the gain of twice the rows. sign: 1 where higher is better, else -1."""
    low, high = sorted((now.value + sign * gain.low, now.value + sign * gain.high))
    return RowsPoint(rows=2 * now.rows, value=now.value + sign * gain.value, low=low, high=high, num_draws=0)


def _noise(fits: Sequence[_Fit], whole: Array, parts: Sequence[int], generator: np.random.Generator) -> Array:
    """What the choice of training rows adds to the figure of each size: [resamples, sizes].

    The mean over the parts of a partition varies by the variance of one part over their number, in however many
    partitions. Of all rows there is one fit: its variance is taken to be half of that with half of the rows.
    """
    found = []
    for one in parts:
        if one == 1:
            continue
        groups: dict[int, list[float]] = {}
        for fit, figure in zip(fits, whole, strict=True):
            if fit.parts == one:
                groups.setdefault(fit.partition, []).append(float(figure))
        squares = sum(float(np.var(own)) * len(own) for own in groups.values())
        freedom = sum(len(own) - 1 for own in groups.values())
        # A few draws show their spread badly, so it is drawn, too (scaled inverse chi-square), as in a t interval.
        found.append(np.sqrt(squares / generator.chisquare(freedom, size=_NUM_RESAMPLES) / one))
    spreads = np.stack([*found, found[-1]], axis=1)  # the last one is that of halves, which the whole shares
    common, own_noise = generator.standard_normal((_NUM_RESAMPLES, 1)), generator.standard_normal(spreads.shape)
    mixed = common * math.sqrt(1 - _OWN_NOISE) + own_noise * math.sqrt(_OWN_NOISE)
    return np.asarray(spreads * mixed)


def _expected(sizes: Array, losses: Array, drawn: Array, worthwhile: float) -> tuple[Estimate, int]:
    """The gain of twice the rows, and about how many more rows bring a worthwhile one: at most as many as there are.

    Args:
        sizes: [sizes].
        losses: [1, sizes], distances from the best figure that there can be.
        drawn: [resamples, sizes] of such.
        worthwhile: in the unit of the metric.
    """
    rows = float(sizes.max())

    def gains(laws: tuple[Array, Array, Array], more: Array | float) -> Array:
        floors, scales, exponents = laws
        now = floors + scales * rows**-exponents
        # Nothing can be better than the best figure.
        return np.clip(now - floors - scales * (rows + more) ** -exponents, 0.0, np.maximum(now, 0.0))

    law = fit_power_laws(sizes, losses, _EXPONENTS)
    room = float(losses[0, sizes.argmax()])  # the law may be above today's figure, and the best one does not move
    gain = min(float(gains(law, rows)[0]), room)
    low, high = np.percentile(gains(fit_power_laws(sizes, drawn, _EXPONENTS), rows), [2.5, 97.5])
    # The gain grows with the rows: the first of many numbers that brings enough.
    numbers = np.arange(1, 101) / 100 * rows
    enough = gains(law, numbers) >= worthwhile
    more = numbers[enough.argmax()] if enough.any() else rows
    return Estimate(value=gain, low=min(float(low), gain), high=min(max(float(high), gain), room)), round(
        _round_up(float(more))
    )


def _round_up(rows: float) -> float:
    """The next number of rows with one digit and a 0 or 5 behind: 300, 350, 1,500."""
    unit = 10 ** max(0, math.floor(math.log10(max(rows, 1.0))) - 1) * 5
    return math.ceil(rows / unit) * unit if rows >= 10 else math.ceil(rows)


def _small(gain: float, worthwhile: float) -> float:
    # Below a thousandth of what is worthwhile the digits say nothing.
    return gain if gain > worthwhile / 1_000 else 0.0


def _advice(
    word: Word,
    points: Sequence[RowsPoint],
    more: int,
    gain: Estimate,
    worthwhile: float,
    metric: MetricDefinition,
    system: str,
) -> str:
    seen = " to ".join(f"{one.value:.3g} ({one.rows:,} rows)" for one in points)
    of_whom = f"{metric_title(metric.name)} of the {system} went from {seen}"
    interval = f"[{gain.low:.2g}, {gain.high:.2g}]"
    if word == "more_rows":
        return (
            f"About {more:,} more rows would help: {of_whom}; they are expected to make it about {worthwhile:.2g} "
            f"better, twice the rows about {gain.value:.2g} {interval}."
        )
    if word == "enough_rows":
        most = _small(gain.high, worthwhile)
        return f"More rows would hardly help: {of_whom}; twice as many would make it at most {most:.2g} better."
    return (
        f"Whether more rows would help is unclear from {points[-1].rows:,} rows: {of_whom}; twice as many would "
        f"make it about {_small(gain.value, worthwhile):.2g} {interval} better."
    )
