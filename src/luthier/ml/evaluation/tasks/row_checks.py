"""Rows that a task cannot use, all of them named at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from luthier.core.errors import DataError, RowProblem

if TYPE_CHECKING:
    from luthier.ml.evaluation.tasks.protocol import TaskRow


def own_answer(row: TaskRow) -> str:
    """The row's own answer; empty where it has none."""
    return row.example.reference or ""


def check_rows(
    task: str, rows: Sequence[TaskRow], problem_of: Callable[[TaskRow], tuple[str, str] | None], *, expected: str
) -> None:
    """Check all rows of a task.

    Args:
        task: name of the task.
        rows: all of its rows.
        problem_of: a field and what is wrong with it; None for a row that is right.
        expected: what a row should have, for the message.

    Raises:
        DataError: some rows are wrong; all of them are in `problems`.
    """
    problems = []
    for row in rows:
        if (found := problem_of(row)) is not None:
            value = row.item.get(found[0])
            problems.append(_problem(row.example.id, found[1], found[0], "" if value is None else repr(value)[:80]))
    _refuse(task, problems, expected)


def refuse_rows(task: str, problems: Sequence[tuple[str, str]], *, expected: str, field: str = "") -> None:
    """Refuse rows that are known to be wrong.

    Args:
        task: name of the task.
        problems: id of the row, and what is wrong with it.
        expected: what a row should have, for the message.
        field: the field that is wrong.

    Raises:
        DataError: there are problems.
    """
    _refuse(task, [_problem(row_id, reason, field) for row_id, reason in problems], expected)


def _problem(row_id: str, reason: str, field: str, value: str = "") -> RowProblem:
    file, _, line = row_id.rpartition(":")
    return RowProblem(file or row_id, int(line) if line.isdigit() else 0, field, value, reason)


def _refuse(task: str, problems: Sequence[RowProblem], expected: str) -> None:
    if problems:
        raise DataError(
            f"task {task}: {len(problems):,} {'row' if len(problems) == 1 else 'rows'} cannot be judged",
            expected=expected,
            do="correct these rows or take them out; `map` says which field of the file is which",
            problems=problems,
        )
