"""Rows that a task cannot use, all of them named at once."""

from __future__ import annotations

from collections.abc import Sequence

from luthier.core.errors import DataError, RowProblem


def refuse_rows(task: str, problems: Sequence[tuple[str, str]], *, expected: str, field: str = "") -> None:
    """Raise DataError where there are problems: (id of the row, what is wrong with it). field: where they lie."""
    if not problems:
        return
    found = []
    for row_id, reason in problems:
        file, _, line = row_id.rpartition(":")
        found.append(RowProblem(file or row_id, int(line) if line.isdigit() else 0, field, "", reason))
    raise DataError(
        f"task {task}: {len(problems):,} {'row' if len(problems) == 1 else 'rows'} cannot be judged",
        expected=expected,
        do="correct these rows or take them out",
        problems=found,
    )
