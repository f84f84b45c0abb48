"""Ratings as numbers: a table of raters by items, and how far each rater is from the others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from luthier.core.results.human_eval import RatingRow, RatingsTable
from luthier.core.results.suite import Criterion

Array = NDArray[np.float64]
PREFERENCE_VALUES: Final = {"a": 1.0, "tie": 0.0, "b": -1.0}


def overall(row: RatingRow) -> float:
    """A rating as one number: 1, 0 or -1 for the first answer, a tie, the second; of scores their mean."""
    if row.preference is not None:
        return PREFERENCE_VALUES[row.preference]
    scores = [score for name in ("relevance", "coherence", "accuracy", "helpfulness") if (score := _score(row, name))]
    return sum(scores) / len(scores)


def value_of(criterion: Criterion | None) -> Callable[[RatingRow], float]:
    """How a rating becomes a number: the score for a criterion, or with None the preference."""

    def value(row: RatingRow) -> float:
        found = overall(row) if criterion is None else row.score(criterion)
        return float("nan") if found is None else float(found)

    return value


def matrix(table: RatingsTable, raters: Sequence[str], value: Callable[[RatingRow], float]) -> Array:
    """[raters, items], NaN where a rater has not rated; items in the order of their numbers."""
    items = {number: place for place, number in enumerate(sorted({row.item for row in table.rows}))}
    rows = {name: place for place, name in enumerate(raters)}
    found = np.full((len(raters), len(items)), np.nan)
    for row in table.rows:
        if row.rater in rows:
            found[rows[row.rater], items[row.item]] = value(row)
    return found


def against_others(table: RatingsTable, rater: str, others: Sequence[str]) -> tuple[Array, Array]:
    """What a rater says and the mean of what others say, of each item that both have rated, in the rater's order."""
    said = table.by_item()
    own, mean = [], []
    for row in table.rows:
        if row.rater != rater:
            continue
        theirs = [overall(one) for one in said[row.item] if one.rater in others and one.rater != rater]
        if theirs:
            # In the order of rating, which the search for drift needs.
            own.append(overall(row))
            mean.append(sum(theirs) / len(theirs))
    return np.array(own), np.array(mean)


def _score(row: RatingRow, name: str) -> int | None:
    found: int | None = getattr(row, name)
    return found
