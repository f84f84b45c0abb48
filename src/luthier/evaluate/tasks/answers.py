"""What a check says of rows that cannot be judged."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from luthier.core.errors import DataError, RowProblem
from luthier.evaluate.tasks.protocol import TaskRow


def check_rows(rows: Sequence[TaskRow], expected: str, problem_of: Callable[[TaskRow], tuple[str, str] | None]) -> None:
    """Raise DataError that names every row of which `problem_of` tells a field and what is wrong there."""
    problems = []
    for row in rows:
        if (found := problem_of(row)) is not None:
            file, _, line = row.example.id.rpartition(":")
            value = row.item.get(found[0])
            shown = "" if value is None else repr(value)[:80]
            problems.append(
                RowProblem(file or row.example.id, int(line) if line.isdigit() else 0, found[0], shown, found[1])
            )
    if problems:
        raise DataError(
            f"{len(problems)} of {len(rows)} rows cannot be judged",
            expected=expected,
            do="correct these rows or take them out of the file; `map` says which field of the file is which",
            problems=problems,
        )


def own_answer(row: TaskRow) -> str:
    """The row's own answer; empty where it has none."""
    return row.example.reference or ""
