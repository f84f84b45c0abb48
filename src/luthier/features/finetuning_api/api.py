"""/v1/fine_tuning/jobs: make, list and look at jobs; pause, resume and cancel them; their events and checkpoints."""

from __future__ import annotations

import re
from typing import Annotated, Any, Final

from fastapi import APIRouter, Query, Request, Response

from luthier.core.errors import NotFoundError
from luthier.core.records.fine_tuning import FineTuningRequest
from luthier.features.finetuning_api import service as fine_tuning
from luthier.features.finetuning_api.objects import (
    CheckpointList,
    EventList,
    JobList,
    JobObject,
    checkpoint_object,
    event_object,
    job_object,
)
from luthier.platform.home.context import Context
from luthier.platform.http.authentication import HomeContext, Reader, Trainer
from luthier.platform.http.error_documents import documented
from luthier.platform.http.errors import ApiError
from luthier.platform.http.idempotency import once
from luthier.platform.http.lists import page
from luthier.platform.http.polled import polled
from luthier.platform.jobs.records import Job

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
_Limit = Annotated[int, Query(ge=1, le=100)]
_EventLimit = Annotated[int, Query(ge=1, le=1000)]


@router.post("", response_model=JobObject, responses=documented(409))
def create(body: FineTuningRequest, request: Request, caller: Trainer, context: HomeContext) -> Any:
    """Make a job; its files are validated before it is trained."""
    # Idempotency-Key: a client that lost the answer sends the request again and gets the same job.
    return once(request, caller, context, lambda: _shown(context, fine_tuning.create(context, caller, body)))


@router.get("", response_model=JobList, responses=documented(), openapi_extra=_METADATA_SCHEMA)
async def list_jobs(
    request: Request, caller: Reader, context: HomeContext, after: str | None = None, limit: _Limit = 20
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
    """Stop a job with a checkpoint to go on from."""
    return _shown(context, fine_tuning.ask(context, caller, job_id, "pause"))


@router.post("/{job_id}/resume", response_model=JobObject, responses=documented(404, 409))
def resume(job_id: str, caller: Trainer, context: HomeContext) -> JobObject:
    """Go on with a job that is paused or has failed."""
    return _shown(context, fine_tuning.resume(context, caller, job_id))


@router.get("/{job_id}/events", response_model=EventList, responses=documented(404))
async def list_events(
    job_id: str, caller: Reader, context: HomeContext, after: str | None = None, limit: _EventLimit = 20
) -> Response:
    """What was told of a job, newest first."""

    def read() -> EventList:
        found, has_more = fine_tuning.events(context, caller, job_id, after=after, limit=limit)
        return EventList(data=[event_object(event) for event in found], has_more=has_more)

    return await polled(context, read, is_short=limit <= _SHORT_PAGE)


@router.get("/{job_id}/checkpoints", response_model=CheckpointList, responses=documented(404))
def list_checkpoints(
    job_id: str, caller: Reader, context: HomeContext, after: str | None = None, limit: _Limit = 10
) -> dict[str, Any]:
    """What the model was after each of the last three epochs, newest first."""
    # At most three, so the page is cut in Python.
    found = fine_tuning.checkpoints(context, caller, job_id)
    return page(found, after=after, limit=limit, id_of=lambda one: one.checkpoint_id or "", show=checkpoint_object)


def _shown(context: Context, job: Job) -> JobObject:
    return job_object(job, fine_tuning.estimated_finish(context, job))
