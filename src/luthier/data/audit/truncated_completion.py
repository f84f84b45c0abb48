"""Answers that stop before their end, as a limit on tokens leaves them: the model learns to stop there too. A warning.

Signs, each with its reason: an ellipsis at the end; a code fence, or the outer bracket of a JSON answer, that is never
closed; no final punctuation where more than 90% of the answers have it; many answers of exactly the greatest length.
Plain text is not looked at: passages are cut on purpose.
"""

from __future__ import annotations

from typing import Final

import polars as pl

from luthier.core.audit import Finding
from luthier.data.audit.answers import class_answers, has_completions
from luthier.data.audit.finding import about_rows, rows
from luthier.data.audit.request import AuditRequest, Skipped

_NAME = "truncated_completion"
USUAL_FRACTION: Final = 0.9
FEWEST_ROWS: Final = 20
FEWEST_AT_LIMIT: Final = 5
AT_LIMIT_FRACTION: Final = 0.01
SHORTEST_LIMIT_CHARACTERS: Final = 100
SHORTEST_LIMIT_TOKENS: Final = 64
SHORTEST_CHARACTERS: Final = 40
_ENDED: Final = r"[.!?。！？।؟…:;)\]}>\"'”’»*`|~\p{So}\p{Sk}]$"
_REASONS: Final = {
    "ellipsis": "ends with an ellipsis",
    "fence": "a code fence is not closed",
    "bracket": "the outer bracket is not closed",
    "unfinished": "ends without punctuation, unlike over 90% of the answers",
    "at_limit": "is exactly as long as the longest answers: cut by a limit",
}


def check(request: AuditRequest) -> list[Finding] | Skipped:
    """Rows whose completion was likely cut, those with most signs first. details.reasons counts the signs."""
    table = request.table
    if not has_completions(table.frame):
        return Skipped("the rows have no completions")
    if class_answers(table.frame) is not None:
        return Skipped("the completions are classes, which have no end to be cut")
    signs = _signs(table.frame)
    num_signs = signs.sum_horizontal()
    found = pl.DataFrame({"at": pl.int_range(signs.height, eager=True), "num": num_signs}).filter(pl.col("num") > 0)
    if not found.height:
        return []
    positions = found.sort("num", descending=True, maintain_order=True)["at"].to_list()
    reasons = {name: int(signs[name].sum()) for name in _REASONS if signs[name].any()}
    notes = {at: "; ".join(_REASONS[name] for name in _REASONS if signs[name][at]) for at in positions[:5]}
    return [
        about_rows(
            table,
            _NAME,
            "warning",
            positions,
            message=f"{rows(len(positions))} with an answer that seems to stop before its end: "
            + ", ".join(f"{num:,} {_REASONS[name]}" for name, num in reasons.items()),
            fix="fetch these answers again without the limit, or remove them: data repair --only truncated_completion",
            notes=notes,
            excerpts={at: _end_of(table.frame["completion"][at]) for at in positions[:5]},
            details={"reasons": reasons},
        )
    ]


def _signs(frame: pl.DataFrame) -> pl.DataFrame:
    """One boolean column a sign; null completions have none."""
    ends = frame["completion"].fill_null("").str.strip_chars_end()
    tail = ends.str.tail(8)
    long = ends.str.len_chars() >= SHORTEST_CHARACTERS
    ellipsis = tail.str.contains(r"(?:\w|\s|,)(?:\.\.\.|…)$") & long
    fence = ends.str.count_matches("```", literal=True) % 2 == 1
    bracket = ends.str.contains(r"^\s*(?:\{\s*\"|\[\s*[\[{\"])") & ~tail.str.contains(r"[}\]][`\s;.]*$")
    ended = tail.str.contains(_ENDED)
    num_long = int(long.sum())
    is_usual = num_long >= FEWEST_ROWS and int((ended & long).sum()) > USUAL_FRACTION * num_long
    unfinished = long & ~ended & ~fence & pl.Series([is_usual])
    columns = {"ellipsis": ellipsis, "fence": fence, "bracket": bracket, "unfinished": unfinished}
    return pl.DataFrame({**columns, "at_limit": _at_limit(frame)})


def _at_limit(frame: pl.DataFrame) -> pl.Series:
    """Rows of exactly the greatest length, where these are too many for chance and not nearly all."""
    answers = frame["completion"].str.len_chars().fill_null(0)
    found = _are_at_greatest(answers, SHORTEST_LIMIT_CHARACTERS)
    if frame["num_tokens"].null_count() == 0:
        found = found | (_are_at_greatest(frame["num_tokens"], SHORTEST_LIMIT_TOKENS) & (answers > 0))
    # equal answers have equal lengths: then it is repetition, which is found elsewhere
    num_different = frame["completion"].filter(found).n_unique()
    return found & pl.Series([num_different * 2 > int(found.sum())])


def _are_at_greatest(lengths: pl.Series, shortest: int) -> pl.Series:
    greatest = int(lengths.max() or 0)  # type: ignore[arg-type]
    found = lengths == greatest
    num = int(found.sum())
    is_cut = greatest >= shortest and max(FEWEST_AT_LIMIT, AT_LIMIT_FRACTION * len(lengths)) <= num < len(lengths) / 2
    return found & pl.Series([is_cut])


def _end_of(text: str) -> str:
    return text if len(text) <= 160 else "…" + text[-160:]
