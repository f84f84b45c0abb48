"""Use case: from a file and a goal to a judged model, or to the word that prompting is enough, within one budget.

audit -> repair -> split -> showdown -> tune -> judge -> report; a folder of documents is read into rows first. The
held-out rows of the split are looked at once, by the last judging.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from luthier.core.access import DEFAULT_PROJECT
from luthier.core.aliases import command_of
from luthier.core.conversation import NEW_TOKENS
from luthier.core.errors import LuthierError, NotFoundError, RequestError
from luthier.core.evaluation import NUM_JUDGED, NUM_SHOTS
from luthier.core.ids import new_id
from luthier.core.workflows.auto import AutoSpec
from luthier.core.workflows.pipeline import Pipeline, Stage
from luthier.features.workflows.automl.budget import refuse_hopeless_hours
from luthier.features.workflows.automl.stages import folder_of, works
from luthier.features.workflows.model_comparison.service import pull_all
from luthier.features.workflows.service import Tell, run_pipeline
from luthier.platform.home.context import Context

SHOWDOWN_SHARE: Final = 0.3
"""Of the hours, for choosing a model; what that leaves is for the search."""


@dataclass(frozen=True, slots=True)
class AutoRequest:
    """What is asked, as `core.auto.AutoSpec` has it. models: None takes the catalogue's models that are on this
    machine, or the one of the quickstart."""

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


def begin(context: Context, request: AutoRequest, *, project_id: str = DEFAULT_PROJECT) -> Pipeline:
    """Check what is asked and write it down; reads no rows yet.

    Raises NotFoundError (data, model), BudgetTooSmallError, RequestError (no goal, no hours, a folder without a file, a
    kind of file that is not read), ModelSourceError.
    """
    _check(request)
    models = request.models or _models_here(context)
    pull_all(context, models)
    refuse_hopeless_hours(context, hours=request.hours, share=SHOWDOWN_SHARE, models=models, data=request.data)
    spec = AutoSpec(
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
    auto_id = new_id("auto")
    folder_of(context, auto_id).mkdir(parents=True)
    stages = tuple(Stage(name=name) for name in spec.stage_names)
    pipeline = Pipeline(pipeline_id=auto_id, kind="auto", asked=spec.model_dump(mode="json"), stages=stages)
    return context.pipelines.create(pipeline, project_id)


def go_on(
    context: Context,
    auto_id: str,
    *,
    tell: Tell = lambda _pipeline, _stage: None,
    project_id: str = DEFAULT_PROJECT,
) -> Pipeline:
    """Do all that is left; the pipeline as it is then: done, or with a stage that is `refused`, which says why.

    The page is written at the end, and also where a stage fails or ends the way.

    Raises NotFoundError, ConflictError (another process works on it), PausedError (SIGTERM or SIGINT),
    BudgetTooSmallError, and what the stages raise; all of them leave it as it is, to be gone on with.
    """
    from luthier.features.workflows.automl.report import write_auto_report

    pipeline = context.pipelines.get(auto_id, project_id)
    if pipeline.kind != "auto":
        raise RequestError(
            f"{auto_id} is of kind {pipeline.kind}",
            expected="the id of an automatic run",
            do=f"go on with it by: luthier {command_of(pipeline.kind)} --resume {auto_id}",
        )
    work, begun = works(context, pipeline, project_id)
    try:
        done = run_pipeline(context, auto_id, work, begun=begun, tell=tell)
    except LuthierError:
        pipeline = context.pipelines.get(auto_id, project_id)
        if any(stage.status == "failed" for stage in pipeline.stages):
            write_auto_report(context, pipeline)
        raise
    if done.came("report").get("page") is None:
        write_auto_report(context, done)
    return done


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
    from luthier.features.workflows.quickstart.service import BASE_MODEL
    from luthier.ml.inference.models import catalog, sources

    known = catalog.entries()
    return tuple(model.name for model in sources.local_models(context.home) if model.name in known) or (BASE_MODEL,)
