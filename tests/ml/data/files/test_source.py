"""Files that are not what their names say."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import pytest

from luthier.core.errors import DataError
from luthier.ml.data.rows.formats import load_file

_ROW = '{"text": "a luthier"}\n'


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.jsonl", b"", "is empty (0 bytes)"),
        ("a.jsonl.gz", gzip.compress(b"", mtime=0), "holds no bytes"),
        ("a.txt", b"text", "names no known format"),
        ("a", b"text", "names no known format"),
        ("a.gz", b"text", "names no known format"),
        ("a.jsonl", _ROW.encode("utf-16"), "byte order mark of UTF-16"),
        ("a.jsonl", _ROW.encode("utf-32"), "byte order mark of UTF-32"),
        ("a.jsonl", _ROW.encode("utf-16-le"), "NUL in every second byte"),
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
