"""Sequences larger than memory: whatever the budget, they hold what was put into them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.ml.data.files.sequences import (
    Chained,
    LazySequence,
    RecordStore,
    Selected,
    SequenceWriter,
    chained,
    selected,
)
from luthier.ml.data.files.spill import Spill

RECORDS = st.lists(st.text(max_size=12), max_size=30)
SLICES = st.builds(slice, *[st.none() | st.integers(-40, 40)] * 2, st.none() | st.sampled_from([-3, -1, 1, 2]))


def stored(records: list[str], place: Path, budget: int = 0) -> LazySequence[str] | tuple[str, ...]:
    writer = SequenceWriter(
        Spill(budget, place), len, lambda spill: RecordStore(spill, str.encode, lambda data: data.decode())
    )
    for record in records:
        writer.append(record)
    made = writer.sequence()
    assert isinstance(made, LazySequence | tuple)
    return made


@settings(deadline=None, max_examples=40)
@given(records=RECORDS, budget=st.integers(0, 200), part=SLICES)
def test_a_writer_gives_back_what_it_was_given(
    records: list[str], budget: int, part: slice, tmp_path_factory: pytest.TempPathFactory
) -> None:
    made = stored(records, tmp_path_factory.mktemp("records"), budget)
    assert isinstance(made, tuple) == (sum(map(len, records)) <= budget)
    assert list(made) == records
    assert len(made) == len(records)
    assert list(made[part]) == records[part]
    assert [made[place] for place in range(-len(records), 0)] == records


def test_more_records_than_are_written_at_a_time(tmp_path: Path) -> None:
    records = [f"record {number}" for number in range(2_500)]
    made = stored(records, tmp_path, budget=15_000)
    assert isinstance(made, LazySequence)
    assert list(made) == records
    assert made[998:1002] == records[998:1002]


def test_what_is_outside_is_an_error(tmp_path: Path) -> None:
    made = stored(["a", "b"], tmp_path)
    for index in (2, -3):
        with pytest.raises(IndexError, match="of a sequence of 2"):
            made[index]


def test_a_budget_that_is_given_back_is_used_again(tmp_path: Path) -> None:
    spill = Spill(100, tmp_path)
    writer = SequenceWriter(spill, lambda _: 60, lambda spill: RecordStore(spill, bytes, bytes))
    for record in (b"one", b"two", b"three"):
        writer.append(record)
    assert isinstance(writer.sequence(), LazySequence)
    assert spill.held_bytes < 60, "what is encoded is smaller, and in memory as long as there is room"


@settings(deadline=None)
@given(records=RECORDS, data=st.data())
def test_views_are_what_lists_would_be(records: list[str], data: st.DataObject) -> None:
    store = RecordStore[str](Spill(1 << 30), str.encode, lambda data: data.decode())
    if records:
        store.extend(records)
    made = store.sequence()
    places = data.draw(st.lists(st.integers(0, len(records) - 1), max_size=20)) if records else []
    chosen = Selected(made, np.array(places, dtype=np.int64))
    assert list(chosen) == [records[place] for place in places]
    assert chosen[1:4] == [records[place] for place in places][1:4]
    both = Chained(made, ["x", "y"], chosen)
    expected = [*records, "x", "y", *chosen]
    assert list(both) == expected
    part = data.draw(SLICES)
    assert both[part] == expected[part]
    assert [both[place] for place in range(len(expected))] == expected


def test_what_is_in_memory_stays_lists(tmp_path: Path) -> None:
    assert chained(("a",), ["b"], ()) == ["a", "b"]
    assert chained() == []
    assert selected(("a", "b", "c"), np.array([2, 0])) == ["c", "a"]
    made = stored(["a", "b"], tmp_path)
    assert chained(made, ()) is made
    assert list(chained(made, ["c"])) == ["a", "b", "c"]
    assert isinstance(selected(made, np.array([1])), Selected)
