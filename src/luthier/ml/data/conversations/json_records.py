"""The records of an export in JSON: an array, a document with an array, or one object a line."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

from luthier.core.dataset import Row
from luthier.ml.data.files.source import Source
from luthier.ml.data.files.untrusted_input import StrictJsonError, bounded_lines, strict_loads
from luthier.ml.data.readers.html_tables import WholeRows
from luthier.ml.data.readers.markdown import PLAIN, tidy
from luthier.ml.data.rows.read_json import json_document, read_jsonl


def json_records(source: Source, name: str) -> tuple[Iterator[Any], Mapping[str, Any]]:
    """The records one after another, and the document that holds them. What is on a line that cannot be read is None.

    Args:
        source: the export.
        name: the field of a document that has the records.

    Raises:
        DataError: the file as a whole cannot be read.
    """
    if source.format == "jsonl" or _is_one_object_a_line(source):
        return (row.fields if isinstance(row, Row) else None for row in read_jsonl(source)), {}
    document = json_document(source)
    if isinstance(document, dict):
        held = document.get(name)
        return iter(held if isinstance(held, list) else [document]), document
    return iter(document if isinstance(document, list) else []), {}


def objects(value: Any) -> list[dict[str, Any]]:
    """The objects of an array; none where it is something else."""
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []


def text_of_html(value: Any) -> str:
    """The text of a message in HTML; empty where it is no text."""
    if not isinstance(value, str) or not value.strip():
        return ""
    return tidy(WholeRows().convert_string(value, **PLAIN).markdown)[0]


def _is_one_object_a_line(source: Source) -> bool:
    """Whether a file named `.json` has an object a line, as help desks name such exports, too."""
    with source.open() as file:
        lines = [line for line, _ in islice(bounded_lines(file), 2)]
    try:
        return len(lines) == 2 and isinstance(strict_loads(lines[0].decode("utf-8-sig")), dict)
    except (StrictJsonError, UnicodeDecodeError):
        return False
