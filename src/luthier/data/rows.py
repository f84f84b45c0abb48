"""Raw rows of a data file, streamed, whatever its format; what is no row comes as a problem in its place."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from luthier.core.dataset import Row
from luthier.core.errors import RowProblem
from luthier.data.read_json import read_json, read_jsonl
from luthier.data.read_parquet import read_parquet
from luthier.data.read_table import read_csv
from luthier.data.source import Format, Source

_READERS: dict[Format, Callable[[Source], Iterator[Row | RowProblem]]] = {
    "jsonl": read_jsonl,
    "json": read_json,
    "csv": read_csv,
    "parquet": read_parquet,
}


def read_rows(source: Source) -> Iterator[Row | RowProblem]:
    """One Row or RowProblem for each record, in the order of the file.

    Raises DataError where the file as a whole cannot be read: a broken JSON document, a bad CSV header, damaged data.
    """
    return _READERS[source.format](source)
