"""Queued work: what is to be done, who does it, and how far it is; all of it in the database, so no kill loses it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Literal

from luthier.core.access import DEFAULT_PROJECT, Caller
from luthier.core.frozen_model import FrozenModel

JobStatus = Literal["queued", "running", "paused", "succeeded", "failed", "cancelled"]
JobKind = Literal["train", "export", "evaluation", "batch", "import", "synthesis", "workflow", "tracking"]
Wish = Literal["pause", "cancel"]
Lane = Literal["validate", "train", "infer", "remote"]
ENDED: Final[tuple[JobStatus, ...]] = ("succeeded", "failed", "cancelled")
OPEN: Final[tuple[JobStatus, ...]] = ("queued", "running", "paused")
"""Those that may still do something by themselves or once they are resumed."""
UNDONE: Final[tuple[JobStatus, ...]] = (*OPEN, "failed")
"""Those that nobody has ended and that have no result: they wait, run, rest, or need a person."""


class Job(FrozenModel):
    """One piece of queued work. Times are seconds since 1970 by the database's clock.

    Attributes:
        job_id: Its id.
        kind: The kind of work.
        document: What to do, in the format of its kind.
        run_id: The run that it makes or resumes; empty if there is none. A run has at most one job.
        workflow_id: The workflow that it makes or continues; empty if there is none, and where the id follows from the
            request. A workflow that was resumed may have several jobs.
        status: Its status; see `shown_status` for what is in progress.
        wish: The request that its worker has not carried out yet: to pause or to cancel.
        attempt: The number of starts, and the fencing token: a worker with an older number has lost the job.
        num_crashes: Crashes since it last made progress.
        step: The training step of the last heartbeat.
        worker: The name of the worker that holds it; None if none does.
        lease_until: When the lease of that worker ends.
        not_before: When it may be taken again, after a crash.
        created_at: When it was queued first.
        updated_at: When its row last changed.
        finished_at: When it ended; None before.
        error: Why it failed, as `LuthierError.as_json` writes it.
        project_id: The project that it belongs to.
        lane: Which kind of worker takes it next; after `validate` a job continues with `train`; `infer` is for jobs
            that only ask models, beside a training, and `remote` for those that mostly wait for another host.
    """

    job_id: str
    kind: JobKind
    document: dict[str, Any]
    run_id: str
    status: JobStatus = "queued"
    wish: Wish | None = None
    attempt: int = 0
    num_crashes: int = 0
    step: int = 0
    worker: str | None = None
    lease_until: float | None = None
    not_before: float = 0.0
    created_at: float = 0.0
    updated_at: float = 0.0
    finished_at: float | None = None
    error: dict[str, Any] | None = None
    project_id: str = DEFAULT_PROJECT
    lane: Lane = "train"
    workflow_id: str = ""

    @property
    def shown_status(self) -> str:
        """The status with pending requests: `pausing`, `cancelling`, or else the status itself."""
        if self.status == "running" and self.wish is not None:
            return {"pause": "pausing", "cancel": "cancelling"}[self.wish]
        return self.status


def with_caller(document: Mapping[str, Any], caller: Caller) -> dict[str, Any]:
    """The keys of a job's document that name who started it, with another caller in that place; none where none does.

    Long work checks that its caller still has access (`AccessCheck`). Whoever resumes it takes the place of the one
    that started it.

    Args:
        document: Of the job: its `caller`, or that of the order that a key of it holds.
        caller: Who resumes it.
    """
    identity, changed = caller.model_dump(mode="json"), dict[str, Any]()
    for key, value in document.items():
        if key == "caller" and _is_caller(value):
            changed[key] = {name: identity[name] for name in value}
        elif isinstance(value, Mapping) and _is_caller(value.get("caller")):
            changed[key] = {**value, "caller": identity}
    return changed


def _is_caller(value: Any) -> bool:
    return isinstance(value, Mapping) and "key_id" in value and value.keys() <= Caller.model_fields.keys()
