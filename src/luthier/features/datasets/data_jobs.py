"""Use cases: follow, stop and continue the jobs on datasets: imports of files, and questions from passages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from luthier.core.access import Caller
from luthier.core.errors import ConflictError
from luthier.features.datasets import imports, questions
from luthier.features.datasets.imports import ImportOrder, RemoteOrder
from luthier.features.datasets.questions import QuestionOrder
from luthier.platform.home.context import Context
from luthier.platform.jobs import orders
from luthier.platform.jobs.events import JobEvent
from luthier.platform.jobs.records import ENDED, UNDONE, Job

_MAX_EVENTS: Final = 200
_MAX_ID_CHARACTERS: Final = 64


@dataclass(frozen=True, slots=True)
class JobFigures:
    """How far a job is.

    Attributes:
        done: Files that were read, passages that are done, or bytes that were downloaded.
        total: Of how many; 0 where that is not known.
        made: Passages, pairs or rows so far.
        seconds: Since the work on it began; None where that is not noted.
        seconds_left: About how long it still takes; None where that is not known.
        cost_usd: US dollars so far; None without prices.
        answered: Requests that the provider of a Batch API has answered.
        requests: Of how many; 0 where it has none at the moment.
    """

    done: int = 0
    total: int = 0
    made: int = 0
    seconds: float | None = None
    seconds_left: float | None = None
    cost_usd: float | None = None
    answered: int = 0
    requests: int = 0


@dataclass(frozen=True, slots=True)
class DataJob:
    """A job that works on a dataset.

    Attributes:
        job: The job.
        order: What it is to do.
        events: Its newest events, newest first; empty in lists.
    """

    job: Job
    order: ImportOrder | QuestionOrder
    events: Sequence[JobEvent] = ()

    @property
    def has_ended(self) -> bool:
        """Whether nothing more happens to it unless somebody continues it."""
        return self.job.status in ENDED or self.job.status == "paused"

    @property
    def is_import(self) -> bool:
        """Whether it reads files; else it writes questions."""
        return isinstance(self.order, ImportOrder)

    @property
    def source(self) -> RemoteOrder | None:
        """The rows from elsewhere that it imports; None for other jobs."""
        return self.order.source if isinstance(self.order, ImportOrder) else None

    @property
    def title(self) -> str:
        """What it does, in short."""
        if isinstance(self.order, ImportOrder) and self.order.source is not None:
            return f"Import {self.order.source.shown}"
        if isinstance(self.order, ImportOrder):
            number = len(self.order.files)
            return f"Add {number:,} file{'' if number == 1 else 's'}" + (
                f" as {self.order.name}" if self.order.name else ""
            )
        return f"Questions from {self.order.name}"

    @property
    def found(self) -> dict[str, Any]:
        """What it has made and noted."""
        found: dict[str, Any] = self.job.document.get("found", {})
        return found

    @property
    def progress(self) -> JobFigures:
        """The newest figures; zeros before the first."""
        found = next((event.data for event in self.events if event.data), {})
        counts = {name: int(found.get(name) or 0) for name in ("done", "total", "made", "answered", "requests")}
        return JobFigures(
            **counts,
            seconds=found.get("seconds"),
            seconds_left=found.get("seconds_left"),
            cost_usd=found.get("cost_usd"),
        )

    @property
    def warnings(self) -> list[JobEvent]:
        """What went wrong with single files so far, oldest first."""
        return [event for event in reversed(self.events) if event.level == "warn"]

    @property
    def mark(self) -> str:
        """Changes with each thing that can be seen to happen."""
        return orders.mark_of(self.job, self.events[0] if self.events else None)


def show_job(context: Context, caller: Caller, job_id: str) -> DataJob:
    """One job of the project.

    Raises:
        NotFoundError: The project has no such job, or the job is of another kind.
    """
    # The id comes from an address; the cut bounds what goes into the query and the error.
    job = context.jobs.get(job_id[:_MAX_ID_CHARACTERS], caller.project_id)
    questions.check_is_dataset(job)
    events, _ = context.job_events.page(job.job_id, limit=_MAX_EVENTS)
    return DataJob(job, _order_of(job), events)


def list_jobs(context: Context, caller: Caller, *, limit: int = 10) -> list[DataJob]:
    """Those that wait, run, are paused or have failed, newest first."""
    project_id = caller.project_id
    found = context.jobs.list(project_id=project_id, kinds=("import", "synthesis"), status=UNDONE, limit=limit)
    return [DataJob(job, _order_of(job)) for job in found]


def cancel(context: Context, caller: Caller, job_id: str) -> None:
    """Cancel a job.

    Raises:
        NotFoundError: There is none in the project.
        ConflictError: It has ended.
    """
    shown = show_job(context, caller, job_id)
    orders.cancel(context, caller, shown.job, f"{shown.job.kind}.cancelled")


def pause(context: Context, caller: Caller, job_id: str) -> None:
    """Pause a job; one that imports cannot be paused.

    Raises:
        NotFoundError: There is none in the project.
        ConflictError: It has ended or imports.
    """
    orders.pause(context, caller, show_job(context, caller, job_id).job, "synthesis.paused")


def go_on(context: Context, caller: Caller, job_id: str) -> None:
    """Continue a job that has failed or is paused.

    Raises:
        NotFoundError: The project has no such job.
        ConflictError: The job has neither failed nor paused.
    """
    shown = show_job(context, caller, job_id)
    orders.resume(context, caller, shown.job, f"{shown.job.kind}.continued")


def keep_made(context: Context, caller: Caller, job_id: str) -> Job:
    """Make a dataset of the pairs that a stopped job has written.

    Raises:
        NotFoundError: The project has no such job.
        ConflictError: The job is an import, is running, has succeeded, or has no passage done yet.
    """
    shown = show_job(context, caller, job_id)
    if shown.is_import:
        raise ConflictError(
            f"job {job_id} is an import", expected="a job that writes questions", do="add the corrected files"
        )
    return questions.keep_made(context, caller, shown.job, shown.progress.done)


def _order_of(job: Job) -> ImportOrder | QuestionOrder:
    return imports.order_of(job) if job.kind == "import" else questions.order_of(job)
