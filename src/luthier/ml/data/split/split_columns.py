"""The group and the stratum of each row of a file that is split."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field
from typing import Final

from luthier.core.dataset import Row
from luthier.core.errors import DataError, RowProblem
from luthier.ml.data.audit.table import AuditTable
from luthier.ml.data.files.bad_field import ABSENT, shorten
from luthier.ml.data.files.source import open_source
from luthier.ml.data.rows.records import read_records
from luthier.ml.data.split.split_request import NO_GROUPS, SOURCE, SplitRequest, group_of

NO_STRATUM: Final = "(none)"


@dataclass
class SplitColumns:
    """The group and the stratum of each row, in the order of the file.

    Attributes:
        groups: None where a row has none.
        strata: `NO_STRATUM` where a row has none.
        grouped_by: the field that keeps rows together; None for none.
        reason: why rows are grouped so, as a sentence.
    """

    groups: list[str | None] = field(default_factory=list)
    strata: list[str] = field(default_factory=list)
    grouped_by: str | None = None
    reason: str = "rows are grouped by nothing but what they say"


def check_readable(table: AuditTable) -> None:
    """Refuse a file with rows that cannot be read.

    Raises:
        DataError: some cannot; all of them are in `problems`.
    """
    if table.frame.height == table.num_rows:
        return
    readable = set(table.frame["line"].to_list())
    problems = [problem for problem in table.problems if problem.line not in readable]
    raise _wrong(table, problems, "rows that can be read: none is left out in silence")


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
    columns, problems, fields = SplitColumns(), [], dict[str, None]()
    for record in read_records(open_source(request.file)):
        if not isinstance(record.item, Row):
            problems.append(record.item)
            continue
        row = record.item
        fields.update(dict.fromkeys(row.fields))
        columns.groups.append(group_of(row.fields, request.group_by))
        columns.strata.append(_stratum_of(row, request.stratify_by, problems))
        if columns.groups[-1] is None and request.group_by not in (None, NO_GROUPS):
            value = shorten(row.fields.get(str(request.group_by), ABSENT))
            reason = "names no group: absent, null, or no plain value"
            problems.append(RowProblem(row.file, row.line, str(request.group_by), value, reason))
    for wanted in (request.group_by, request.stratify_by):
        if wanted is not None and wanted not in (NO_GROUPS, SOURCE) and wanted not in fields:
            near = difflib.get_close_matches(wanted, fields, n=1)
            raise DataError(
                f"{table.file} has no field {wanted!r}",
                expected=f"one of the fields there are: {', '.join(list(fields)[:20])}",
                do=f"did you mean {near[0]!r}?" if near else "name one of these fields",
            )
    if problems:
        raise _wrong(
            table,
            problems,
            "rows that can be written as JSON, with a plain value in the fields to group and stratify by",
        )
    _say_grouping(columns, request)
    return columns


def _stratum_of(row: Row, stratify_by: str | None, problems: list[RowProblem]) -> str:
    value = row.fields.get(stratify_by) if stratify_by is not None else None
    if value is None or value == "":
        return NO_STRATUM
    if not isinstance(value, str | int | float):
        problems.append(RowProblem(row.file, row.line, str(stratify_by), shorten(value), "is no plain value"))
    return str(value)


def _say_grouping(columns: SplitColumns, request: SplitRequest) -> None:
    num_grouped = sum(group is not None for group in columns.groups)
    if request.group_by == NO_GROUPS or not num_grouped:
        return
    columns.grouped_by = "provenance.file" if request.group_by is None else request.group_by
    num_groups = len(set(columns.groups) - {None})
    columns.reason = f"rows of one {columns.grouped_by} stay together: {num_groups:,} groups, {num_grouped:,} rows"
    if request.group_by is None:
        columns.reason += " (taken by itself, since rows name their document; --group-by none parts them)"
