"""Use cases: the activity of a project at a glance. Each reads few rows, however many runs there are."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import threading
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from luthier.core.access import DEFAULT_PROJECT
from luthier.core.estimate import Estimate
from luthier.core.evaluation import Comparison, Evaluation, Metric, VerdictWord
from luthier.core.events import BillUpdated, Event, StepDone, comparable_loss
from luthier.core.frozen_model import FrozenModel
from luthier.core.run import RunRecord
from luthier.core.text.names import display_name
from luthier.features.inbox.sources import job_address
from luthier.features.runs.labels import asked_of
from luthier.features.runs.service import is_active
from luthier.features.runs.views import without_paths
from luthier.ml.charts.judged_rows import metric_title
from luthier.ml.evaluation.result_views import roles
from luthier.platform.home.context import Context
from luthier.platform.http.path_redaction import redact_text, reference_paths
from luthier.platform.jobs.kinds import KINDS
from luthier.platform.jobs.records import Job

MAX_SHOWN: Final = 20
MAX_SUMMED: Final = 1000
_LOOK_SECONDS: Final = 0.1
_REMEMBERED_SECONDS: Final = 60.0


class Running(FrozenModel):
    """Work in progress.

    Attributes:
        run_id: The run; None for work that makes none.
        job_id: The job; None for a run that a command has started.
        status: As a badge shows it.
        stage: What it does now.
        name: Of the run, for people; of work that makes none, its kind.
        base_model: Empty until it is known.
        method: Empty until it is known.
        step: The last step; 0 while the run is prepared.
        num_steps: All steps; 0 while the run is prepared.
        loss: Of the last step, in nats a trained token.
        left_seconds: The estimated time to the last step; None where it is unknown.
        since: When it began: seconds since 1970, or ISO 8601.
        address: The page that it is followed on; empty for none.
    """

    run_id: str | None
    job_id: str | None
    status: str
    stage: str
    name: str = ""
    base_model: str = ""
    method: str = ""
    step: int = 0
    num_steps: int = 0
    loss: float | None = None
    left_seconds: float | None = None
    since: float | str | None = None
    address: str = ""


class Waiting(FrozenModel):
    """A job that is queued or paused.

    Attributes:
        job_id: The job.
        run_id: Its run; None for work that makes none.
        status: Its status.
        base_model: As requested.
        since: Seconds since 1970.
        name: Of the run, for people; of work that makes none, its kind.
        address: The page that it is followed on; empty for none.
    """

    job_id: str
    run_id: str | None
    status: str
    base_model: str
    since: float
    name: str = ""
    address: str = ""


class Now(FrozenModel):
    """The activity.

    Attributes:
        running: Work in progress.
        waiting: Jobs that are queued or paused.
        has_more: Whether more wait than are listed.
    """

    running: tuple[Running, ...]
    waiting: tuple[Waiting, ...]
    has_more: bool


class LatestVerdict(FrozenModel):
    """A verdict in short.

    Attributes:
        evaluation_id: The evaluation.
        run_id: The evaluated run, if any.
        created_at: ISO 8601.
        word: The verdict.
        headline: The verdict in one sentence.
        metric: The metric that it is about.
        metric_title: Its name in a sentence.
        num_rows: Rows that were evaluated.
        value: The candidate's figure.
        comparison: The candidate against its baseline.
    """

    evaluation_id: str
    run_id: str | None
    created_at: str
    word: VerdictWord
    headline: str
    metric: str
    metric_title: str
    num_rows: int
    value: Metric | None
    comparison: Comparison | None


class Spent(FrozenModel):
    """The cost of the runs that ended, paused or continued since a moment.

    Attributes:
        since: The moment, ISO 8601.
        num_runs: How many runs.
        hours: Measured hours of training.
        usd: Estimated US dollars; None where no run had a price.
        energy_kwh: Estimated energy; None where no run had a known power.
        num_unpriced: Runs without a price.
        is_all: False where there were more runs than are summed up.
    """

    since: str
    num_runs: int
    hours: float
    usd: Estimate | None
    energy_kwh: Estimate | None
    num_unpriced: int
    is_all: bool


class Room(FrozenModel):
    """The disk that holds the home.

    Attributes:
        total_bytes: Its size.
        free_bytes: What is free.
        artifacts_bytes: What artifacts take.
        runs_bytes: What the folders of runs take; a lower bound where `is_all_counted` is false.
        is_all_counted: Whether all folders of runs were counted.
    """

    total_bytes: int
    free_bytes: int
    artifacts_bytes: int
    runs_bytes: int
    is_all_counted: bool


def look_now(context: Context, project_id: str) -> Now:
    """What is running and what waits, of one project; a run that a command has started is one of `default`."""
    jobs = context.jobs.list(status="running", project_id=project_id, limit=MAX_SHOWN)
    records = context.runs.some([job.run_id for job in jobs])
    by_command: list[RunRecord] = []
    # Runs of commands have no job and belong to `default`.
    if project_id == DEFAULT_PROJECT:
        known = {job.run_id for job in jobs}
        others = context.runs.of_project(project_id, limit=MAX_SHOWN, status="running")
        # A run of a killed command keeps the status `running`; `is_active` looks whether its process lives.
        by_command = [one for one in others if one.run_id not in known and is_active(context, one.run_id)]
    begun = [*records.values(), *by_command]
    events = context.runs.newest([one.run_id for one in begun], ("step", "bill"))
    running = [_of_job(context, job, records.get(job.run_id), events.get(job.run_id, {})) for job in jobs]
    running += [_of_run(one, None, "running", one.created_at, events.get(one.run_id, {})) for one in by_command]
    queued = context.jobs.list(status="queued", project_id=project_id, limit=MAX_SHOWN + 1)
    paused = context.jobs.list(status="paused", project_id=project_id, limit=MAX_SHOWN + 1)
    # The store lists the newest first; the queue is worked off from the oldest.
    later = [*reversed(queued), *paused]
    shown = later[:MAX_SHOWN]
    names = run_names(context, project_id, begun, [*jobs, *shown])
    return Now(
        running=tuple(one.model_copy(update={"name": names.get(one.run_id or "", one.name)}) for one in running),
        waiting=tuple(_waiting(context, job, names.get(job.run_id or "", KINDS[job.kind].title)) for job in shown),
        has_more=len(later) > MAX_SHOWN,
    )


def last_verdicts(context: Context, project_id: str, *, limit: int) -> list[LatestVerdict]:
    """The verdicts of the newest evaluations of a project, newest first."""
    ids = context.evaluations.newest_of(project_id, limit=limit)
    found = (_judged(context, evaluation_id) for evaluation_id in ids)
    return [one for one in found if one is not None]


def spent_this_month(context: Context, project_id: str) -> Spent:
    """What the runs of a project have taken in this month (UTC), each run whole in the month of its last change.

    Runs without a result count, too: what has failed or was killed has taken its time all the same.
    """
    clock = datetime.fromtimestamp(context.access.now(), UTC)
    since = clock.replace(day=1, hour=0, minute=0, second=0, microsecond=0).isoformat(timespec="seconds")
    changed = context.runs.changed_since(project_id, since, limit=MAX_SUMMED + 1)
    known: dict[str, dict[str, Any] | None] = {}
    is_open: list[str] = []
    for run_id, status, result in changed[:MAX_SUMMED]:
        # Plain JSON: a thousand models to validate would take a second of this page.
        known[run_id] = None if result is None else json.loads(result)["bill"]
        if status != "succeeded":
            is_open.append(run_id)
    # What is worked on now belongs to this month, though the last step that it has done may be of the month before.
    jobs = context.jobs.list(status="running", project_id=project_id, limit=MAX_SHOWN)
    for one in context.runs.some([job.run_id for job in jobs if job.run_id and job.run_id not in known]).values():
        bill = None if one.result is None else one.result.bill
        known[one.run_id] = None if bill is None else bill.model_dump()
        is_open.append(one.run_id)
    for run_id, events in context.runs.newest(is_open, ("bill",)).items():
        # Of a run that continued after a pause the event is newer, of one that is evaluated the result.
        event, before = events.get("bill"), known[run_id]
        if isinstance(event, BillUpdated) and (before is None or event.bill.hours > before["hours"]):
            known[run_id] = event.bill.model_dump()
    bills = [bill for bill in known.values() if bill is not None]
    return Spent(
        since=since,
        num_runs=len(bills),
        hours=sum(bill["hours"] for bill in bills),
        usd=_sum([bill["usd"] for bill in bills]),
        energy_kwh=_sum([bill["energy_kwh"] for bill in bills]),
        num_unpriced=sum(bill["usd"] is None for bill in bills),
        is_all=len(changed) <= MAX_SUMMED,
    )


def room(context: Context) -> Room:
    """How much of the disk is taken. Folders of runs are looked at for a tenth of a second at most, once a minute."""
    disk = shutil.disk_usage(context.home)
    runs_bytes, is_all = _held(str(context.settings.runs_folder))
    return Room(
        total_bytes=disk.total,
        free_bytes=disk.free,
        artifacts_bytes=context.artifacts.num_bytes(),
        runs_bytes=runs_bytes,
        is_all_counted=is_all,
    )


def _of_job(context: Context, job: Job, record: RunRecord | None, events: Mapping[str, Event]) -> Running:
    if record is not None:
        return _of_run(record, job.job_id, job.shown_status, job.created_at, events)
    # A job of the fine-tuning API passes the lane `validate` before it waits for `train`.
    stage = "checking the files" if job.lane == "validate" else "preparing: loading model and rows"
    if not job.run_id:
        stage = _newest_event(context, job) or "in progress"
    return Running(
        run_id=job.run_id or None,
        job_id=job.job_id,
        status=job.shown_status,
        stage=stage,
        name=KINDS[job.kind].title,
        base_model=_base_model(job),
        since=job.created_at,
        address=job_address(context, job),
    )


def _newest_event(context: Context, job: Job) -> str:
    """What an attempt has reported last, such as `Writing answers: 16 of 200 answers`; empty before that."""
    newest, _ = context.job_events.page(job.job_id, limit=1)
    return redact_text(newest[0].message, reference_paths(context, job.document)) if newest else ""


def _of_run(
    record: RunRecord, job_id: str | None, status: str, since: float | str, events: Mapping[str, Event]
) -> Running:
    step = events.get("step")
    stage = (
        "evaluating on held-out rows"
        if record.is_trained
        else "training"
        if record.step
        else "preparing the first step"
    )
    return Running(
        run_id=record.run_id,
        job_id=job_id,
        status=status,
        stage=stage,
        base_model=record.base_model,
        method=record.method,
        step=record.step,
        num_steps=record.num_steps,
        loss=comparable_loss(step) if isinstance(step, StepDone) else None,
        left_seconds=None if record.is_trained else _left_seconds(record, events),
        since=since,
    )


def _left_seconds(record: RunRecord, events: Mapping[str, Event]) -> float | None:
    """By the last bill, scaled to the steps that are left by now; without one by what the last step took."""
    # The bill is some steps old: its time is scaled to what is left now.
    left = record.num_steps - record.step
    bill, step = events.get("bill"), events.get("step")
    if isinstance(bill, BillUpdated) and record.num_steps > bill.step:
        return bill.bill.left_seconds * left / (record.num_steps - bill.step)
    return step.seconds * left if isinstance(step, StepDone) else None


def _waiting(context: Context, job: Job, name: str) -> Waiting:
    return Waiting(
        name=name,
        job_id=job.job_id,
        run_id=job.run_id or None,
        status=job.status,
        base_model=_base_model(job),
        since=job.updated_at,
        address=job_address(context, job),
    )


def _base_model(job: Job) -> str:
    """As requested; of a folder of this machine the name alone."""
    asked = job.document.get("base_model") or job.document.get("recipe", {}).get("base_model", "")
    return Path(str(asked)).name if str(asked).startswith("/") else str(asked)


_known: Final[dict[tuple[str, str], LatestVerdict | None]] = {}
_MAX_KNOWN: Final = 1000


def _judged(context: Context, evaluation_id: str) -> LatestVerdict | None:
    """Evaluations never change, and hold all that was written for them: each is read once."""
    # The home too: tests and embedded use open several in one process.
    key = (str(context.home), evaluation_id)
    # Read and written once each: another thread may clear them in between.
    with contextlib.suppress(KeyError):
        return _known[key]
    found = _summary(without_paths(context, context.evaluations.get(evaluation_id)))
    # Cleared as a whole: a page shows a handful of evaluations, which are read again immediately.
    if len(_known) >= _MAX_KNOWN:
        _known.clear()
    _known[key] = found
    return found


def _summary(evaluation: Evaluation) -> LatestVerdict | None:
    verdict = evaluation.verdict
    if verdict is None:
        return None
    who = roles(evaluation)
    pair = (verdict.metric, who.candidate, who.baseline) if who and who.baseline else None
    pairs = {(one.metric, one.candidate, one.baseline): one for one in evaluation.comparisons}
    values = {system.name: system.metrics.get(verdict.metric) for system in evaluation.systems}
    return LatestVerdict(
        evaluation_id=evaluation.evaluation_id,
        run_id=evaluation.run_id,
        created_at=evaluation.created_at,
        word=verdict.word,
        headline=verdict.headline,
        metric=verdict.metric,
        metric_title=metric_title(verdict.metric),
        num_rows=evaluation.num_rows,
        value=values.get(who.candidate) if who else None,
        comparison=pairs.get(pair) if pair else None,
    )


def _sum(parts: Sequence[dict[str, float] | None]) -> Estimate | None:
    """Ends added to ends; plain numbers, since there may be a thousand of them."""
    known = [part for part in parts if part is not None]
    if not known:
        return None
    # Adding the ends assumes fully dependent errors: the interval is too wide rather than too narrow.
    return Estimate(**{end: sum(part[end] for part in known) for end in ("value", "low", "high")})


_looking: Final = threading.Lock()
_looked: dict[str, tuple[float, int, bool]] = {}


def _held(folder: str) -> tuple[int, bool]:
    """What the files below a folder take, and whether all were counted; one thread looks, others wait for it."""
    # Held during the scan: several tabs together would each scan the same folders.
    with _looking:
        kept = _looked.get(folder)
        if kept is None or time.monotonic() - kept[0] > _REMEMBERED_SECONDS:
            kept = _looked[folder] = (time.monotonic(), *_counted(folder, time.monotonic() + _LOOK_SECONDS))
        return kept[1:]


def _counted(folder: str, deadline: float) -> tuple[int, bool]:
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                # lstat: a link counts its own few bytes, not the file it leads to, which may be outside.
                total += (Path(place) / name).lstat().st_size
            except FileNotFoundError:
                continue  # it was removed meanwhile
        # Checked once per folder: another system call per file would slow the scan itself.
        if time.monotonic() > deadline:
            return total, False
    return total, True


def run_names(
    context: Context,
    project_id: str,
    records: Sequence[RunRecord],
    jobs: Sequence[Job] = (),
    *,
    more: Sequence[str] = (),
) -> dict[str, str]:
    """The names of runs by their ids.

    Args:
        context: The home.
        project_id: Whose datasets give the first part of a name.
        records: Runs that have begun.
        jobs: Jobs whose runs may not have begun.
        more: Ids of further runs that have begun.
    """
    run_ids = [*more, *(one.run_id for one in records), *(one.run_id for one in jobs if one.run_id)]
    found = context.run_labels.names(run_ids)
    # A job whose run has not begun has no name yet but its id: it is called as its run will be.
    waiting = {one.run_id: asked_of(one) for one in jobs if one.run_id and found[one.run_id] == one.run_id}
    keys = {one["train"] for one in waiting.values() if one.get("train")}
    datasets = context.run_entries.dataset_names(project_id, list(keys))
    for job in jobs:
        if job.run_id in waiting:
            asked = waiting[job.run_id]
            dataset = datasets.get(asked.get("train", ""))
            base_model = asked.get("base_model", "") or str(job.document.get("base_model", ""))
            moment = datetime.fromtimestamp(job.created_at, UTC)
            found[job.run_id] = display_name(dataset.name if dataset else "", base_model, moment)
    return found
