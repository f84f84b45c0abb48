"""Prompts that are in the file with more than one answer, so that training is pulled two ways."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import polars as pl

from luthier.core.results.audit import Finding
from luthier.ml.data.audit.base import AuditRequest, Skipped, about_rows, excerpt, one_of_each, rows
from luthier.ml.data.audit.table import AuditTable
from luthier.ml.data.dedup.equal_values import Digests, column_digests, digests_of, numbered
from luthier.ml.data.text.normalise import normalised
from luthier.ml.data.text.words import I64

_MUCH: Final = 0.05
_SHOWN: Final = 60


def check(request: AuditRequest) -> list[Finding] | Skipped:
    """One finding about all rows of prompts with different answers: a warning, an error from 5% of the rows on.

    Prompts and answers are compared after normalisation; the same question with other tools is another prompt.
    details: num_prompts, most_answers (different ones of one prompt). Skipped where no row has a prompt.
    """
    table = request.table
    prompts = prompts_of(table)
    if not len(prompts.positions):
        return Skipped("no row has a prompt and an answer")
    at_odds = rows_at_odds(table, prompts)
    if not len(at_odds.positions):
        return []
    shown = one_of_each(at_odds.positions, at_odds.prompts)
    notes, excerpts = {}, {}
    for position in map(int, shown[:5]):
        at = int(np.searchsorted(at_odds.positions, position))
        others = (at_odds.prompts == at_odds.prompts[at]) & (at_odds.answers != at_odds.answers[at])
        other = int(at_odds.positions[np.flatnonzero(others)[0]])
        said = table.rows.take([position, other], "line", "prompt", "completion").rows(named=True)
        answer = excerpt(said[1]["completion"] or "")[:_SHOWN]
        notes[position] = f"{table.id_of(said[1]['line'])} answers the same prompt: {answer!r}"
        excerpts[position] = f"{(said[0]['prompt'] or '')[-160:]} → {(said[0]['completion'] or '')[:_SHOWN]}"
    fraction = len(at_odds.positions) / table.num_rows
    num_prompts = len(np.unique(at_odds.prompts))
    return [
        about_rows(
            table,
            "conflicting_completion",
            "error" if fraction >= _MUCH else "warning",
            shown,
            message=f"{num_prompts:,} {'prompt has' if num_prompts == 1 else 'prompts have'} more than one answer, "
            f"in {rows(len(at_odds.positions))} ({fraction:.1%})",
            fix="decide on one answer per prompt; where answers vary on purpose (creative writing, several right "
            "ones), leave them: exact match cannot be reached on these prompts",
            notes=notes,
            excerpts=excerpts,
            details={"num_prompts": num_prompts, "most_answers": at_odds.most_answers},
        )
    ]


@dataclass(frozen=True, slots=True)
class AtOdds:
    """The rows whose prompt has more than one answer.

    Attributes:
        positions: int64 [n], ascending.
        prompts: int64 [n], a number for each prompt.
        answers: int64 [n], a number for each answer of a prompt.
        most_answers: different ones of one prompt.
    """

    positions: I64
    prompts: I64
    answers: I64
    most_answers: int


def prompts_of(table: AuditTable) -> Digests:
    """The prompts of the rows: turns and tools, since the right answer depends on what can be called."""
    return column_digests(table.rows, "prompt_key", beside="tools_key")


def rows_at_odds(table: AuditTable, prompts: Digests) -> AtOdds:
    """The rows whose prompt has more than one answer, both after normalisation.

    Args:
        table: the file.
        prompts: of it (`prompts_of`).
    """
    first = prompts.first()
    repeated = np.bincount(first, minlength=len(first))[first] > 1
    positions, group = prompts.positions[repeated], first[repeated]
    # Only prompts that occur twice need their answers normalised, which is the slow part.
    wanted = np.zeros(table.height, dtype=bool)
    wanted[positions] = True
    keys = [np.zeros((0, 2), dtype=np.uint64)]
    for _, part in table.rows.where(wanted).parts("completion"):
        answers = [normalised(text or "") for text in part["completion"].to_list()]
        keys.append(digests_of(pl.Series(answers, dtype=pl.String)))
    high, low = np.concatenate(keys).T
    # The same answer of another prompt has another number, so each number belongs to one prompt.
    answer = numbered(group, high, low)
    _, of_prompt = np.unique(answer, return_index=True)
    num_answers = np.bincount(group[of_prompt], minlength=len(first))[group]
    odd = num_answers > 1
    return AtOdds(positions[odd], group[odd], answer[odd], int(num_answers.max(initial=0)))
