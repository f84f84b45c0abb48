"""/api/v1/evaluations: have the server evaluate a model; GET /api/v1/jobs reports the progress."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field

from luthier.features.evaluation_orders import service as evaluation_orders
from luthier.features.evaluation_orders.service import MAX_AGAINST, OrderKind
from luthier.platform.http.authentication import HomeContext, Trainer
from luthier.platform.http.errors import documented
from luthier.platform.http.idempotency import once
from luthier.platform.jobs.records import JobStatus

router = APIRouter(prefix="/api/v1/evaluations", tags=["runs"])

_Name = Annotated[str, Field(min_length=1, max_length=200)]


class EvaluationBody(BaseModel):
    """What is to be evaluated, and by what.

    kind: `rows` judges on the rows of a file, `suite` by a suite, `safety` by probes. candidate: the id of a run, or
    the name of its model. against: more of them, and base models; without any, the base of the candidate. file_id: the
    held-out rows, or the suite, whose files are named by id as well. most_rows: evaluate only this many of the rows.
    """

    model_config = ConfigDict(extra="forbid")

    kind: OrderKind = "rows"
    candidate: _Name
    against: Annotated[list[_Name], Field(max_length=MAX_AGAINST)] = []
    file_id: Annotated[str, Field(min_length=1, max_length=64)] | None = None
    probes: Literal["default", "full"] = "default"
    most_rows: Annotated[int, Field(ge=1, lt=2**31)] | None = None
    allow_leakage: bool = False


class EvaluationJob(BaseModel):
    """An evaluation that was queued. result_id: what its result will be called."""

    object: Literal["evaluation.job"] = "evaluation.job"
    job_id: str
    result_id: str
    kind: OrderKind
    candidate: str
    against: list[str]
    status: JobStatus


@router.post(
    "", status_code=201, summary="Evaluate a model", response_model=EvaluationJob, responses=documented(404, 409)
)
def start(context: HomeContext, caller: Trainer, asked: EvaluationBody, request: Request) -> Any:
    """Queue it; a worker of this server judges."""
    return once(request, caller, context, lambda: _started(context, caller, asked), status_code=201)


def _started(context: HomeContext, caller: Trainer, asked: EvaluationBody) -> EvaluationJob:
    made = evaluation_orders.start(
        context,
        caller,
        asked.kind,
        asked.candidate,
        against=asked.against,
        file_id=asked.file_id,
        probes=asked.probes,
        most_rows=asked.most_rows,
        allow_leakage=asked.allow_leakage,
    )
    return EvaluationJob(
        job_id=made.job.job_id,
        result_id=made.order.result_id,
        kind=asked.kind,
        candidate=made.order.candidate,
        against=list(made.order.against),
        status=made.job.status,
    )
