from __future__ import annotations

import gzip
import json
import os
import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from luthier.core.dataset import Row
from luthier.core.errors import RowProblem
from luthier.ml.data.files.source import open_source
from luthier.ml.data.rows import row_index
from luthier.ml.data.rows.row_index import RowIndex, build_index, is_quick, open_index
from luthier.ml.data.rows.rows import read_rows


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def same_as_reading(index: RowIndex, path: Path) -> None:
    """The index gives what reading from the start gives; of a problem, the same reason."""
    read = list(read_rows(open_source(path)))
    found = [index.row(position) for position in range(index.num_rows)]
    assert [row.line for row in found] == [row.line for row in read]
    for one, two in zip(found, read, strict=True):
        assert type(one) is type(two)
        if isinstance(one, Row) and isinstance(two, Row):
            assert one.fields == two.fields
        elif isinstance(one, RowProblem) and isinstance(two, RowProblem):
            assert one.reason == two.reason


JSONL = '\ufeff{"a": "1"}\n\n{"a": "zwei \u202e"}\r\n   \n[1]\nno json\n{"a": "3"}'.encode()


def test_rows_of_jsonl_are_found_where_they_lie(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", JSONL)
    index = build_index(path, tmp_path / "index")
    same_as_reading(index, path)
    assert list(index.lines()) == [1, 3, 5, 6, 7]
    assert list(index.lines(2, -1)) == [5, 3, 1]
    assert [index.position(line) for line in (0, 1, 2, 3, 7, 8)] == [None, 0, None, 1, 4, None]
    assert not index.is_copy, "the rows were not written a second time"


@pytest.mark.parametrize("suffix", [".jsonl.gz", ".json", ".csv", ".parquet"])
def test_rows_of_other_files_are_written_as_jsonl_once(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"rows{suffix}"
    rows = [{"prompt": f"p{n}", "completion": "ü\n" * n} for n in range(1500)]
    if suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif suffix == ".csv":
        write(path, b'prompt,completion\np0,"one\ntwo"\nonly one value\np2,three\n')
    elif suffix == ".json":
        write(path, json.dumps([*rows, 7]).encode())
    else:
        write(path, gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
    assert not is_quick(path)
    index = build_index(path, tmp_path / "index")
    same_as_reading(index, path)
    assert index.is_copy


def test_the_index_is_opened_again_until_the_file_changes(tmp_path: Path) -> None:
    path, folder = write(tmp_path / "rows.jsonl", JSONL), tmp_path / "index"
    assert open_index(path, folder) is None
    built = build_index(path, folder)
    assert open_index(path, folder) == built
    write(path, JSONL + b"\n{}")
    assert open_index(path, folder) is None
    assert build_index(path, folder).num_rows == 6
    (folder / "index.json").write_text("{}", encoding="utf-8")
    assert open_index(path, folder) is None
    assert open_index(tmp_path / "gone.jsonl", folder) is None


def test_pieces_are_the_bytes_of_each_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_index, "_PIECE_BYTES", 4)
    path = write(tmp_path / "rows.jsonl", JSONL)
    index = build_index(path, tmp_path / "index")
    found = [(line, b"".join(pieces)) for line, pieces in index.pieces()]
    lines = JSONL.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    assert found == [(line, lines[line - 1] + b"\n") for line in (1, 3, 5, 6, 7)]


def test_a_line_that_is_too_long_is_a_problem_in_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "rows.jsonl", b'{"a": "' + b"x" * 200 + b'"}\n{"a": "1"}\n')
    index = build_index(path, tmp_path / "index")
    monkeypatch.setattr(row_index, "MAX_LINE_BYTES", 100)
    first, second = index.row(0), index.row(1)
    assert isinstance(first, RowProblem)
    assert isinstance(second, Row)


def test_a_place_that_is_not_there(tmp_path: Path) -> None:
    index = build_index(write(tmp_path / "rows.jsonl", b"\n\n"), tmp_path / "index")
    assert (index.num_rows, list(index.lines()), index.position(1), list(index.pieces())) == (0, [], None, [])
    for position in (-1, 0):
        with pytest.raises(IndexError):
            index.row(position)


def test_lines_of_all_sorts(tmp_path: Path) -> None:
    draw = random.Random(5)
    for number in range(60):
        lines = draw.choices(["", " ", "{}", '{"a": "x"}', "[", '"t"'], k=draw.randrange(1, 30))
        path = write(tmp_path / f"{number}.jsonl", ('{"first": 1}\n' + "\n".join(lines)).encode())
        same_as_reading(build_index(path, tmp_path / f"{number}"), path)


@pytest.mark.parametrize(("name", "content"), [("a.jsonl", JSONL), ("a.csv", b"a,b\n1,2\n")])
def test_all_of_an_index_is_on_the_disk_before_its_head_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, content: bytes
) -> None:
    path, folder = write(tmp_path / name, content), tmp_path / "index"
    real, done = os.fsync, []

    def fsync(descriptor: int) -> None:
        done.append(os.fstat(descriptor).st_ino)
        if os.fstat(descriptor).st_ino == folder.stat().st_ino:
            assert not (folder / "index.json").exists()  # the new names, before that of the head
            assert (folder / "index.bin").exists()
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    index = build_index(path, folder)
    kept = [entry.stat().st_ino for entry in folder.iterdir() if entry.is_file()]
    assert len(kept) == 2 + index.is_copy
    assert {*kept, folder.stat().st_ino} <= set(done)
