"""Files that are not what their names say."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

import pytest

from luthier.core.dataset import Row
from luthier.core.errors import DataError
from luthier.ml.data.files.source import open_source
from luthier.ml.data.rows.formats import load_file
from luthier.ml.data.rows.read_json import lines_of_jsonl
from luthier.ml.data.rows.row_index import build_index

_ROW = '{"text": "a luthier"}\n'


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.jsonl", b"", "is empty (0 bytes)"),
        ("a.jsonl.gz", gzip.compress(b"", mtime=0), "holds no bytes"),
        ("a.txt", b"text", "names no known format"),
        ("a", b"text", "names no known format"),
        ("a.gz", b"text", "names no known format"),
        ("a.jsonl", _ROW.encode("utf-16") + b"\x00", "breaks its encoding UTF-16 on line 2"),
        ("a.jsonl", f"[\n{_ROW}]".encode("utf-16"), "begins like one JSON document"),
        ("a.jsonl", b'{"text": "a"}\n{"te\0xt": "b"}\n', "binary: byte 18 (line 2) is NUL"),
        ("a.jsonl", b"PAR1" + b"\1\0" * 20, "holds a Parquet file"),
        ("a.jsonl", gzip.compress(_ROW.encode(), mtime=0), "holds gzip data"),
        ("a.csv", b"PK\x03\x04rest", "holds a zip archive"),
        ("a.jsonl.gz", _ROW.encode(), "does not hold gzip data"),
        ("a.jsonl.gz", gzip.compress(_ROW.encode() * 50, mtime=0)[:-12], "is damaged gzip data"),
        ("a.parquet", _ROW.encode(), "does not begin with PAR1"),
        ("a.parquet", b"PAR1 and nothing that Parquet is", "is damaged"),
        ("a.jsonl", b'[\n{"text": "a"}\n]', "begins like one JSON document"),
        ("a.jsonl", b'{\n"text": "a"\n}', "begins like one JSON document"),
        ("a.csv", b'{"text": "a"}', "begins like JSON"),
    ],
)
def test_content_that_does_not_fit_the_name_is_refused(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(DataError) as caught:
        load_file(path)
    assert message in str(caught.value)


def test_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is a folder"):
        load_file(tmp_path)


def test_a_byte_order_mark_of_utf8_is_no_part_of_the_text(tmp_path: Path) -> None:
    for name, text in (("a.jsonl", _ROW), ("a.json", f"[{_ROW}]"), ("a.csv", "text\na luthier\n")):
        path = tmp_path / name
        path.write_text(text, encoding="utf-8-sig")
        loaded = load_file(path)
        assert loaded.shape == "text"
        assert [example.text for example in loaded.examples] == ["a luthier"]


def test_extensions_in_capitals_are_the_same(tmp_path: Path) -> None:
    path = tmp_path / "A.JSONL"
    path.write_text(_ROW)
    assert load_file(path).num_rows == 1


def test_a_pipe_is_refused_before_it_is_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.jsonl")
    with pytest.raises(DataError, match="is a pipe or a device"):
        load_file(tmp_path / "a.jsonl")


def test_a_name_that_the_system_refuses_is_no_traceback(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        load_file(tmp_path / ("a" * 5_000 + ".jsonl"))


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.jsonl.gz"])
def test_json_in_utf16_is_read_as_windows_programs_write_it(tmp_path: Path, name: str, encoding: str) -> None:
    rows = [json.dumps({"text": f"café {n} 小提琴"}, ensure_ascii=False) for n in range(200)]
    text = f"[{','.join(rows)}]" if name == "a.json" else "\r\n".join(rows)
    data = text.encode(encoding)
    path = tmp_path / name
    path.write_bytes(gzip.compress(data, mtime=0) if name.endswith(".gz") else data)
    loaded = load_file(path)
    assert [example.text for example in loaded.examples] == [f"café {n} 小提琴" for n in range(200)]
    assert loaded.shape_reason.endswith(f"; read as {encoding.upper()[:6]}")


def test_rows_in_utf16_are_found_again_by_their_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("".join(f'{{"text": "é{n}"}}\n' for n in range(20)), encoding="utf-16")
    index = build_index(path, tmp_path / "index")
    row = index.row(7)
    assert isinstance(row, Row)
    assert (row.line, row.fields) == (8, {"text": "é7"})
    lines = list(lines_of_jsonl(open_source(path)))
    (again, *_) = lines_of_jsonl(open_source(path), num_lines=7, offset=lines[7].offset)
    assert again == lines[7]
