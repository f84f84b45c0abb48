"""Runs after they were started: list, show, compare, watch, remove; and their events as lines of text."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from luthier.core.access import DEFAULT_PROJECT, Caller
from luthier.core.errors import ConflictError, LuthierError, ModelSourceError, NotFoundError, RequestError
from luthier.core.evaluation import Evaluation
from luthier.core.events import (
    BillUpdated,
    Event,
    StepDone,
    ValidationDone,
    WarningRaised,
)
from luthier.core.plan import Plan
from luthier.core.run import Bill, RunRecord
from luthier.core.task_head import TaskHead, task_head_in
from luthier.core.text.counted import counted
from luthier.features.models.uses import refuse_in_use, remove_unused, uses_of
from luthier.features.runs.filter_language import parse_filter
from luthier.features.runs.filter_query import Order
from luthier.features.runs.labels import RunLabels
from luthier.features.trackers.service import TrackerState, states
from luthier.features.training.checkpoint_uploads.lease import OWN_LEASE
from luthier.features.training.checkpoint_uploads.session import forget_uploads
from luthier.ml.charts.forecast import Forecast
from luthier.platform.audit_log import service as audit_log
from luthier.platform.home.context import Context
from luthier.platform.jobs.records import ENDED, Job

_LOCK_SECONDS = 1.0
_REMOVED = ".removed-"
_AT_ONCE = 1_000


@dataclass(frozen=True, slots=True)
class RunView:
    """A run and whether a process is working on it now. "running" and not active: its process was killed.

    name: of its list; labels: what was written about it. Both are None where they were not read.
    """

    record: RunRecord
    is_active: bool
    name: str | None = None
    labels: RunLabels | None = None

    @property
    def was_killed(self) -> bool:
        """Whether the run's process ended without a record; `luthier train --resume` resumes it."""
        return self.record.status in ("planned", "running") and not self.is_active

    def as_json(self) -> dict[str, Any]:
        """The record with what is known of its process, and what was written about it."""
        document = {
            **self.record.model_dump(mode="json"),
            "is_active": self.is_active,
            "was_killed": self.was_killed,
        }
        return document if self.labels is None else document | self.labels.as_json() | {"name": self.name}


@dataclass(frozen=True, slots=True)
class RunDetails:
    """All that is known of one run, short of the samples of its evaluation.

    task_head: of the trained model, else as planned; None where it writes text.
    trackers: what its experiment trackers have of it.
    """

    view: RunView
    plan: Plan
    evaluation: Evaluation | None
    last_step: StepDone | None
    last_validation: ValidationDone | None
    warnings: tuple[str, ...]
    folder: str
    bill: Bill | None
    forecast: Forecast | None
    task_head: TaskHead | None
    trackers: tuple[TrackerState, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """The document of `luthier runs show --json`."""
        from luthier.ml.evaluation.recommendation import recommendation_document

        return {
            **self.view.as_json(),
            "folder": self.folder,
            "plan": self.plan.model_dump(mode="json", exclude={"sources"}),
            "plan_values": self.plan.values(),
            "last_step": self.last_step.model_dump(mode="json") if self.last_step else None,
            "last_validation": self.last_validation.model_dump(mode="json") if self.last_validation else None,
            "warnings": list(self.warnings),
            "bill": self.bill.model_dump(mode="json") if self.bill else None,
            "forecast": None if self.forecast is None else self.forecast.as_json(),
            "task_head": None if self.task_head is None else self.task_head.model_dump(mode="json"),
            "evaluation": None if self.evaluation is None else without_samples(self.evaluation),
            "recommendation": recommendation_document(self.evaluation),
            "trackers": [state.as_json() for state in self.trackers],
        }


@dataclass(frozen=True, slots=True)
class RunComparison:
    """Runs side by side. Each row's `values` are in the order of `run_ids`; None where a run has no such value.

    Attributes:
        run_ids: The runs.
        plan: The values in which the plans differ.
        results: Figures of the results.
        metrics: Of each run's last evaluation, named `system: metric`.
        caveats: Why figures may not be comparable.
    """

    run_ids: tuple[str, ...]
    plan: tuple[dict[str, Any], ...]
    results: tuple[dict[str, Any], ...]
    metrics: tuple[dict[str, Any], ...]
    caveats: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """The document of `luthier runs compare --json`."""
        return {
            "run_ids": list(self.run_ids),
            "plan": list(self.plan),
            "results": list(self.results),
            "metrics": list(self.metrics),
            "caveats": list(self.caveats),
        }


def list_runs(context: Context, limit: int | None = None, *, filter_text: str = "", sort: str = "") -> list[RunView]:
    """The runs of this home, newest first, or in the order of `sort`; those that a filter keeps.

    Archived runs are there unless the filter leaves them out.

    Raises:
        RequestError: A filter or an order that cannot be read.
    """
    tree, order, views, before = parse_filter(filter_text), Order.parse(sort), list[RunView](), None
    while limit is None or len(views) < limit:
        # A bounded number at a time: databases limit the values of one statement.
        most = _AT_ONCE if limit is None else min(_AT_ONCE, limit - len(views))
        entries = context.run_entries.page(
            None, limit=most, before=before, tree=tree, order=order, only_begun=True, hides_archived=False,
            is_active=partial(is_active, context),
        ).entries  # fmt: skip
        ids = [entry.run_id for entry in entries]
        labels, defaults = context.run_labels.of_runs(ids), context.run_labels.default_names(ids)
        for entry in entries:
            if entry.record is not None:
                name = labels[entry.run_id].name or defaults.get(entry.run_id, "")
                views.append(replace(view_of(context, entry.record), name=name, labels=labels[entry.run_id]))
        if len(entries) < most:
            break
        before = ids[-1]
    return views


def show_run(context: Context, run_id: str) -> RunDetails:
    """One run.

    Raises:
        NotFoundError: There is no such run; the message names the nearest ids.
    """
    from luthier.features.planning.quotes import forecast_of_run

    record = context.runs.get(run_id)
    step, validation, bill = (context.runs.last(run_id, kind) for kind in ("step", "validation", "bill"))
    warnings = reversed(context.runs.of_kinds(run_id, ["warning"]))
    plan, messages = context.runs.plan(run_id), [one.message for one in warnings if isinstance(one, WarningRaised)]
    head = plan.objective.task_head
    try:
        # The planned one has no temperature yet, and the run may still train.
        head = task_head_in(record.result.adapter_path if record.result else None) or head
    except ModelSourceError as error:
        messages.append(f"the task head of the run cannot be read: {error.came}")
    # While it runs again after a pause, the bill of the result is the old one, and the events have a newer.
    ended = record.result.bill if record.result and record.status != "running" else None
    return RunDetails(
        view=named_view(context, record),
        plan=plan,
        evaluation=_last_evaluation(context, run_id),
        last_step=step if isinstance(step, StepDone) else None,
        last_validation=validation if isinstance(validation, ValidationDone) else None,
        warnings=tuple(messages),
        folder=str(context.settings.run_folder(run_id)),
        bill=ended or (bill.bill if isinstance(bill, BillUpdated) else None),
        forecast=forecast_of_run(context, record) if record.result is not None else None,
        task_head=head,
        trackers=tuple(states(context, run_id)),
    )


def compare_runs(context: Context, run_ids: Sequence[str]) -> RunComparison:
    """Two runs or more side by side.

    Raises:
        NotFoundError: There is none in the project.
        RequestError: Fewer than two different runs.
    """
    # A run compared with itself would show no difference.
    if len(set(run_ids)) < 2 or len(set(run_ids)) < len(run_ids):
        raise RequestError(
            f"runs to compare: {', '.join(run_ids) or 'none'}",
            expected="two or more different runs",
            do="see `luthier runs list`",
        )
    details = [show_run(context, run_id) for run_id in run_ids]
    plans = [{row["name"]: row["value"] for row in run.plan.values()} for run in details]
    results = [_result_values(run.view.record) for run in details]
    metrics = [_metric_values(run.evaluation) for run in details]
    return RunComparison(
        run_ids=tuple(run_ids),
        # Plans have some hundred values, and usually only a few differ.
        plan=tuple(row for row in _side_by_side(plans) if any(v != row["values"][0] for v in row["values"])),
        results=tuple(_side_by_side(results)),
        metrics=tuple(_side_by_side(metrics)),
        caveats=tuple(_caveats(details)),
    )


def watch_run(context: Context, run_id: str, *, pause_seconds: float = 0.5) -> Iterator[Event]:
    """The events of a run, those there are and then each new one as it comes, until no process works on the run.

    A step that is trained again after a crash comes again.

    Raises:
        NotFoundError: There is no such run.
    """
    position = 0
    while True:
        active = is_active(context, run_id)  # asked first: what is written before the end must still be read
        events, position = context.runs.tail(run_id, position)
        yield from events
        if not active:
            return
        time.sleep(pause_seconds)


def view_run(context: Context, run_id: str) -> RunView:
    """One run, in short.

    Raises:
        NotFoundError: There is no such run.
    """
    return view_of(context, context.runs.get(run_id))


def remove_run(context: Context, run_id: str, *, with_models: bool = False) -> RunRecord:
    """Delete a run and its folder with checkpoints, adapter and report; returns the deleted run.

    Args:
        context: The home.
        run_id: The run.
        with_models: Whether the models that were registered of it are deleted, too.

    Raises:
        NotFoundError: There is none in the project.
        ConflictError: A process is working on it, or it is in use (see `set_aside`).
    """

    def remove() -> RunRecord:
        # A command is in no project: the entry is of that of the run.
        project_id = context.runs.project_of(run_id) or DEFAULT_PROJECT
        return set_aside(context, Caller(project_id=project_id), run_id, with_models=with_models)

    # The check alone: which of the refusals of `set_aside` comes first is its own.
    record = remove_unused(context, lambda: uses_of(context, run_id), remove)
    sweep_removed(context)
    return record


def leaves_uploads(context: Context, run_id: str) -> bool:
    """Whether the removal of a run leaves uploads of this home in object storage, since no place is set."""
    return context.settings.checkpoints is None and (context.settings.run_folder(run_id) / OWN_LEASE).is_file()


def set_aside(context: Context, caller: Caller, run_id: str, *, with_models: bool = False) -> RunRecord:
    """Begin the removal of a run, which `sweep_removed` finishes; takes milliseconds. Returns the run.

    Args:
        context: The home, in a transaction: where the removal is refused, no model is deleted either, nor is it logged.
        caller: Whose request it is, for the audit log.
        run_id: The run.
        with_models: Whether the models that were registered of it are deleted, too.

    Raises:
        NotFoundError: There is no such run.
        ConflictError: A process is working on it, its job has not ended, a deployment routes to it or to a model of it,
            a model that was made by it is registered and is not to be deleted, or a run that has not ended needs it.
    """
    from luthier.core.system import facilities
    from luthier.core.system.files import file_lock, replace_file

    record = context.runs.get(run_id)
    # A worker that takes the job later would train a run of this id again, from its beginning.
    if (job := _job_of(context, run_id)) is not None and job.status not in ENDED:
        raise ConflictError(
            f"the job of run {run_id} is {job.shown_status}",
            expected="a run whose job has ended",
            do=f"cancel it first: luthier jobs cancel {job.job_id}",
        )
    models = context.tuned_models.of_run(run_id)
    # Deleting the weights would break the clients of that name. A run is deployed by its own project alone; a model of
    # it may be by others, whose names are not shown.
    if names := context.deployments.routing_to(run_id):
        raise ConflictError(
            f"run {run_id} answers as {', '.join(names)}",
            expected="a run that no deployment routes to",
            do=f"deploy another one first, or remove the name: luthier deployments {names[0]} --remove",
        )
    if models and not with_models:
        raise ConflictError(
            f"run {run_id} is the source of {', '.join(models[:3])}",
            expected="a run without registered models",
            do=f"delete them first: DELETE /v1/models/{models[0]}; or with the run: "
            f"luthier runs rm {run_id} --with-models",
        )
    for model in models:
        if num := len(context.deployments.routing_to(model)):
            raise ConflictError(
                f"{counted(num, 'deployment routes', 'deployments route')} to {model}, a model of run {run_id}",
                expected="a run without deployments of its models",
                do="deploy another model there first, or remove the deployment",
            )
    refuse_in_use(context, caller, run_id)
    context.tuned_models.delete_of_run(run_id)
    folder = context.settings.run_folder(run_id)
    if folder.is_dir():
        removed = folder.with_name(f"{_REMOVED}{run_id}")
        with file_lock(folder / "lock", what=f"run {run_id}", timeout_seconds=_LOCK_SECONDS):
            # The name says what is to go, so that a kill from here on leaves a removal that the next sweep finishes.
            # The rename is atomic and takes the lock file along; deleting many files is not, and is done afterwards.
            if facilities.moves_open_files():
                folder.rename(removed)
        if not facilities.moves_open_files():
            # After the lock, whose file is open in the folder. A process that begins in between keeps it in its place.
            replace_file(folder, removed)
    _remove_job_files(context, run_id)
    with context.database.transaction():
        context.runs.delete(run_id)
        for model in models:
            audit_log.record(context, caller, "model.deleted", model, {"run_id": run_id})
        facts = {"base_model": record.base_model, "status": record.status}
        audit_log.record(context, caller, "run.deleted", run_id, facts)
    return record


def _job_of(context: Context, run_id: str) -> Job | None:
    """The job that makes or continues a run; None for a run that a command has made."""
    project_id = context.runs.project_of(run_id)
    return None if project_id is None else context.jobs.of_run(run_id, project_id)


def _remove_job_files(context: Context, run_id: str) -> None:
    """Remove the copies of files that the job of a run has kept for it; those of a job that may continue stay."""
    if (job := _job_of(context, run_id)) is not None and job.status in ENDED:
        # A resumed one copies what the project still has.
        shutil.rmtree(context.settings.jobs_folder / job.job_id / "files", ignore_errors=True)


def jobs_with_runs(context: Context, jobs: Sequence[Job]) -> set[str]:
    """The ids of those jobs whose runs are there: their plans name files of the jobs, and their pages show the logs."""
    there = context.runs.some([job.run_id for job in jobs if job.run_id])
    return {job.job_id for job in jobs if job.run_id in there}


def sweep_removed(context: Context) -> None:
    """Finish the removals of runs that have begun, those that a kill has cut off among them."""
    for folder in context.settings.runs_folder.glob(f"{_REMOVED}*"):
        run_id = folder.name.removeprefix(_REMOVED)
        with suppress(NotFoundError):  # its row went first, or another process sweeps, too
            # Where a process has held it again, its job was resumed since, and the row is of the new run.
            if not (context.settings.run_folder(run_id) / "lock").exists():
                # A kill between the folder and the rows has left the models, whose weights are gone.
                context.tuned_models.delete_of_run(run_id)
                context.runs.delete(run_id)
        if (folder / OWN_LEASE).is_file():
            try:
                forget_uploads(context, run_id, folder)
            except LuthierError:  # the store does not answer: the folder stays, and the next sweep tries again
                continue
        with suppress(FileNotFoundError):  # another process sweeps the same folder: the next sweep finds what is left
            shutil.rmtree(folder)
    # What the runs alone have put among the artifacts.
    context.artifacts.forget_unused()


def without_samples(evaluation: Evaluation) -> dict[str, Any]:
    """An evaluation as a document, without what each system wrote for each row."""
    return evaluation.model_dump(mode="json", exclude={"systems": {"__all__": {"samples"}}})


def view_of(context: Context, record: RunRecord) -> RunView:
    """A run whose record is known, in short."""
    return RunView(record, is_active(context, record.run_id))


def named_view(context: Context, record: RunRecord) -> RunView:
    """The same with its name and what was written about it."""
    labels = context.run_labels.of_runs([record.run_id])[record.run_id]
    default = context.run_labels.default_names([record.run_id]).get(record.run_id, "")
    return replace(view_of(context, record), name=labels.name or default, labels=labels)


def is_active(context: Context, run_id: str) -> bool:
    """Whether a process is working on a run now."""
    from luthier.core.system.files import is_held

    return is_held(context.settings.run_folder(run_id) / "lock")


def _last_evaluation(context: Context, run_id: str) -> Evaluation | None:
    found = context.evaluations.list(run_id=run_id, limit=1)
    return found[0] if found else None


def _side_by_side(columns: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    names: dict[str, None] = {}
    for column in columns:
        names.update(dict.fromkeys(column))
    return [{"name": name, "values": [column.get(name) for column in columns]} for name in names]


def _result_values(record: RunRecord) -> dict[str, Any]:
    values: dict[str, Any] = {"status": record.status}
    if record.result is not None:
        values |= record.result.model_dump(mode="json", exclude={"status", "warnings", "bill", "fit"})
        values["fit"] = record.result.fit.title if record.result.fit else None
        if (bill := record.result.bill) is not None:
            values |= {"spent_hours": bill.hours, "spent_usd": bill.usd and bill.usd.value}
            values |= {"spent_energy_kwh": bill.energy_kwh and bill.energy_kwh.value}
    return values


def _metric_values(evaluation: Evaluation | None) -> dict[str, Any]:
    if evaluation is None:
        return {}
    return {
        f"{system.name}: {name}": {"value": metric.value, "low": metric.low, "high": metric.high, "unit": metric.unit}
        for system in evaluation.systems
        for name, metric in system.metrics.items()
    }


def _caveats(details: Sequence[RunDetails]) -> Iterator[str]:
    judged = [run.evaluation for run in details if run.evaluation is not None]
    if len(judged) < len(details):
        num = len(details) - len(judged)
        yield f"{num} of {len(details)} runs {'was' if num == 1 else 'were'} not evaluated on held-out rows"
    if len({evaluation.held_out_sha256 for evaluation in judged}) > 1:
        yield "the runs were evaluated on different held-out files: their metrics cannot be compared"
    elif len({evaluation.num_rows for evaluation in judged}) > 1:
        yield "the runs were evaluated on different numbers of held-out rows"
    if len({run.plan.base_model.sha256 for run in details}) > 1:
        yield "the base models differ: compare by bits per byte, not by perplexity"
    if len({run.plan.data.train.sha256 for run in details}) > 1:
        yield "the training files differ"
