"""Use case: train a recipe, or resume a run that was paused or killed. Ends with a verdict and a report.

The loss of the first step is stored, so that it can be compared with that of another program. The final evaluation uses
the remaining budget.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.core.errors import ConflictError, LuthierError, MemoryShortError, StoppedError, StorageFullError
from luthier.core.events import RunEnded
from luthier.core.ids import new_id
from luthier.core.plan import Plan
from luthier.core.ports import EventSink
from luthier.core.recipe import BudgetRecipe, Recipe
from luthier.core.run import RunRecord, RunStatus, TrainResult, cause_of
from luthier.core.system.machine_memory import is_out_of_memory, memory_short
from luthier.features.models.result_files import keep_report, keep_weights
from luthier.features.planning.budgets import (
    changed_caps,
    how_to_go_on,
    merged,
    metered,
    refuse_spent,
    stop_check,
    with_budget,
    with_larger_budget,
)
from luthier.features.planning.quotes import forecast_of_run, save_quote
from luthier.features.planning.service import Prepared, prepare, prepare_again
from luthier.features.recipes.service import with_absolute_paths
from luthier.features.trackers.reporting import reported, undelivered
from luthier.features.trackers.service import TrackerState
from luthier.features.training.checkpoint_uploads.lease import LeaseLostError
from luthier.features.training.checkpoint_uploads.session import RunUploads, check_known, uploads_of
from luthier.features.training.external import num_machines
from luthier.features.training.first_step import first_step_of
from luthier.features.training.launchers.here import InProcessLauncher, Launcher
from luthier.features.training.recorder import RunLog, recorder
from luthier.platform.home.context import Context
from luthier.platform.processes.stop_signals import AGAIN, stop_signals

if TYPE_CHECKING:
    from luthier.core.evaluation import Evaluation
    from luthier.core.results.cost import Quote
    from luthier.ml.charts.forecast import Forecast
    from luthier.ml.training.budget import Meter


def judge_within(
    context: Context, run_id: str, prepared: Prepared, result: TrainResult, meter: Meter
) -> tuple[Evaluation | None, TrainResult]:
    """Evaluate a trained run with the remaining budget; the result is `paused` if that is not enough.

    The duration of an evaluation is unknown in advance, so it is stopped at the first batch of answers after the cap;
    from then on that time is a known lower bound.

    Args:
        context: of the home.
        run_id: of the run.
        prepared: its plan and rows.
        result: of its training.
        meter: holds the caps of the run.
    """
    from luthier.features.evaluations.service import judge_run
    from luthier.ml.inference import accelerator

    reason = meter.refuses("judging")
    if reason is None:
        meter.begin("judging")
        # The peak memory of the evaluation alone: that of training would hide it.
        accelerator.forget_peaks(prepared.plan.training.device)
        try:
            with stop_signals(lambda: _judging_notice(run_id)) as stop_requested:
                evaluation = judge_run(context, run_id, prepared, result, stop=stop_check(meter, stop_requested))
        except StoppedError as error:
            reason = error.reason
        else:
            context.evaluations.save(evaluation)
            measured = {
                "judging_seconds": evaluation.seconds,
                "judging_peak_memory_bytes": accelerator.device_peak_memory_bytes(prepared.plan.training.device),
            }
            return evaluation, result.model_copy(update=measured)
    words = f"{reason}. The weights are trained and kept, but not evaluated"
    stopped = {"status": "paused", "stopped_because": words, "stop_cause": cause_of(reason)}
    return None, result.model_copy(update=stopped)


def _judging_notice(run_id: str) -> str:
    return (
        "the evaluation stops after the current batch of answers; the weights are trained and kept, and `luthier train "
        f"--resume {run_id}` evaluates them. {AGAIN}"
    )


_LOCK_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class TrainOutcome:
    """A run that has ended or is paused.

    Attributes:
        record: As stored.
        plan: Of the run.
        evaluation: Set if held-out rows were evaluated.
        warnings: Raised during training.
        go_on: The command that resumes it, if it is paused.
        forecast: Predicted and actual cost.
        trackers: What its experiment trackers have of it.
    """

    record: RunRecord
    plan: Plan
    evaluation: Evaluation | None
    warnings: tuple[str, ...]
    go_on: str | None = None
    forecast: Forecast | None = None
    trackers: tuple[TrackerState, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """The final document of `luthier train --json`; names contain units."""
        result = self.record.result
        document: dict[str, Any] = {
            "run_id": self.record.run_id,
            "status": self.record.status,
            "base_model": self.record.base_model,
            "method": self.record.method,
            "plan_hash": self.record.plan_hash,
            "report_path": self.record.report_path,
            "evaluation_id": self.record.evaluation_id,
        }
        if result is not None:
            document |= result.model_dump(mode="json")
            document["first_step_loss"] = None if result.first_step is None else result.first_step.loss
        document["warnings"] = list(self.warnings)
        document["go_on"] = self.go_on
        document["forecast"] = None if self.forecast is None else self.forecast.as_json()
        document["trackers"] = [state.as_json() for state in self.trackers]
        if self.plan.budget is not None:
            document["budget"] = self.plan.budget.model_dump(mode="json", exclude={"first"})
        if self.evaluation is not None and self.evaluation.verdict is not None:
            from luthier.ml.evaluation.recommendation import recommendation_document

            document["verdict"] = self.evaluation.verdict.model_dump(mode="json")
            document["recommendation"] = recommendation_document(self.evaluation)
        return document


ShowPlan = Callable[[str, Plan, "Quote | str"], None]


def train(
    context: Context,
    recipe: Recipe,
    *,
    base_dir: Path,
    prices: Path | None = None,
    show_plan: ShowPlan | None = None,
    run_id: str | None = None,
    launcher: Launcher | None = None,
    listener: EventSink | None = None,
) -> TrainOutcome:
    """Train a recipe from its start.

    SIGTERM, SIGINT and the budget end the run as `paused`, with a checkpoint.

    Args:
        context: The home.
        recipe: The recipe.
        base_dir: Folder for relative paths in the recipe.
        prices: A file whose entries override those of the price table.
        show_plan: Called before training, with run id, plan and prediction (or why there is none).
        run_id: Of the run, if already assigned; None creates one.
        launcher: The processes that train it; None is this one.
        listener: Called with each event once it is stored, and before the checkpoint that makes it final.

    Raises:
        RequestError: before training: errors of `planning.service.make_plan`, and a plan that the launcher's processes
            cannot share.
        DivergedError: The loss or a gradient is not a number; the last good weights are in a checkpoint.
        StorageFullError: The disk is full.
    """
    began = time.perf_counter()
    # Absolute, so that the run can be resumed from any other folder.
    num = 1 if launcher is None else max(1, launcher.num_processes)  # a wrong number is refused with the plan
    asked = with_absolute_paths(recipe, base_dir.absolute())
    prepared = prepare(context, asked, base_dir=Path(), prices=prices, num_processes=num)
    if num > 1:
        # Money and energy are totals of all devices.
        paid = {"num_devices": num, "num_machines": num_machines()}
        plan = with_budget(context, prepared.plan, recipe.budget, prices, **paid)
        prepared = replace(prepared, plan=plan)
    return train_prepared(
        context,
        prepared,
        began=began,
        prices=prices,
        show_plan=show_plan,
        run_id=run_id,
        launcher=launcher,
        listener=listener,
    )


def train_prepared(
    context: Context,
    prepared: Prepared,
    *,
    began: float,
    prices: Path | None = None,
    show_plan: ShowPlan | None = None,
    run_id: str | None = None,
    launcher: Launcher | None = None,
    listener: EventSink | None = None,
    draws_page: bool = True,
) -> TrainOutcome:
    """Train prepared data as `train` does; evaluates if `prepared` contains held-out rows.

    Args:
        context: The home.
        prepared: The plan and its rows.
        began: Start of the work, by `time.perf_counter`; time is billed from then on.
        prices: As for `train`.
        show_plan: As for `train`.
        run_id: As for `train`.
        launcher: As for `train`.
        listener: As for `train`.
        draws_page: False leaves the page of the report to `luthier report`.

    Raises:
        RequestError: A plan that the launcher's processes cannot share.
        DivergedError: The loss or a gradient is not a number.
        StorageFullError: The disk is full.
    """
    launcher = launcher or InProcessLauncher()
    # Before the record: a rejected recipe leaves no run behind.
    launcher.check(prepared.plan)
    run_id, now = run_id or new_id("run"), datetime.now(UTC).isoformat(timespec="seconds")
    record = RunRecord(
        run_id=run_id,
        status="planned",
        base_model=prepared.plan.base_model.name,
        method=prepared.plan.method.name,
        plan_hash=prepared.plan.hash,
        created_at=now,
        updated_at=now,
        num_steps=prepared.plan.training.num_steps,
    )
    with _held(context, run_id) as lock, uploads_of(context, run_id) as uploads:
        # Under the lock: a run in the store without a lock holder would be treated as killed.
        context.runs.create(record, prepared.plan, context.owner_project_id)
        quote = save_quote(context, run_id, prepared, prices, num_devices=launcher.num_processes)
        uploads.begin(prepared.plan)
        if show_plan is not None:
            show_plan(run_id, prepared.plan, quote)
        folder = context.settings.run_folder(run_id)
        # Reading rows is also billed, and happened before the meter existed.
        with metered(folder, prepared.plan, seconds_before=time.perf_counter() - began) as meter:
            return _carry_out(
                context, run_id, prepared, meter, launcher, lock, uploads, listener, draws_page=draws_page
            )


def resume(
    context: Context,
    run_id: str,
    *,
    budget: BudgetRecipe | None = None,
    prices: Path | None = None,
    is_judged: bool = True,
    launcher: Launcher | None = None,
    listener: EventSink | None = None,
    ready: Prepared | None = None,
    draws_page: bool = True,
    launch_budget: BudgetRecipe | None = None,
) -> TrainOutcome:
    """Resume a run from its newest intact checkpoint; the result equals that of an uninterrupted run.

    Args:
        context: The home.
        run_id: Of the run.
        budget: Caps that override those of the run, counted from its beginning.
        prices: As for `train`; without them the run keeps its rates.
        is_judged: False skips the evaluation on held-out rows.
        launcher: As for `train`, not necessarily the one that began.
        listener: As for `train`.
        ready: The prepared data, if this process already has it.
        draws_page: As for `train_prepared`.
        launch_budget: Caps of the launch that starts the run again; those that differ from what the run began with
            override its own, too.

    Raises:
        NotFoundError: there is no such run.
        ConflictError: it is done, another process holds it, or its base model or rows have changed.
        RequestError: its budget is used up.
    """
    launcher = launcher or InProcessLauncher()
    check_known(context, run_id)  # before the lock, which would create a folder for a run that does not exist
    with _held(context, run_id) as lock, uploads_of(context, run_id) as uploads:
        uploads.fetch_newer()
        # Read under the lock: the process that held it before may have finished the run.
        record = context.runs.get(run_id)
        if record.status == "succeeded":
            raise ConflictError(
                f"run {run_id} has succeeded already",
                expected="a run that was paused, failed or killed",
                do=f"see it with: luthier runs show {run_id}",
            )
        plan = context.runs.plan(run_id)
        caps = merged(changed_caps(plan, launch_budget), budget)
        paid = {"num_devices": launcher.num_processes, "num_machines": num_machines()}
        plan = with_larger_budget(context, plan, caps, prices, **paid)
        launcher.check(plan)
        with metered(context.settings.run_folder(run_id), plan) as meter:
            # Evaluation and report may be all that is missing, and they may exceed a spent budget.
            is_trained = record.result is not None and record.result.adapter_path is not None
            refuse_spent(run_id, meter, training_is_done=is_trained)
            # Preparation is billed as well, and starts after the check for a spent budget.
            meter.begin("preparing")
            prepared = prepare_again(context, plan, ready=ready)
            if not is_judged:
                prepared = replace(prepared, held_out=None)
            # Only now, after the rows and the base model were verified to be the same.
            context.runs.set_budget(run_id, plan)
            uploads.begin(plan)
            return _carry_out(
                context, run_id, prepared, meter, launcher, lock, uploads, listener, draws_page=draws_page
            )


@contextmanager
def _held(context: Context, run_id: str) -> Iterator[int]:
    """The exclusive lock of a run, released when its holder dies, however it dies. Yields its descriptor."""
    from luthier.core.system.files import file_lock

    lock = context.settings.run_folder(run_id) / "lock"
    with file_lock(lock, what=f"run {run_id}", timeout_seconds=_LOCK_SECONDS) as descriptor:
        yield descriptor


def _carry_out(
    context: Context,
    run_id: str,
    prepared: Prepared,
    meter: Meter,
    launcher: Launcher,
    lock: int,
    uploads: RunUploads,
    listener: EventSink | None,
    *,
    draws_page: bool,
) -> TrainOutcome:
    """`_train_and_judge`, reported to the trackers of the plan and uploaded."""
    listener = uploads.observing(listener)
    with reported(context, run_id, prepared.plan) as trackers:
        outcome = _train_and_judge(context, run_id, prepared, meter, launcher, lock, listener, draws_page=draws_page)
    outcome = replace(outcome, warnings=(*outcome.warnings, *uploads.end(outcome.record)))
    log = RunLog(context.settings.run_folder(run_id))
    for line in undelivered(trackers, run_id):
        log.say(line)
    return replace(outcome, trackers=tuple(trackers))


def _train_and_judge(
    context: Context,
    run_id: str,
    prepared: Prepared,
    meter: Meter,
    launcher: Launcher,
    lock: int,
    listener: EventSink | None,
    *,
    draws_page: bool,
) -> TrainOutcome:
    """Train, evaluate, report; the stored record always shows the current state, and finally why the run ended."""
    from luthier.features.training.reports import write_run_report
    from luthier.ml.training.budget import remaining
    from luthier.ml.training.fit import diagnose

    warnings: list[str] = []
    try:
        result = launcher.train(
            context,
            run_id,
            prepared,
            meter,
            recorder(context, run_id, warnings, listener, device=prepared.plan.training.device),
            lock,
        )
        # the loss of sampled answers is near 0 in any case, so it does not show the fit
        if result.status == "succeeded" and not prepared.plan.objective.draws:
            result = result.model_copy(update={"fit": diagnose(prepared.plan, context.runs.events(run_id))})
        # Also for a paused run: whether it began as expected distinguishes a wrong set-up from a bad learning rate.
        first = first_step_of(prepared, context.runs.at_steps(run_id, [1]))
        result = result.model_copy(update={"first_step": first})
        _keep_trained(context, run_id, prepared, result, meter)
        evaluation = None
        if result.status == "succeeded" and prepared.held_out is not None:
            evaluation, result = judge_within(context, run_id, prepared, result, meter)
        meter.begin("reporting")
        # A run that ended early by its own rule has no steps left, though it took fewer than planned.
        done = result.num_steps if result.adapter_path is None else prepared.plan.training.num_steps
        was_judged = evaluation is not None or prepared.held_out is None
        bill = meter.bill(remaining(prepared.plan, done, result.num_tokens, was_judged=was_judged))
        result = result.model_copy(update={"bill": bill})
        _close(context, run_id, result.num_steps, result.status, result.stopped_because)
        record = context.runs.update(
            run_id, result=result, evaluation_id=evaluation.evaluation_id if evaluation else None
        ).model_copy(update={"status": result.status})
        report = write_run_report(context, record, prepared, evaluation, draws_page=draws_page)
        keep_report(context, run_id)
    except BaseException as error:
        short = _memory_short(context, run_id, prepared, error) if is_out_of_memory(error) else None
        _close_failed(context, run_id, prepared, short or error, draws_page=draws_page)
        if short is not None:
            raise short from error
        raise
    # Only now: a run marked as done has its weights, verdict and report on disk.
    record = context.runs.update(run_id, status=result.status, report_path=_text(report))
    go_on = how_to_go_on(run_id, meter) + launcher.flags if result.status == "paused" else None
    forecast = forecast_of_run(context, record)
    return TrainOutcome(record, prepared.plan, evaluation, tuple(warnings), go_on, forecast)


def _memory_short(context: Context, run_id: str, prepared: Prepared, error: BaseException) -> MemoryShortError:
    """The plan said that the run fits, and others hold the memory, or the plan was wrong."""
    step, training = context.runs.get(run_id).step, prepared.plan.training
    smaller = [f"training.micro_batch_tokens={max(1, training.micro_batch_tokens // 2)}"]
    if training.micro_batch_workers > 1:
        smaller.append("training.micro_batch_workers=1")
    if not training.gradient_checkpointing:
        smaller.append("training.gradient_checkpointing=true")
    return memory_short(
        error,
        what=f"memory ran out in run {run_id} after step {step} of {training.num_steps}",
        do=(
            f"end other programs and continue from its last checkpoint: luthier train --resume {run_id}; "
            f"or train again with less at a time, by --set: {' or '.join(smaller)}"
        ),
    )


def _close_failed(context: Context, run_id: str, prepared: Prepared, error: BaseException, *, draws_page: bool) -> None:
    """Record why a run ended without a result, with a report of its own error."""
    from luthier.features.training.reports import write_run_report

    if isinstance(error, LeaseLostError) and context.settings.database is not None:
        return  # the record is that of the machine that continues the run
    # KeyboardInterrupt and SystemExit are stop requests, not errors of the run.
    status: RunStatus = "failed" if isinstance(error, Exception) else "paused"
    reason = error.came if isinstance(error, LuthierError) else repr(error)
    # From the store: the error occurred before there was a result with the step.
    _close(context, run_id, context.runs.get(run_id).step, status, reason)
    record = context.runs.update(run_id, status=status)
    if isinstance(error, LuthierError):
        with suppress(StorageFullError):  # a full disk may be the reason of the failure
            report = write_run_report(context, record, prepared, None, draws_page=draws_page)
            context.runs.update(run_id, report_path=_text(report))
            with suppress(LuthierError):  # a store without an answer must not hide why the run failed
                keep_report(context, run_id)


def _text(page: Path | None) -> str | None:
    return None if page is None else str(page)


def _close(context: Context, run_id: str, step: int, status: RunStatus, reason: str) -> None:
    ended = RunEnded(step=step, status=status, reason=reason)
    context.runs.append(run_id, ended)
    RunLog(context.settings.run_folder(run_id)).write(ended)
    context.runs.update(run_id, stopped_because=reason)


def _keep_trained(context: Context, run_id: str, prepared: Prepared, result: TrainResult, meter: Meter) -> None:
    """Register the trained weights in the content-addressed files, and store that the training of the run is done."""
    from luthier.ml.training.budget import remaining

    if result.adapter_path is None:
        return
    keep_weights(context, run_id, Path(result.adapter_path))
    # Before the evaluation, which may take long: pages show what the run does, and after a kill only what is missing
    # has to fit into its budget.
    steps = prepared.plan.training.num_steps
    bill = meter.bill(remaining(prepared.plan, steps, result.num_tokens, was_judged=prepared.held_out is None))
    context.runs.update(run_id, result=result.model_copy(update={"bill": bill}))
