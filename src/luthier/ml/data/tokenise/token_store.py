"""Tokenised rows larger than memory, and the units that steps are made of.

    row 0 ids | row 1 ids | ...       int32, all rows one after another
    row 0 mask | row 1 mask | ...     a byte a token
    what else a row has               JSON, a record a row

Beyond the budget of memory the arrays are mapped from files; a row is made from them when a step asks for it. Rows are
then the same to the byte, so that what is trained on them is.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from luthier.core.dataset import TokenisedExample, shareable_tokens
from luthier.ml.data.files.sequences import (
    I64,
    Changed,
    LazySequence,
    RecordStore,
    Selected,
    SequenceWriter,
    StoredRecords,
)
from luthier.ml.data.files.spill import Spill, Spool

Unit = tuple[TokenisedExample, ...]

_ROW_BYTES: Final = 500
"""Of a row in memory beside its tokens: the object, its id, its array and its bytes."""
_TOKEN_BYTES: Final = 5


def row_writer(spill: Spill | None) -> SequenceWriter[TokenisedExample]:
    """Collects tokenised rows: a tuple within the budget, `StoredRows` beyond it."""
    return SequenceWriter(spill, lambda row: _ROW_BYTES + _TOKEN_BYTES * row.num_tokens, TokenStore)


class StoredRows(LazySequence[TokenisedExample]):
    """Tokenised rows in arrays.

    Attributes:
        ids: int32, the tokens of all rows.
        starts: int64 [n + 1], where each row begins in `ids`; the last number is their length.
        shareable: int64 [n], how many tokens from its start a row may share (`shareable_tokens`).
    """

    def __init__(
        self,
        ids: npt.NDArray[np.int32],
        masks: npt.NDArray[np.uint8],
        starts: I64,
        shareable: I64,
        others: StoredRecords[list[Any]],
    ) -> None:
        self.ids, self.starts, self.shareable = ids, starts, shareable
        self._masks, self._others = masks, others

    def __len__(self) -> int:
        return len(self._others)

    @property
    def lengths(self) -> I64:
        """int64 [n], tokens of each row."""
        return np.diff(self.starts)

    def _at(self, start: int, stop: int) -> list[TokenisedExample]:
        if start >= stop:
            return []
        starts = self.starts[start : stop + 1].tolist()
        first = starts[0]
        # One read for all rows; 4 bytes an id.
        ids, masks = self.ids[first : starts[-1]].tobytes(), self._masks[first : starts[-1]].tobytes()
        found = []
        for begin, end, other in zip(starts[:-1], starts[1:], self._others[start:stop], strict=True):
            own = array("i")
            own.frombytes(ids[4 * (begin - first) : 4 * (end - first)])
            row_id, *rest = other
            found.append(TokenisedExample(row_id, own, masks[begin - first : end - first], *rest))
        return found


class TokenStore:
    """Tokenised rows in spools.

    Args:
        spill: the budget, and where files go.
    """

    def __init__(self, spill: Spill) -> None:
        self._ids, self._masks = Spool(spill, np.int32), Spool(spill, np.uint8)
        self._starts, self._shareable = Spool(spill, np.int64), Spool(spill, np.int64)
        self._others: RecordStore[list[Any]] = RecordStore(spill, _encoded, _decoded)
        self._num_tokens = 0
        self._starts.append(np.zeros(1, dtype=np.int64))

    def extend(self, records: Sequence[TokenisedExample]) -> None:
        """Add some rows."""
        ends = self._num_tokens + np.cumsum([row.num_tokens for row in records], dtype=np.int64)
        self._num_tokens = int(ends[-1])
        self._starts.append(ends)
        self._ids.append(np.frombuffer(b"".join(row.input_ids.tobytes() for row in records), dtype=np.int32))
        self._masks.append(np.frombuffer(b"".join(row.loss_mask for row in records), dtype=np.uint8))
        self._shareable.append(np.asarray([shareable_tokens(row) for row in records], dtype=np.int64))
        self._others.extend([other_fields(row) for row in records])

    def sequence(self) -> StoredRows:
        """All of them."""
        return StoredRows(
            self._ids.array(),
            self._masks.array(),
            self._starts.array(),
            self._shareable.array(),
            self._others.sequence(),
        )


def other_fields(row: TokenisedExample) -> list[Any]:
    """What a row has beside its tokens and mask, in the order of the fields of `TokenisedExample`, for JSON."""
    return [
        row.id,
        row.num_truncated_tokens,
        row.is_wanted,
        row.is_replayed,
        row.has_thought,
        row.skips_thought,
        row.is_joined,
        row.differs,
        row.target,
    ]


def _encoded(fields: list[Any]) -> bytes:
    return json.dumps(fields).encode()


def _decoded(data: bytes) -> list[Any]:
    *fields, differs, target = json.loads(data)
    return [*fields, tuple(differs), tuple(target)]  # JSON has lists alone


def units_as_json(units: Sequence[Unit]) -> bytes:
    """Units as a JSON document, to be handed to another process."""
    found = [[[row.input_ids.tolist(), row.loss_mask.hex(), other_fields(row)] for row in unit] for unit in units]
    return json.dumps(found).encode()


def units_from_json(data: bytes) -> list[Unit]:
    """The units of `units_as_json`."""
    return [
        tuple(row_of(array("i", ids), bytes.fromhex(mask), others) for ids, mask, others in unit)
        for unit in json.loads(data)
    ]


def row_of(ids: array[int], mask: bytes, others: list[Any]) -> TokenisedExample:
    """A row from its tokens, its mask and its `other_fields`, also where these come from JSON."""
    row_id, *rest, differs, target = others
    rest += [tuple(differs), tuple(target)]  # JSON has lists alone
    return TokenisedExample(row_id, ids, mask, *rest)


class Units(LazySequence[Unit]):
    """Rows as the units that an objective looks at side by side.

    Attributes:
        rows: those of one unit follow one another.
        num_rows: int64 [n], how many rows each unit has.
    """

    def __init__(self, rows: Sequence[TokenisedExample], size: int = 1, row_counts: Sequence[int] = ()) -> None:
        """Divide rows.

        Args:
            rows: those of one unit follow one another.
            size: rows of each unit; the last one has what is left.
            row_counts: rows of each unit where they differ; empty where they do not.
        """
        self.rows = rows
        # Where each unit ends: running sums.
        self._ends = (
            np.cumsum(row_counts, dtype=np.int64)
            if len(row_counts)
            else np.minimum(np.arange(size, len(rows) + size, size, dtype=np.int64), len(rows))
        )
        self.num_rows: I64 = np.diff(self._ends, prepend=0)

    def __len__(self) -> int:
        return len(self._ends)

    @property
    def longest(self) -> I64:
        """int64 [n], tokens of the longest row of each unit."""
        return self._reduced(np.maximum)

    @property
    def totals(self) -> I64:
        """int64 [n], tokens of each unit, all of its rows together."""
        return self._reduced(np.add)

    def _reduced(self, how: np.ufunc) -> I64:
        if not len(self):
            return np.zeros(0, dtype=np.int64)
        # Every unit has a row, so each number of reduceat is of one unit.
        found: I64 = how.reduceat(lengths_of(self.rows), self._ends - self.num_rows)
        return found

    def _at(self, start: int, stop: int) -> list[Unit]:
        if start >= stop:
            return []
        ends = self._ends[start:stop].tolist()
        begin = int(self._ends[start - 1]) if start else 0
        rows = self.rows[begin : ends[-1]]
        return [tuple(rows[one - begin : other - begin]) for one, other in zip([begin, *ends[:-1]], ends, strict=True)]


def behind_views(rows: Sequence[TokenisedExample]) -> tuple[StoredRows, I64] | None:
    """The rows in files that a view shows, and which of them; None where rows are in memory.

    What a view changes of a row is never its tokens or its mask.
    """
    positions: I64 | None = None
    while isinstance(rows, Changed | Selected):
        if isinstance(rows, Selected):
            # Views may be nested: positions of the outer one index those of the inner one.
            positions = rows.positions if positions is None else rows.positions[positions]
        rows = rows.items
    if not isinstance(rows, StoredRows):
        return None
    return rows, np.arange(len(rows), dtype=np.int64) if positions is None else positions


def lengths_of(rows: Sequence[TokenisedExample]) -> I64:
    """int64 [n], tokens of each row."""
    if (found := behind_views(rows)) is not None:
        stored, positions = found
        return stored.lengths[positions]
    return np.fromiter((row.num_tokens for row in rows), dtype=np.int64, count=len(rows))


def common_depths(rows: StoredRows, positions: I64, more_than: float) -> tuple[I64, I64]:
    """How far each row runs along with more than some number of others.

    Going down the tree of prefixes, a row is followed as long as more rows than that number share what it began with
    and may share it. A family of rows that is worth its own micro-batch has more members
    (`shared_prefix.find_families`), so what a row has beyond that depth decides nothing.

    Args:
        rows: all of them.
        positions: int64 [n], the rows to compare.
        more_than: the number of rows.

    Returns:
        int64 [n], the depth in tokens; int64 [n], the number of the branch where the row was left: equal for rows
        that have all tokens up to their depth in common.
    """
    starts, limits = rows.starts[positions], rows.shareable[positions]
    depths, branches = np.zeros(len(positions), dtype=np.int64), np.zeros(len(positions), dtype=np.int64)
    alive = np.arange(len(positions))
    depth, num_branches = 0, 1
    of_row: npt.NDArray[np.integer[Any]]
    counts: npt.NDArray[np.integer[Any]]
    while len(alive):
        alive = alive[limits[alive] > depth]
        if not len(alive):
            break
        # Branch and next token in one number: equal for rows that are in one branch of the next level.
        keys = branches[alive] << 32 | rows.ids[starts[alive] + depth].astype(np.int64)
        if (keys == keys[0]).all():  # a system prompt: no sorting is needed
            of_row, counts = np.zeros(len(keys), dtype=np.int64), np.asarray([len(keys)])
        else:
            _, of_row, counts = np.unique(keys, return_inverse=True, return_counts=True)
        # A branch with few rows ends here: no family of the asked size can begin deeper in it.
        goes_on = counts[of_row] > more_than
        alive, of_row = alive[goes_on], of_row[goes_on]
        depth += 1
        depths[alive] = depth
        branches[alive] = num_branches + of_row
        num_branches += len(counts)
    return depths, branches
