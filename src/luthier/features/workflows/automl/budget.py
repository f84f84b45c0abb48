"""The least that an automatic run takes on this machine: a budget below it is refused before any work is done."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from luthier.features.planning.budgets import BudgetTooSmallError
from luthier.features.workflows.model_comparison.sizes import KEPT_BACK, LEAST_JUDGED, LEAST_TRAINED
from luthier.platform.home.context import Context

_SAMPLE_BYTES: Final = 1 << 16
_BYTES_A_TOKEN: Final = 8.0
"""More than any tokenizer packs into a token on average, so that rows are taken for shorter than they are."""
_SHORTEST_ROW_TOKENS: Final = 8.0
_WAYS_TO_JUDGE: Final = 3  # without examples, with examples, tuned


def refuse_hopeless_hours(context: Context, *, hours: float, share: float, models: Sequence[str], data: Path) -> None:
    """Raise where choosing among the models alone takes longer than the hours allow, even if all goes fast.

    What is computed is a lower bound: the low end of each forecast, and the shortest rows that the file may hold. So
    what passes may still be too little; that is found once a few rows were really judged.

    Args:
        context: the home with the models.
        hours: of the whole run.
        share: of it that goes to choosing the model.
        models: that it chooses among; they are on this machine.
        data: a file of rows, or a folder of documents.

    Raises:
        BudgetTooSmallError: with the hours that would be the least.
    """
    row_tokens = shortest_row_tokens(data)
    # Upwards from what the models take: the model comparison keeps a part back, and gets only its share of the whole.
    least = sum(_least_hours(context, name, row_tokens) for name in models) / (1 - KEPT_BACK) / share
    if hours >= least:
        return
    shown = f"{least * 1.05:.2g}"  # two digits may have rounded it down
    raise BudgetTooSmallError(
        f"--budget-hours {hours:g} for {', '.join(models)}: {LEAST_TRAINED} examples trained and {LEAST_JUDGED} rows "
        f"judged with each take at least {shown} h in all on this machine",
        expected=f"{shown} h or more; what it really takes is known once a few rows are judged",
        do="give it more hours, fewer models or smaller ones",
    )


def shortest_row_tokens(data: Path) -> float:
    """Tokens that a row has at the least, from the first bytes of a file; of other kinds of data, next to nothing."""
    if not data.is_file() or data.suffix.lower() not in (".jsonl", ".csv", ".tsv"):
        return _SHORTEST_ROW_TOKENS
    with data.open("rb") as file:
        head = file.read(_SAMPLE_BYTES)
    lines = [line for line in io.BytesIO(head) if line.strip()]
    # The last line of the sample is cut off, which only makes rows look shorter.
    return max(_SHORTEST_ROW_TOKENS, len(head) / max(1, len(lines)) / _BYTES_A_TOKEN)


def _least_hours(context: Context, model: str, row_tokens: float) -> float:
    """To train the fewest examples with one model and judge the fewest rows, as fast as the forecast allows."""
    from luthier.ml.inference.models import sources
    from luthier.ml.inference.models.structure import read_structure
    from luthier.ml.planning.devices import this_machine
    from luthier.ml.planning.hypothetical_run import HypotheticalRun, hypothetical_workload
    from luthier.ml.planning.judging import Judging
    from luthier.ml.planning.predict import predict
    from luthier.platform.home.hardware_benchmark import hardware_of

    device = this_machine(hardware_of(context))
    structure = read_structure(sources.pull(model, context.home, context.progress).path)
    described = HypotheticalRun(num_rows=LEAST_TRAINED, mean_tokens=row_tokens, epochs=1.0, num_checkpoints=1)
    judging = Judging(
        num_rows=LEAST_JUDGED,
        systems=(False,) * _WAYS_TO_JUDGE,
        prompt_tokens=row_tokens / 2,
        reference_tokens=row_tokens / 2,
        shot_tokens=0.0,
        # At least one token is written; a lower bound must not guess more.
        new_tokens=1,
        longest_tokens=row_tokens + 1,
        writes=True,
        scores=False,
    )
    return predict(replace(hypothetical_workload(structure, described, device), judging=judging), device).hours.low
