"""/api/v1/workflows: have the server carry out a workflow, follow it, pause it and resume it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field

from luthier.core.frozen_model import ClosedModel
from luthier.features.workflows import orders
from luthier.features.workflows.declared_forms import FormName
from luthier.features.workflows.forms import check_values
from luthier.features.workflows.orders import OrderView
from luthier.features.workflows.resume import form_of, refuse_budget, resume_workflow
from luthier.platform.http.authentication import HomeContext, Reader, Trainer
from luthier.platform.http.errors import documented
from luthier.platform.http.idempotency import once
from luthier.platform.http.path_redaction import redact_paths, reference_paths
from luthier.platform.jobs.records import JobStatus

router = APIRouter(prefix="/api/v1/workflows", tags=["runs"])


class WorkflowBody(ClosedModel):
    """What is to be carried out.

    workflow: the command that does the same on the machine. values: its options by name (`budget_hours`, `models`),
    with ids of files and names of models in place of paths.
    """

    workflow: FormName
    values: Annotated[dict[str, Any], Field(max_length=50)]


class ResumeBody(ClosedModel):
    """How it continues.

    budget_hours: for a study by its id whose budget was used up before its final run: a larger one in hours, counted
    from the beginning of the study. Anything else continues with the budget that it has, and refuses another one.
    """

    budget_hours: Annotated[float, Field(gt=0)] | None = None


class WorkflowJob(BaseModel):
    """A workflow that was queued. workflow_id: its id; null before it has begun. page: where people see it."""

    object: Literal["workflow.job"] = "workflow.job"
    job_id: str
    workflow: FormName
    workflow_id: str | None
    status: JobStatus
    values: dict[str, Any]
    page: str
    last_word: str | None
    error: dict[str, Any] | None


@router.post(
    "", status_code=201, summary="Start a workflow", response_model=WorkflowJob, responses=documented(404, 409)
)
def start(context: HomeContext, caller: Trainer, asked: WorkflowBody, request: Request) -> Any:
    """Queue it; a worker of this server carries it out."""

    def work() -> WorkflowJob:
        made = orders.start(context, caller, asked.workflow, check_values(asked.workflow, asked.values))
        return _document(context, made)

    return once(request, caller, context, work, status_code=201)


@router.get("/{job_id}", summary="Show a workflow", responses=documented(404))
def show(context: HomeContext, caller: Reader, job_id: str) -> WorkflowJob:
    """How far it is."""
    return _document(context, orders.show_order(context, caller, job_id))


@router.post("/{job_id}/pause", summary="Pause a workflow", responses=documented(404, 409))
def pause(context: HomeContext, caller: Trainer, job_id: str) -> WorkflowJob:
    """Stop it where it can continue."""
    return _document(context, orders.pause(context, caller, job_id))


@router.post("/{job_id}/cancel", summary="Cancel a workflow", responses=documented(404, 409))
def cancel(context: HomeContext, caller: Trainer, job_id: str) -> WorkflowJob:
    """End it; what its stages have made stays."""
    return _document(context, orders.cancel(context, caller, job_id))


@router.post("/{job_id}/resume", summary="Resume a workflow", responses=documented(404, 409))
def resume(context: HomeContext, caller: Trainer, job_id: str, asked: ResumeBody | None = None) -> WorkflowJob:
    """Continue one that is paused, interrupted or has failed.

    job_id: of its job; or the id of a study, a model comparison, an automl run or a retraining, which needs no job: a
    command may have begun it.
    """
    budget = None if asked is None else asked.budget_hours
    if form_of(job_id) is not None:
        return _document(context, resume_workflow(context, caller, job_id, budget_hours=budget))
    refuse_budget(job_id[:64], budget)
    return _document(context, orders.resume(context, caller, job_id))


def _document(context: HomeContext, view: OrderView) -> WorkflowJob:
    job, error = view.job, view.job.error
    return WorkflowJob(
        job_id=job.job_id,
        workflow=view.order.form,
        workflow_id=view.workflow_id or None,
        status=job.status,
        values=view.order.values,
        page=view.page,
        last_word=view.last_word.message if view.last_word else None,
        error=None if error is None else redact_paths(error, reference_paths(context, job.document)),
    )
