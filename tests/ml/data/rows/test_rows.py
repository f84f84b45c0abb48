"""Raw rows of every format, with a problem in the place of each record that is not a row."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import polars as pl
import pytest

from luthier.core.dataset import Row
from luthier.core.errors import DataError, RowProblem
from luthier.ml.data.files.source import open_source
from luthier.ml.data.rows.rows import read_rows

FIELDS = [{"text": "one", "label": "a"}, {"text": "two, é", "label": "b"}]


def read(path: Path) -> list[Row | RowProblem]:
    return list(read_rows(open_source(path)))


@pytest.mark.parametrize("name", ["a.jsonl", "a.ndjson", "a.json", "a.csv", "a.parquet", "a.jsonl.gz", "a.csv.gz"])
def test_every_format_gives_the_same_rows(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    lines = "".join(json.dumps(row) + "\n" for row in FIELDS)
    table = 'text,label\none,a\n"two, é",b\n'
    if name.endswith("parquet"):
        pl.DataFrame(FIELDS).write_parquet(path)
    else:
        text = json.dumps(FIELDS) if name.endswith(".json") else table if "csv" in name else lines
        path.write_bytes(gzip.compress(text.encode()) if name.endswith("gz") else text.encode())
    assert read(path) == [Row(name, line, fields) for line, fields in enumerate(FIELDS, 1)]


def test_a_record_that_is_no_row_is_a_problem_in_its_place(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "a"}\n\n{broken\n[1]\n{"text": "b"}\n' + '{"text": "é"}\n'.encode("latin-1"))
    rows = read(path)
    assert [type(row).__name__ for row in rows] == ["Row", "RowProblem", "RowProblem", "Row", "RowProblem"]
    assert [row.line for row in rows] == [1, 3, 4, 5, 6]
    assert [row.kind for row in rows if isinstance(row, RowProblem)] == ["schema", "schema", "encoding"]


def test_ragged_rows_of_a_csv_file_are_problems(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("text,label\na,b\nc\nd,e,f\ng,h\n")
    rows = read(path)
    assert [row.line for row in rows if isinstance(row, RowProblem)] == [2, 3]
    assert [row.fields["text"] for row in rows if isinstance(row, Row)] == ["a", "g"]


def test_nested_columns_of_parquet_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    row = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]}
    pl.DataFrame([row]).write_parquet(path)
    assert read(path) == [Row("a.parquet", 1, row)]


def test_a_broken_document_is_an_error_of_the_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('[{"text": "a"}, {"text": ')
    with pytest.raises(DataError):
        read(path)
