"""Which row of the new version is which row of the old one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

import polars as pl

KeyKind = Literal["field", "id", "prompt", "position"]

_DIGEST: Final = ("d1", "d2")
_COLUMNS: Final = {"field": ("k1", "k2"), "id": ("i1", "i2"), "prompt": ("p1", "p2")}


@dataclass(frozen=True, slots=True)
class Matched:
    """Rows in pairs and rows alone, by their place in the frames of the versions.

    Pairs of unequal order are no change: a row that was only moved is the same.

    Attributes:
        key: by what changed rows were paired.
        same: columns `old` and `new`, positions in the two frames.
        changed: the same columns, of rows that differ.
        removed: positions in the old frame.
        added: positions in the new frame.
    """

    key: KeyKind
    same: pl.DataFrame
    changed: pl.DataFrame
    removed: pl.Series
    added: pl.Series


def match(old: pl.DataFrame, new: pl.DataFrame, *, has_field: bool) -> Matched:
    """Pair the rows of two versions.

    Equal rows are pairs first, those of one side of a split before others. What is left is paired by key, in the order
    of the files where one key has several rows: the field that was requested, else the id of the row, else its prompt,
    the first of these that every row of both versions has. Where they have none, rows count as the same that follow
    the same unchanged row.

    Args:
        old: rows of the old version, as in `Version.rows`.
        new: rows of the new version.
        has_field: a field names the rows (columns k1 and k2).
    """
    key = _key(old, new, has_field)
    left, right = old.with_row_index("place"), new.with_row_index("place")
    by = list(_COLUMNS.get(key, ()))
    same, left, right = _rounds(left, right, [[*by, *_DIGEST, "side"], [*by, *_DIGEST]])
    if key == "position":
        left, right = _after(left, same["old"], same["old"]), _after(right, same["new"], same["old"])
        by = ["anchor"]
    changed, left, right = _rounds(left, right, [[*by, "side"], by] if key != "position" else [[*by, "side"]])
    return Matched(key, same.sort("new"), changed.sort("new"), left["place"].sort(), right["place"].sort())


def _key(old: pl.DataFrame, new: pl.DataFrame, has_field: bool) -> KeyKind:
    if has_field:
        return "field"
    kinds: tuple[tuple[KeyKind, str], ...] = (("id", "i1"), ("prompt", "p1"))
    for kind, column in kinds:
        if old.height and new.height and not old[column].null_count() and not new[column].null_count():
            return kind
    return "position"


def _rounds(
    left: pl.DataFrame, right: pl.DataFrame, rounds: Sequence[Sequence[str]]
) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
    """Pairs by the columns of each round, the n-th row of equal columns with the n-th; then what is left of both."""
    pairs = [pl.DataFrame(schema={"old": pl.UInt32, "new": pl.UInt32})]
    for columns in rounds:
        on = [*columns, "nth"]
        # Number of a row among those with equal columns, so that the join pairs copies one to one.
        counted = pl.int_range(pl.len()).over(list(columns)).alias("nth")
        one, two = left.with_columns(counted), right.with_columns(counted)
        found = one.join(two.select("place", *on), on=on, how="inner", nulls_equal=True, suffix="_new")
        pairs.append(found.select(pl.col("place").alias("old"), pl.col("place_new").alias("new")))
        left = left.filter(~pl.col("place").is_in(found["place"].implode()))
        right = right.filter(~pl.col("place").is_in(found["place_new"].implode()))
    return pl.concat(pairs), left, right


def _after(rows: pl.DataFrame, own: pl.Series, names: pl.Series) -> pl.DataFrame:
    """Rows with `anchor`: the name of the unchanged row that they follow; -1 before the first."""
    anchors = pl.DataFrame({"place": own, "anchor": names.cast(pl.Int64)}).sort("place")
    placed = rows.sort("place").join_asof(anchors, on="place", strategy="backward")
    return placed.with_columns(pl.col("anchor").fill_null(-1))
