"""What is asked of a retraining, checked and with the model that is deployed now, before anything is trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import Field

from luthier.core.access import Caller
from luthier.core.errors import ConflictError, NotFoundError, RequestError
from luthier.core.frozen_model import FrozenModel
from luthier.features.deployments.run import deployed_run
from luthier.platform.home.context import Context

Start = Literal["base", "last"]
MIN_ROWS: Final = 20


@dataclass(frozen=True, slots=True)
class RetrainRequest:
    """What to retrain.

    Attributes:
        model: The name of a deployment.
        from_traffic: Also learn from answers that were sampled from the traffic and accepted as they are.
        review: First queue what people have liked (with `from_traffic`); begin only when the review queue is empty.
        panels: Rating panels to learn from, too.
        start: `base` trains the last run's base on old and new rows together; `last` trains the last model, merged
            into its base.
        canary: Make a canary that gets this fraction of the users; None only offers it.
        gate: A file of rules that it must meet.
        suite: A file of a suite to judge by, too.
        min_rows: With fewer reviewed rows nothing is begun.
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


class RetrainSpec(FrozenModel):
    """What is stored: the request, and the deployment as it was.

    Attributes:
        run_id: The run that was deployed; its recipe and rows are taken over.
        judged_against: The run that the new one is judged against.
        deployment_id: The deployment.
        revision: Its number.
        caller: Who asked.
    """

    model: str
    from_traffic: bool = False
    panels: tuple[str, ...] = ()
    start: Start = "base"
    canary: float | None = None
    gate: str | None = None
    suite: str | None = None
    min_rows: int = MIN_ROWS
    run_id: str = ""
    judged_against: str = ""
    deployment_id: str = ""
    revision: int = 0
    caller: dict[str, Any] = Field(default_factory=dict)


def spec_of(context: Context, caller: Caller, request: RetrainRequest) -> RetrainSpec:
    """The specification of a request, with the model that is deployed now.

    Raises:
        NotFoundError: No such deployment, panel or file.
        ConflictError: No run stands behind the deployment, a canary is being tried, or, with `review`, something waits.
        RequestError: A fraction or a number of rows that cannot be.
    """
    deployment = context.deployments.get(caller.project_id, request.model)
    if request.canary is not None and not 0 < request.canary < 1:
        raise RequestError(f"a canary of {request.canary:g}", expected="a fraction such as 0.1", do="correct --canary")
    # Two canaries at once would share the users, and neither could be judged.
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
    # For its error alone: a missing panel is refused before anything is read.
    for panel in request.panels:
        context.rating_panels.get(caller.project_id, panel)
    # Last of the look-ups: it may have to follow a merged or exported model back to its run.
    run_id = deployed_run(context, caller, deployment.revision)
    if request.review:
        _refuse_waiting(context, caller, request)
    return RetrainSpec(
        model=request.model,
        from_traffic=request.from_traffic,
        panels=tuple(request.panels),
        start=request.start,
        canary=request.canary,
        # Absolute: the stages may be gone on with from another folder.
        gate=None if request.gate is None else str(request.gate.absolute()),
        suite=None if request.suite is None else str(request.suite.absolute()),
        min_rows=request.min_rows,
        run_id=run_id,
        # The two are the same at first; they are kept apart since the deployment may change meanwhile.
        judged_against=run_id,
        deployment_id=deployment.deployment_id,
        revision=deployment.revision.number,
        caller=caller.model_dump(mode="json"),
    )


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
