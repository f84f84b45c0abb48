"""Prompts that are in the file with more than one answer, so that training is pulled two ways."""

from __future__ import annotations

from typing import Final

import numpy as np
import polars as pl

from luthier.core.results.audit import Finding
from luthier.ml.data.audit.base import AuditRequest, Skipped, about_rows, excerpt, one_of_each, rows
from luthier.ml.data.text.normalise import normalised

_MUCH: Final = 0.05
_SHOWN: Final = 60


def check(request: AuditRequest) -> list[Finding] | Skipped:
    """One finding about all rows of prompts with different answers: a warning, an error from 5% of the rows on.

    Prompts and answers are compared after normalisation. details: num_prompts, most_answers (different ones of one
    prompt). Skipped where no row has a prompt.
    """
    table = request.table
    frame = table.frame.with_row_index("position").filter(pl.col("prompt_key").is_not_null())
    if frame.is_empty():
        return Skipped("no row has a prompt and an answer")
    # Only prompts that occur twice need their answers normalised, which is the slow part.
    repeated = frame.filter(pl.len().over("prompt_key") > 1).select("position", "prompt_key", "completion", "prompt")
    answers = pl.Series("answer", [normalised(text or "") for text in repeated["completion"]], dtype=pl.String)
    repeated = repeated.with_columns(answers).with_columns(num=pl.col("answer").n_unique().over("prompt_key"))
    at_odds = repeated.filter(pl.col("num") > 1)
    if at_odds.is_empty():
        return []
    positions, prompts = at_odds["position"].to_numpy().astype(np.int64), at_odds["prompt_key"].rank("dense").to_numpy()
    shown = one_of_each(positions, prompts.astype(np.int64))
    notes, excerpts = {}, {}
    for position in map(int, shown[:5]):
        row = at_odds.row(by_predicate=pl.col("position") == position, named=True)
        others = at_odds.filter((pl.col("prompt_key") == row["prompt_key"]) & (pl.col("answer") != row["answer"]))
        other = others.row(0, named=True)
        answer = excerpt(other["completion"] or "")[:_SHOWN]
        notes[position] = f"{table.id_of(table.frame['line'][other['position']])} answers the same prompt: {answer!r}"
        excerpts[position] = f"{(row['prompt'] or '')[-160:]} → {(row['completion'] or '')[:_SHOWN]}"
    num_prompts, fraction = at_odds["prompt_key"].n_unique(), len(positions) / table.num_rows
    return [
        about_rows(
            table,
            "conflicting_completion",
            "error" if fraction >= _MUCH else "warning",
            shown,
            message=f"{num_prompts:,} {'prompt has' if num_prompts == 1 else 'prompts have'} more than one answer, "
            f"in {rows(len(positions))} ({fraction:.1%})",
            fix="decide on one answer a prompt; where answers vary on purpose (creative writing, several right ones) "
            "leave them, and know that exact match cannot be reached on these prompts",
            notes=notes,
            excerpts=excerpts,
            details={"num_prompts": num_prompts, "most_answers": int(at_odds["num"].max())},  # type: ignore[arg-type]
        )
    ]
