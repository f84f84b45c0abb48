"""/v1/fine_tuning/jobs: create, list, pause, resume and cancel jobs; their events and checkpoints.

The response objects have the form that OpenAI's client library reads. Times are whole seconds since 1970.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Any, Final, Literal

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel

from luthier.core.errors import NotFoundError
from luthier.core.records.fine_tuning import FineTuningRequest
from luthier.features.finetuning_api import service as fine_tuning
from luthier.features.models.store import TunedModel
from luthier.platform.home.context import Context
from luthier.platform.http.authentication import HomeContext, Reader, Trainer
from luthier.platform.http.errors import ApiError, documented
from luthier.platform.http.idempotency import once
from luthier.platform.http.path_redaction import redact_paths, redact_text, reference_paths
from luthier.platform.http.poll_cache import polled
from luthier.platform.http.routes import Limit, ListPage, PartialList, page
from luthier.platform.jobs.events import JobEvent, Level
from luthier.platform.jobs.records import Job

Status = Literal[
    "validating_files", "queued", "running", "pausing", "paused", "succeeded", "failed", "cancelled"
]  # fmt: skip


class JobError(BaseModel):
    """Why a job has failed. param: the field of the request that is to blame, where one is."""

    code: str
    message: str
    param: str | None


class HyperparametersObject(BaseModel):
    """`auto` until the files are validated, then the value. An epoch may be a fraction where it was not set."""

    n_epochs: Literal["auto"] | float | int
    batch_size: Literal["auto"] | int
    learning_rate_multiplier: Literal["auto"] | float


class JobObject(BaseModel):
    """A job. organization_id is the id of its project. trained_tokens: all tokens of all epochs, prompts too.

    user_provided_suffix: the suffix as it was asked for, which the hosted service shows, too.
    """

    id: str
    object: Literal["fine_tuning.job"] = "fine_tuning.job"
    created_at: int
    error: JobError | None
    fine_tuned_model: str | None
    finished_at: int | None
    estimated_finish: int | None
    hyperparameters: HyperparametersObject
    integrations: list[dict[str, Any]] | None
    metadata: dict[str, str] | None
    method: dict[str, Any]
    model: str
    organization_id: str
    result_files: list[str]
    seed: int
    status: Status
    trained_tokens: int | None
    training_file: str
    user_provided_suffix: str | None
    validation_file: str | None


class JobList(PartialList[JobObject]):
    """A page of jobs."""


class EventData(BaseModel):
    """The figures of a step: losses in nats a learned token, accuracies as shares of them."""

    step: int
    total_steps: int
    train_loss: float
    train_mean_token_accuracy: float | None
    valid_loss: float | None
    valid_mean_token_accuracy: float | None
    full_valid_loss: float | None
    full_valid_mean_token_accuracy: float | None


class EventObject(BaseModel):
    """An event of a job."""

    id: str
    object: Literal["fine_tuning.job.event"] = "fine_tuning.job.event"
    created_at: int
    level: Level
    message: str
    type: Literal["message", "metrics"]
    data: EventData | None


class EventList(PartialList[EventObject]):
    """A page of events."""


class CheckpointMetrics(BaseModel):
    """What is known of the step of a checkpoint."""

    step: int
    train_loss: float | None = None
    train_mean_token_accuracy: float | None = None
    valid_loss: float | None = None
    valid_mean_token_accuracy: float | None = None
    full_valid_loss: float | None = None
    full_valid_mean_token_accuracy: float | None = None


class CheckpointObject(BaseModel):
    """What the model was after an epoch; it can be asked by the name `fine_tuned_model_checkpoint`."""

    id: str
    object: Literal["fine_tuning.job.checkpoint"] = "fine_tuning.job.checkpoint"
    created_at: int
    fine_tuned_model_checkpoint: str
    fine_tuning_job_id: str
    step_number: int
    metrics: CheckpointMetrics


class CheckpointList(ListPage[CheckpointObject]):
    """A page of checkpoints."""


def job_object(job: Job, estimated_finish: float | None) -> JobObject:
    """A job as the wire has it."""
    request = FineTuningRequest.model_validate(job.document["request"])
    found = job.document.get("found", {})
    asked = request.asked.model_dump(mode="json")
    # The request (`auto`) until validation has found the values; then those replace it.
    hyperparameters = asked | found.get("hyperparameters", {})
    names = HyperparametersObject.model_fields
    # Only the fields that the client's method has: `beta` for dpo, reward settings for reinforcement.
    section = {name: hyperparameters[name] for name in asked}
    method: dict[str, Any] = {"type": request.method_name, request.method_name: {"hyperparameters": section}}
    if request.method is not None and request.method.reinforcement is not None:
        method["reinforcement"] = {"grader": request.method.reinforcement.grader, "hyperparameters": section}
    return JobObject(
        id=job.job_id,
        created_at=int(job.created_at),
        error=None if job.error is None else _error(job.error),
        fine_tuned_model=found.get("fine_tuned_model"),
        finished_at=None if job.finished_at is None else int(job.finished_at),
        estimated_finish=None if estimated_finish is None else int(estimated_finish),
        hyperparameters=HyperparametersObject(**{name: hyperparameters[name] for name in names}),
        # As they were asked for, without what was left out.
        integrations=None
        if not request.integrations
        else [one.model_dump(mode="json", exclude_none=True) for one in request.integrations],
        metadata=request.metadata,
        method=method,
        model=request.model,
        organization_id=job.project_id,
        result_files=found.get("result_files", []),
        seed=request.seed or 0,
        status=status_of(job),
        trained_tokens=found.get("trained_tokens"),
        training_file=request.training_file,
        user_provided_suffix=request.suffix,
        validation_file=request.validation_file,
    )


def status_of(job: Job) -> Status:
    """OpenAI's status of a job. One that is to be cancelled is running until it has stopped."""
    # Order matters: a pausing job may still be in the validation lane.
    if job.status == "running" and job.wish == "pause":
        return "pausing"
    if job.lane == "validate" and job.status in ("queued", "running"):
        return "validating_files"
    return job.status


def event_object(event: JobEvent) -> EventObject:
    """An event as the wire has it."""
    return EventObject(
        id=event.event_id,
        created_at=int(event.created_at),
        level=event.level,
        message=event.message,
        type="message" if event.data is None else "metrics",
        data=None if event.data is None else EventData.model_validate(event.data),
    )


def checkpoint_object(model: TunedModel) -> CheckpointObject:
    """A checkpoint as the wire has it."""
    step = model.step or 0
    return CheckpointObject(
        id=model.checkpoint_id or "",
        created_at=int(model.created_at),
        fine_tuned_model_checkpoint=model.model_id,
        fine_tuning_job_id=model.job_id,
        step_number=step,
        metrics=CheckpointMetrics.model_validate({"step": step, **model.metrics}),
    )


def _error(error: dict[str, Any]) -> JobError:
    """What failed while it trained has the three parts of our own errors; one without a code is of the training."""
    message = error.get("message") or f"{error['came']}; expected: {error['expected']}; what to do: {error['do']}"
    return JobError(code=error.get("code", "training_failed"), message=message, param=error.get("param"))


router = APIRouter(prefix="/v1/fine_tuning/jobs", tags=["fine-tuning"])

_METADATA = re.compile(r"metadata\[([^\]]*)\]")
_METADATA_SCHEMA: Final[dict[str, Any]] = {
    "parameters": [
        {
            "name": "metadata",
            "in": "query",
            "required": False,
            "style": "deepObject",
            "explode": True,
            "schema": {"type": "object", "additionalProperties": {"type": "string"}},
            "description": "Only jobs with all of these, as metadata[key]=value; metadata=null: only jobs without any",
        }
    ]
}
_SHORT_PAGE: Final = 100
_EventLimit = Annotated[int, Query(ge=1, le=1000)]


@router.post("", response_model=JobObject, responses=documented(409))
def create(body: FineTuningRequest, request: Request, caller: Trainer, context: HomeContext) -> Any:
    """Make a job; its files are validated before it is trained."""
    # Idempotency-Key: a client that lost the answer sends the request again and gets the same job.
    return once(request, caller, context, lambda: _shown(context, fine_tuning.create(context, caller, body)))


@router.get("", response_model=JobList, responses=documented(), openapi_extra=_METADATA_SCHEMA)
async def list_jobs(
    request: Request, caller: Reader, context: HomeContext, after: str | None = None, limit: Limit = 20
) -> Response:
    """Jobs of the project, newest first."""
    # OpenAI's client sends a nested object in this form; FastAPI has no parameter type for it.
    asked = {match[1]: value for key, value in request.query_params.items() if (match := _METADATA.fullmatch(key))}
    # The plain key `metadata` only means "no metadata", and only with the value null.
    nothing = request.query_params.get("metadata")
    if nothing not in (None, "null"):
        raise ApiError(
            400,
            f"metadata={nothing!r}; expected: metadata[key]=value, or metadata=null for jobs without any",
            param="metadata",
            code="invalid_value",
        )

    def read() -> JobList:
        found, has_more = fine_tuning.page_of_jobs(
            context, caller, after=after, limit=limit, metadata=asked, without_metadata=nothing is not None
        )
        return JobList(data=[_shown(context, job) for job in found], has_more=has_more)

    try:
        # Not short: with a metadata filter it may read many pages of jobs, which must not block the event loop.
        return await polled(context, read, is_short=False)
    except NotFoundError as error:  # it names no thing to be looked at, but a place in a list
        message = f"after={after!r} is not in this list; expected: the id of a job in it"
        raise ApiError(400, message, param="after", code="invalid_value") from error


@router.get("/{job_id}", response_model=JobObject, responses=documented(404))
async def retrieve(job_id: str, caller: Reader, context: HomeContext) -> Response:
    """One job."""
    return await polled(context, lambda: _shown(context, fine_tuning.get(context, caller, job_id)))


@router.post("/{job_id}/cancel", response_model=JobObject, responses=documented(404, 409))
def cancel(job_id: str, caller: Trainer, context: HomeContext) -> JobObject:
    """End a job; one that is being trained ends its step first."""
    return _shown(context, fine_tuning.ask(context, caller, job_id, "cancel"))


@router.post("/{job_id}/pause", response_model=JobObject, responses=documented(404, 409))
def pause(job_id: str, caller: Trainer, context: HomeContext) -> JobObject:
    """Stop a job with a checkpoint to resume from."""
    return _shown(context, fine_tuning.ask(context, caller, job_id, "pause"))


@router.post("/{job_id}/resume", response_model=JobObject, responses=documented(404, 409))
def resume(job_id: str, caller: Trainer, context: HomeContext) -> JobObject:
    """Resume a job that is paused or has failed."""
    return _shown(context, fine_tuning.resume(context, caller, job_id))


@router.get("/{job_id}/events", response_model=EventList, responses=documented(404))
async def list_events(
    job_id: str, caller: Reader, context: HomeContext, after: str | None = None, limit: _EventLimit = 20
) -> Response:
    """The events of a job, newest first."""

    def read() -> EventList:
        found, has_more = fine_tuning.events(context, caller, job_id, after=after, limit=limit)
        return EventList(data=[event_object(one) for one in _without_paths(context, found)], has_more=has_more)

    return await polled(context, read, is_short=limit <= _SHORT_PAGE)


@router.get("/{job_id}/checkpoints", response_model=CheckpointList, responses=documented(404))
def list_checkpoints(
    job_id: str, caller: Reader, context: HomeContext, after: str | None = None, limit: Limit = 10
) -> dict[str, Any]:
    """The model after each of the last three epochs, newest first."""
    # At most three, so the page is cut in Python.
    found = fine_tuning.checkpoints(context, caller, job_id)
    return page(found, after=after, limit=limit, id_of=lambda one: one.checkpoint_id or "", show=checkpoint_object)


def _without_paths(context: Context, events: Sequence[JobEvent]) -> list[JobEvent]:
    """Events of one job: those of crashes quote logs, which may name files of this machine."""
    if all(event.level == "info" for event in events):
        return list(events)
    places = reference_paths(context, context.jobs.get(events[0].job_id).document)
    return [
        event if event.level == "info" else event.model_copy(update={"message": redact_text(event.message, places)})
        for event in events
    ]


def _shown(context: Context, job: Job) -> JobObject:
    if job.error is not None:
        # What a crash has said last may name files of this machine.
        shown = redact_paths(job.error, reference_paths(context, job.document))
        job = job.model_copy(update={"error": shown})
    return job_object(job, fine_tuning.estimated_finish(context, job))
