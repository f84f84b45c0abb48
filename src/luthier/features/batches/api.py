"""/v1/batches: files of requests that are answered beside live traffic, as OpenAI's client library reads them."""

from __future__ import annotations

from typing import Any, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel

from luthier.features.batches import service as batches
from luthier.features.batches.progress import failure_of
from luthier.features.batches.records import BatchFault, BatchRequest, BatchStatus
from luthier.features.batches.store import BatchView
from luthier.platform.home.context import Context
from luthier.platform.http.authentication import Asker, HomeContext, Looker
from luthier.platform.http.errors import documented
from luthier.platform.http.idempotency import once
from luthier.platform.http.routes import Id, Limit, ListPage

router = APIRouter(prefix="/v1/batches", tags=["batches"])


class BatchErrorObject(BaseModel):
    """Why the input file as a whole was refused."""

    code: str
    message: str
    line: int | None
    param: str | None


class BatchErrors(BaseModel):
    """All of them."""

    object: Literal["list"] = "list"
    data: list[BatchErrorObject]


class RequestCounts(BaseModel):
    """Requests by how they ended."""

    total: int
    completed: int
    failed: int


class CachedTokens(BaseModel):
    """Tokens of the prompts that were known from earlier prompts, and not computed again."""

    cached_tokens: int


class ReasoningTokens(BaseModel):
    """Reasoning tokens, which are part of the output tokens."""

    reasoning_tokens: int


class BatchUsage(BaseModel):
    """Tokens of all answered requests."""

    input_tokens: int
    input_tokens_details: CachedTokens
    output_tokens: int
    output_tokens_details: ReasoningTokens
    total_tokens: int


class BatchObject(BaseModel):
    """A batch. Times are whole seconds since 1970; null for what has not happened."""

    id: str
    object: Literal["batch"] = "batch"
    endpoint: str
    model: str | None
    errors: BatchErrors | None
    input_file_id: str
    completion_window: str
    status: BatchStatus
    output_file_id: str | None
    error_file_id: str | None
    created_at: int
    in_progress_at: int | None
    expires_at: int | None
    finalizing_at: int | None
    completed_at: int | None
    failed_at: int | None
    expired_at: int | None
    cancelling_at: int | None
    cancelled_at: int | None
    request_counts: RequestCounts
    usage: BatchUsage
    metadata: dict[str, str] | None


class BatchList(ListPage[BatchObject]):
    """A page of batches."""


@router.post("", response_model=BatchObject, responses=documented())
def create(body: BatchRequest, request: Request, caller: Asker, context: HomeContext) -> Any:
    """Start a batch from an uploaded file of requests."""
    return once(request, caller, context, lambda: batch_object(context, batches.start(context, caller, body)))


@router.get("", response_model=BatchList, responses=documented())
def list_batches(caller: Looker, context: HomeContext, after: str | None = None, limit: Limit = 20) -> BatchList:
    """The batches of the project, newest first."""
    found, has_more = context.batches.list(caller.project_id, after=after, limit=limit)
    return BatchList.of([batch_object(context, view) for view in found], has_more=has_more)


@router.get("/{batch_id}", response_model=BatchObject, responses=documented(404))
def retrieve(batch_id: Id, caller: Looker, context: HomeContext) -> BatchObject:
    """One batch."""
    return batch_object(context, context.batches.get(caller.project_id, batch_id))


@router.post("/{batch_id}/cancel", response_model=BatchObject, responses=documented(404, 409))
def cancel(batch_id: Id, caller: Asker, context: HomeContext) -> BatchObject:
    """Cancel a batch; what was answered until then becomes its output file."""
    return batch_object(context, batches.cancel(context, caller, batch_id))


def batch_object(context: Context, view: BatchView) -> BatchObject:
    """A batch as the wire has it."""
    one, job = view.batch, view.job
    status = view.status
    error = failure_of(context, view)
    of_job = () if error is None else (BatchFault(code="batch_failed", message=error.in_one_line),)
    faults = [BatchErrorObject(**fault.model_dump()) for fault in one.faults or of_job]
    ended = job.finished_at
    return BatchObject(
        id=one.batch_id,
        endpoint=one.endpoint,
        model=one.model,
        errors=BatchErrors(data=faults) if faults else None,
        input_file_id=one.input_file_id,
        completion_window=one.completion_window,
        status=status,
        output_file_id=one.output_file_id,
        error_file_id=one.error_file_id,
        created_at=int(one.created_at),
        in_progress_at=_whole(one.in_progress_at),
        expires_at=_whole(one.expires_at),
        finalizing_at=_whole(one.finalizing_at),
        completed_at=_whole(one.completed_at),
        failed_at=_whole(one.failed_at or (ended if status == "failed" else None)),
        expired_at=_whole(one.expired_at),
        cancelling_at=_whole(one.cancelling_at),
        cancelled_at=_whole(one.cancelled_at or (ended if status == "cancelled" else None)),
        request_counts=RequestCounts(total=one.num_total, completed=one.num_completed, failed=one.num_failed),
        usage=BatchUsage(
            input_tokens=one.num_prompt_tokens,
            input_tokens_details=CachedTokens(cached_tokens=one.num_cached_tokens),
            output_tokens=one.num_new_tokens,
            output_tokens_details=ReasoningTokens(reasoning_tokens=one.num_thinking_tokens),
            total_tokens=one.num_prompt_tokens + one.num_new_tokens,
        ),
        metadata=one.metadata,
    )


def _whole(at: float | None) -> int | None:
    return None if at is None else int(at)
