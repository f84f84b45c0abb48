"""Rows with equal values in a column of texts, by digests of 128 bits: 16 bytes a row, however long the texts are.

Two different values among ten million share a digest with a probability of about 10^-25.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import polars as pl

from luthier.ml.data.files.row_frames import Flags, RowFrames
from luthier.ml.data.text.words import I64, U64

_SEEDS: Final = (11, 29)


@dataclass(frozen=True, slots=True)
class Digests:
    """The values of a column.

    Attributes:
        positions: int64 [n], rows with a value, ascending.
        keys: uint64 [n, 2], equal for equal values.
    """

    positions: I64
    keys: U64

    def first(self) -> I64:
        """For each of the n the index, among the n, of the first with the same value: int64 [n]."""
        order, begins, sizes = self._sorted()
        found = np.empty(len(order), dtype=np.int64)
        # lexsort is stable, so that the first of each group in the order is the first by row.
        found[order] = np.repeat(order[begins], sizes)
        return found

    def num_different(self) -> int:
        """How many different values there are."""
        return len(self._sorted()[1])

    def counts(self) -> tuple[I64, I64]:
        """The row that each value occurs in first, and in how many: the most frequent first, equal ones by row."""
        order, begins, sizes = self._sorted()
        firsts = order[begins]
        # The last key of lexsort is the primary one.
        ranked = np.lexsort((firsts, -sizes))
        return self.positions[firsts[ranked]], sizes[ranked]

    def _sorted(self) -> tuple[I64, I64, I64]:
        """The order by value (equal ones in the order of rows), where each value begins in it, and how often it is."""
        order = np.lexsort((self.keys[:, 1], self.keys[:, 0])).astype(np.int64)
        keys = self.keys[order]
        is_new = np.ones(len(order), dtype=bool)
        is_new[1:] = (keys[1:] != keys[:-1]).any(axis=1)
        begins = np.flatnonzero(is_new)
        return order, begins, np.diff(np.append(begins, len(order)))


def digests_of(values: pl.Series) -> U64:
    """uint64 [n, 2]: equal for equal values of one process; what a null gives means nothing."""
    # Two hashes of 64 bits with different seeds act as one of 128.
    return np.stack([values.hash(seed).to_numpy() for seed in _SEEDS], axis=1)


def column_digests(rows: RowFrames, column: str, kept: Flags | None = None, *, beside: str | None = None) -> Digests:
    """The digests of a column; rows without a value are left out.

    Args:
        rows: the table.
        column: of texts.
        kept: bool [height], which rows count; None for all.
        beside: another column of digests; rows are then equal where both columns are, and nulls of it are equal.
    """
    positions, keys = [np.zeros(0, dtype=np.int64)], [np.zeros((0, 2), dtype=np.uint64)]
    for start, part in rows.parts(column, *([] if beside is None else [beside])):
        some = part[column].is_not_null().to_numpy()
        if kept is not None:
            some = some & kept[start : start + part.height]
        positions.append(start + np.flatnonzero(some))
        values = part[column]
        if beside is not None:
            values = part.select(pl.concat_str(column, beside, ignore_nulls=True)).to_series()
        keys.append(digests_of(values)[some])
    return Digests(np.concatenate(positions), np.concatenate(keys))


def first_positions(rows: RowFrames, column: str = "content_key", *, beside: str | None = None) -> I64:
    """For each row the position of the first row with the same value; its own where it has none.

    Args:
        rows: the table.
        column: of texts.
        beside: as of `column_digests`.
    """
    found = np.arange(rows.height)
    digests = column_digests(rows, column, beside=beside)
    found[digests.positions] = digests.positions[digests.first()]
    return found


def num_different_values(rows: RowFrames, column: str, positions: npt.NDArray[np.integer[Any]] | None = None) -> int:
    """How many different values a column has; of some rows where `positions` names them."""
    kept = None
    if positions is not None:
        kept = np.zeros(rows.height, dtype=bool)
        kept[positions] = True
    return column_digests(rows, column, kept).num_different()


@dataclass(frozen=True, slots=True)
class Matches:
    """Rows whose value is on the other side too.

    Attributes:
        positions: int64 [m], rows of the left side, ascending.
        others: int64 [m], for each the first row of the right side with its value.
        num_others: all rows of the right side whose value is on the left side.
    """

    positions: I64
    others: I64
    num_others: int


def matches(left: Digests, right: Digests) -> Matches:
    """The rows of the left side whose value is on the right side, which may be the smaller one by far."""
    key = ["high", "low"]
    there = _as_frame(right)
    # One row for each value of the right side, so that the join below gives at most one pair a row.
    firsts = there.group_by(key).agg(other=pl.col("position").min())
    pairs = _as_frame(left).join(firsts, on=key).sort("position")
    # A semi join: each row of the right side counts once, however many rows of the left side match it.
    num_others = there.join(pairs, on=key, how="semi").height
    return Matches(
        pairs["position"].to_numpy().astype(np.int64), pairs["other"].to_numpy().astype(np.int64), num_others
    )


def _as_frame(digests: Digests) -> pl.DataFrame:
    return pl.DataFrame({"position": digests.positions, "high": digests.keys[:, 0], "low": digests.keys[:, 1]})


def numbered(*columns: npt.NDArray[Any]) -> I64:
    """A number for each row, equal for rows that are equal in all columns: int64 [n], from 0 in the order of values."""
    # Reversed, so that the first column is the primary key.
    order = np.lexsort(columns[::-1])
    is_new = np.zeros(len(order), dtype=bool)
    for column in columns:
        inside = column[order]
        is_new[1:] |= inside[1:] != inside[:-1]
    found = np.empty(len(order), dtype=np.int64)
    found[order] = np.cumsum(is_new)
    return found
