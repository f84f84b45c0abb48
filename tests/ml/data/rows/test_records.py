"""Records with the bytes they are written by."""

from __future__ import annotations

import json
from datetime import date, datetime, time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.core.dataset import Row
from luthier.core.errors import RowProblem
from luthier.ml.data.files.source import open_source
from luthier.ml.data.rows.outputs import json_line
from luthier.ml.data.rows.rows import read_records


def test_lines_keep_their_bytes_and_numbers(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"a":  1}\r\n\n  {"a": "\\u00e9"} \n{broken\n{"a": "\xe9"}')
    found = list(read_records(open_source(path)))
    assert [(record.line, record.raw) for record in found] == [
        (1, b'{"a":  1}'), (3, b'  {"a": "\\u00e9"} '), (4, b"{broken"), (5, b'{"a": "\xe9"}'),
    ]  # fmt: skip
    assert [type(record.item) for record in found] == [Row, Row, RowProblem, RowProblem]


def test_rows_of_other_formats_are_written_as_json(tmp_path: Path) -> None:
    path = tmp_path / "r.csv"
    path.write_text('b,a\n"x\ny",é\nragged\n', encoding="utf-8")
    found = list(read_records(open_source(path)))
    assert [record.raw for record in found] == ['{"b": "x\\ny", "a": "é"}'.encode(), None]


def test_dates_and_halves_of_characters_can_be_written() -> None:
    when = {"d": date(2026, 1, 2), "t": time(3, 4), "dt": datetime(2026, 1, 2, 3, 4)}
    assert json.loads(json_line(when)) == {"d": "2026-01-02", "t": "03:04:00", "dt": "2026-01-02T03:04:00"}
    assert json_line({"half": "\ud800"}) == b'{"half": "\\ud800"}'
    with pytest.raises(TypeError, match="raw bytes"):
        json_line({"raw": b"x"})
    with pytest.raises(ValueError, match="JSON"):
        json_line({"n": float("nan")})


@given(st.dictionaries(st.text(), st.none() | st.booleans() | st.integers() | st.text(), max_size=5))
def test_a_written_row_is_one_line_that_reads_the_same(row: dict[str, object]) -> None:
    line = json_line(row)
    assert b"\n" not in line
    assert list(json.loads(line).items()) == list(row.items())
