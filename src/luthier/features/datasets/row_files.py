"""Files of rows that came together: what each holds, which have the same columns, and these written as one file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from luthier.core.dataset import Row
from luthier.core.errors import DataError, library_reason
from luthier.core.system.files import disk_full_explained

_MAX_REASON: Final = 300


@dataclass(frozen=True, slots=True)
class RowFile:
    """A file of rows.

    Attributes:
        path: Where it is.
        name: What people call it.
        columns: Its columns, in their order.
        shape: The shape of its rows; None where none is recognised.
        num_rows: Its rows, those that cannot be read included.
        num_unreadable: Rows that cannot be read.
        first_problem: Why the first of these cannot.
    """

    path: Path
    name: str
    columns: tuple[str, ...]
    shape: str | None
    num_rows: int
    num_unreadable: int
    first_problem: str = ""

    def at(self, path: Path) -> RowFile:
        """The same file at another place."""
        return replace(self, path=path)


def read_row_file(path: Path, name: str) -> RowFile:
    """What a file of rows holds.

    Raises:
        DataError: It cannot be read as a whole, or has no row.
    """
    from luthier.features.datasets.rows import look_at

    found = look_at(path)
    if found["num_rows"] == found["num_unreadable"]:
        reason = found["problems"][0]["reason"] if found["problems"] else "it has no row"
        raise DataError(
            f"{name} has no row that can be read: {reason}"[:_MAX_REASON],
            expected="rows with the same columns",
            do="open it, correct it and save it again",
        )
    problem = found["problems"][0] if found["problems"] else None
    return RowFile(
        path,
        name,
        tuple(found["columns"]),
        found["shape"],
        found["num_rows"],
        found["num_unreadable"],
        "" if problem is None else f"line {problem['line']}: {problem['reason']}"[:_MAX_REASON],
    )


def grouped(found: Sequence[RowFile]) -> list[list[RowFile]]:
    """Files with the same columns, in whatever order, together; in the order of the first file of each group."""
    groups: dict[frozenset[str], list[RowFile]] = {}
    for one in found:
        groups.setdefault(frozenset(one.columns), []).append(one)
    return list(groups.values())


def write_group(group: Sequence[RowFile], output: Path) -> None:
    """The rows of several files one after another, as JSONL. Rows that cannot be read are left out; the caller says so.

    Raises:
        DataError: A file cannot be read, or holds a value that JSON does not have.
        StorageFullError: The disk is full.
    """
    from luthier.ml.data.files.source import open_source
    from luthier.ml.data.rows.rows import read_rows

    with disk_full_explained(output, expected="room for the rows once more"), output.open("wb") as file:
        for one in group:
            for row in read_rows(open_source(one.path)):
                if isinstance(row, Row):
                    file.write(_line(row, one.name) + b"\n")


def _line(row: Row, name: str) -> bytes:
    from luthier.ml.data.rows.outputs import json_line

    try:
        return json_line(row.fields)
    except (TypeError, ValueError) as error:
        raise DataError(
            f"row {row.line:,} of {name} cannot be written as JSON: {library_reason(error)}",
            expected="texts, numbers, lists and objects",
            do="keep the file as it is, or leave the column out",
        ) from error
