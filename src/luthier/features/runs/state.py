"""Use cases: where a run stands from the moment it is queued: what it is doing, how far it is, what it can be asked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from luthier.core.access import Caller
from luthier.core.errors import LuthierError, NotFoundError, WorkError
from luthier.core.events import BillUpdated, StepDone
from luthier.core.run import RunRecord
from luthier.features.runs.control import job_of
from luthier.features.runs.service import is_active
from luthier.platform.home.context import Context
from luthier.platform.jobs.records import Job

OVER: Final = ("succeeded", "failed", "cancelled")
"""A run that is one of these changes no more on its own."""


@dataclass(frozen=True, slots=True)
class Standing:
    """The state of a run.

    Attributes:
        run_id: Of the run.
        record: As it is stored; None before the run has begun.
        job: The newest job that makes it; None where a command made it.
        is_active: Whether a process works on it.
        num_ahead: Jobs that come before it, of all projects; None where it does not wait.
    """

    run_id: str
    record: RunRecord | None
    job: Job | None
    is_active: bool
    num_ahead: int | None = None

    @property
    def status(self) -> str:
        """The job's, with what is under way (`pausing`); a command's run that was killed is `interrupted`."""
        if self.job is not None:
            return self.job.shown_status
        assert self.record is not None
        if self.record.status in ("planned", "running"):
            return "running" if self.is_active else "interrupted"
        return self.record.status

    @property
    def phase(self) -> str:
        """What a running one is doing, in words; empty for one that does not run."""
        if self.status not in ("running", "pausing", "cancelling"):
            return ""
        if self.record is None:
            return "looking at its files" if self.job is not None and self.job.lane == "validate" else "preparing"
        if self.record.status == "planned":
            return "loading the model"
        return "judging and writing the report" if self.record.step >= self.record.num_steps else "training"

    @property
    def is_over(self) -> bool:
        """Whether nothing more comes of it, unless somebody has it go on."""
        return self.status in OVER

    @property
    def can_pause(self) -> bool:
        """Whether it may be asked to pause."""
        return self.job is not None and self.status in ("queued", "running")

    @property
    def can_resume(self) -> bool:
        """Whether it may be asked to go on."""
        return self.job is not None and self.status in ("paused", "failed")

    @property
    def can_cancel(self) -> bool:
        """Whether it may be asked to end for good."""
        return self.job is not None and self.status in ("queued", "running", "pausing", "paused")

    @property
    def error(self) -> LuthierError | None:
        """Why it failed; None for one that has not."""
        if self.status != "failed":
            return None
        if self.job is not None and self.job.error is not None:
            told = self.job.error
            came = str(told.get("came") or told.get("message") or "the work failed")
            return WorkError(
                came,
                expected=str(told.get("expected") or "work that comes to its end"),
                do=str(told.get("do") or "correct what it says, then start a new run"),
            )
        return WorkError(
            (self.record and self.record.stopped_because) or "the work failed",
            expected="work that comes to its end",
            do=f"see the events below; then start it again with changes, or: luthier train --resume {self.run_id}",
        )


def standing(context: Context, caller: Caller, run_id: str) -> Standing:
    """Where a run of the project stands. Raises NotFoundError."""
    job = job_of(context, caller, run_id)
    try:
        record = context.runs.get(run_id)
    except NotFoundError:
        if job is None:  # it was removed in this moment
            raise
        record = None
    return standing_of(context, run_id, record, job)


def standing_of(context: Context, run_id: str, record: RunRecord | None, job: Job | None) -> Standing:
    """Where a run stands of which the record and the newest job are known."""
    may_be_active = record is not None and record.status in ("planned", "running")
    waits = job is not None and job.status == "queued"
    return Standing(
        run_id,
        record,
        job,
        may_be_active and is_active(context, run_id),
        context.run_entries.num_ahead(job.job_id) if job is not None and waits else None,
    )


def left_seconds(standing: Standing, bill: BillUpdated | None) -> float | None:
    """How long training will still take, as the last bill reckons it; None where it does not train or nobody knows."""
    record = standing.record
    if bill is None or record is None or standing.phase != "training" or record.num_steps <= bill.step:
        return None
    # The bill may be some steps old: its remaining time is scaled to the steps that are left now.
    return bill.bill.left_seconds * (record.num_steps - record.step) / (record.num_steps - bill.step)


def last_step(context: Context, run_id: str) -> StepDone | None:
    """The newest step that was measured."""
    found = context.runs.last(run_id, "step")
    return found if isinstance(found, StepDone) else None


def last_bill(context: Context, run_id: str) -> BillUpdated | None:
    """The newest bill."""
    found = context.runs.last(run_id, "bill")
    return found if isinstance(found, BillUpdated) else None
