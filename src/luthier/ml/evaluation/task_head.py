"""Figures of a task head besides those of its answers: how its probabilities rank rows, how far numbers are off.

AUROC of a class is the share of pairs of a row of the class and another row that its probability puts in the right
order, half for equal ones; of several classes the mean over those that some rows have and others have not (Hand and
Till, 2001, name the variants). Its interval is DeLong's, with the rows' influences on the mean over classes added up
before they are squared, since one row counts for every class; near an end it is widened to that on the logit scale
(Qin and Hotilovac, 2008). Where all pairs are in order, none is, or all scores are equal, no row has any influence:
there both ends are Newcombe's, for a class of mean size.

Sources: DeLong, DeLong and Clarke-Pearson, "Comparing the Areas under Two or More Correlated Receiver Operating
Characteristic Curves", 1988; Newcombe, "Confidence intervals for an effect size measure based on the Mann-Whitney
statistic", 2006, method 5; Qin and Hotilovac, "Comparison of non-parametric confidence intervals for the area under
the ROC curve of a continuous-scale diagnostic test", 2008; Obuchowski, "Nonparametric analysis of clustered ROC curve
data", 1997.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri
from scipy.stats import rankdata

from luthier.core.evaluation import Metric
from luthier.core.records.bounds import UNIT, Bounds
from luthier.core.text.written_numbers import NumberMarks, number_marks, read_number
from luthier.ml.evaluation.metrics.protocol import Array, mean_of_sums
from luthier.ml.evaluation.statistics.intervals import TAIL, Interval, bootstrap_interval
from luthier.ml.evaluation.statistics.resampling import cluster_sums

_STEPS = 60
_NO_SPREAD = 1e-12


def area_under_curve(probabilities: Array, own: Array, clusters: Sequence[Hashable] | None = None) -> Metric | None:
    """`auroc` as a metric; None where no class divides the rows.

    Args:
        probabilities: [rows, classes].
        own: [rows, classes], 1 where a row has a class, else 0; a row of no known class has none.
        clusters: the group of each row; None where every row is its own.
    """
    found = auroc(probabilities, own, clusters)
    return None if found is None else _metric(found, "0 to 1", higher_is_better=True)


def auroc(scores: Array, own: Array, clusters: Sequence[Hashable] | None = None) -> Interval | None:
    """The mean area under the curve over classes, with its 95% interval; None where no class divides the rows.

    Args:
        scores: [rows, classes], higher for rows that are more likely of the class.
        own: [rows, classes], 1 where a row has a class, else 0.
        clusters: the group of each row; None where every row is its own.
    """
    num_rows = len(scores)
    divided = [place for place in range(scores.shape[1]) if 0 < own[:, place].sum() < num_rows]
    if not divided:
        return None
    areas, influence = [], np.zeros(num_rows)
    for place in divided:
        is_own = own[:, place] > 0
        area, of_rows = _area(scores[:, place], is_own)
        areas.append(area)
        influence += of_rows / len(divided)
    value = float(np.mean(areas))
    # Rows of one group move together: their influences are added before they are squared (Obuchowski, 1997).
    of_groups = cluster_sums(influence[:, None], clusters)
    error, z = math.sqrt(float((of_groups**2).sum())), -float(ndtri(TAIL))
    if error <= _NO_SPREAD:
        # No more independent rows of each side than the groups' share of all rows.
        share = len(of_groups) / num_rows
        num_own = float(own[:, divided].sum()) / len(divided)
        # The areas of scores with the other sign are what is missing to 1.
        low, missing = (_lower_end(one, share * num_own, share * (num_rows - num_own)) for one in (value, 1.0 - value))
        return Interval(value, low, 1.0 - missing)
    # Near an end the error itself is too small: the wider of both at each side, as of other figures.
    linked = UNIT.around(value, error, z)
    low, high = min(value - z * error, linked[0]), max(value + z * error, linked[1])
    return Interval(value, max(0.0, low), min(1.0, high))


def _area(scores: Array, is_own: NDArray[np.bool_]) -> tuple[float, Array]:
    """The area of one class, and what each row adds to its error: [rows]."""
    ranks, own_ranks, other_ranks = rankdata(scores), rankdata(scores[is_own]), rankdata(scores[~is_own])
    num_own, num_other = len(own_ranks), len(other_ranks)
    # Of a row of the class: the share of other rows below it. Of another row: the share of rows of the class above it.
    of_own = (ranks[is_own] - own_ranks) / num_other
    of_others = 1.0 - (ranks[~is_own] - other_ranks) / num_own
    area = float(of_own.mean())
    influence = np.zeros(len(scores))
    influence[is_own], influence[~is_own] = _of_side(of_own, area), _of_side(of_others, area)
    return area, influence


def _of_side(shares: Array, area: float) -> Array:
    """What each row of a side adds to the error of its mean."""
    # A single row shows no spread: it has the most that shares with this mean can have.
    if len(shares) == 1:
        return np.array([math.sqrt(area * (1 - area))])
    # Divided by n - 1 within the square: the variance of a sample's mean.
    result: Array = (shares - area) / math.sqrt(len(shares) * (len(shares) - 1))
    return result


def _lower_end(value: float, num_own: float, num_other: float) -> float:
    """The smallest area under which rows may well show this one (Newcombe, 2006), by bisection."""
    z, mean = -float(ndtri(TAIL)), (num_own + num_other) / 2 - 1

    def too_far(area: float) -> bool:
        spread = 1 + mean * ((1 - area) / (2 - area) + area / (1 + area))
        return value - area > z * math.sqrt(area * (1 - area) * max(spread, 0.0) / (num_own * num_other))

    low, high = 0.0, 1.0
    for _ in range(_STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if too_far(middle) else (low, middle)
    return low


def absolute_error(
    outputs: Sequence[str],
    references: Sequence[str],
    marks: NumberMarks | None = None,
    clusters: Sequence[Hashable] | None = None,
) -> Metric | None:
    """The mean distance of numbers from those of the rows, in their unit; None where an output is not a number.

    Rows whose own answer is not a number are left out.

    Args:
        outputs: what the head gives.
        references: of the rows.
        marks: of decimals and thousands; None finds them in the references.
        clusters: the group of each row; None where every row is its own.
    """
    marks = marks or number_marks(references)
    pairs = [
        (read_number(output, marks), read_number(reference, marks))
        for output, reference in zip(outputs, references, strict=True)
    ]
    known = [(output, reference) for output, reference in pairs if reference is not None]
    if clusters is not None:
        clusters = [own for own, (_, reference) in zip(clusters, pairs, strict=True) if reference is not None]
    errors = [abs(output.value - reference.value) for output, reference in known if output is not None]
    if not known or len(errors) < len(known):
        return None
    stats = np.stack([np.array(errors), np.ones(len(errors))], axis=1)
    found = bootstrap_interval(stats, mean_of_sums, bounds=Bounds(0.0, math.inf), seed=0, clusters=clusters)
    return _metric(found, "unit of the rows", higher_is_better=False)


def _metric(interval: Interval, unit: str, *, higher_is_better: bool) -> Metric:
    return Metric(
        value=interval.value, low=interval.low, high=interval.high, unit=unit, higher_is_better=higher_is_better
    )
