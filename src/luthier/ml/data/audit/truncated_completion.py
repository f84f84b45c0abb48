"""Texts that stop before their end, as a limit leaves them: the model learns to stop there too. A warning.

Signs in answers, each with its reason: an ellipsis at the end; a code fence, or the outer bracket of a JSON answer, is
never closed; no final punctuation where more than 90% of the answers have it; a limit on their length (found by
`length_spike`). An answer that occurs three times or more is one that somebody wrote so: for it the ellipsis, the
punctuation and the length are no signs. Prompts and plain texts are checked for a limit of length alone.
"""

from __future__ import annotations

from typing import Any, Final

import polars as pl

from luthier.core.results.audit import Finding
from luthier.ml.data.audit.answers import class_answers, has_completions
from luthier.ml.data.audit.finding import about_rows, rows
from luthier.ml.data.audit.length_spike import ENDED, Spike, find_spike
from luthier.ml.data.audit.request import AuditRequest, Skipped
from luthier.ml.data.audit.table import AuditTable

_NAME = "truncated_completion"
USUAL_FRACTION: Final = 0.9
FEWEST_ROWS: Final = 20
FEWEST_REPEATS: Final = 3
SHORTEST_CHARACTERS: Final = 40
_REASONS: Final = {
    "ellipsis": "ends with an ellipsis",
    "fence": "a code fence is not closed",
    "bracket": "the outer bracket is not closed",
    "unfinished": "ends without punctuation, unlike over 90% of the answers",
    "at_limit": "is exactly as long as the longest answers: cut by a limit",
}


def check(request: AuditRequest) -> list[Finding] | Skipped:
    """Rows whose completion was likely cut, those with most signs first. details.reasons counts the signs.

    And rows whose prompt, or plain text, was cut by a limit: details.column, unit and limit say which.
    """
    table = request.table
    frame = table.frame
    if not has_completions(frame):
        found = _cut_column(table, "text", frame["num_tokens"])
        return found or Skipped("the rows have no completions")
    cut_prompts = _cut_column(table, "prompt", None)
    if class_answers(frame) is not None:
        return cut_prompts or Skipped("the completions are classes, which have no end to be cut")
    return [*_cut_answers(table), *cut_prompts]


def _cut_column(table: AuditTable, column: str, num_tokens: pl.Series | None) -> list[Finding]:
    spike = find_spike(table.frame[column], num_tokens)
    if spike is None:
        return []
    positions = spike.at.arg_true().to_list()
    return [
        about_rows(
            table,
            _NAME,
            "warning",
            positions,
            message=f"{rows(len(positions))} whose {column} is exactly as long as the longest: {spike.length:,} "
            f"{spike.unit}, as a limit leaves it",
            fix="take these texts from their source again without the limit, or remove the rows: "
            "data repair --only truncated_completion",
            excerpts={at: _end_of(table.frame[column][at]) for at in positions[:5]},
            details={"column": column} | _limit(spike),
        )
    ]


def _limit(spike: Spike) -> dict[str, Any]:
    return {"unit": spike.unit, "limit": spike.length, "num_at_limit": spike.num, "chance": spike.chance}


def _cut_answers(table: AuditTable) -> list[Finding]:
    spike = find_spike(table.frame["completion"], table.frame["num_tokens"])
    signs = _signs(table.frame, spike)
    num_signs = signs.sum_horizontal()
    found = pl.DataFrame({"at": pl.int_range(signs.height, eager=True), "num": num_signs}).filter(pl.col("num") > 0)
    if not found.height:
        return []
    positions = found.sort("num", descending=True, maintain_order=True)["at"].to_list()
    reasons = {name: int(signs[name].sum()) for name in _REASONS if signs[name].any()}
    notes = {at: "; ".join(_REASONS[name] for name in _REASONS if signs[name][at]) for at in positions[:5]}
    limit = _limit(spike) if spike is not None and "at_limit" in reasons else {}
    return [
        about_rows(
            table,
            _NAME,
            "warning",
            positions,
            message=f"{rows(len(positions))} with an answer that seems to stop before its end: "
            + ", ".join(f"{num:,} {_REASONS[name]}" for name, num in reasons.items())
            + (f" of {limit['limit']:,} {limit['unit']}" if limit else ""),
            fix="fetch these answers again without the limit, or remove them: data repair --only truncated_completion",
            notes=notes,
            excerpts={at: _end_of(table.frame["completion"][at]) for at in positions[:5]},
            details={"reasons": reasons} | limit,
        )
    ]


def _signs(frame: pl.DataFrame, spike: Spike | None) -> pl.DataFrame:
    """One boolean column a sign; null completions have none."""
    ends = frame["completion"].fill_null("").str.strip_chars_end()
    tail = ends.str.tail(8)
    long = ends.str.len_chars() >= SHORTEST_CHARACTERS
    ellipsis = tail.str.contains(r"(?:\w|\s|,)(?:\.\.\.|…)$") & long
    fence = ends.str.count_matches("```", literal=True) % 2 == 1
    bracket = ends.str.contains(r"^\s*(?:\{\s*\"|\[\s*[\[{\"])") & ~tail.str.contains(r"[}\]][`\s;.]*$")
    ended = tail.str.contains(ENDED)
    num_long = int(long.sum())
    is_usual = num_long >= FEWEST_ROWS and int((ended & long).sum()) > USUAL_FRACTION * num_long
    # An open code fence is a sign of its own, and code ends without punctuation.
    unfinished = long & ~ended & ~fence & pl.Series([is_usual])
    at_limit = pl.repeat(value=False, n=frame.height, eager=True) if spike is None else spike.at
    # An answer that several rows share was written so, not cut.
    written = ~_repeated(ends, ellipsis | unfinished | at_limit)
    return pl.DataFrame(
        {
            "ellipsis": ellipsis & written,
            "fence": fence,
            "bracket": bracket,
            "unfinished": unfinished & written,
            "at_limit": at_limit & written,
        }
    )


def _repeated(answers: pl.Series, suspects: pl.Series) -> pl.Series:
    """Whether an answer, of those suspected, stands three times or more."""
    counts = answers.filter(suspects).value_counts()
    often = counts.filter(pl.col("count") >= FEWEST_REPEATS)[answers.name]
    return suspects & answers.is_in(often.implode())


def _end_of(text: str) -> str:
    return text if len(text) <= 160 else "…" + text[-160:]
