"""How a check says what it found: about some rows, or about the file as a whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from luthier.core.results.audit import Finding, FindingExample, Severity
from luthier.ml.data.audit.table import AuditTable

NUM_EXAMPLES: Final = 5
EXCERPT_CHARACTERS: Final = 240


def about_rows(
    table: AuditTable,
    check: str,
    severity: Severity,
    positions: Sequence[int] | npt.NDArray[np.integer[Any]],
    *,
    message: str,
    fix: str,
    notes: Mapping[int, str] | None = None,
    excerpts: Mapping[int, str] | None = None,
    details: Mapping[str, Any] | None = None,
) -> Finding:
    """A finding about rows of the frame. The first five positions given become the examples.

    Args:
        table: the file.
        check: id of the check.
        severity: of the finding.
        positions: rows of the frame, each once, in any order; put those first that a person should look at.
        message: what was found, in a sentence.
        fix: what to do about it.
        notes: what is wrong at a position.
        excerpts: what to show of it; its text where absent.
        details: further figures.
    """
    shown = [int(position) for position in positions[:NUM_EXAMPLES]]
    lines, texts = table.frame["line"], table.frame["text"]
    examples = tuple(
        FindingExample(
            row=table.id_of(lines[position]),
            excerpt=excerpt((excerpts or {}).get(position, texts[position])),
            note=(notes or {}).get(position, ""),
        )
        for position in shown
    )
    found = np.sort(lines.to_numpy()[np.asarray(positions, dtype=np.int64)]) if len(positions) else ()
    return Finding(
        check=check,
        severity=severity,
        count=len(positions),
        fraction=len(positions) / table.num_rows,
        message=message,
        fix=fix,
        examples=examples,
        details=dict(details or {}),
        lines=tuple(int(line) for line in found),
    )


def about_file(
    check: str,
    severity: Severity,
    *,
    message: str,
    fix: str,
    details: Mapping[str, Any] | None = None,
    examples: Sequence[FindingExample] = (),
) -> Finding:
    """A finding about the file as a whole: count and fraction are 0."""
    return Finding(
        check=check,
        severity=severity,
        count=0,
        fraction=0.0,
        message=message,
        fix=fix,
        examples=tuple(examples),
        details=dict(details or {}),
    )


def excerpt(text: str, around: int = 0) -> str:
    """At most 240 characters of a text, around the character at `around`; what is left out shows as an ellipsis."""
    if len(text) <= EXCERPT_CHARACTERS:
        return text
    shown = EXCERPT_CHARACTERS - 2
    start = max(0, min(around - shown // 3, len(text) - shown))
    return ("…" if start else "") + text[start : start + shown] + ("…" if start + shown < len(text) else "")


def rows(num: int) -> str:
    """`1 row`, `1,204 rows`."""
    return f"{num:,} {'row' if num == 1 else 'rows'}"
