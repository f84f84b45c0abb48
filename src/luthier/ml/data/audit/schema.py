"""Rows that cannot be read or mapped, a file without one shape, duplicate ids, missing answers and missing prompts.

Errors are what training refuses: a row that is no record of the file's shape, and a file without one shape. Warnings
are what it accepts although it is hardly meant: an id on several rows, a conversation in which nothing is learned, a
prompt that is the mark of a missing value.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import numpy as np

from luthier.core.errors import DataError
from luthier.core.results.audit import Finding, FindingExample
from luthier.ml.data.audit.base import (
    NUM_EXAMPLES,
    AuditRequest,
    about_file,
    about_rows,
    is_about_encoding,
    positions_where,
    problem_finding,
    rows,
)
from luthier.ml.data.audit.table import AuditTable
from luthier.ml.data.dedup.equal_values import column_digests

_NAME = "schema"
_NUM_REASONS = 10
# As MySQL and PostgreSQL export them. In capitals alone: "null" is a word of programs.
_NULL_MARKER = r"(?:^|\n)[ \t]*(?:NULL|\\N)\s*$"


def check(request: AuditRequest) -> list[Finding]:
    """Findings of the sorts (details.sort) "shape", "row", "duplicate_id", "no_answer" and "null_marker"."""
    return list(_findings(request.table))


def _findings(table: AuditTable) -> Iterator[Finding]:
    if table.shape_problem is not None:
        yield _no_shape(table.shape_problem, table)
    problems = [problem for problem in table.problems if not is_about_encoding(problem) and problem.kind == "schema"]
    if problems:
        places = Counter(problem.field or "the record" for problem in problems)
        what = ", ".join(f"{field} ({num:,})" for field, num in places.most_common(3))
        yield problem_finding(
            table,
            _NAME,
            problems,
            message=lambda count: f"{rows(count)} that cannot be read or mapped to {table.shape or 'a shape'}: {what}",
            fix="correct these rows at their source, or remove them: luthier data repair",
            details={"sort": "row", "fields": dict(places.most_common(_NUM_REASONS))},
        )
    yield from _duplicate_ids(table)
    yield from _without_answer(table)
    yield from _null_markers(table)


def _no_shape(error: DataError, table: AuditTable) -> Finding:
    examples = [
        FindingExample(row=table.id_of(problem.line), excerpt=problem.value, note=problem.reason)
        for problem in error.problems[:5]
    ]
    return about_file(
        _NAME,
        "error",
        message=error.came.splitlines()[0],
        fix=f"{error.do} (expected: {error.expected})",
        details={"sort": "shape"},
        examples=examples,
    )


def _duplicate_ids(table: AuditTable) -> Iterator[Finding]:
    ids = column_digests(table.rows, "row_id")
    first = ids.first()
    repeats = np.flatnonzero(first != np.arange(len(first)))
    if not len(repeats):
        return
    num_ids = len(np.unique(first[repeats]))
    shown = repeats[:NUM_EXAMPLES]
    lines, names = table.lines, table.rows.take(ids.positions[shown], "row_id")["row_id"].to_list()
    notes = {
        int(ids.positions[at]): f"the id {name!r} is also on line {lines[ids.positions[first[at]]]}"
        for at, name in zip(shown.tolist(), names, strict=True)
    }
    found = about_rows(
        table,
        _NAME,
        "warning",
        ids.positions[repeats],
        message=f"{rows(len(repeats))} with the id of an earlier row ({num_ids:,} ids occur more than once)",
        fix="give each row a unique id; where whole rows occur twice, see exact_duplicate",
        notes=notes,
        details={"sort": "duplicate_id", "num_ids": num_ids},
    )
    yield found.model_copy(update={"lines": ()})  # the rows may differ in all but their id, so none is to be removed


def _without_answer(table: AuditTable) -> Iterator[Finding]:
    if table.shape in (None, "text"):
        return
    # Rows that cannot be mapped have no completion either, and are reported as such already.
    unmapped = list({problem.line for problem in table.problems})
    positions = positions_where(table.rows, lambda part: part["completion"].is_null(), "completion")
    positions = positions[~np.isin(table.lines[positions], unmapped)]
    if not len(positions):
        return
    yield about_rows(
        table,
        _NAME,
        "warning",
        positions,
        message=f"{rows(len(positions))} without an assistant turn that is learned, so that training gains nothing",
        fix="end each conversation with the answer to be learned, or remove these rows: luthier data repair",
        details={"sort": "no_answer"},
    )


def _null_markers(table: AuditTable) -> Iterator[Finding]:
    """Prompts, and texts of rows of plain text, that end in the mark of a missing value: readers take it as it is."""
    column = "text" if table.shape == "text" else "prompt"
    positions = positions_where(table.rows, lambda part: part[column].str.contains(_NULL_MARKER), column)
    if not len(positions):
        return
    # The last line: of a prompt in two parts that is the input.
    texts = table.rows.take(positions.tolist(), column)[column]
    counts = Counter(text.rstrip().rpartition("\n")[2].strip() for text in texts.to_list())
    what = ", ".join(f"{marker} ({num:,})" for marker, num in counts.most_common())
    found = about_rows(
        table,
        _NAME,
        "warning",
        positions,
        message=f"{rows(len(positions))} whose {column} is, or ends in, the mark of a missing value: {what}",
        fix=r"have the database write missing values as empty cells (NULL and \N are texts), or remove these rows",
        details={"sort": "null_marker", "markers": dict(counts)},
    )
    yield found.model_copy(update={"lines": ()})  # the rest of a row may be right, so none is to be removed
