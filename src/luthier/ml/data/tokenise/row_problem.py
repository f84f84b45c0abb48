"""A problem of a row of which only the id is known."""

from __future__ import annotations

from luthier.core.errors import RowProblem


def problem_of(row_id: str, *, value: str, reason: str, field: str = "") -> RowProblem:
    """The problem of row `file:line`; an id of another form is taken as the file, with line 0."""
    # From the right: a Windows path or a URL has colons of its own.
    file, _, line = row_id.rpartition(":")
    if file and line.isdigit():
        return RowProblem(file, int(line), field, value, reason)
    return RowProblem(row_id, 0, field, value, reason)
