"""What is asked of an automatic run, checked before any work is done: data, goal, models, and a budget that can do.

A budget below the least that it takes on this machine is refused at once.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from luthier.core.defaults import NEW_TOKENS, NUM_JUDGED, NUM_SHOTS
from luthier.core.errors import NotFoundError, RequestError
from luthier.core.workflows.automl import AutomlSpec
from luthier.features.planning.budgets import BudgetTooSmallError
from luthier.features.workflows.model_comparison.request import pull_all
from luthier.features.workflows.model_comparison.sizes import KEPT_BACK, LEAST_JUDGED, LEAST_TRAINED
from luthier.platform.home.context import Context

SHOWDOWN_SHARE: Final = 0.3
"""Of the hours, for choosing a model; what that leaves is for the search."""
_SAMPLE_BYTES: Final = 1 << 16
_BYTES_A_TOKEN: Final = 8.0
"""More than any tokenizer packs into a token on average, so that rows are taken for shorter than they are."""
_SHORTEST_ROW_TOKENS: Final = 8.0
_WAYS_TO_JUDGE: Final = 3  # without examples, with examples, tuned


@dataclass(frozen=True, slots=True)
class AutoRequest:
    """What is asked: the fields of `core.auto.AutomlSpec`.

    Attributes:
        models: None takes the models of the catalogue that are on this machine, or the one of the quickstart.
    """

    data: Path
    goal: str
    hours: float
    models: tuple[str, ...] | None = None
    mapping: Mapping[str, str] | None = None
    group_by: str | None = None
    metric: str | None = None
    few_shot: int = NUM_SHOTS
    max_new_tokens: int = NEW_TOKENS
    most_judged: int = NUM_JUDGED
    most_trials: int = 40
    seed: int = 0
    always_tunes: bool = False
    is_probed: bool = True


def spec_of(context: Context, request: AutoRequest) -> AutomlSpec:
    """The specification of a request; reads no rows yet.

    Raises:
        NotFoundError: No such data or model.
        BudgetTooSmallError: The hours cannot be enough.
        RequestError: No goal, no hours, a folder without a file, a kind of file that is not read.
        ModelSourceError: A model could not be fetched.
    """
    _check(request)
    # Models that are here already cost no download.
    models = request.models or _models_here(context)
    # Before hours are looked at: forecasts need the structures of the models.
    pull_all(context, models)
    refuse_hopeless_hours(context, hours=request.hours, share=SHOWDOWN_SHARE, models=models, data=request.data)
    return AutomlSpec(
        data=str(request.data.absolute()),
        is_folder=request.data.is_dir(),
        goal=request.goal.strip(),
        models=models,
        hours=request.hours,
        showdown_hours=request.hours * SHOWDOWN_SHARE,
        map=dict(request.mapping) if request.mapping else None,
        group_by=request.group_by,
        metric=request.metric,
        few_shot=request.few_shot,
        max_new_tokens=request.max_new_tokens,
        most_judged=request.most_judged,
        most_trials=request.most_trials,
        seed=request.seed,
        always_tunes=request.always_tunes,
        is_probed=request.is_probed,
    )


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
    # The model comparison gets only its share of the hours, and keeps a part of that back.
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
    # Compressed and columnar files do not tell by their bytes how long a row is.
    if not data.is_file() or data.suffix.lower() not in (".jsonl", ".csv", ".tsv"):
        return _SHORTEST_ROW_TOKENS
    with data.open("rb") as file:
        head = file.read(_SAMPLE_BYTES)
    # The last line may be cut, which makes rows look shorter: still a lower bound.
    lines = [line for line in io.BytesIO(head) if line.strip()]
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
        new_tokens=1,
        longest_tokens=row_tokens + 1,
        writes=True,
        scores=False,
    )
    return predict(replace(hypothetical_workload(structure, described, device), judging=judging), device).hours.low


def _check(request: AutoRequest) -> None:
    from luthier.ml.data.files.source import open_source

    if not (math.isfinite(request.hours) and request.hours > 0):
        raise RequestError(
            f"--budget-hours {request.hours}",
            expected="a finite number above 0",
            do="write for example: --budget-hours 2",
        )
    if not request.goal.strip():
        raise RequestError(
            "no goal",
            expected="what the model is to do, in a sentence: models that are not tuned are told it",
            do='write for example: --goal "Answer with one SQL query."',
        )
    if not request.data.exists():
        raise NotFoundError(
            f"no file or folder {request.data}", expected="rows, or a folder of documents", do="correct --data"
        )
    if not request.data.is_dir():
        open_source(request.data)
    elif not any(path.is_file() for path in request.data.rglob("*")):
        raise RequestError(f"{request.data} holds no file", expected="documents to read rows from", do="correct --data")


def _models_here(context: Context) -> tuple[str, ...]:
    from luthier.core.records.base_model import DEFAULT_BASE_MODEL
    from luthier.ml.inference.models import catalog, sources

    known = catalog.entries()
    here = tuple(model.name for model in sources.local_models(context.home) if model.name in known)
    return here or (DEFAULT_BASE_MODEL,)
