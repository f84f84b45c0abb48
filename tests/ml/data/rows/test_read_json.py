"""JSONL and JSON: places of syntax errors, bytes that are not UTF-8, and which array holds the rows."""

from __future__ import annotations

from pathlib import Path

import pytest

from luthier.core.errors import DataError
from luthier.ml.data.rows.formats import load_file


def _load(tmp_path: Path, name: str, data: str | bytes) -> DataError:
    path = tmp_path / name
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    with pytest.raises(DataError) as caught:
        load_file(path)
    return caught.value


def test_latin1_bytes_are_named_by_offset_and_line(tmp_path: Path) -> None:
    error = _load(tmp_path, "a.jsonl", b'{"text": "a"}\n{"text": "caf\xe9"}\n{"text": "c"}\n')
    (problem,) = error.problems
    assert problem.line == 2
    assert "byte 27 of the file (0xe9) is not UTF-8" in problem.reason
    assert "café" in problem.value


def test_offset_counts_a_byte_order_mark(tmp_path: Path) -> None:
    error = _load(tmp_path, "a.jsonl", b'\xef\xbb\xbf{"text": "\xe9"}\n{"text": "c"}\n')
    assert "byte 13 of the file" in error.problems[0].reason


def test_a_nul_deep_in_the_file_is_named(tmp_path: Path) -> None:
    row = b'{"text": "some text"}\n'
    error = _load(tmp_path, "a.jsonl", row * 5_000 + b'{"text": "\0"}\n')
    (problem,) = error.problems
    assert problem.line == 5_001
    assert f"byte {len(row) * 5_000 + 10} of the file is NUL" in problem.reason


def test_json_syntax_errors_have_line_and_column(tmp_path: Path) -> None:
    error = _load(tmp_path, "a.json", '[\n  {"text": "a"},\n  {"text" "b"}\n]')
    assert "line 3, column 11" in error.came
    assert error.problems[0].line == 3


def test_jsonl_under_the_name_json_is_recognised(tmp_path: Path) -> None:
    assert "rename it to .jsonl" in _load(tmp_path, "a.json", '{"text": "a"}\n{"text": "b"}\n').do


def test_json_that_is_not_utf8(tmp_path: Path) -> None:
    error = _load(tmp_path, "a.json", b'[{"text": "a"},\n{"text": "\xe9"}]')
    assert error.problems[0].line == 2
    assert "byte 26 of the file" in error.problems[0].reason


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('"text"', "holds a text"),
        ("{}", "an object with 0 arrays"),
        ('{"a": [], "b": []}', "an object with 2 arrays (a, b)"),
        ("[]", "holds no rows"),
        ('{"a": 1, "a": [{"text": "x"}]}', "the key 'a' appears twice"),
        ("[" * 100_000, "nested too deeply"),
        ("[" + "1" * 5_000 + "]", "limit"),
    ],
)
def test_documents_without_rows_are_refused(tmp_path: Path, text: str, message: str) -> None:
    assert message in str(_load(tmp_path, "a.json", text)).replace("exceeds the limit", "limit")


def test_elements_that_are_no_objects_are_rows_that_are_wrong(tmp_path: Path) -> None:
    error = _load(tmp_path, "a.json", '[{"text": "a"}, 3, {"text": "b"}, null]')
    assert [(problem.line, problem.value) for problem in error.problems] == [(2, "3"), (4, "null")]


def test_an_object_that_is_itself_a_row_is_one_row(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}')
    assert load_file(path).num_rows == 1
