"""What moves a judge beside the answers: the place in which they are shown, and their length.

Everything is a formula over sums of statistics of rows, so that one bootstrap over rows gives the intervals.

Position: Zheng et al., 2023, arXiv:2306.05685, section 3.3. Length: as the correlation of the logarithm of the ratio of
lengths (characters) with the points (1, 0.5, 0). A judge that prefers long answers may be right; that is why the same
figure of people is shown beside it where there are any.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from luthier.core.records.bounds import CORRELATION, UNIT, Bounds
from luthier.core.records.calibration import JudgeBias
from luthier.core.results.human_eval_report import Estimate
from luthier.ml.evaluation.judge.verdicts import POINTS, Pair, PairVerdict
from luthier.ml.evaluation.metrics.protocol import Array
from luthier.ml.evaluation.statistics import bootstrap_interval

# Columns of the statistics: pairs, flips, showings won by the first shown, showings won by anybody; then sums for the
# correlation of x (length) and y (points): number, x, y, xy, xx, yy.
_NUM_COLUMNS = 4
_FEWEST_FOR_LENGTH = 3


def pair_statistics(pairs: Sequence[Pair], verdicts: Sequence[PairVerdict]) -> Array:
    """[pairs, 10]. Pairs without a verdict, and pairs of equal answers, which were not asked, are zero."""
    rows = np.zeros((len(pairs), 10))
    for row, pair, verdict in zip(rows, pairs, verdicts, strict=True):
        preference = verdict.preference
        if preference is None or pair.a.strip() == pair.b.strip():
            continue
        row[:_NUM_COLUMNS] = (1, verdict.is_flipped, *verdict.shown_first_won)
        row[_NUM_COLUMNS:] = _length_sums(pair, POINTS[preference])
    return rows


def people_statistics(pairs: Sequence[Pair], points: Sequence[float]) -> Array:
    """[pairs, 6], the sums for the length that people prefer.

    Args:
        pairs: the answers.
        points: what people gave the first answer of each: 1, 0.5 or 0.
    """
    return np.array([_length_sums(pair, point) for pair, point in zip(pairs, points, strict=True)]).reshape(-1, 6)


def bias_of(stats: Array, *, people: Array | None = None, seed: int = 0) -> JudgeBias | None:
    """The bias that `pair_statistics` shows; None where there is no pair with a verdict."""
    total = stats.sum(axis=0)
    if total[0] == 0:
        return None
    flipped = _estimate(stats, lambda sums: _ratio(sums[..., 1], sums[..., 0], 0.0), UNIT, seed)
    first = _estimate(stats, lambda sums: _ratio(sums[..., 2], sums[..., 3], 0.5), UNIT, seed) if total[3] else None
    # Shares of 0 / 0 in a resample take neutral values: no flip, and half for the place.
    return JudgeBias(
        num_pairs=int(total[0]),
        num_flipped=int(total[1]),
        flipped=flipped,
        num_showings=int(total[3]),
        first_shown=first,
        length=_length(stats[:, _NUM_COLUMNS:], seed),
        people_length=None if people is None else _length(people, seed),
    )


def _length_sums(pair: Pair, points: float) -> tuple[float, ...]:
    # One is added to both, so that an empty answer has a logarithm.
    x = math.log((1 + len(pair.a)) / (1 + len(pair.b)))
    return 1.0, x, points, x * points, x * x, points * points


def _length(sums: Array, seed: int) -> Estimate | None:
    """None where lengths or preferences do not differ, or there are too few of them to see anything."""
    total = sums.sum(axis=0)
    if total[0] < _FEWEST_FOR_LENGTH or min(_variances(total)) <= 1e-12:
        return None
    return _estimate(sums, _correlation, CORRELATION, seed)


def _variances(sums: Array) -> tuple[Array, Array]:
    n = np.maximum(sums[..., 0], 1)
    return sums[..., 4] / n - (sums[..., 1] / n) ** 2, sums[..., 5] / n - (sums[..., 2] / n) ** 2


def _correlation(sums: Array) -> Array:
    """Pearson's; 0 for resamples in which nothing differs."""
    n = np.maximum(sums[..., 0], 1)
    covariance = sums[..., 3] / n - sums[..., 1] * sums[..., 2] / n**2
    spread = np.sqrt(np.prod(np.maximum(_variances(sums), 0), axis=0))
    return np.clip(_ratio(covariance, spread, 0.0), -1, 1)


def _ratio(above: Array, below: Array, otherwise: float) -> Array:
    """above / below; `otherwise` where that is 0 / 0."""
    has_any = below > 1e-12
    result: Array = np.where(has_any, above / np.where(has_any, below, 1.0), otherwise)
    return result


def _estimate(stats: Array, aggregate: Callable[[Array], Array], bounds: Bounds, seed: int) -> Estimate:
    found = bootstrap_interval(stats, aggregate, bounds=bounds, seed=seed)
    return Estimate(value=found.value, low=found.low, high=found.high)
