"""Tokenised rows in files: the rows, their units and their families are those of rows in memory."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.core.dataset import TokenisedExample, shareable_tokens
from luthier.ml.data.files.sequences import Selected, changed
from luthier.ml.data.files.spill import Spill
from luthier.ml.data.tokenise.shared_prefix import find_families
from luthier.ml.data.tokenise.token_store import StoredRows, TokenStore, Units, common_depths, lengths_of, row_writer


@st.composite
def rows_of(draw: st.DrawFn) -> TokenisedExample:
    ids = draw(st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=20))
    mask = bytes(draw(st.lists(st.integers(0, 1), min_size=len(ids), max_size=len(ids))))
    return TokenisedExample(
        draw(st.text(max_size=8)),
        array("i", ids),
        mask,
        draw(st.integers(0, 5)),
        draw(st.sampled_from([None, True, False])),
        *(draw(st.booleans()) for _ in range(4)),
        tuple(draw(st.lists(st.text(max_size=5), max_size=2))),
        tuple(draw(st.lists(st.floats(allow_nan=False, allow_infinity=False), max_size=3))),
    )


def stored(rows: Sequence[TokenisedExample], place: Path, budget: int = 0) -> StoredRows:
    writer = row_writer(Spill(budget, place))
    for row in rows:
        writer.append(row)
    made = writer.sequence()
    assert isinstance(made, StoredRows)
    return made


def in_arrays(rows: Sequence[TokenisedExample]) -> StoredRows:
    """As `stored`, with the arrays in memory: nothing is written."""
    store = TokenStore(Spill(1 << 30))
    store.extend(rows)
    return store.sequence()


@settings(deadline=None, max_examples=25)
@given(rows=st.lists(rows_of(), min_size=1, max_size=12), budget=st.sampled_from([0, 200]))
def test_rows_in_files_are_the_same(
    rows: list[TokenisedExample], budget: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    made = stored(rows, tmp_path_factory.mktemp("rows"), budget)
    assert list(made) == rows
    assert [made[place] for place in range(len(rows))] == rows
    assert made.lengths.tolist() == [row.num_tokens for row in rows]
    assert made.shareable.tolist() == [shareable_tokens(row) for row in rows]
    marked = changed(made, lambda place, row: replace(row, id=str(place), is_replayed=True))
    assert list(marked) == [replace(row, id=str(n), is_replayed=True) for n, row in enumerate(rows)]
    last = Selected(made, np.arange(len(rows))[::-1])
    assert lengths_of(last).tolist() == [row.num_tokens for row in reversed(rows)]


def test_more_rows_than_are_written_at_a_time(tmp_path: Path) -> None:
    rows = [TokenisedExample(f"r:{n}", array("i", [n, n + 1]), b"\0\1") for n in range(2_100)]
    assert list(stored(rows, tmp_path)) == rows


@settings(deadline=None)
@given(counts=st.lists(st.integers(1, 3), min_size=1, max_size=8), is_stored=st.booleans())
def test_units_are_slices_of_the_rows(counts: list[int], is_stored: bool) -> None:
    rows = tuple(
        TokenisedExample(f"r:{n}", array("i", range(1 + n * 7 % 5)), bytes(1 + n * 7 % 5)) for n in range(sum(counts))
    )
    source = in_arrays(rows) if is_stored else rows
    ends = np.cumsum(counts).tolist()
    expected = [rows[end - num : end] for end, num in zip(ends, counts, strict=True)]
    units = Units(source, row_counts=counts)
    assert list(units) == expected
    assert [units[place] for place in range(len(counts))] == expected
    assert units.num_rows.tolist() == counts
    assert units.longest.tolist() == [max(row.num_tokens for row in unit) for unit in expected]
    assert units.totals.tolist() == [sum(row.num_tokens for row in unit) for unit in expected]
    pairs = Units(source, 2)
    assert list(pairs) == [rows[start : start + 2] for start in range(0, len(rows), 2)]
    assert pairs.num_rows.sum() == len(rows)


def test_no_rows_are_no_units() -> None:
    units = Units(())
    assert (len(units), list(units), units.longest.tolist(), units.num_rows.tolist()) == (0, [], [], [])


@st.composite
def like_rows(draw: st.DrawFn) -> list[TokenisedExample]:
    """Rows whose beginnings make a tree: few different tokens, headers of which some are beginnings of others."""
    headers = [draw(st.lists(st.integers(0, 2), min_size=1, max_size=40)) for _ in range(draw(st.integers(1, 3)))]
    rows = []
    for number in range(draw(st.integers(1, 40))):
        header = headers[draw(st.integers(0, len(headers) - 1))]
        ids = header[: draw(st.integers(1, len(header)))] + draw(st.lists(st.integers(0, 300), max_size=4))
        first = draw(st.integers(0, len(ids) - 1))
        rows.append(
            TokenisedExample(f"r:{number}", array("i", ids), bytes(int(i >= first > 0) for i in range(len(ids))))
        )
    return rows


@settings(deadline=None, max_examples=100)
@given(rows=like_rows(), size=st.integers(1, 16))
def test_families_of_rows_in_files_are_those_of_rows_in_memory(rows: list[TokenisedExample], size: int) -> None:
    made = in_arrays(rows)
    here = find_families(Units(tuple(rows)), global_batch_size=size)
    there = find_families(Units(made), global_batch_size=size)
    assert there.families.tolist() == here.families.tolist()
    assert there.prefix_tokens.tolist() == here.prefix_tokens.tolist()
    some = np.arange(0, len(rows), 2)
    here = find_families(Units(tuple(rows[::2])), global_batch_size=size)
    there = find_families(Units(Selected(made, some)), global_batch_size=size)
    assert there.prefix_tokens.tolist() == here.prefix_tokens.tolist()
    assert there.families.tolist() == here.families.tolist()


def test_a_large_family_is_found_in_files_too(tmp_path: Path) -> None:
    """Or the comparison above would say little."""
    header = list(range(200))
    rows = [TokenisedExample(f"r:{n}", array("i", [*header, n, 1]), bytes(201) + b"\1") for n in range(30)]
    found = find_families(Units(stored(rows, tmp_path)), global_batch_size=8)
    assert set(found.prefix_tokens.tolist()) == {200}


def test_a_row_is_followed_as_far_as_enough_others_go_with_it(tmp_path: Path) -> None:
    texts = [[1, 2, 3, 4], [1, 2, 3, 5], [1, 2, 6], [7, 8], [1, 2, 3, 4]]
    rows = [TokenisedExample("r", array("i", [*text, 0]), bytes(len(text)) + b"\1") for text in texts]
    depths, branches = common_depths(stored(rows, tmp_path), np.arange(5), 1)
    assert depths.tolist() == [4, 3, 2, 0, 4]
    assert branches[0] == branches[4]
    assert len(set(branches.tolist())) == 4
    assert common_depths(stored(rows, tmp_path), np.arange(5), 2)[0].tolist() == [3, 3, 2, 0, 3]
