"""The request of an automl run, checked before any work: data, goal, models, and a sufficient budget.

A budget below the minimum on this machine is rejected immediately.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from luthier.core.errors import NotFoundError, RequestError
from luthier.core.workflows.pipeline import AutomlSpec
from luthier.features.planning.budgets import BudgetTooSmallError
from luthier.features.workflows.model_comparison.request import family_of, pull_all
from luthier.features.workflows.model_comparison.sizes import KEPT_BACK, LEAST_JUDGED, LEAST_TRAINED
from luthier.platform.home.context import Context

SHOWDOWN_SHARE: Final = 0.3
"""Share of the hours for choosing a model; the rest is for the search."""
_SAMPLE_BYTES: Final = 1 << 16
_BYTES_A_TOKEN: Final = 8.0
"""More than the average of any tokenizer, so that row lengths are underestimated."""
_SHORTEST_ROW_TOKENS: Final = 8.0
_WAYS_TO_JUDGE: Final = 3  # without examples, with examples, tuned


def completed(context: Context, asked: AutomlSpec) -> AutomlSpec:
    """The request with defaults filled in; reads no rows yet.

    Raises:
        NotFoundError: The data or a model does not exist.
        BudgetTooSmallError: The hours are not enough.
        RequestError: No goal, no hours, an unsuitable metric, a folder without files, or an unsupported file type.
        ModelSourceError: A model could not be fetched.
    """
    data = Path(asked.data)
    _check(asked, data)
    # Models already on this machine need no download.
    models = asked.models or _models_here(context)
    # Before the hours are checked: forecasts need the structures of the models.
    pull_all(context, models)
    refuse_hopeless_hours(context, hours=asked.hours, share=SHOWDOWN_SHARE, models=models, data=data)
    filled_in = {
        "data": str(data.absolute()),
        "is_folder": data.is_dir(),
        "goal": asked.goal.strip(),
        "models": models,
        "showdown_hours": asked.hours * SHOWDOWN_SHARE,
    }
    return asked.model_copy(update=filled_in)


def refuse_hopeless_hours(context: Context, *, hours: float, share: float, models: Sequence[str], data: Path) -> None:
    """Raise if choosing among the models alone takes longer than the hours, even in the best case.

    The computed time is a lower bound: the low end of each forecast, and the shortest possible rows of the file. So an
    accepted budget may still be too small; that is found after a few rows are evaluated.

    Args:
        context: the home with the models.
        hours: budget of the whole run.
        share: share of the budget for choosing the model.
        models: the candidate models, on this machine.
        data: a file of rows, or a folder of documents.

    Raises:
        BudgetTooSmallError: with the minimum hours.
    """
    row_tokens = shortest_row_tokens(data)
    # The model comparison gets only its share of the hours, and reserves a part of it.
    least = sum(_least_hours(context, name, row_tokens) for name in models) / (1 - KEPT_BACK) / share
    if hours >= least:
        return
    shown = f"{least * 1.05:.2g}"  # rounding to two digits may have lowered it
    raise BudgetTooSmallError(
        f"--budget-hours {hours:g} for {', '.join(models)}: {LEAST_TRAINED} examples trained and {LEAST_JUDGED} rows "
        f"evaluated with each take at least {shown} h in all on this machine",
        expected=f"{shown} h or more; the real figure is known once a few rows are evaluated",
        do="give it more hours, fewer models or smaller ones",
    )


def shortest_row_tokens(data: Path) -> float:
    """Minimum tokens of a row, from the first bytes of a file; close to nothing for other kinds of data."""
    # The bytes of compressed and columnar files do not show the length of a row.
    if not data.is_file() or data.suffix.lower() not in (".jsonl", ".csv", ".tsv"):
        return _SHORTEST_ROW_TOKENS
    with data.open("rb") as file:
        head = file.read(_SAMPLE_BYTES)
    # The last line may be truncated, which makes rows look shorter: still a lower bound.
    lines = [line for line in io.BytesIO(head) if line.strip()]
    return max(_SHORTEST_ROW_TOKENS, len(head) / max(1, len(lines)) / _BYTES_A_TOKEN)


def _least_hours(context: Context, model: str, row_tokens: float) -> float:
    """Minimum time to train the fewest examples with one model and evaluate the fewest rows."""
    from luthier.ml.inference.models import sources
    from luthier.ml.inference.models.structure import read_structure
    from luthier.ml.planning.devices import this_machine
    from luthier.ml.planning.hypothetical_run import HypotheticalRun, hypothetical_workload
    from luthier.ml.planning.inference_cost import Judging
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
        new_tokens=1,
        longest_tokens=row_tokens + 1,
        writes=True,
        scores=False,
    )
    return predict(replace(hypothetical_workload(structure, described, device), judging=judging), device).hours.low


def checked_hours(hours: float | None) -> float:
    """The hours. Raises RequestError unless they are a finite number above 0."""
    if hours is None or not (math.isfinite(hours) and hours > 0):
        raise RequestError(
            f"--budget-hours {hours}",
            expected="a finite number above 0",
            do="write for example: --budget-hours 2",
        )
    return hours


def _check(asked: AutomlSpec, data: Path) -> None:
    from luthier.ml.data.files.source import open_source

    checked_hours(asked.hours)
    if not asked.goal.strip():
        raise RequestError(
            "no goal",
            expected="the task of the model in a sentence: the instruction for models that are not tuned",
            do='write for example: --goal "Answer with one SQL query."',
        )
    if not data.exists():
        raise NotFoundError(f"no file or folder {data}", expected="rows, or a folder of documents", do="correct --data")
    if asked.metric is not None:
        family_of(asked.metric)  # its mistakes are found before the rows are read and repaired
    if not data.is_dir():
        open_source(data)
    elif not any(path.is_file() for path in data.rglob("*")):
        raise RequestError(f"{data} holds no file", expected="documents to read rows from", do="correct --data")


def _models_here(context: Context) -> tuple[str, ...]:
    from luthier.core.records.base_model import DEFAULT_BASE_MODEL
    from luthier.ml.inference.models import catalog, sources

    known = catalog.entries()
    here = tuple(model.name for model in sources.local_models(context.home) if model.name in known)
    return here or (DEFAULT_BASE_MODEL,)
