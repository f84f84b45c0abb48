"""The order in which the members of groups are shown: one of each group first, the largest groups ahead."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Positions = npt.NDArray[np.int64]


def one_of_each(positions: npt.NDArray[np.integer[Any]], groups: npt.NDArray[np.integer[Any]]) -> Positions:
    """Reorder positions so that the first ones show as many groups as possible, the largest groups first.

    Args:
        positions: int [n].
        groups: int [n], the group of each position.
    """
    order = np.lexsort((positions, groups))
    _, begins, sizes = np.unique(groups[order], return_index=True, return_counts=True)
    # Number of each member in its group: all first members come before all second ones.
    place = np.arange(len(order)) - np.repeat(begins, sizes)
    shown = np.lexsort((np.repeat(begins, sizes), -np.repeat(sizes, sizes), place))
    return positions[order][shown].astype(np.int64)
