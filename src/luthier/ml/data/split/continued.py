"""Conversations that other rows continue, which stay with them on one side of a split.

Logs often have a row after each answer, with all turns before it: row 2 is row 1 and one exchange more. A row that is
held out would have its answer in the turns of a training row. An opening that many rows continue, such as a greeting
and its answer, is left alone: it would tie all conversations together, and gives nothing away.
"""

from __future__ import annotations

from array import array
from typing import Final

import numpy as np
import numpy.typing as npt

from luthier.core.dataset import Example
from luthier.ml.data.text.normalise import answer_digests

MOST_CONTINUING: Final = 16
"""Rows of different content that may continue one row; where more do, it is an opening that they have in common."""

I64 = npt.NDArray[np.int64]


class Continuations:
    """Sees each row once; keeps 8 bytes of it, and 16 for each answer before its last one."""

    def __init__(self) -> None:
        self._wholes = array("q")
        self._rows, self._earlier = array("q"), array("q")

    def add(self, example: Example | None) -> None:
        """Take the next row into account; None for one that is no conversation."""
        row = len(self._wholes)
        digests = [] if example is None else answer_digests(example)
        # -1 is no digest: those have 63 bits and no sign.
        self._wholes.append(digests[-1] if digests else -1)
        for digest in digests[:-1]:
            self._rows.append(row)
            self._earlier.append(digest)

    def continued(self) -> I64:
        """int64 [n]: for each row the first one that it continues, the longest of several; else its own place."""
        wholes = np.asarray(self._wholes, dtype=np.int64)
        found = np.arange(len(wholes))
        rows, earlier = np.asarray(self._rows, dtype=np.int64), np.asarray(self._earlier, dtype=np.int64)
        if not len(rows):
            return found
        known, first = np.unique(wholes, return_index=True)
        place = np.minimum(np.searchsorted(known, earlier), len(known) - 1)
        is_there = known[place] == earlier
        # Answers of a row come in their order: the last assignment is that of the longest beginning.
        before = np.full(len(wholes), -1)
        before[rows[is_there]] = place[is_there]
        continuing = np.flatnonzero(before >= 0)
        pairs = np.unique(np.stack([before[continuing], wholes[continuing]]), axis=1)
        num_continuing = np.bincount(pairs[0], minlength=len(known))
        kept = continuing[num_continuing[before[continuing]] <= MOST_CONTINUING]
        found[kept] = first[before[kept]]
        return found
