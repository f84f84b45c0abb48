"""The shape of a file whose rows several workers have seen is the shape that one reader finds."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st

from luthier.core.dataset import Row
from luthier.core.errors import DataError
from luthier.ml.data.rows.shapes import ShapeDetector

TURNS = [{"role": "user", "content": "a", "extra": 1}, {"role": "assistant", "content": "b"}]
ROWS: list[dict[str, Any]] = [
    {"prompt": "a", "completion": "b"},
    {"prompt": "a", "completion": "b", "text": "c"},
    {"text": "c"},
    {"text": "c", "label": "x"},
    {"text": "c", "label": ["x"]},
    {"text": "c", "prompt": None},
    {"messages": TURNS},
    {"messages": TURNS, "prompt": "a", "completion": "b"},
    {"prompt": "a", "completion": "b", "label": True},
    {"chosen": "a", "rejected": "b"},
    {"question": "a", "answer": "b"},
    {"Question": "a", "answer": "b", "context": "c"},
    {"else": 1},
]


def outcome(detector: ShapeDetector) -> object:
    try:
        return detector.settle(group=None)
    except DataError as error:
        return error.as_json()


def seen(rows: Sequence[Row], mapping: dict[str, str]) -> ShapeDetector:
    detector = ShapeDetector("rows.jsonl", mapping)
    for row in rows:
        detector.add(row)
    return detector


@given(
    picked=st.lists(st.integers(0, len(ROWS) - 1), min_size=1, max_size=12),
    cuts=st.lists(st.integers(0, 12), max_size=3),
    mapping=st.sampled_from([{}, {"prompt": "text", "completion": "label"}, {"system": "else"}]),
)
@example(picked=[0, 1, 2], cuts=[1], mapping={})
@example(picked=[1, 0, 2, 0], cuts=[2], mapping={})
@example(picked=[0, 6, 2], cuts=[1, 2], mapping={})
def test_parts_that_are_merged_have_the_shape_of_the_whole(
    picked: list[int], cuts: list[int], mapping: dict[str, str]
) -> None:
    rows = [Row("rows.jsonl", line, ROWS[number]) for line, number in enumerate(picked, start=1)]
    ends = sorted({0, len(rows), *(cut for cut in cuts if cut <= len(rows))})
    merged = ShapeDetector("rows.jsonl", mapping)
    for start, stop in pairwise(ends):
        merged.merge(seen(rows[start:stop], mapping))
    whole = seen(rows, mapping)
    assert merged.num_rows == whole.num_rows
    assert list(merged.columns) == list(whole.columns)
    assert outcome(merged) == outcome(whole)
