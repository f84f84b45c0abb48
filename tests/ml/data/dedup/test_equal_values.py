"""Rows with equal values, against dictionaries."""

from __future__ import annotations

from collections import Counter

import numpy as np
import polars as pl
from hypothesis import given
from hypothesis import strategies as st

from luthier.ml.data.dedup.equal_values import (
    column_digests,
    first_positions,
    matches,
    num_different_values,
    numbered,
)
from luthier.ml.data.files.row_frames import RowFrames

VALUES = st.lists(st.none() | st.sampled_from(["", "a", "b", "ab", "\0", "a" * 40]), max_size=30)


def rows_of(values: list[str | None], size: int = 4) -> RowFrames:
    made = RowFrames({"value": pl.String})
    for start in range(0, len(values), size):
        made.append(pl.DataFrame({"value": values[start : start + size]}, schema={"value": pl.String}))
    return made


@given(VALUES)
def test_the_first_of_each_value_and_how_often_it_occurs(values: list[str | None]) -> None:
    rows = rows_of(values)
    first = [at if value is None else values.index(value) for at, value in enumerate(values)]
    assert first_positions(rows, "value").tolist() == first
    counts = Counter(value for value in values if value is not None)
    assert num_different_values(rows, "value") == len(counts)
    firsts, nums = column_digests(rows, "value").counts()
    expected = sorted(((-num, values.index(value)) for value, num in counts.items()))
    assert list(zip(firsts.tolist(), nums.tolist(), strict=True)) == [(at, -num) for num, at in expected]


@given(VALUES, st.data())
def test_some_of_the_rows(values: list[str | None], data: st.DataObject) -> None:
    positions = data.draw(st.lists(st.sampled_from(range(len(values))), unique=True) if values else st.just([]))
    found = num_different_values(rows_of(values), "value", np.array(positions, dtype=np.int64))
    assert found == len({values[at] for at in positions} - {None})


@given(VALUES, VALUES)
def test_what_both_sides_hold(left: list[str | None], right: list[str | None]) -> None:
    found = matches(*(column_digests(rows_of(side), "value") for side in (left, right)))
    both = {*left} & {*right} - {None}
    assert found.positions.tolist() == [at for at, value in enumerate(left) if value in both]
    assert found.others.tolist() == [right.index(value) for value in left if value in both]
    assert found.num_others == sum(value in both for value in right)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), max_size=20))
def test_numbers_are_equal_where_all_columns_are(pairs: list[tuple[int, int]]) -> None:
    one, other = (np.array([pair[at] for pair in pairs], dtype=np.int64) for at in (0, 1))
    assert numbered(one, other).tolist() == [sorted(set(pairs)).index(pair) for pair in pairs]
