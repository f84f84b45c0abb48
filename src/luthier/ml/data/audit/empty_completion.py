"""Answers that say nothing: empty, only white space, or a placeholder. A row that teaches silence, or the word "todo".

An error where answers are empty, since training refuses such rows, or where at least 1% of the rows are so; else a
warning. Words such as "none" are no placeholder where the answers
are classes, since there they may be a class.
"""

from __future__ import annotations

from typing import Final

import polars as pl

from luthier.core.results.audit import Finding
from luthier.ml.data.audit.base import AuditRequest, about_rows, class_answers, learned, rows

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
    # A placeholder is short: the beginning decides, and long texts are not copied.
    texts = learned(table.frame).str.head(200)
    seen = texts.str.replace_all(_INVISIBLE, " ").str.strip_chars(" ")
    is_empty = seen == ""
    bare = seen.str.replace_all(_FRAME, "").str.to_lowercase()
    is_placeholder = seen.str.contains(_DASHES)
    if class_answers(table.frame) is None:
        is_placeholder = is_placeholder | bare.is_in(_PLACEHOLDERS)
    refused = [problem.line for problem in table.problems if problem.kind == "empty_answer"]
    is_empty = is_empty | table.frame["line"].is_in(refused)
    frame = pl.DataFrame({"empty": is_empty, "placeholder": is_placeholder}).with_row_index("at")
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
            message=f"{rows(found.height)} with an answer that says nothing: {num_empty:,} empty, "
            f"{found.height - num_empty:,} a placeholder",
            fix="write the answers, or remove these rows: luthier data repair",
            notes=notes,
            excerpts={at: str(table.frame["prompt"][at] or table.frame["text"][at]) for at in notes},
            details={"num_empty": num_empty, "num_placeholders": found.height - num_empty},
        )
    ]
