"""Batches as requests and as stored, and what is kept of their progress."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from pydantic import Field

from luthier.core.frozen_model import FrozenModel
from luthier.core.records.fine_tuning import Metadata
from luthier.features.serving.api.offline import Endpoint
from luthier.platform.files.store import MAX_EXPIRY_SECONDS, MIN_EXPIRY_SECONDS

BatchStatus = Literal[
    "validating", "failed", "in_progress", "finalizing", "completed", "expired", "cancelling", "cancelled"
]
ENDED: Final[tuple[BatchStatus, ...]] = ("failed", "completed", "expired", "cancelled")
MAX_NAMED_MODELS: Final = 100
OUTPUT_NAME: Final = "output.jsonl"
ERRORS_NAME: Final = "errors.jsonl"
"""The files that a batch writes in the folder of its job: answers, and requests without an answer."""


class OutputExpiry(FrozenModel):
    """When output and error file expire, counted from when they are made."""

    anchor: Literal["created_at"]
    seconds: Annotated[int, Field(ge=MIN_EXPIRY_SECONDS, le=MAX_EXPIRY_SECONDS)]


class BatchRequest(FrozenModel):
    """The request body that starts a batch.

    Attributes:
        input_file_id: a file of the purpose `batch`: JSON lines with custom_id, method, url and body.
        endpoint: what all its requests ask.
        completion_window: how long it may take, in whole hours from 1h to 336h; the client library sends 24h.
        metadata: labels of the client.
        output_expires_after: when the files that it makes expire; never where it is left out.
    """

    input_file_id: Annotated[str, Field(min_length=1, max_length=64)]
    endpoint: Endpoint
    completion_window: Annotated[str, Field(pattern=r"^([1-9]|[1-9]\d|[12]\d\d|3[0-2]\d|33[0-6])h$")]
    metadata: Metadata | None = None
    output_expires_after: OutputExpiry | None = None


class BatchFault(FrozenModel):
    """What is wrong with the input file as a whole.

    Attributes:
        code: for programs.
        message: for people.
        line: the line, from 1 on; None for the whole file.
        param: the field of the line; None for none.
    """

    code: str
    message: str
    line: int | None = None
    param: str | None = None


class Batch(FrozenModel):
    """A batch as stored. Times are seconds since 1970 by the database's clock; None for what has not happened.

    Attributes:
        batch_id: its id, `batch_...`.
        project_id: the project that it belongs to.
        job_id: the job that carries it out.
        endpoint: what its requests ask.
        input_file_id: the file of requests.
        completion_window: as requested.
        metadata: labels of the client.
        output_expires_seconds: the lifetime of its files; None forever.
        status: how far it is; that of a job which failed or was cancelled goes before it.
        model: the model of all requests; None where they name several.
        models: the models of all requests; None before the file is checked, and where it names more than 100.
        num_total: requests in the file.
        num_completed: requests that were answered.
        num_failed: requests that were refused or have failed.
        num_prompt_tokens: of answered requests.
        num_new_tokens: of their answers.
        num_cached_tokens: of those of the prompts, known from earlier prompts.
        num_thinking_tokens: of those of the answers, reasoning.
        output_file_id: the answers.
        error_file_id: the requests without an answer, and why.
        faults: why the file as a whole was refused.
    """

    batch_id: str
    project_id: str
    job_id: str
    endpoint: Endpoint
    input_file_id: str
    completion_window: str
    metadata: Metadata | None = None
    output_expires_seconds: int | None = None
    status: BatchStatus = "validating"
    model: str | None = None
    models: tuple[str, ...] | None = None
    num_total: int = 0
    num_completed: int = 0
    num_failed: int = 0
    num_prompt_tokens: int = 0
    num_new_tokens: int = 0
    num_cached_tokens: int = 0
    num_thinking_tokens: int = 0
    output_file_id: str | None = None
    error_file_id: str | None = None
    faults: tuple[BatchFault, ...] = ()
    created_at: float = 0.0
    expires_at: float = 0.0
    in_progress_at: float | None = None
    finalizing_at: float | None = None
    completed_at: float | None = None
    failed_at: float | None = None
    expired_at: float | None = None
    cancelling_at: float | None = None
    cancelled_at: float | None = None

    @property
    def has_ended(self) -> bool:
        """Whether nothing more happens to it."""
        return self.status in ENDED

    @property
    def num_done(self) -> int:
        """Requests that were answered, or have failed."""
        return self.num_completed + self.num_failed


class Line(FrozenModel):
    """A line of the input file: one request."""

    custom_id: Annotated[str, Field(min_length=1, max_length=512)]
    method: Literal["POST"]
    url: str
    body: dict[str, Any]
