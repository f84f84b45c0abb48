"""Use case: train a recipe, or go on with a run that was paused or killed. Ends with a verdict and a report."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.core.dataset import TokenisedExample
from luthier.core.errors import ConflictError, LuthierError, StorageFullError
from luthier.core.evaluation import Evaluation
from luthier.core.events import Event, RunEnded, RunStarted, StepDone, WarningRaised
from luthier.core.ids import new_id
from luthier.core.plan import Plan
from luthier.core.recipe import Recipe
from luthier.core.run import RunRecord, RunStatus, TrainResult
from luthier.service.context import Context
from luthier.service.plans import Prepared, prepare, prepare_again
from luthier.service.recipes import with_absolute_paths

if TYPE_CHECKING:
    from luthier.train.loop import LoopOutcome
    from luthier.train.model import TrainableModel

_LOCK_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class TrainOutcome:
    """A run that has ended for now: its record, its plan, and the evaluation where held-out rows were given."""

    record: RunRecord
    plan: Plan
    evaluation: Evaluation | None
    warnings: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """The document that `luthier train --json` ends with; units are in the names."""
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
        document["warnings"] = list(self.warnings)
        if self.evaluation is not None and self.evaluation.verdict is not None:
            document["verdict"] = self.evaluation.verdict.model_dump(mode="json")
        return document


ShowPlan = Callable[[str, Plan], None]


def train(context: Context, recipe: Recipe, *, base_dir: Path, show_plan: ShowPlan | None = None) -> TrainOutcome:
    """Train a recipe from its start.

    Relative paths in the recipe count from `base_dir`. show_plan: called with run id and plan before anything
    is trained. SIGTERM and SIGINT end the run as `paused`, with a checkpoint.
    Raises what `service.plans.prepare` raises before anything is trained; then DivergedError, StorageFullError.
    """
    prepared = prepare(context, with_absolute_paths(recipe, base_dir.absolute()), base_dir=Path())
    run_id, now = new_id("run"), datetime.now(UTC).isoformat(timespec="seconds")
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
    with _held(context, run_id):
        context.runs.create(record, prepared.plan)
        if show_plan is not None:
            show_plan(run_id, prepared.plan)
        return _carry_out(context, run_id, prepared)


def resume(context: Context, run_id: str) -> TrainOutcome:
    """Go on with a run from its newest whole checkpoint; the outcome is that of a run that was never stopped.

    Raises NotFoundError for an unknown run, ConflictError where it is done, in another process's hands, or where its
    base model or rows have changed.
    """
    record = context.runs.get(run_id)
    with _held(context, run_id):
        if record.status == "succeeded":
            raise ConflictError(
                f"run {run_id} has succeeded already",
                expected="a run that was paused, failed or killed",
                do=f"look at it with: luthier runs show {run_id}",
            )
        prepared = prepare_again(context, context.runs.plan(run_id))
        return _carry_out(context, run_id, prepared)


@contextmanager
def _held(context: Context, run_id: str) -> Iterator[None]:
    """No two processes on one run; the lock goes when its holder dies, however it dies."""
    from luthier.store.file_lock import file_lock

    lock = context.settings.run_folder(run_id) / "lock"
    with file_lock(lock, what=f"run {run_id}", timeout_seconds=_LOCK_SECONDS):
        yield


def _carry_out(context: Context, run_id: str, prepared: Prepared) -> TrainOutcome:
    """Train, judge, report; the record in the store says at each moment how far it is, and at the end why it ended."""
    from luthier.service.evaluations import judge_run
    from luthier.service.reports import write_run_report

    warnings: list[str] = []
    try:
        result = _train(context, run_id, prepared, warnings)
        evaluation = None
        if result.status == "succeeded" and prepared.held_out is not None:
            evaluation = judge_run(context, run_id, prepared, result)
            context.evaluations.save(evaluation)
        _close(context, run_id, result.num_steps, result.status, result.stopped_because)
        record = context.runs.update(
            run_id, result=result, evaluation_id=evaluation.evaluation_id if evaluation else None
        ).model_copy(update={"status": result.status})
        report = write_run_report(context, record, prepared, evaluation)
    except BaseException as error:
        status: RunStatus = "failed" if isinstance(error, Exception) else "paused"
        reason = error.came if isinstance(error, LuthierError) else repr(error)
        _close(context, run_id, context.runs.get(run_id).step, status, reason)
        record = context.runs.update(run_id, status=status)
        if isinstance(error, LuthierError):
            with suppress(StorageFullError):  # the disk may be what the run failed of
                report = write_run_report(context, record, prepared, None)
                context.runs.update(run_id, report_path=str(report))
        raise
    # Only now: a run that is said to be done has its weights, verdict and report on disk.
    record = context.runs.update(run_id, status=result.status, report_path=str(report))
    return TrainOutcome(record, prepared.plan, evaluation, tuple(warnings))


def _close(context: Context, run_id: str, step: int, status: RunStatus, reason: str) -> None:
    context.runs.append(run_id, RunEnded(step=step, status=status, reason=reason))
    context.runs.update(run_id, stopped_because=reason)


def _train(context: Context, run_id: str, prepared: Prepared, warnings: list[str]) -> TrainResult:
    """The training itself, with the process made ready for it."""
    import torch

    from luthier.data.batches import StepSchedule
    from luthier.train import memory
    from luthier.train.checkpoint import CheckpointStore
    from luthier.train.loop import train as train_loop
    from luthier.train.model import TrainableModel

    plan, training = prepared.plan, prepared.plan.training
    torch.set_num_threads(training.num_threads)
    memory.forget_peak()
    emit = _recorder(context, run_id, warnings)
    schedule = StepSchedule(
        [e.num_tokens for e in prepared.train.tokenised],
        global_batch_size=training.global_batch_size,
        micro_batch_tokens=training.micro_batch_tokens,
        order=training.order,
        seed=training.seed,
    )
    model = TrainableModel.load(plan)
    _warn_of_the_data(plan, emit)
    with _stop_signals() as stop_requested:
        outcome = train_loop(
            plan,
            model,
            prepared.train.tokenised,
            _validation_batches(prepared),
            schedule,
            CheckpointStore(context.settings.run_folder(run_id) / "checkpoints", training.keep_checkpoints),
            emit=emit,
            stop_requested=stop_requested,
            progress=context.progress,
        )
    return _result(context, run_id, plan, model, outcome, memory.peak_memory_bytes())


def _validation_batches(prepared: Prepared) -> list[list[TokenisedExample]]:
    """The validation split in micro-batches: one step that holds them all, cut as training steps are cut."""
    from luthier.data.batches import StepSchedule

    if prepared.validation is None:
        return []
    rows = prepared.validation.tokenised
    whole = StepSchedule(
        [e.num_tokens for e in rows],
        global_batch_size=len(rows),
        micro_batch_tokens=prepared.plan.training.micro_batch_tokens,
        order="as_given",
        seed=0,
    )
    return [[rows[i] for i in batch] for batch in whole.step(0)]


def _result(
    context: Context, run_id: str, plan: Plan, model: TrainableModel, outcome: LoopOutcome, peak_memory_bytes: int
) -> TrainResult:
    """What came out, in numbers; writes the trained weights where the run is done."""
    from luthier.train.outcome import save_outcome

    state, path, digest = outcome.state, None, None
    if outcome.status == "succeeded":
        path, digest = save_outcome(model, Path(plan.base_model.path), context.settings.run_folder(run_id))
        for file in sorted(path.glob("*.safetensors")):
            artifact = context.artifacts.put_file(file, model.method.outcome_name)
            context.artifacts.link(run_id, f"{path.name}/{file.name}", artifact.sha256)
    seconds = max(state.seconds, 1e-9)
    return TrainResult(
        status=outcome.status,
        stopped_because=outcome.reason,
        num_steps=state.step,
        num_tokens=state.num_tokens,
        num_trained_tokens=state.num_trained_tokens,
        num_examples=state.num_examples,
        num_trainable_parameters=model.num_trainable_parameters,
        trainable_fraction=model.num_trainable_parameters / model.num_parameters,
        train_loss=state.loss_sum / max(1, state.num_trained_tokens),
        best_validation_loss=state.early_stopping.best_loss,
        best_step=state.early_stopping.best_step if state.early_stopping.best_loss is not None else state.step,
        seconds=state.seconds,
        tokens_per_second=state.num_tokens / seconds,
        examples_per_second=state.num_examples / seconds,
        seconds_per_step=state.seconds / max(1, state.step),
        peak_memory_bytes=peak_memory_bytes,
        adapter_path=None if path is None else str(path),
        adapter_sha256=digest,
        warnings=outcome.warnings,
        ranks=model.method.ranks(),
    )


def _recorder(context: Context, run_id: str, warnings: list[str]) -> Callable[[Event], None]:
    """Writes events into the store. What a killed process had recorded after its last checkpoint is dropped first."""

    def emit(event: Event) -> None:
        if isinstance(event, RunStarted):
            context.runs.truncate_after(run_id, event.from_step)
            context.runs.update(run_id, status="running", step=event.from_step)
        if isinstance(event, RunEnded):
            return  # the record is closed by `_carry_out`, once outcome, verdict and report are on disk
        context.runs.append(run_id, event)
        if isinstance(event, StepDone):
            context.runs.update(run_id, step=event.step)
        if isinstance(event, WarningRaised):
            warnings.append(event.message)

    return emit


def _warn_of_the_data(plan: Plan, emit: Callable[[Event], None]) -> None:
    """What a person should know of the rows before the first step; the report shows it, too."""
    data, found = plan.data, []
    for profile in filter(None, (data.train, data.validation, data.held_out)):
        if profile.num_dropped:
            found.append((f"dropped_{profile.split}", f"{profile.num_dropped:,} {profile.split} rows were dropped"))
        if profile.num_truncated:
            cut = (
                f"{profile.num_truncated:,} {profile.split} rows were cut at {plan.training.max_length_tokens:,} tokens"
            )
            found.append((f"truncated_{profile.split}", cut))
    if data.num_leaked:
        found.append(("leakage", f"{data.num_leaked:,} held-out rows also stand in the training rows"))
    if data.num_same_prompt:
        message = f"{data.num_same_prompt:,} held-out rows have the prompt of a training row, with another answer"
        found.append(("same_prompt", message))
    if data.num_validation_leaked:
        message = (
            f"{data.num_validation_leaked:,} validation rows also stand in the training rows: early stopping is blind"
        )
        found.append(("validation_leakage", message))
    for code, message in found:
        emit(WarningRaised(step=0, code=code, message=message))


@contextmanager
def _stop_signals() -> Iterator[Callable[[], str | None]]:
    """Turns SIGTERM and SIGINT into a wish that the loop asks for after each step; a second SIGINT interrupts at once.

    In a thread other than the main one (a notebook's, a server's) signals are not ours to take.
    """
    wish: list[str] = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def note(number: int, _frame: object) -> None:
        wish.append(f"{signal.Signals(number).name} received")
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    for number in before:
        signal.signal(number, note)
    try:
        yield lambda: wish[0] if wish else None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
