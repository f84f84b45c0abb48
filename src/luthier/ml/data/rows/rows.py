"""Raw rows of a data file, streamed, whatever its format; what is no row comes as a problem in its place."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from luthier.core.dataset import Row
from luthier.core.errors import RowProblem
from luthier.ml.data.files.csv_dialect import csv_dialect
from luthier.ml.data.files.read_parquet import read_parquet
from luthier.ml.data.files.source import Format, Source
from luthier.ml.data.rows.read_json import read_json, read_jsonl
from luthier.ml.data.rows.read_table import read_csv
from luthier.ml.data.rows.read_xlsx import read_xlsx, workbook_notes

_READERS: dict[Format, Callable[[Source], Iterator[Row | RowProblem]]] = {
    "jsonl": read_jsonl,
    "json": read_json,
    "csv": read_csv,
    "parquet": read_parquet,
    "xlsx": read_xlsx,
}


def read_rows(source: Source) -> Iterator[Row | RowProblem]:
    """One Row or RowProblem for each record, in the order of the file.

    Raises:
        DataError: the file as a whole cannot be read: a broken JSON document, a bad CSV header, damaged data.
    """
    return _READERS[source.format](source)


def read_as(source: Source) -> str:
    """How a file is written, where its format leaves that open: `semicolons, Windows-1252`; else empty.

    Raises:
        DataError: the file as a whole cannot be read.
    """
    if source.format == "csv":
        return csv_dialect(source).in_words()
    return workbook_notes(source) if source.format == "xlsx" else ""
