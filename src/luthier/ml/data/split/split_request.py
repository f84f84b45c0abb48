"""The request of a file split, and the group and stratum of each row, which keep rows together."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt
import polars as pl

from luthier.core.dataset import Example, Row
from luthier.core.errors import DataError, RowProblem
from luthier.core.ports import Progress
from luthier.ml.data.audit.table import AuditTable
from luthier.ml.data.files.bad_field import ABSENT, BadFieldError, shorten
from luthier.ml.data.files.row_frames import Texts
from luthier.ml.data.files.source import open_source
from luthier.ml.data.provenance import PROVENANCE, has_field, source_of
from luthier.ml.data.rows.formats import example_of
from luthier.ml.data.rows.rows import read_records
from luthier.ml.data.rows.shapes import GROUP
from luthier.ml.data.split.continued import Continuations

NO_GROUPS: Final = "none"
SOURCE: Final = "source"
_PASSAGE: Final = "source_row"
_WRITTEN_FROM_PASSAGES: Final = ("qa", "instruction")
"""Kinds of synthetic rows of which several may be written from one passage."""


class NearGroups(Protocol):
    """As `near_duplicates.near_duplicate_groups`: for each text the position of the first one of its cluster."""

    def __call__(self, texts: Texts, *, threshold: float, progress: Progress | None) -> npt.NDArray[np.int64]: ...


@dataclass(frozen=True, slots=True)
class SplitRequest:
    """How to split a file.

    Attributes:
        file: the rows.
        folder: where the parts go.
        validation: fraction of all rows, 0 to below 1.
        held_out: fraction of all rows, 0 to below 1.
        seed: of the order of the groups.
        group_by: the field whose value keeps rows together; "source" is the source document (`provenance.file`, or a
            field such as `source`); "none" groups by nothing; None groups by `provenance.file` where rows have it, and
            pairs that were written from passages of no file by their passage (`provenance.source_row`).
        stratify_by: the field of whose values each side has its share.
        near_threshold: exact Jaccard over word 3-shingles from which two rows stay on one side; None searches for none.
        mapping: as for training; its `group` is another way to say group_by.
        force: replace what an earlier split has left in the folder.
    """

    file: Path
    folder: Path
    validation: float = 0.1
    held_out: float = 0.1
    seed: int = 0
    group_by: str | None = None
    stratify_by: str | None = None
    near_threshold: float | None = 0.8
    mapping: Mapping[str, str] | None = None
    force: bool = False


def default_folder(file: Path) -> Path:
    """`rows.jsonl.gz` -> `rows-split`, next to it."""
    stem = file.name
    for suffix in reversed(file.suffixes[-2:] if file.suffix.lower() == ".gz" else file.suffixes[-1:]):
        stem = stem.removesuffix(suffix)
    return file.with_name(f"{stem}-split")


def group_of(fields: Mapping[str, Any], group_by: str | None) -> str | None:
    """The group of a row by `SplitRequest.group_by`; None where it has none."""
    if group_by == NO_GROUPS:
        return None
    if group_by is None:
        return source_of({PROVENANCE: {"file": _named_by_itself(fields)[1]}})
    return source_of(fields) if group_by == SOURCE else source_of(fields, group_by)


def _named_by_itself(fields: Mapping[str, Any]) -> tuple[str, Any]:
    """The part of its provenance that a row is grouped by where nothing is asked, and its value; None without one."""
    provenance = fields.get(PROVENANCE)
    if not isinstance(provenance, dict):
        return "file", None
    if not provenance.get("file") and provenance.get("kind") in _WRITTEN_FROM_PASSAGES:
        # Questions about one passage are answered by the same sentences, however different their words are.
        return _PASSAGE, provenance.get(_PASSAGE)
    return "file", provenance.get("file")


def with_mapped_group(request: SplitRequest) -> SplitRequest:
    """The request grouped by what its mapping calls `group`.

    Raises:
        DataError: two groups are requested.
    """
    mapped = (request.mapping or {}).get(GROUP)
    if mapped is None or mapped == request.group_by:
        return request
    if request.group_by is not None:
        raise DataError(
            f"the group is given twice: group={mapped!r} in the mapping and group_by={request.group_by!r}",
            expected="one field that keeps rows together",
            do="remove one of the two",
        )
    return replace(request, group_by=mapped)


NO_STRATUM: Final = "(none)"
_PART_ROWS: Final = 20_000


@dataclass
class SplitColumns:
    """The group and the stratum of each row, in the order of the file.

    Attributes:
        groups: strings; null where a row has none.
        strata: strings; `NO_STRATUM` where a row has none.
        grouped_by: the field that keeps rows together; None for none.
        reason: why rows are grouped so, as a sentence.
        continued: int64 [n], as `Continuations.continued` of the conversations.
    """

    groups: pl.Series
    strata: pl.Series
    continued: npt.NDArray[np.int64]
    grouped_by: str | None = None
    reason: str = "rows are grouped by their content alone"


def check_readable(table: AuditTable) -> None:
    """Refuse a file with rows that cannot be read.

    Raises:
        DataError: some cannot; all of them are in `problems`.
    """
    if table.height == table.num_rows:
        return
    where = np.array([problem.line for problem in table.problems], dtype=np.int64)
    # Rows that are in the table but do not fit the shape can still be split: only unreadable ones have no line there.
    is_readable = np.isin(where, table.lines).tolist()
    problems = [problem for problem, has_row in zip(table.problems, is_readable, strict=True) if not has_row]
    raise _wrong(table, problems, "readable rows only: none is left out silently")


def _wrong(table: AuditTable, problems: list[RowProblem], expected: str) -> DataError:
    return DataError(
        f"{len(problems):,} of {table.num_rows:,} rows of {table.file} cannot be split",
        expected=expected,
        do="repair them (`luthier data repair`), or name another field",
        problems=problems,
    )


def read_columns(request: SplitRequest, table: AuditTable) -> SplitColumns:
    """Group and stratum of each row.

    Raises:
        DataError: the file has no such field, or rows have no plain value in it.
    """
    groups, strata = StringColumn(), StringColumn()
    problems, fields, parts = [], dict[str, None](), set[str]()
    continuations = Continuations()
    for record in read_records(open_source(request.file)):
        if not isinstance(record.item, Row):
            problems.append(record.item)
            continue
        row = record.item
        continuations.add(mapped_row(row, table))
        fields.update(dict.fromkeys(row.fields))
        group = group_of(row.fields, request.group_by)
        groups.append(group)
        if request.group_by is None and group is not None:
            parts.add(_named_by_itself(row.fields)[0])
        strata.append(_stratum_of(row, request.stratify_by, problems))
        if group is None and request.group_by not in (None, NO_GROUPS):
            value = shorten(row.fields.get(str(request.group_by), ABSENT))
            reason = "has no group: the field is absent, null, or not a plain value"
            problems.append(RowProblem(row.file, row.line, str(request.group_by), value, reason))
    for wanted in (request.group_by, request.stratify_by):
        if wanted is not None and wanted not in (NO_GROUPS, SOURCE, *fields):
            if wanted == request.group_by and has_field(fields, wanted):
                continue
            near = difflib.get_close_matches(wanted, fields, n=1)
            raise DataError(
                f"{table.file} has no field {wanted!r}",
                expected=f"one of the fields of the file: {', '.join(list(fields)[:20])}",
                do=f"did you mean {near[0]!r}?" if near else "name one of these fields",
            )
    if problems:
        raise _wrong(
            table,
            problems,
            "rows that can be written as JSON, with a plain value in the fields to group and stratify by",
        )
    columns = SplitColumns(groups.series(), strata.series(), continuations.continued())
    _say_grouping(columns, request, parts)
    return columns


def mapped_row(row: Row, table: AuditTable) -> Example | None:
    """A row of a file of conversations as an example; None for rows of another shape, and those that do not fit."""
    if table.shape not in ("chat", "sharegpt", "alpaca"):
        return None
    try:
        return example_of(row, table.shape, table.mapping, None)
    except BadFieldError:
        return None


class StringColumn:
    """Strings, or None, that are appended; a tenth of the memory of a list of them."""

    def __init__(self) -> None:
        self._parts: list[pl.Series] = []
        self._last: list[str | None] = []

    def append(self, value: str | None) -> None:
        """Add one at the end; halves of surrogate pairs, which no frame can hold, as question marks."""
        if value is not None and not value.isascii():
            value = value.encode("utf-8", "replace").decode()
        self._last.append(value)
        if len(self._last) == _PART_ROWS:
            self._parts.append(pl.Series(self._last, dtype=pl.String))
            self._last = []

    def series(self) -> pl.Series:
        """All of them."""
        return pl.concat([*self._parts, pl.Series(self._last, dtype=pl.String)], rechunk=True)


def _stratum_of(row: Row, stratify_by: str | None, problems: list[RowProblem]) -> str:
    # Absent, null and empty are one stratum: rows without a label are spread over the sides like all others.
    value = row.fields.get(stratify_by) if stratify_by is not None else None
    if value is None or value == "":
        return NO_STRATUM
    if not isinstance(value, str | int | float):
        problems.append(RowProblem(row.file, row.line, str(stratify_by), shorten(value), "is no plain value"))
    return str(value)


def _say_grouping(columns: SplitColumns, request: SplitRequest, parts: set[str]) -> None:
    num_grouped = len(columns.groups) - columns.groups.null_count()
    if request.group_by == NO_GROUPS or not num_grouped:
        return
    named = " or ".join(f"{PROVENANCE}.{part}" for part in sorted(parts))
    columns.grouped_by = named if request.group_by is None else request.group_by
    num_groups = columns.groups.drop_nulls().n_unique()
    columns.reason = f"rows of one {columns.grouped_by} stay together: {num_groups:,} groups, {num_grouped:,} rows"
    if request.group_by is None:
        columns.reason += " (chosen automatically, since rows name their document; --group-by none turns it off)"
