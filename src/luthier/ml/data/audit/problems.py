"""A finding about records that never came into the frame: they are named by line, with field and reason."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from luthier.core.errors import RowProblem
from luthier.core.results.audit import Finding, FindingExample
from luthier.ml.data.audit.finding import NUM_EXAMPLES
from luthier.ml.data.audit.table import AuditTable


def is_about_encoding(problem: RowProblem) -> bool:
    """Whether a problem is damaged text: bytes that are no UTF-8, or half of a surrogate pair."""
    return problem.kind == "encoding" or "surrogate pair" in problem.reason


def problem_finding(
    table: AuditTable,
    check: str,
    problems: Sequence[RowProblem],
    *,
    message: Callable[[int], str],
    fix: str,
    details: Mapping[str, Any],
) -> Finding:
    """An error about the rows of these problems, each row counted once.

    Args:
        table: the file.
        check: id of the check.
        problems: of its rows; a row may have several.
        message: count of rows -> sentence.
        fix: what to do about it.
        details: further figures.
    """
    # Reversed, so that the first problem of a line is the one that stays.
    first = {problem.line: problem for problem in reversed(problems)}
    lines = sorted(first)
    examples = tuple(
        FindingExample(row=table.id_of(line), excerpt=first[line].value, note=_note(first[line]))
        for line in lines[:NUM_EXAMPLES]
    )
    return Finding(
        check=check,
        severity="error",
        count=len(lines),
        fraction=min(1.0, len(lines) / table.num_rows),
        message=message(len(lines)),
        fix=fix,
        examples=examples,
        details=dict(details),
        lines=tuple(lines),
    )


def _note(problem: RowProblem) -> str:
    return f"field {problem.field!r} {problem.reason}" if problem.field else problem.reason
