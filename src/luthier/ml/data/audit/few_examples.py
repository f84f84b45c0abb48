"""Too few examples for the method of training.

Rules of thumb. Fewer than 10 is an error: OpenAI's service refuses so few, and says that it sees improvements on 50 to
100 (guide "Supervised fine-tuning"). Adapters (LoRA and kin): a warning under 50, a note under 200. Full fine-tuning
moves every weight and overfits sooner: a warning under 500, a note under 2,000. These four limits are this project's
own. Fewer than 1,000 trained tokens is a warning whatever the number of rows: a handful of words teaches little.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import polars as pl

from luthier.core.results.audit import Finding, Severity
from luthier.ml.data.audit.base import AuditRequest, about_file, rows
from luthier.ml.data.dedup.equal_values import column_digests
from luthier.ml.data.files.row_frames import RowFrames

_NAME = "few_examples"
FEWEST: Final = 10
ADAPTER_LIMITS: Final = (50, 200)
FULL_LIMITS: Final = (500, 2_000)
FEWEST_TRAINED_TOKENS: Final = 1_000
_CHARACTERS_A_TOKEN: Final = 4.0


def check(request: AuditRequest) -> list[Finding]:
    """At most one finding about the file. Rows that cannot be mapped or say nothing new (same content) do not count."""
    table = request.table
    unmapped = list({problem.line for problem in table.problems})
    mapped = column_digests(table.rows, "content_key", ~np.isin(table.lines, unmapped), beside="learned_key")
    usable = np.zeros(table.height, dtype=bool)
    usable[mapped.positions[np.unique(mapped.first())]] = True
    num = int(usable.sum())
    tokens = _trained_tokens(table.rows.where(usable), has_tokens=table.has_tokens)
    low, enough = FULL_LIMITS if request.method == "full" else ADAPTER_LIMITS
    severity: Severity | None = None
    if num < FEWEST:
        severity = "error"
    elif num < low or tokens < FEWEST_TRAINED_TOKENS:
        severity = "warning"
    elif num < enough:
        severity = "info"
    if severity is None:
        return []
    return [
        about_file(
            _NAME,
            severity,
            message=f"{rows(num)} that differ, with about {tokens:,} tokens to learn, are few for the method "
            f"{request.method}: rule of thumb {low:,} at least, better {enough:,}",
            fix="collect more rows; with few, train an adapter of low rank, watch the validation loss and compare with "
            "few-shot prompts, which may do as well",
            details={"num_different_rows": num, "trained_tokens": tokens, "at_least": low, "better": enough},
        )
    ]


def _trained_tokens(usable: RowFrames, *, has_tokens: bool) -> int:
    """Tokens of what is learned: the row's tokens by share of characters, or characters over 4 without a model."""
    total = 0.0
    for _, part in usable.parts("text", "said", "completion", "num_tokens"):
        # Thoughts are learned with the answer, and are in the text alone.
        thoughts = pl.col("text").str.len_chars() - pl.coalesce("said", "text").str.len_chars()
        answers = pl.coalesce("completion", "text").str.len_chars()
        characters = part.select((answers + thoughts).alias("characters")).to_series()
        if not has_tokens:
            total += int(characters.cast(int).sum()) / _CHARACTERS_A_TOKEN
            continue
        # Only whole texts were counted in tokens; the learned part has about its share of the characters.
        share = characters / part["text"].str.len_chars().clip(lower_bound=1)
        total += float((part["num_tokens"] * share).sum())
    return round(total)
