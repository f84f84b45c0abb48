"""The order in which the members of groups are shown: one of each group first, the largest groups ahead."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Positions = npt.NDArray[np.int64]


def one_of_each(positions: npt.NDArray[np.integer[Any]], groups: npt.NDArray[np.integer[Any]]) -> Positions:
    """The positions, whose groups are `groups`, so that the first ones show as many and as large groups as can be."""
    order = np.lexsort((positions, groups))
    _, begins, sizes = np.unique(groups[order], return_index=True, return_counts=True)
    place = np.arange(len(order)) - np.repeat(begins, sizes)
    shown = np.lexsort((np.repeat(begins, sizes), -np.repeat(sizes, sizes), place))
    return positions[order][shown].astype(np.int64)
