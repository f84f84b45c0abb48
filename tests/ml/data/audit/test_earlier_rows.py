"""A table that takes unchanged rows from an earlier one is that of the file read as a whole."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from luthier.core.errors import DataError
from luthier.ml.data.audit import table as table_module
from luthier.ml.data.audit.earlier_rows import EarlierRows
from luthier.ml.data.audit.table import AuditTable, build_table

Check = Callable[..., list[int]]
TOOL = {"type": "function", "function": {"name": "add", "description": "Adds two numbers."}}


def counted(texts: Sequence[str]) -> list[int]:
    return [len(text.split()) for text in texts]


def line_of(row: Any) -> bytes:
    return row if isinstance(row, bytes) else json.dumps(row).encode()


def pair(number: int, answer: str = "It is known.", **more: Any) -> dict[str, Any]:
    return {"prompt": f"What is {number}?", "completion": answer, "id": number, **more}


def turns(number: int, answer: str = "Yes.", **more: Any) -> dict[str, Any]:
    said = [{"role": "user", "content": f"Is it {number}?"}, {"role": "assistant", "content": answer, **more}]
    return {"messages": said, "tools": [TOOL]} if number % 2 else {"messages": said}


@pytest.fixture
def mapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Check:
    """Compares the two tables of a copy of a file; the lines whose rows were mapped for the one that has an earlier."""
    monkeypatch.setattr(table_module, "_BATCH_ROWS", 4)

    def check(before: list[Any], changes: dict[int, Any], **how: Any) -> list[int]:
        original, copy = tmp_path / "original.jsonl", tmp_path / "copy.jsonl"
        after = {number: changes.get(number, row) for number, row in enumerate(before, start=1)}
        original.write_bytes(b"".join(line_of(row) + b"\n" for row in before))
        copy.write_bytes(b"".join((b"" if row is None else line_of(row)) + b"\n" for row in after.values()))
        earlier = EarlierRows(build_table(original, **how), {n for n, row in changes.items() if row is not None})
        expected = build_table(copy, **how)
        numbers: list[int] = []
        real = table_module._line

        def line(row: Any, *rest: Any) -> Any:
            numbers.append(row.line)
            return real(row, *rest)

        with monkeypatch.context() as patch:
            patch.setattr(table_module, "_line", line)
            found = build_table(copy, earlier=earlier, **how)
        assert found.rows.frame().equals(expected.rows.frame())
        others = [field.name for field in fields(AuditTable) if field.name not in ("rows", "shape_problem")]
        assert len(others) > 10
        assert {name: getattr(found, name) for name in others} == {name: getattr(expected, name) for name in others}
        assert str(found.shape_problem) == str(expected.shape_problem)
        return numbers

    return check


def test_rows_that_changed_are_mapped_and_no_others(mapped: Check) -> None:
    rows = [pair(n) for n in range(1, 21)]
    assert mapped(rows, {3: pair(3, "Another."), 20: pair(99)}) == [3, 20]


def test_rows_that_went_are_left_out_also_where_they_were_a_whole_part(mapped: Check) -> None:
    rows = [pair(n) for n in range(1, 21)]
    gone = dict.fromkeys((1, 5, 6, 7, 8, 20))
    assert mapped(rows, {**gone, 10: pair(10, "Another.")}) == [10]


def test_lines_that_could_not_be_read_come_to_their_places(mapped: Check) -> None:
    bad = json.dumps(pair(7, "caf#")).encode().replace(b"#", b"\xe9")
    rows = [bad, *(pair(n) for n in range(2, 21)), bad, bad]
    assert mapped(rows, {1: pair(7, "café"), 21: pair(7, "café"), 22: None}) == [1, 21]


def test_rows_that_do_not_fit_their_shape_keep_what_is_wrong_with_them(mapped: Check) -> None:
    rows = [pair(n) for n in range(1, 41)]
    for at in (4, 11, 12, 30):
        rows[at - 1] = {"prompt": "alone", "id": at}
    assert mapped(rows, {11: pair(11), 12: {"prompt": "alone still"}, 13: {"prompt": "alone now"}}) == [11, 12, 13]


def test_tokens_tools_and_thoughts_are_those_of_the_file(mapped: Check) -> None:
    rows = [turns(n, reasoning_content=f"So {n}.") if n % 3 else turns(n) for n in range(1, 21)]
    changed = {5: turns(5, "No, it is not.", reasoning_content="Well, well."), 9: None}
    assert mapped(rows, changed, count_tokens=counted) == [5]


def test_a_mapping_and_a_group_are_those_of_the_file(mapped: Check) -> None:
    rows = [{"q": f"{n}?", "a": "yes", "book": f"b{n % 3}"} for n in range(1, 21)]
    how = {"mapping": {"prompt": "q", "completion": "a"}, "group_by": "book"}
    assert mapped(rows, {2: {"q": "2?", "a": "no", "book": "b9"}}, **how) == [2]


@pytest.mark.parametrize(
    ("rows", "changes"),
    [
        # the column of the answers has another name from the changed row on
        ([pair(n) for n in range(1, 21)], {4: {"text": "one"}}),
        ([{"text": f"t{n}", "label": "ab"[n % 2]} for n in range(20)], {4: {"text": "x", "label": ["a"]}}),
        # the only row of another shape goes
        ([pair(1), {"text": "one"}, *(pair(n) for n in range(2, 20))], {2: None, 3: pair(3, "Another.")}),
        # most of the rows have changed
        ([pair(n) for n in range(1, 21)], {n: pair(n, "Another.") for n in range(1, 15)}),
    ],
)
def test_all_rows_are_mapped_where_the_file_is_read_in_another_way_or_most_rows_changed(
    rows: list[Any], changes: dict[int, Any], mapped: Check
) -> None:
    num_left = len(rows) - sum(row is None for row in changes.values())
    assert len(mapped(rows, changes)) == num_left


def test_rows_without_tokens_are_mapped_again_where_tokens_are_counted(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_bytes(b"".join(line_of(pair(n)) + b"\n" for n in range(8)))
    found = build_table(file, count_tokens=counted, earlier=EarlierRows(build_table(file), set()))
    assert found.has_tokens
    assert found.frame.equals(build_table(file, count_tokens=counted).frame)


def test_a_row_that_is_missing_in_the_earlier_table_is_refused_and_never_left_out(tmp_path: Path) -> None:
    file, copy = tmp_path / "rows.jsonl", tmp_path / "copy.jsonl"
    rows = [line_of(pair(n)) + b"\n" for n in range(8)]
    file.write_bytes(b"".join(rows))
    copy.write_bytes(b"".join(rows) + line_of(pair(99)) + b"\n")
    with pytest.raises(DataError, match="changed while it was read"):
        build_table(copy, earlier=EarlierRows(build_table(file), set()))
