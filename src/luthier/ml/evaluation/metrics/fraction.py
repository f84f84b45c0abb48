"""A fraction that a kind of task makes of its own counts: how much there is of something, out of how much."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from luthier.ml.evaluation.metrics.protocol import Array, Needs, Observations


@dataclass(frozen=True, slots=True)
class Fraction:
    """Sum of the first column of `count` over the sum of the second: [num_samples, 2] of each row.

    The first column is never more than the second, so that the figure lies between 0 and 1.
    With ones in the second column it is a mean over rows; with counts (fields of a row) it is micro-averaged. A row
    whose second column is 0 counts for nothing. Where all are 0 the figure is 0.

    Attributes:
        name: key in results.
        title: name for people.
        count: [num_samples, 2] from the observations.
        needs: what has to be computed for it.
        higher_is_better: direction of the figure.
        unit: what its numbers are counted in.
        lower: smallest possible figure.
        upper: largest possible figure.
        has_sample_values: a single row has a figure, too.
    """

    name: str
    title: str
    count: Callable[[Observations], Array]
    needs: Needs = "text"
    higher_is_better: bool = True
    unit: str = "fraction"
    lower: float = 0.0
    upper: float = 1.0
    has_sample_values: bool = True

    def statistics(self, observed: Observations) -> Array:
        """[num_samples, 2]: how much, out of how much."""
        return self.count(observed)

    def aggregate(self, sums: Array) -> Array:
        """[..., 2] -> [...]."""
        return ratio(sums[..., 0], sums[..., 1])


def ratio(above: Array, below: Array, *, of_nothing: float = 0.0) -> Array:
    """above / below, of any one shape; `of_nothing` where below is 0."""
    # np.where evaluates both sides: the inner one keeps the division free of 0 / 0 warnings.
    result: Array = np.where(below > 0, above / np.where(below > 0, below, 1.0), of_nothing)
    return result
