"""Use cases: start a batch, read, list and cancel batches."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Final

from luthier.core.access import Caller
from luthier.core.errors import ConflictError, NotFoundError, UnsupportedError, WorkError
from luthier.core.ids import new_id
from luthier.features.batches.input_file import models_of_file
from luthier.features.batches.records import Batch, BatchFault, BatchRequest
from luthier.features.batches.store import BatchView
from luthier.platform.audit_log.service import record
from luthier.platform.files import service as files
from luthier.platform.files.store import StoredFile
from luthier.platform.home.context import Context
from luthier.platform.jobs.named_models import NamedModel, read_models
from luthier.platform.jobs.records import Job

_MAX_KNOWN_FILES: Final = 64
CALLER: Final = "caller"
"""The key of who has started it in the document of its job."""


def start(context: Context, caller: Caller, request: BatchRequest) -> BatchView:
    """Queue a batch; a worker of this server carries it out.

    Raises:
        UnsupportedError: The project has no such file, or it is for another purpose.
    """
    stored = _input_file(context, caller, request.input_file_id)
    job_id, expiry = new_id("job"), request.output_expires_after
    one = Batch(
        batch_id=f"batch_{secrets.token_hex(16)}",
        project_id=caller.project_id,
        job_id=job_id,
        endpoint=request.endpoint,
        input_file_id=stored.file_id,
        completion_window=request.completion_window,
        metadata=request.metadata,
        output_expires_seconds=None if expiry is None else expiry.seconds,
    )
    identity = caller.model_dump(mode="json", include={"key_id", "member_id", "name"})
    job = Job(
        job_id=job_id,
        kind="batch",
        document={"batch_id": one.batch_id, CALLER: identity},
        run_id="",
        project_id=caller.project_id,
        lane="infer",
    )
    facts = {"endpoint": one.endpoint, "input_file_id": one.input_file_id, "job_id": job_id}
    with context.database.transaction():
        made = context.batches.add(one, job)
        record(context, caller, "batch.created", one.batch_id, facts)
    return made


def cancel(context: Context, caller: Caller, batch_id: str) -> BatchView:
    """Cancel a batch; what was answered until then becomes its output file.

    Raises:
        NotFoundError: The project has no such batch.
        ConflictError: It has ended.
    """
    with context.database.transaction():
        view = context.batches.get(caller.project_id, batch_id)
        if view.has_ended:
            # By its job, where that has failed or was cancelled: the batch itself does not say so.
            raise ConflictError(
                f"batch {batch_id} is {view.status}",
                expected="a batch in progress",
                do="it can no longer be cancelled",
            )
        is_queued = view.job.status == "queued" and view.job.attempt == 0
        context.batches.cancel(caller.project_id, batch_id, is_queued=is_queued)
        if is_queued:
            # No attempt has begun, so there is nothing to finish.
            context.jobs.ask(view.job.job_id, "cancel")
        record(context, caller, "batch.cancelled", batch_id)
    return context.batches.get(caller.project_id, batch_id)


def unfinished_batches(context: Context, jobs: Sequence[Job]) -> set[str]:
    """The ids of those jobs that have ended before their batches: their files hold answers that no other place has."""
    found = set[str]()
    for job in jobs:
        with suppress(NotFoundError):
            if not context.batches.of_job(job.job_id).has_ended:
                found.add(job.job_id)
    return found


def models_of(context: Context, job: Job) -> Iterator[NamedModel]:
    """The models that the requests of a batch name.

    They are stored once the batch is checked. Before that its rows are read, once a process and not in the transaction
    of a removal (`uses.remove_unused`).

    Raises:
        UnreadModelsError: The rows were not read before that transaction.
    """
    one = context.batches.of_job(job.job_id)

    def read() -> tuple[str, ...]:
        try:
            stored = files.get_file(context, one.project_id, one.input_file_id)
            return _models_of_file(files.local_path(context, stored))
        except (NotFoundError, WorkError):
            return ()  # deleted or damaged: the batch fails

    models: Iterable[str] | None = one.models
    if models is None:
        models = read_models(one.batch_id, read, is_in_transaction=context.database.is_in_transaction)
    yield from (NamedModel(name, "project") for name in models)


@lru_cache(maxsize=_MAX_KNOWN_FILES)
def _models_of_file(path: Path) -> tuple[str, ...]:
    # Stored files never change: their folders are named by their digests.
    return tuple(models_of_file(path))


def fault_of(view: BatchView) -> BatchFault | None:
    """Why a batch has failed as a whole, the first reason; None where it has not."""
    if view.batch.faults:
        return view.batch.faults[0]
    error = view.job.error
    if error is None or view.status != "failed":
        return None
    message = error.get("message") or f"{error['came']}; expected: {error['expected']}; what to do: {error['do']}"
    return BatchFault(code="batch_failed", message=message)


def _input_file(context: Context, caller: Caller, file_id: str) -> StoredFile:
    try:
        stored = files.get_file(context, caller.project_id, file_id)
    except NotFoundError as error:
        raise _refused(error.came) from error
    if stored.purpose != "batch":
        raise _refused(f"the file {file_id} has the purpose {stored.purpose}")
    return stored


def _refused(came: str) -> UnsupportedError:
    return UnsupportedError(
        came,
        expected="the id of a file of this project with the purpose batch",
        do="upload the requests with purpose=batch",
        code="invalid_file",
        param="input_file_id",
    )
