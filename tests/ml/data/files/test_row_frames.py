"""Rows in frames, in memory or on disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.fixtures.pickled_workers import PickledWorkers

from luthier.ml.data.files import row_frames
from luthier.ml.data.files.row_frames import RowFrames, map_texts, take_texts, text_parts, where_texts
from luthier.ml.data.files.row_workers import IN_PROCESS
from luthier.ml.data.files.spill import Spill

SCHEMA = {"line": pl.UInt32, "text": pl.String, "prompt": pl.String}
ROWS = st.lists(st.tuples(st.integers(0, 99), st.text(max_size=20), st.none() | st.text(max_size=5)), max_size=30)


def framed(rows: list[tuple[int, str, str | None]], size: int, spill: Spill) -> RowFrames:
    made = RowFrames(SCHEMA, spill)
    for start in range(0, len(rows), size):
        made.append(pl.DataFrame(rows[start : start + size], schema=SCHEMA, orient="row"), 0.5)
    return made


@settings(max_examples=40, deadline=None)
@given(rows=ROWS, size=st.integers(1, 9), budget=st.sampled_from([0, 600, 1 << 30]), data=st.data())
def test_where_rows_are_makes_no_difference(
    rows: list[tuple[int, str, str | None]],
    size: int,
    budget: int,
    data: st.DataObject,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    spill = Spill(budget, tmp_path_factory.mktemp("spill"))
    made = framed(rows, size, spill)
    whole = pl.DataFrame(rows, schema=SCHEMA, orient="row")
    assert spill.held_bytes <= budget
    assert made.is_spilled == (budget == 0 and bool(rows)) or budget == 600
    assert made.frame().equals(whole)
    assert made.column("text").to_list() == whole["text"].to_list()
    assert [start for start, _ in made.parts("line")] == list(range(0, len(rows), size))
    positions = data.draw(st.lists(st.integers(0, max(0, len(rows) - 1)), max_size=12 if rows else 0))
    assert made.take(positions).rows() == [rows[at] for at in positions]
    kept = np.array(data.draw(st.lists(st.booleans(), min_size=len(rows), max_size=len(rows))), dtype=bool)
    some = made.where(kept)
    assert some.frame().rows() == [row for row, keep in zip(rows, kept, strict=True) if keep]
    again = np.array(data.draw(st.lists(st.booleans(), min_size=some.height, max_size=some.height)), dtype=bool)
    assert some.where(again).frame().rows() == [
        row for row, keep in zip(some.frame().rows(), again, strict=True) if keep
    ]


def test_texts_of_several_columns_and_without_a_beginning(tmp_path: Path) -> None:
    rows = RowFrames({"completion": pl.String, "text": pl.String}, Spill(0, tmp_path))
    rows.append(pl.DataFrame({"completion": ["Say: a", None], "text": ["x", "Say: b"]}))
    rows.append(pl.DataFrame({"completion": [None], "text": ["c, Say: d"]}, schema=rows.schema))
    texts = rows.texts("completion", "text", without="Say: ")
    assert len(texts) == 3
    assert [part.to_list() for part in text_parts(texts)] == [["a", "b"], ["c, Say: d"]]
    assert take_texts(texts, np.array([2, 0])).to_list() == ["c, Say: d", "a"]
    kept = where_texts(texts, np.array([False, True, True]))
    assert [part.to_list() for part in text_parts(kept)] == [["b"], ["c, Say: d"]]
    column = pl.Series(["one", None, "two"])
    assert [part.to_list() for part in text_parts(column)] == [["one", None, "two"]]
    assert take_texts(column, np.array([2])).to_list() == ["two"]
    assert where_texts(column, np.array([True, False, False])).to_list() == ["one"]  # type: ignore[union-attr]


def lengths(part: pl.DataFrame, added: int) -> list[int]:
    return [len(text) + added for text in part["text"]]


def text_lengths(part: pl.Series, added: int) -> list[int]:
    return [len(text) + added for text in part]


@given(rows=ROWS, size=st.integers(1, 9), is_remote=st.booleans(), data=st.data())
def test_a_function_of_each_part_gives_its_results_in_order(
    rows: list[tuple[int, str, str | None]], size: int, is_remote: bool, data: st.DataObject
) -> None:
    made = framed(rows, size, Spill())
    made.workers = PickledWorkers() if is_remote else IN_PROCESS
    kept = data.draw(st.lists(st.booleans(), min_size=len(rows), max_size=len(rows)))
    some = made.where(np.array(kept, dtype=bool))
    wanted = [len(row[1]) + 5 for row, keep in zip(rows, kept, strict=True) if keep]
    found: list[int] = []
    done: list[float] = []
    for start, values in some.map(lengths, "text", shared=(5,), advance=done.append):
        assert start == len(found)
        found += values
    assert found == wanted
    assert sum(done) == len(wanted)
    texts = some.texts("text")
    found = []
    for start, values in map_texts(texts, text_lengths, 5):
        assert start == len(found)
        found += values
    assert found == wanted


def test_a_column_in_memory_is_taken_in_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_frames, "_SLICE_TEXTS", 2)
    texts = pl.Series(["a", "bb", "ccc", "dddd", "eeeee"])
    done: list[float] = []
    assert list(map_texts(texts, text_lengths, 0, advance=done.append)) == [(0, [1, 2]), (2, [3, 4]), (4, [5])]
    assert done == [2, 2, 1]
