"""Use case: retrain a deployed model on reviewed answers, and offer the result as a canary.

review queue -> rows -> audit -> dataset version -> run -> judged against the deployed model -> gates -> canary
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from luthier.core.access import Caller
from luthier.core.aliases import command_of
from luthier.core.errors import ConflictError, NotFoundError, RequestError
from luthier.core.ids import new_id
from luthier.core.workflows.pipeline import Pipeline, Stage
from luthier.features.deployments.run import deployed_run
from luthier.features.workflows.retraining.stages import STAGES, RetrainStages
from luthier.features.workflows.service import Tell, run_pipeline
from luthier.platform.home.context import Context

Start = Literal["base", "last"]
MIN_ROWS: Final = 20


@dataclass(frozen=True, slots=True)
class RetrainRequest:
    """What to retrain. model: the name of a deployment.

    from_traffic: also learn from answers that were sampled from the traffic and accepted as they are. review: first
    queue what people have liked (with from_traffic), and begin only when nothing waits in the review. panels: rating
    panels to learn from, too. start: `base` trains the last run's base on old and new rows together; `last` goes on
    from the last model, merged into its base. canary: make one that gets this fraction of the users; None only offers
    it. gate, suite: files. min_rows: with fewer reviewed rows nothing is begun.
    """

    model: str
    from_traffic: bool = False
    review: bool = False
    panels: Sequence[str] = ()
    start: Start = "base"
    canary: float | None = None
    gate: Path | None = None
    suite: Path | None = None
    min_rows: int = MIN_ROWS


def begin(context: Context, caller: Caller, request: RetrainRequest) -> Pipeline:
    """Write down what is asked, with the model that is deployed now; nothing is trained yet.

    Raises NotFoundError for the model, a panel or a file; ConflictError where no run stands behind it, a canary is
    being tried, or, with `review`, something waits; RequestError for a fraction that is none.
    """
    deployment = context.deployments.get(caller.project_id, request.model)
    if request.canary is not None and not 0 < request.canary < 1:
        raise RequestError(f"a canary of {request.canary:g}", expected="a fraction such as 0.1", do="correct --canary")
    if request.canary is not None and deployment.revision.canary is not None:
        raise ConflictError(
            f"{deployment.revision.canary} is being tried as a canary of {request.model} already",
            expected="one canary at a time",
            do=f"luthier promote {request.model} or luthier rollback {request.model} first, or leave --canary out",
        )
    if request.min_rows < 1:
        raise RequestError(f"--min-rows {request.min_rows}", expected="1 or more", do="correct it")
    for file in (request.gate, request.suite):
        if file is not None and not file.is_file():
            raise NotFoundError(f"no file {file}", expected="a file that is there", do="correct the path")
    for panel in request.panels:
        context.rating_panels.get(caller.project_id, panel)
    run_id = deployed_run(context, caller, deployment.revision)
    if request.review:
        _refuse_waiting(context, caller, request)
    asked = {
        "model": request.model,
        "from_traffic": request.from_traffic,
        "panels": list(request.panels),
        "start": request.start,
        "canary": request.canary,
        "gate": None if request.gate is None else str(request.gate.absolute()),
        "suite": None if request.suite is None else str(request.suite.absolute()),
        "min_rows": request.min_rows,
        "run_id": run_id,
        "judged_against": run_id,
        "deployment_id": deployment.deployment_id,
        "revision": deployment.revision.number,
        "caller": caller.model_dump(mode="json"),
    }
    stages = tuple(Stage(name=name) for name in STAGES)
    made = Pipeline(pipeline_id=new_id("retrain"), kind="retrain", asked=asked, stages=stages)
    return context.pipelines.create(made, caller.project_id)


def go_on(
    context: Context, caller: Caller, pipeline_id: str, *, tell: Tell = lambda _pipeline, _stage: None
) -> Pipeline:
    """Do what is left of a retraining; the pipeline as it is then, which may have been refused by a stage.

    Raises NotFoundError, ConflictError where another process works on it, and what a stage raises.
    """
    found = context.pipelines.get(pipeline_id, caller.project_id)
    if found.kind != "retrain":
        raise NotFoundError(
            f"{pipeline_id} is a pipeline of kind {found.kind}",
            expected="the id of a retraining",
            do=f"go on with it by: luthier {command_of(found.kind)} --resume {pipeline_id}",
        )
    folder = context.settings.home / "pipelines" / pipeline_id
    stages = RetrainStages(context, caller, folder)
    return run_pipeline(context, pipeline_id, stages.works(), begun=stages.begun(), tell=tell)


def _refuse_waiting(context: Context, caller: Caller, request: RetrainRequest) -> None:
    from luthier.features.feedback import review as review_queue

    if request.from_traffic:
        review_queue.queue_liked(context, caller, request.model)
    waiting = len(context.review_items.ids(caller.project_id, model=request.model, status="waiting"))
    if waiting:
        raise ConflictError(
            f"{waiting:,} answers of {request.model} wait to be reviewed",
            expected="a queue in which somebody has looked at each",
            do="decide them on the page /review, then begin again; without --review they are left out",
        )
