"""Text that an export damaged: not UTF-8, mojibake, lost characters, control characters, HTML left-overs.

Bytes that are not UTF-8 are an error, as training refuses the row. The rest is a warning: the row can be learned, but
it teaches the damage. HTML in at least half of the rows, copies aside, is a note: then it is most likely meant.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

import numpy as np
import polars as pl

from luthier.core.results.audit import Finding
from luthier.ml.data.audit.base import (
    AuditRequest,
    Positions,
    about_rows,
    excerpt,
    is_about_encoding,
    positions_where,
    problem_finding,
    rows,
)
from luthier.ml.data.audit.table import AuditTable
from luthier.ml.data.dedup.equal_values import num_different_values
from luthier.ml.data.text.clean_text import (
    CONTROL,
    HTML_SIFT,
    MOJIBAKE_SIFT,
    has_control,
    has_left_over_html,
    has_mojibake,
    left_over_at,
    mojibake_at,
)

_NAME = "encoding"
MEANT_FRACTION: Final = 0.5
_CLEAN = "clean these texts: luthier data repair (or read the source again as what it is)"


def check(request: AuditRequest) -> list[Finding]:
    """One finding a sort (details.sort): not_utf8, mojibake, lost_characters, control_characters, html."""
    table = request.table
    return [*_not_utf8(table), *_mojibake(table), *_lost(table), *_control(table), *_html(table)]


def _not_utf8(table: AuditTable) -> Iterator[Finding]:
    problems = [problem for problem in table.problems if is_about_encoding(problem)]
    if problems:
        yield problem_finding(
            table,
            _NAME,
            problems,
            message=lambda count: f"{rows(count)} without UTF-8 text",
            fix="write the file as UTF-8 (iconv -f WINDOWS-1252 -t UTF-8, if that is what it is), or remove these rows",
            details={"sort": "not_utf8"},
        )


def _mojibake(table: AuditTable) -> Iterator[Finding]:
    positions = _where(table, MOJIBAKE_SIFT, has_mojibake)
    if len(positions):
        yield about_rows(
            table,
            _NAME,
            "warning",
            positions,
            message=f"{rows(len(positions))} with UTF-8 that was read as Windows-1252 or Latin-1, such as Ã© for é",
            fix=_CLEAN,
            excerpts=_excerpts(table, positions, mojibake_at),
            details={"sort": "mojibake"},
        )


def _lost(table: AuditTable) -> Iterator[Finding]:
    positions = positions_where(table.rows, lambda part: part["text"].str.contains("\ufffd", literal=True), "text")
    if len(positions):
        found = about_rows(
            table,
            _NAME,
            "warning",
            positions,
            message=f"{rows(len(positions))} with U+FFFD, the mark of lost characters",
            fix="get these rows from their source again in the right encoding: lost characters cannot be restored",
            excerpts=_excerpts(table, positions, lambda text: text.index("\ufffd")),
            details={"sort": "lost_characters"},
        )
        yield found.model_copy(update={"lines": ()})  # nothing that a repair could change


def _control(table: AuditTable) -> Iterator[Finding]:
    positions = _where(table, CONTROL, has_control)
    if len(positions):
        yield about_rows(
            table,
            _NAME,
            "warning",
            positions,
            message=f"{rows(len(positions))} with control or invisible characters",
            fix=_CLEAN,
            notes={at: _named(text) for at, text in _texts(table, positions).items()},
            details={"sort": "control_characters"},
        )


def _html(table: AuditTable) -> Iterator[Finding]:
    positions = _where(table, HTML_SIFT, has_left_over_html)
    if not len(positions):
        return
    num_with = num_different_values(table.rows, "content_key", positions)
    # By different rows: copies do not show a purpose.
    is_meant = num_with >= MEANT_FRACTION * num_different_values(table.rows, "content_key")
    found = about_rows(
        table,
        _NAME,
        "info" if is_meant else "warning",
        positions,
        message=f"{rows(len(positions))} with HTML tags or entities"
        + (": so many that they may be intended" if is_meant else " that look left over from an export"),
        fix="leave them if the model is to write HTML; otherwise strip them at the source" if is_meant else _CLEAN,
        excerpts=_excerpts(table, positions, left_over_at),
        details={"sort": "html", "is_meant": is_meant},
    )
    yield found.model_copy(update={"lines": ()}) if is_meant else found


def _where(table: AuditTable, sift: str, is_bad: Callable[[str], bool]) -> Positions:
    """Positions of the rows that pass the sift, a fast pattern, and are bad, which is looked at only then."""
    found: list[int] = []
    for start, places in table.rows.map(_bad_in, "text", shared=(sift, is_bad)):
        found.extend(start + at for at in places)
    return np.array(found, dtype=np.int64)


def _bad_in(part: pl.DataFrame, sift: str, is_bad: Callable[[str], bool]) -> list[int]:
    # The pattern runs in Rust over the column; Python looks only at the few rows that pass.
    sifted = part["text"].str.contains(sift).arg_true()
    texts = part["text"].gather(sifted).to_list()
    return [at for at, text in zip(sifted.to_list(), texts, strict=True) if is_bad(text)]


def _texts(table: AuditTable, positions: Positions) -> dict[int, str]:
    """The texts of the first five positions."""
    shown = positions[:5].tolist()
    return dict(zip(shown, table.rows.take(shown, "text")["text"].to_list(), strict=True))


def _excerpts(table: AuditTable, positions: Positions, place: Callable[[str], int]) -> dict[int, str]:
    return {at: excerpt(text, place(text)) for at, text in _texts(table, positions).items()}


def _named(text: str) -> str:
    found = pl.Series([text]).str.extract_all(CONTROL).explode().unique(maintain_order=True).head(5)
    return ", ".join(f"U+{ord(character):04X}" for character in found.to_list())
