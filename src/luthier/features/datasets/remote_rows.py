"""Rows of a source that was downloaded, as one file: all of them or a part, in the columns that were chosen.

A single file that is taken whole stays as it is. Else the rows are written as JSONL, in their order. A part is chosen
by a hash of each row, as recipes do it: a smaller part is contained in a larger one, whatever the order of the rows.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import compress
from pathlib import Path
from typing import Any, Final

from luthier.core.dataset import Row
from luthier.core.errors import DataError
from luthier.core.system.files import disk_full_explained
from luthier.core.text.counted import counted
from luthier.features.datasets.imports import RemoteOrder

_MAX_REASON: Final = 300
_MAX_NAMED: Final = 20


@dataclass(slots=True)
class ReadFile:
    """A file of a source, as far as it was read.

    Attributes:
        path: Where it is.
        name: What people call it.
        num_rows: Its rows that can be read.
        num_unreadable: Its rows that cannot.
        first_problem: Why the first of these cannot.
        kinds: What each of its columns holds first; empty where that is nothing.
    """

    path: Path
    name: str
    num_rows: int = 0
    num_unreadable: int = 0
    first_problem: str = ""
    kinds: dict[str, str] = field(default_factory=dict)

    @property
    def note(self) -> str:
        """What is wrong in it; empty where nothing is."""
        if not self.num_unreadable:
            return ""
        return f"{counted(self.num_unreadable, 'row')} cannot be read, the first: {self.first_problem}"


@dataclass(frozen=True, slots=True)
class GatheredRows:
    """The rows of a source in one file.

    Attributes:
        path: The file.
        is_as_it_was: Whether it is the file of the source itself.
        num_rows: Its rows.
        files: What was read.
    """

    path: Path
    is_as_it_was: bool
    num_rows: int
    files: tuple[ReadFile, ...]

    @property
    def num_source_rows(self) -> int:
        """The rows of the source that can be read."""
        return sum(file.num_rows for file in self.files)

    @property
    def num_records(self) -> int:
        """The rows of the file, those that cannot be read included."""
        return self.num_rows + (sum(file.num_unreadable for file in self.files) if self.is_as_it_was else 0)

    @property
    def columns(self) -> list[str]:
        """The columns of all files, in the order of their first appearance."""
        return list(dict.fromkeys(name for file in self.files for name in file.kinds))


def gather(
    files: Sequence[tuple[Path, str]],
    order: RemoteOrder,
    output: Path,
    *,
    max_bytes: int,
    report: Callable[[int], None] = lambda _: None,
) -> GatheredRows:
    """The rows of the files as one file.

    Args:
        files: Each with what people call it.
        order: Which rows and columns.
        output: Where rows are written, if they are not left as they are.
        max_bytes: The largest file that is written.
        report: Called with the number of rows that were read so far.

    Raises:
        DataError: A file that cannot be read, no row, files with other columns than the first, a column that was
            chosen and is not there, or more bytes than allowed.
        StorageFullError: The disk is full.
    """
    read = [ReadFile(path, name) for path, name in files]
    rows = _rows(read, order, report)
    if order.max_rows is None and order.fraction is None:
        if is_stored_as_one_file(order, len(read)):
            num_rows = sum(1 for _ in rows)
            _check_is_any(read)
            return GatheredRows(read[0].path, True, num_rows, tuple(read))
        num_rows = _write((_line(row, raw, order) for row, raw in rows), output, max_bytes)
    else:
        chosen = _chosen(array("Q", (_hash(raw) for _, raw in rows)), order)
        again = _rows([ReadFile(path, name) for path, name in files], order, lambda _: None)
        num_rows = _write((_line(row, raw, order) for row, raw in compress(again, chosen)), output, max_bytes)
    _check_is_any(read)
    return GatheredRows(output, False, num_rows, tuple(read))


def is_stored_as_one_file(order: RemoteOrder, num_files: int) -> bool:
    """Whether the rows stay in the file of the source, which then has its size."""
    is_all = order.max_rows is None and order.fraction is None and not order.kept_columns
    return is_all and num_files == 1


def _rows(read: Sequence[ReadFile], order: RemoteOrder, report: Callable[[int], None]) -> Iterator[tuple[Row, bytes]]:
    """Each row that can be read with its line of JSON; what is found of each file is noted in it."""
    from luthier.ml.data.files.source import open_source
    from luthier.ml.data.rows.rows import read_records

    num_rows = 0
    for file in read:
        source = open_source(file.path, shown_name=file.name)
        for record in read_records(source, order.kept_columns):
            if not isinstance(record.item, Row) or record.raw is None:
                file.num_unreadable += 1
                if file.num_unreadable == 1 and not isinstance(record.item, Row):
                    reason = " ".join(part for part in (record.item.field, record.item.reason) if part)
                    file.first_problem = f"line {record.line}: {reason}"[:_MAX_REASON]
                continue
            for name, value in record.item.fields.items():
                if not file.kinds.get(name):
                    file.kinds[name] = _kind(value)
            file.num_rows += 1
            num_rows += 1
            report(num_rows)
            yield record.item, record.raw
        _check_columns(read[0], file, order, is_table=source.format not in ("jsonl", "json"))


def _line(row: Row, raw: bytes, order: RemoteOrder) -> bytes:
    """The row as a line, in the columns that are kept."""
    from luthier.ml.data.rows.outputs import json_line

    if not order.kept_columns:
        return raw
    return json_line({name: value for name, value in row.fields.items() if name in order.kept_columns})


def _hash(raw: bytes) -> int:
    return int.from_bytes(hashlib.sha256(b"part\0" + raw).digest()[:8])


def _chosen(hashes: array[int], order: RemoteOrder) -> list[bool]:
    """Which rows are taken: those with the smallest hashes; of equal rows the first ones."""
    import numpy as np

    wanted = len(hashes)
    if order.max_rows is not None:
        wanted = min(wanted, order.max_rows)
    elif order.fraction is not None:
        wanted = min(wanted, max(1, round(order.fraction * len(hashes))))
    is_chosen = np.zeros(len(hashes), dtype=bool)
    is_chosen[np.argsort(np.frombuffer(hashes, dtype=np.uint64), kind="stable")[:wanted]] = True
    return is_chosen.tolist()


def _write(lines: Iterator[bytes], output: Path, max_bytes: int) -> int:
    """Write the lines, and return their number."""
    num_rows = num_bytes = 0
    output.parent.mkdir(parents=True, exist_ok=True)
    with disk_full_explained(output, expected="room for the rows once more"), output.open("wb") as file:
        for line in lines:
            num_bytes += len(line) + 1
            if num_bytes > max_bytes:
                # No fault of the source: another attempt would end here, too, so nothing of it is kept.
                raise DataError(
                    f"the rows have more than {max_bytes:,} bytes as JSONL",
                    expected=f"at most {max_bytes:,} bytes for a file of a project",
                    do="import fewer rows or columns; the operator of the server sets the limit "
                    "(LUTHIER_MAX_FILE_BYTES)",
                )
            file.write(line + b"\n")
            num_rows += 1
    return num_rows


def _kind(value: Any) -> str:
    if value is None:
        return ""
    kinds = {bool: "true or false", int: "numbers", float: "numbers", str: "texts", list: "lists", dict: "objects"}
    return kinds.get(type(value), type(value).__name__)


def _check_is_any(read: Sequence[ReadFile]) -> None:
    if any(file.num_rows for file in read):
        return
    problem = next((file.first_problem for file in read if file.first_problem), "it has no row")
    raise DataError(
        f"{read[0].name} has no row that can be read: {problem}"[:_MAX_REASON],
        expected="rows with the same columns",
        do="check the address, or choose another split",
    )


def _check_columns(first: ReadFile, file: ReadFile, order: RemoteOrder, *, is_table: bool) -> None:
    """Refuse a file that lacks a chosen column, or has other columns or other values in them than the first one."""
    if not file.num_rows:
        return
    missing = [name for name in order.kept_columns if name not in file.kinds]
    if missing:
        raise DataError(
            f"{file.name} has no column {missing[0]!r}",
            expected=f"one of its columns: {_listed(file.kinds)}",
            do="choose columns that every file of the source has",
        )
    kept = order.kept_columns or tuple(first.kinds)
    own, its = (set(one.kinds) if not order.kept_columns else set(kept) for one in (first, file))
    # A field of JSON may be there in some rows alone; a column of a table is there in all.
    if own != its if is_table else not own & its:
        raise DataError(
            f"{file.name} has the columns {_listed(file.kinds)}; {first.name} has {_listed(first.kinds)}",
            expected="the same columns in all files of a source",
            do="keep only columns that all of them have, or import each file by its own address",
        )
    for name in kept:
        before, now = first.kinds.get(name, ""), file.kinds.get(name, "")
        if before and now and before != now:
            raise DataError(
                f"column {name!r} holds {before} in {first.name} and {now} in {file.name}",
                expected="one kind of values in a column of all files",
                do="leave the column out, or import each file by its own address",
            )


def _listed(names: Sequence[str] | dict[str, str]) -> str:
    shown = [repr(name) for name in list(names)[:_MAX_NAMED]]
    return ", ".join(shown) + (f" and {len(names) - _MAX_NAMED} more" if len(names) > _MAX_NAMED else "")
