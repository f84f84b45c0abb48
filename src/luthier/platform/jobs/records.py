"""Queued work: what is to be done, who does it, and how far it is; all of it in the database, so no kill loses it."""

from __future__ import annotations

from typing import Any, Final, Literal

from luthier.core.access import DEFAULT_PROJECT
from luthier.core.frozen_model import FrozenModel

JobStatus = Literal["queued", "running", "paused", "succeeded", "failed", "cancelled"]
JobKind = Literal["train", "export", "evaluation"]
Wish = Literal["pause", "cancel"]
Lane = Literal["validate", "train"]
ENDED: Final[tuple[JobStatus, ...]] = ("succeeded", "failed", "cancelled")


class Job(FrozenModel):
    """One piece of queued work. Times are seconds since 1970 by the database's clock.

    document: what is to be done, as its kind understands it. run_id: the run that it makes or goes on with, empty
    where it is none of a run: so a run has one job at most, which says whose it is. wish: what
    was asked of it while it runs. attempt: counts every start; a worker that holds an older number has lost the job.
    num_crashes: crashes since it last got any further. step: how far it was when it last said so. not_before: it rests
    until then, after a crash. error: why it failed, as `LuthierError.as_json` writes it. lane: which kind of worker
    takes it next; from `validate` a job goes on to `train`.
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

    @property
    def shown_status(self) -> str:
        """The status with what is under way: `pausing`, `cancelling`, or else the status itself."""
        if self.status == "running" and self.wish is not None:
            return {"pause": "pausing", "cancel": "cancelling"}[self.wish]
        return self.status
