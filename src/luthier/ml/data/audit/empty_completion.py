"""Answers that say nothing: empty, only white space, or a placeholder. A row that teaches silence, or the word "todo".

An error where answers are empty, since training refuses such rows, or where at least 1% of the rows are so; else a
warning. Words such as "none" are no placeholder where the answers
are classes, since there they may be a class.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import polars as pl

from luthier.core.results.audit import Finding
from luthier.ml.data.audit.base import AuditRequest, about_rows, answer_classes, learned, rows

_NAME = "empty_completion"
MANY_FRACTION: Final = 0.01
_PLACEHOLDERS: Final = (
    *("n/a", "na", "n.a", "none", "null", "nil", "nan", "todo", "to do", "to-do", "tbd", "tba", "tbc", "undefined"),
    *("missing", "empty", "placeholder", "lorem ipsum", "unknown", "not available", "no answer", "no response"),
)
_INVISIBLE: Final = r"[\s\x{200b}-\x{200d}\x{2060}\x{feff}\x{ad}]+"
_DASHES: Final = r"^[\[(<{]?[.…\-–—_\s]+[\])>}]?$"
_FRAME: Final = r"^[\[\](){}<>.…\-–—_*#?!:\"'\s]+|[\[\](){}<>.…\-–—_*#?!:\"'\s]+$"


def check(request: AuditRequest) -> list[Finding]:
    """Rows whose completion (or text, where rows are plain text) is empty or a placeholder."""
    table = request.table
    words_count = answer_classes(table) is None
    parts = [_silent(texts, words_count=words_count) for texts in learned(table).parts()]
    frame = pl.concat(parts) if parts else _silent(pl.Series([], dtype=pl.String), words_count=words_count)
    refused = [problem.line for problem in table.problems if problem.kind == "empty_answer"]
    is_refused = pl.Series(np.isin(table.lines, refused))
    frame = frame.with_columns(empty=pl.col("empty") | is_refused).with_row_index("at")
    found = frame.filter(pl.col("empty") | pl.col("placeholder"))
    if not found.height:
        return []
    num_empty = int(found["empty"].sum())
    notes = {at: "empty" if empty else "a placeholder" for at, empty, _ in found.head(5).iter_rows()}
    return [
        about_rows(
            table,
            _NAME,
            "error" if num_empty or found.height >= MANY_FRACTION * table.num_rows else "warning",
            found["at"].to_numpy(),
            message=f"{rows(found.height)} without a real answer: {num_empty:,} empty, "
            f"{found.height - num_empty:,} a placeholder",
            fix="write the answers, or remove these rows: luthier data repair",
            notes=notes,
            excerpts={at: str(table.rows.value(at, "prompt") or table.rows.value(at, "text")) for at in notes},
            details={"num_empty": num_empty, "num_placeholders": found.height - num_empty},
        )
    ]


def _silent(texts: pl.Series, *, words_count: bool) -> pl.DataFrame:
    """Whether each text is empty, and whether it is a placeholder: by dashes, and by words where these count."""
    # A placeholder is short: the beginning decides, and long texts are not copied.
    seen = texts.str.head(200).str.replace_all(_INVISIBLE, " ").str.strip_chars(" ")
    # `\N`: a missing value, as MySQL and PostgreSQL export it; no class is called that.
    is_placeholder = seen.str.contains(_DASHES) | (seen == r"\N")
    if words_count:
        is_placeholder = is_placeholder | seen.str.replace_all(_FRAME, "").str.to_lowercase().is_in(_PLACEHOLDERS)
    return pl.DataFrame({"empty": seen == "", "placeholder": is_placeholder})
