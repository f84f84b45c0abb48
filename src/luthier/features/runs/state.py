"""Use cases: the state of runs from the queue to the end: progress, controls, and the list of a project.

A run whose job waits in the queue has no record yet, but its id is known. A run made by a command has no job: it is
shown here, and controlled where it was started.
"""

from __future__ import annotations

import json
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from threading import Lock
from typing import Final

from luthier.core.access import Caller
from luthier.core.errors import ConflictError, LuthierError, NotFoundError, WorkError
from luthier.core.evaluation import Evaluation, Metric
from luthier.core.events import BillUpdated, Event, StepDone, comparable_loss
from luthier.core.ids import is_id
from luthier.core.plan import Plan
from luthier.core.run import Bill, RunRecord
from luthier.features.runs.entries_store import DatasetName, EntryStatus, RunEntry
from luthier.features.runs.filter_language import Filter
from luthier.features.runs.filter_query import Order
from luthier.features.runs.labels import RunLabels, asked_of, last_part
from luthier.features.runs.service import is_active
from luthier.features.runs.views import without_paths
from luthier.platform.db.run_values import NAME, Value, default_name
from luthier.platform.home.context import Context
from luthier.platform.http.path_redaction import redact_text, reference_paths
from luthier.platform.jobs import orders
from luthier.platform.jobs.records import Job

OVER: Final = ("succeeded", "failed", "cancelled")
"""A run that is one of these changes no more on its own."""


def job_of(context: Context, caller: Caller, run_id: str) -> Job | None:
    """The job that makes a run of the project; None for a run that a command has made.

    Raises:
        NotFoundError: The project has neither a run nor a job with that id.
    """
    if is_id(run_id, "run"):
        job = context.jobs.of_run(run_id, caller.project_id)
        # The job of a run that was deleted stays in the queue's history.
        if job is not None and not (job.status in OVER and context.run_labels.is_deleted(run_id)):
            return job
        if job is None and context.runs.project_of(run_id) == caller.project_id:
            return None
    raise NotFoundError(
        f"no run {run_id!r}", expected="the id of a run of this project", do="list them: GET /api/v1/runs"
    )


def pause(context: Context, caller: Caller, run_id: str) -> Job:
    """Have a run stop after its step, with a checkpoint.

    Raises:
        NotFoundError: There is none in the project.
        ConflictError: The run has ended, is pausing or paused, or was started by a command.
    """
    job = _controlled(context, caller, run_id)
    return orders.pause(context, caller, job, "job.pause", facts={"run_id": run_id})


def cancel(context: Context, caller: Caller, run_id: str) -> Job:
    """Have a run end for good, with a checkpoint.

    Raises:
        NotFoundError: The project has no such run.
        ConflictError: The run has ended, is being cancelled, or was started by a command.
    """
    job = _controlled(context, caller, run_id)
    return orders.cancel(context, caller, job, "job.cancel", facts={"run_id": run_id})


def resume(context: Context, caller: Caller, run_id: str) -> Job:
    """Queue a run again that was paused or has failed; it continues from its last checkpoint.

    Raises:
        NotFoundError: There is none in the project.
        ConflictError: It is in no such state: also while it is still pausing.
    """
    job = _controlled(context, caller, run_id)
    return orders.resume(context, caller, job, "job.resume", facts={"run_id": run_id})


def _controlled(context: Context, caller: Caller, run_id: str) -> Job:
    job = job_of(context, caller, run_id)
    if job is None:
        raise ConflictError(
            f"run {run_id} was started by a command: it is not a job of the server",
            expected="a run that was started here or by the API",
            do=f"stop it where it runs (Ctrl-C writes a checkpoint), and resume with: luthier train --resume {run_id}",
        )
    return job


@dataclass(frozen=True, slots=True)
class Standing:
    """The state of a run.

    Attributes:
        run_id: Of the run.
        record: As stored; None before the run has begun.
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
        """The job's, with pending requests (`pausing`); a command's run that was killed is `interrupted`."""
        if self.job is not None:
            return self.job.shown_status
        assert self.record is not None
        if self.record.status in ("planned", "running"):
            return "running" if self.is_active else "interrupted"
        return self.record.status

    @property
    def phase(self) -> str:
        """The activity of a running one, as text; empty for one that does not run."""
        if self.status not in ("running", "pausing", "cancelling"):
            return ""
        if self.record is None:
            return "reading its files" if self.job is not None and self.job.lane == "validate" else "preparing"
        if self.record.status == "planned":
            return "loading the model"
        return "evaluating and writing the report" if self.record.is_trained else "training"

    @property
    def is_over(self) -> bool:
        """Whether it has ended, unless it is resumed."""
        return self.status in OVER

    @property
    def can_pause(self) -> bool:
        """Whether it may be asked to pause."""
        return self.job is not None and self.status in ("queued", "running")

    @property
    def can_resume(self) -> bool:
        """Whether it may be resumed."""
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
            error_document = self.job.error
            came = str(error_document.get("came") or error_document.get("message") or "the work failed")
            return WorkError(
                came,
                expected=str(error_document.get("expected") or "work that completes"),
                do=str(error_document.get("do") or "correct the cause, then start a new run"),
            )
        return WorkError(
            (self.record and self.record.stopped_because) or "the work failed",
            expected="work that finishes",
            do=f"see the events below; then start it again with changes, or: luthier train --resume {self.run_id}",
        )


def standing(context: Context, caller: Caller, run_id: str) -> Standing:
    """The state of a run of the project.

    Raises:
        NotFoundError: The project has no such run.
    """
    job = job_of(context, caller, run_id)
    try:
        record = context.runs.get(run_id)
    except NotFoundError:
        if job is None:  # it was removed in this moment
            raise
        record = None
    return standing_of(context, run_id, record, job)


def standing_of(
    context: Context, run_id: str, record: RunRecord | None, job: Job | None, ahead: Mapping[str, int] | None = None
) -> Standing:
    """The state of a run whose record and newest job are known. ahead: jobs before each that waits; None: read here."""
    may_be_active = record is not None and record.status in ("planned", "running")
    known = _num_ahead(context, [job]) if ahead is None else ahead
    num_ahead = None if job is None else known.get(job.job_id)
    return Standing(run_id, record, job, may_be_active and is_active(context, run_id), num_ahead)


def _num_ahead(context: Context, jobs: Iterable[Job | None]) -> dict[str, int]:
    """How many jobs are before each of those that wait in the queue."""
    return context.run_entries.num_ahead([job.job_id for job in jobs if job is not None and job.status == "queued"])


def left_seconds(standing: Standing, bill: BillUpdated | None) -> float | None:
    """How long training will still take, by the last bill; None where it does not train or this is not known."""
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


ROWS: Final = 25
_MAX_TEXT_CHARACTERS: Final = 100
_MAX_EVALUATIONS: Final = 256


@dataclass(frozen=True, slots=True)
class RunRow:
    """One line of the list. What is not known, or not yet, is None or empty.

    Attributes:
        standing: The state of the run.
        base_model: By its name.
        method: By its name.
        train_file: The file of its training rows, without its folder.
        dataset: The dataset version with these rows.
        loss: Of the last step.
        judged: Its last evaluation, without samples.
        bill: So far.
        name: As someone named it, or else its default name.
        labels: What was written about it.
        values: Of its plan, result and evaluation, by key: those that the list shows.
        reason: Why it failed, in one sentence without paths; empty for one that has not.
    """

    standing: Standing
    base_model: str
    method: str
    train_file: str
    dataset: DatasetName | None
    loss: float | None
    judged: Evaluation | None
    bill: Bill | None
    name: str = ""
    labels: RunLabels = field(default_factory=RunLabels)
    values: Mapping[str, Value] = field(default_factory=dict)
    reason: str = ""

    @property
    def run_id(self) -> str:
        """The run's id."""
        return self.standing.run_id

    @property
    def main_metric(self) -> Metric | None:
        """What the verdict is about, of the tuned model."""
        # Without a verdict nothing says which of the metrics is the main one.
        if self.judged is None or self.judged.verdict is None:
            return None
        # The tuned model is evaluated last.
        return self.judged.systems[-1].metrics.get(self.judged.verdict.metric)


@dataclass(frozen=True, slots=True)
class RunPage:
    """Rows in their order.

    Attributes:
        rows: The rows.
        older: The id behind which more are; None where there are none.
        num_left: How many there are from the first row on, those of later pages included.
    """

    rows: Sequence[RunRow]
    older: str | None
    num_left: int = 0


class EvaluationCache:
    """Evaluations without their samples, which may be large: read once, kept in short, since none is ever changed."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._kept: OrderedDict[str, Evaluation] = OrderedDict()
        self._lock = Lock()

    def of_runs(self, run_ids: Sequence[str]) -> dict[str, Evaluation]:
        """The last evaluation of each of these runs that was evaluated."""
        ids = self._context.run_entries.evaluation_ids(run_ids)
        return {run_id: self._get(evaluation_id) for run_id, evaluation_id in ids.items()}

    def _get(self, evaluation_id: str) -> Evaluation:
        with self._lock:
            if (kept := self._kept.get(evaluation_id)) is not None:
                self._kept.move_to_end(evaluation_id)
                return kept
        # Read without the lock: two threads may both read, which only costs time.
        found = self._context.evaluations.get(evaluation_id)
        systems = tuple(system.model_copy(update={"samples": ()}) for system in found.systems)
        # Paths are taken out before it is kept, so that no page can show them.
        found = without_paths(self._context, found.model_copy(update={"systems": systems, "forgetting": None}))
        with self._lock:
            self._kept[evaluation_id] = found
            while len(self._kept) > _MAX_EVALUATIONS:
                self._kept.popitem(last=False)
        return found


def page_of_runs(
    context: Context,
    caller: Caller,
    judged: EvaluationCache,
    *,
    before: str | None = None,
    status: EntryStatus | None = None,
    text: str = "",
    limit: int = ROWS,
    tree: Filter | None = None,
    order: Order | None = None,
    columns: Sequence[str] = (),
    hides_archived: bool = True,
    only_begun: bool = False,
) -> RunPage:
    """Some runs of the caller's project.

    Args:
        context: The home.
        caller: Whose project.
        judged: Evaluations, cached.
        before: Only runs older than the one with this id.
        status: Only runs in this state.
        text: Must occur in the name, the id, the base model, the method or the request.
        limit: At most this many.
        tree: A filter.
        order: What they are sorted by; None: the newest first.
        columns: Keys of the values that are shown.
        hides_archived: Leave out what was archived.
        only_begun: Leave out what waits in the queue.

    Raises:
        RequestError: The filter or the order has a field that there is not.
    """
    found = context.run_entries.page(
        caller.project_id,
        # One more than is shown reveals whether there are older ones, without a count.
        limit=limit + 1,
        before=before if before and is_id(before, "run") else None,
        status=status,
        text=text.strip()[:_MAX_TEXT_CHARACTERS],
        tree=tree,
        order=order,
        hides_archived=hides_archived,
        only_begun=only_begun,
        is_active=partial(is_active, context),
    )
    shown = found.entries[:limit]
    rows = rows_of(context, caller, judged, shown, columns)
    return RunPage(rows, shown[-1].run_id if len(found.entries) > limit else None, found.num_left)


def rows_of(
    context: Context, caller: Caller, judged: EvaluationCache, entries: Sequence[RunEntry], columns: Sequence[str] = ()
) -> list[RunRow]:
    """The lines of these entries, in their order. columns: keys of the values that are shown."""
    # All plans, names and verdicts are read together for the page, not line by line.
    begun = [entry.run_id for entry in entries if entry.record is not None]
    plans = context.run_entries.plan_documents(begun)
    trained = {run_id: _trained_on(text) for run_id, text in plans.items()}
    # A job that waits has no plan yet; its request names its training file.
    waiting = [asked_of(entry.job).get("train", "") for entry in entries if entry.record is None]
    digests = {digest for _, digest in trained.values()}
    names = context.run_entries.dataset_names(caller.project_id, [*digests, *filter(None, waiting)])
    verdicts = judged.of_runs(begun)
    labels = context.run_labels.of_runs([entry.run_id for entry in entries])
    values = context.run_entries.values(begun, [NAME, *columns])
    newest = context.runs.newest(begun, ("step", "bill"))
    ahead = _num_ahead(context, [entry.job for entry in entries])
    rows = []
    for entry in entries:
        record, job = entry.record, entry.job
        file, digest = trained.get(entry.run_id, ("", ""))
        events = newest.get(entry.run_id, {})
        step = events.get("step")
        standing, asked = standing_of(context, entry.run_id, record, job, ahead), asked_of(job)
        base_model = last_part(record.base_model if record else asked.get("base_model", ""))
        train_file, dataset = last_part(file) or asked.get("train", ""), names.get(digest or asked.get("train", ""))
        own = values.get(entry.run_id, {})
        created = record.created_at if record else _iso(job)
        default = str(own.get(NAME) or default_name(train_file, dataset.name if dataset else None, base_model, created))
        rows.append(
            RunRow(
                standing=standing,
                base_model=base_model,
                method=record.method if record else asked.get("method", ""),
                train_file=train_file,
                dataset=dataset,
                name=labels[entry.run_id].name or default,
                labels=labels[entry.run_id],
                values=own,
                reason=_reason(context, standing, plans.get(entry.run_id)),
                loss=comparable_loss(step) if isinstance(step, StepDone) else None,
                judged=verdicts.get(entry.run_id),
                bill=None if record is None else _bill(record, partial(events.get, "bill")),
            )
        )
    return rows


def name_of(context: Context, standing: Standing) -> tuple[str, RunLabels]:
    """The name of a run, and what was written about it."""
    run_id, record, asked = standing.run_id, standing.record, asked_of(standing.job)
    labels = context.run_labels.of_runs([run_id])[run_id]
    if labels.name:
        return labels.name, labels
    if (default := context.run_labels.default_names([run_id]).get(run_id)) is not None:
        return default, labels
    base_model = last_part(record.base_model if record else asked.get("base_model", ""))
    created = record.created_at if record else _iso(standing.job)
    # A job that waits has no plan yet: its request names the file of a dataset by an id.
    train, dataset = asked.get("train", ""), None
    if standing.job is not None and train:
        dataset = context.run_entries.dataset_names(standing.job.project_id, [train]).get(train)
    return default_name(train, dataset.name if dataset else None, base_model, created), labels


def _iso(job: Job | None) -> str:
    moment = time.time() if job is None else job.created_at
    return datetime.fromtimestamp(moment, UTC).isoformat(timespec="seconds")


def _reason(context: Context, standing: Standing, plan: str | None) -> str:
    """Why a run failed, in one sentence, without paths of this machine."""
    if standing.error is None:
        return ""
    document = None if plan is None else json.loads(plan)
    return redact_text(standing.error.came, reference_paths(context, document))


def bill_of(context: Context, record: RunRecord) -> Bill | None:
    """What a run has cost: the bill of its end, or the newest of those on the way."""
    return _bill(record, lambda: last_bill(context, record.run_id))


def _bill(record: RunRecord, newest: Callable[[], Event | None]) -> Bill | None:
    if record.result is not None and record.result.bill is not None and record.status != "running":
        return record.result.bill
    found = newest()
    return found.bill if isinstance(found, BillUpdated) else None


def datasets_of(context: Context, caller: Caller, plan: Plan) -> dict[str, DatasetName]:
    """The datasets of the project that hold the files of a plan, by the digest of the file."""
    files = (plan.data.train, plan.data.validation, plan.data.held_out)
    return context.run_entries.dataset_names(caller.project_id, [one.sha256 for one in files if one is not None])


def _trained_on(plan: str) -> tuple[str, str]:
    """Name and digest of the training file of a plan, read without making sure of all the rest of it."""
    train = json.loads(plan)["data"]["train"]
    return str(train["file"]), str(train["sha256"])
