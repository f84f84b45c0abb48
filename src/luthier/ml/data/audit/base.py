"""What every audit check shares: its request, the findings it returns, and the answers of a table.

A check is a function from `AuditRequest` to findings, or to `Skipped` with a reason. A finding is about rows of the
table (`about_rows`), about the file as a whole (`about_file`), or about records that never came into the table and are
named by line, field and reason (`problem_finding`).

A check goes through the rows part by part (`AuditTable.rows`) and keeps numbers and flags only, so that a file may be
larger than memory.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt
import polars as pl

from luthier.core.errors import RowProblem
from luthier.core.ports import Progress, SilentProgress
from luthier.core.results.audit import Finding, FindingExample, Severity
from luthier.ml.data.audit.table import AuditTable
from luthier.ml.data.dedup.equal_values import column_digests
from luthier.ml.data.files.row_frames import RowFrames, TextColumn

# Texts -> for each the probability, 0 to 1, that it is toxic.
ToxicityModel = Callable[[Sequence[str]], Sequence[float]]


@dataclass(frozen=True, slots=True)
class AuditRequest:
    """A file to check, and what is known about what it is for.

    Attributes:
        table: the file.
        held_out: the file that will evaluate the model (`--against`); None for none.
        model: the base model; None where it is not known.
        context_tokens: tokens that the model can see.
        method: how it will be trained, such as "lora".
        toxicity_model: judges in place of the word list.
        toxicity_model_name: its name in messages.
        progress: shows slow checks.
    """

    table: AuditTable
    held_out: AuditTable | None = None
    model: str | None = None
    context_tokens: int | None = None
    method: str = "lora"
    toxicity_model: ToxicityModel | None = None
    toxicity_model_name: str | None = None
    progress: Progress = SilentProgress()  # noqa: RUF009 - it has no state


@dataclass(frozen=True, slots=True)
class Skipped:
    """A check that could not be run. It is shown beside the findings, so that nobody takes it for a clean result.

    Attributes:
        reason: why it could not be run.
    """

    reason: str


class Check(Protocol):
    """A pure function: the same request gives the same findings, in the same order."""

    def __call__(self, request: AuditRequest) -> Sequence[Finding] | Skipped: ...


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
    """A finding about rows of the table. The first five positions given become the examples.

    Args:
        table: the file.
        check: id of the check.
        severity: of the finding.
        positions: rows of the table, each once, in any order; put those first that a person should look at.
        message: what was found, in a sentence.
        fix: what to do about it.
        notes: what is wrong at a position.
        excerpts: what to show of it; its text where absent.
        details: further figures.
    """
    shown = [int(position) for position in positions[:NUM_EXAMPLES]]
    examples = tuple(
        FindingExample(
            row=table.id_of(line),
            excerpt=excerpt((excerpts or {}).get(position, text)),
            note=(notes or {}).get(position, ""),
        )
        for position, (line, text) in zip(shown, table.rows.take(shown, "line", "text").iter_rows(), strict=True)
    )
    found = np.sort(table.lines[np.asarray(positions, dtype=np.int64)]) if len(positions) else ()
    return Finding(
        check=check,
        severity=severity,
        count=len(positions),
        fraction=len(positions) / table.num_rows,
        message=message,
        fix=fix,
        examples=examples,
        details=dict(details or {}),
        lines=tuple(np.asarray(found).tolist()),
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
    """A finding about the file as a whole: count and fraction are 0.

    Args:
        check: the id of the check.
        severity: of the finding.
        message: what was found, as a sentence.
        fix: what to do about it.
        details: figures of the finding, as JSON values.
        examples: rows that show it.
    """
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


def is_about_encoding(problem: RowProblem) -> bool:
    """Whether a problem is damaged text: bytes that are not UTF-8, or half of a surrogate pair."""
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


Positions = npt.NDArray[np.int64]


def one_of_each(positions: npt.NDArray[np.integer[Any]], groups: npt.NDArray[np.integer[Any]]) -> Positions:
    """Reorder positions so that the first ones show as many groups as possible, the largest groups first.

    Args:
        positions: int [n].
        groups: int [n], the group of each position.
    """
    order = np.lexsort((positions, groups))
    _, begins, sizes = np.unique(groups[order], return_index=True, return_counts=True)
    # Number of each member in its group: all first members come before all second ones.
    place = np.arange(len(order)) - np.repeat(begins, sizes)
    shown = np.lexsort((np.repeat(begins, sizes), -np.repeat(sizes, sizes), place))
    return positions[order][shown].astype(np.int64)


MAX_CLASSES: Final = 50
LONGEST_CLASS_CHARACTERS: Final = 60
FEWEST_ROWS: Final = 20
FEWEST_ROWS_A_CLASS: Final = 5


def learned(table: AuditTable) -> TextColumn:
    """What is learned of each row: its completion; where the rows are plain text or unmapped, the text."""
    return table.rows.texts("completion", "text")


def has_completions(table: AuditTable) -> bool:
    """Whether any row has a prompt and a completion."""
    return any(part["completion"].null_count() < part.height for _, part in table.rows.parts("completion"))


def has_prompts(table: AuditTable) -> bool:
    """Whether any row has a prompt."""
    return any(part["prompt"].null_count() < part.height for _, part in table.rows.parts("prompt"))


def positions_where(rows: RowFrames, flags: Callable[[pl.DataFrame], pl.Series], *columns: str) -> Positions:
    """The rows for which a function of some columns, given part by part, is true; null is false."""
    found = [np.zeros(0, dtype=np.int64)]
    for start, part in rows.parts(*columns):
        found.append(start + np.flatnonzero(flags(part).fill_null(value=False).to_numpy()))
    return np.concatenate(found)


def lengths_of(texts: TextColumn) -> pl.Series:
    """The characters of each text; null where there is no text."""
    parts = [part.str.len_chars() for part in texts.parts()]
    return pl.concat(parts, rechunk=True) if parts else pl.Series([], dtype=pl.UInt32)


def class_counts(table: AuditTable) -> tuple[int, dict[str, int]] | None:
    """How many classes there are and the rows of each, or None where the rows are not about classes.

    The column `label` where any row has one; of more labels than could be classes (`MAX_CLASSES`, or a fifth of the
    rows) only the number. Otherwise `answer_classes`.
    """
    firsts, counts = column_digests(table.rows, "label").counts()
    if not len(firsts):
        found = answer_classes(table)
        return None if found is None else (len(found), found)
    if len(firsts) > max(MAX_CLASSES, int(counts.sum()) // FEWEST_ROWS_A_CLASS):
        return len(firsts), {}
    return len(firsts), dict(zip(table.rows.take(firsts, "label")["label"].to_list(), counts.tolist(), strict=True))


def answer_classes(table: AuditTable) -> dict[str, int] | None:
    """The completions, trimmed, and the rows of each, where they look like classes; else None.

    They do where over at least 20 rows there are at most 50 values, none longer than 60 characters, and 5 rows a value
    in the mean.
    """
    counts: Counter[str] = Counter()
    for _, part in table.rows.parts("completion"):
        answers = part["completion"].drop_nulls()
        if not len(answers):
            continue
        # Bytes first: they cost nothing, and most files are no classes by them.
        if int(answers.str.len_bytes().max() or 0) > 4 * LONGEST_CLASS_CHARACTERS:  # type: ignore[arg-type]
            return None
        trimmed = answers.str.strip_chars().alias("class")
        if int(trimmed.str.len_chars().max() or 0) > LONGEST_CLASS_CHARACTERS:  # type: ignore[arg-type]
            return None
        counts.update(dict(trimmed.value_counts().iter_rows()))
        if len(counts) > MAX_CLASSES:
            return None
    if counts.total() < max(FEWEST_ROWS, FEWEST_ROWS_A_CLASS * len(counts)):
        return None
    return dict(counts)
