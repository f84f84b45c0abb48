"""The training loop. One function, `train`, that reads from top to bottom; everything it needs comes in as arguments.

A resumed run is byte-identical to an uninterrupted one: the examples of a step depend only on (seed, step), its random
numbers are seeded from (seed, step, rank), and everything else that a step reads (weights, moments, counters) is in the
checkpoint. With several processes (`distributed.World`) each takes its share of every step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from luthier.core.data_sources import sources_of
from luthier.core.errors import CheckpointError, DivergedError
from luthier.core.events import (
    BillUpdated,
    CheckpointSaved,
    RunEnded,
    RunStarted,
    SnapshotSaved,
    StepDone,
    ValidationDone,
    WarningRaised,
)
from luthier.core.plan import Plan, TrainingPlan
from luthier.core.ports import EventSink, Progress
from luthier.core.run import RunStatus, StopReason
from luthier.core.system.libraries import NUMBA, has_numba, version
from luthier.core.system.process_memory import keep_freed
from luthier.ml.training.budget import Meter, bill_summary, remaining
from luthier.ml.training.checkpoint import Checkpoint, CheckpointFolder, LoopState, SharedCheckpoints
from luthier.ml.training.distributed import ALONE, World
from luthier.ml.training.fit import EarlyStopping
from luthier.ml.training.micro_batch_workers import micro_batch_workers
from luthier.ml.training.model import MicroBatch, TrainableModel, collate
from luthier.ml.training.objective_protocol import Batch, Objective, Unit, rows_of
from luthier.ml.training.optimizer import MasterOptimizer, WeightAverage, all_but_averages, averages_in
from luthier.ml.training.step import RunSchedule, one_step, validate

if TYPE_CHECKING:
    from luthier.ml.training.sample_prompts import AnswerSamples

_BILLS_A_RUN, _SHOWN_NAMES = 20, 3
_REPLICAS_DIFFER = "the processes' weights have drifted apart, as they do on unlike machines: all copy rank 0's"
_LEDGER_LOST = "no whole record of what this run has spent: of its earlier time only that of the steps it kept counts"

StopRequest = Callable[[], str | None]
Snapshot = Callable[[TrainableModel, int], Path]
"""Writes a snapshot of the current model under its step number and returns the path."""


class LoopOutcome:
    """The result of the loop: its last state and why it ended.

    Attributes:
        state: counters after the last step.
        status: how the run ended.
        reason: why, in words.
        warnings: everything that was warned of, in order.
    """

    def __init__(self, state: LoopState, status: RunStatus, reason: str, warnings: Sequence[str]) -> None:
        self.state, self.status, self.reason, self.warnings = state, status, reason, tuple(warnings)


# Why things happen in this order:
# - Spend is written before each action, not after it: a kill in the middle of a step must not make it free.
# - A validation that is due comes first: a run that paused between a step and its validation makes up for it.
# - All ranks leave the loop at the same place (`world.agreed`): one that stayed would wait for the others in a
#   collective call.
# - A snapshot comes before the checkpoint of its step: after a kill between the two it is written once more, not lost.
# - Replicas are compared before they are saved: a bit that flipped on one rank would otherwise be kept for good.
# - Sample prompts are not answered again after a resume: their answers are in the events already.
# - Whether a step may begin includes room for its checkpoint: a pause must always be affordable.
# - An average takes up a step only once it is known to be finite: `one_step` leaves the weights of a bad step as they
#   were, so what is saved then are the last good ones.
def train(
    plan: Plan,
    model: TrainableModel,
    objective: Objective,
    units: Sequence[Unit],
    validation: Sequence[Batch],
    schedule: RunSchedule,
    folder: CheckpointFolder,
    *,
    emit: EventSink,
    stop_requested: StopRequest,
    progress: Progress,
    meter: Meter | None = None,
    world: World = ALONE,
    snapshot: Snapshot | None = None,
    samples: AnswerSamples | None = None,
) -> LoopOutcome:
    """Train from the newest checkpoint (or from scratch) to the end of the plan; leaves the best weights in the model.

    Args:
        plan: of the run; decides everything that is computed.
        model: with the base weights, or whatever the method begins with; checkpoints are loaded into it.
        objective: of the plan, prepared.
        units: training units, indexed by `schedule`.
        validation: prepared validation micro-batches; empty for none.
        schedule: which units belong to each step.
        folder: where checkpoints are read and written.
        emit: takes the events of the run, in order.
        stop_requested: called after each step; a returned text saves a checkpoint and pauses the run for that reason.
        progress: shows the work.
        meter: meters the spend; if it refuses an action the run pauses. None: no cap.
        world: processes that share the work; `emit`, `progress`, `folder` and `meter` of rank 0 count, stops of any.
        snapshot: called at the end of each epoch and of the run, before that step's checkpoint. None: never.
        samples: called before the first step and before each checkpoint; changes nothing that is trained.

    Raises:
        DivergedError: loss or gradient norm is NaN or infinite; the last good weights are in a checkpoint.
        CheckpointError: the checkpoints belong to another plan.
    """
    p = plan.training
    optimizer = MasterOptimizer(model.module, p, model.method.rate_factor, model.method.decays)
    average = WeightAverage(p.average, optimizer.averages if optimizer.averages_weights else None)
    warnings, is_best = list[str](), False

    def warn(step: int, code: str, message: str) -> None:
        warnings.append(message)
        emit(WarningRaised(step=step, code=code, message=message))

    meter = meter or Meter(plan.budget)
    checkpoints = SharedCheckpoints(world, folder, optimizer.weight_state())
    state = saved = _resume(plan, model, optimizer, average, checkpoints, units, schedule, world, warn)
    if not meter.at_least(state.seconds, state.num_tokens):
        warn(state.step, "ledger_lost", _LEDGER_LOST)
    emit(RunStarted(from_step=state.step, num_steps=p.num_steps))
    event: StepDone | None = None
    checked: ValidationDone | None = None
    status: RunStatus = "succeeded"
    reason: str = StopReason(f"all {p.num_steps} steps done", "completed")
    sources = sources_of(plan.data, plan.data.validation)
    num_validation_tokens = sum(row.num_tokens for micro_batch, _ in validation for row in rows_of(micro_batch))

    def save() -> None:
        nonlocal saved
        meter.begin("checkpoint")
        weights, moments = optimizer.weight_state(), optimizer.moment_state()
        held = [*weights.values(), *moments.values(), *average.weights.values()]
        if not world.are_same(held):
            warn(state.step, "replicas_differ", _REPLICAS_DIFFER)
            world.broadcast_tensors(held)
            optimizer.round_into_model()
        placed = state.model_copy(update={"stream": schedule.position(state.step)})
        path, num_bytes = checkpoints.save(placed, weights, moments, model.method.state() | average.state())
        saved = state
        emit(CheckpointSaved(step=state.step, path=str(path), num_bytes=num_bytes))

    own = [*optimizer.own_memory(), *average.weights.values()]
    computing = micro_batch_workers(plan, model, objective, units, validation, schedule, own, state.step, world, warn)
    _answer(samples if state.step == 0 else None, model, average, 0)
    with progress.task("training", p.num_steps, "step", done=state.step) as bar, computing as workers, keep_freed():
        while True:
            if validation and _is_validation_due(p, state):
                refused = meter.refuses("validation", num_validation_tokens, num_checkpoints=1)
                if (refused := world.agreed(refused)) is not None:
                    status, reason = "paused", refused
                    break
                meter.begin("validation", num_validation_tokens)
                with average.shown_in(model.module):
                    state, checked = validate(model, objective, validation, state, progress, world, workers, sources)
                emit(checked)
                if (message := state.early_stopping.overfitting) is not None:
                    warn(state.step, "overfitting", message)
                is_best = checked.is_best
            if snapshot is not None and saved is not state and _is_epoch_done(p, state):
                with average.shown_in(model.module):
                    path = snapshot(model, state.step)
                emit(SnapshotSaved(step=state.step, path=str(path), metrics=_metrics(state.step, event, checked)))
            if saved is not state and (is_best or state.step % p.checkpoint_every_steps == 0):
                _answer(samples, model, average, state.step)
                save()
            is_best = False
            if state.step == p.num_steps:
                break
            if state.early_stopping.should_stop:
                reason = _stopped_early(state)
                break
            num_tokens = _num_tokens(plan, [units[i] for batch in schedule.step(state.step) for i in batch])
            last = state.step + 1 == p.num_steps  # its weights are written twice: checkpoint and result
            request = stop_requested() or meter.refuses("step", num_tokens, num_checkpoints=1 + last)
            if (request := world.agreed(request)) is not None:
                status, reason = "paused", request
                break
            meter.begin("step", num_tokens)
            state, event = one_step(plan, model, objective, optimizer, units, schedule, state, world, workers)
            if not (math.isfinite(event.loss) and math.isfinite(event.gradient_norm)):
                if saved is not state:  # else the weights of this step are there, and may be the best ones
                    save()
                raise _diverged(event, state.step, p.learning_rate)
            average.after_step(state.step, optimizer.weight_state())
            emit(event)
            bar.advance()
            bill = meter.bill(remaining(plan, state.step, state.num_tokens, has_just_ended=True))
            bar.note(f"{_step_summary(event)}  {event.num_tokens / event.seconds:,.0f} tokens/s  {bill_summary(bill)}")
            if state.step % max(1, p.num_steps // _BILLS_A_RUN) == 0:
                emit(BillUpdated(step=state.step, bill=bill))
    if saved is not state:
        save()
    if status == "succeeded":
        _take_best(state, checkpoints, model, optimizer, average)
        if unreached := optimizer.unreached():
            warn(state.step, "unreached_weights", _unreached_summary(unreached, len(optimizer.names)))
    emit(RunEnded(step=state.step, status=status, reason=reason))
    return LoopOutcome(state, status, reason, warnings)


def _take_best(
    state: LoopState,
    checkpoints: SharedCheckpoints,
    model: TrainableModel,
    optimizer: MasterOptimizer,
    average: WeightAverage,
) -> None:
    """Leave the weights of the best validation in the model; without one, or after it, those of the average."""
    optimizer.release_gradients()
    watch = state.early_stopping
    if watch.best_loss is not None and watch.best_step != state.step:
        best = checkpoints.load(watch.best_step)
        if optimizer.averages_weights:
            optimizer.load_weights(best.weights)
            optimizer.rule.load(best.moments, best.state.step)
            optimizer.load_averages()
        else:
            optimizer.load_weights(averages_in(best.method) or best.weights)
        model.method.load_state(all_but_averages(best.method))
    elif optimizer.averages_weights:
        optimizer.load_averages()
    elif average.weights:
        # No validation, or the last one was the best: it was of the averaged weights.
        optimizer.load_weights(average.weights)


def _unreached_summary(sizes: Mapping[str, int], num_trained: int) -> str:
    """Which trained tensors are as they were at the start, by the numbers of parameters of these tensors."""
    more = len(sizes) - _SHOWN_NAMES
    names = ", ".join(list(sizes)[:_SHOWN_NAMES]) + (f" and {more:,} more" if more > 0 else "")
    return (
        f"{len(sizes):,} of {num_trained:,} trained tensors ({sum(sizes.values()):,} parameters) had no gradient in "
        f"any step and are unchanged: {names}"
    )


def _answer(samples: AnswerSamples | None, model: TrainableModel, average: WeightAverage, step: int) -> None:
    """The sample prompts, by the weights that would be used at this step."""
    if samples is not None:
        with average.shown_in(model.module):
            samples(model, step)


def _step_summary(event: StepDone) -> str:
    """The value shown for a step: its loss, or the mean reward of a graded step, whose loss is near 0."""
    reward = event.measures.get("reward")
    return f"loss {event.loss:.3f}" if reward is None else f"reward {reward:.3f}"


def _is_epoch_done(p: TrainingPlan, state: LoopState) -> bool:
    """Whether this step is the last of an epoch or of the run."""
    is_last = state.step == p.num_steps or state.early_stopping.should_stop
    return is_last or state.step % p.num_steps_per_epoch == 0


def _metrics(step: int, trained: StepDone | None, checked: ValidationDone | None) -> dict[str, float]:
    """Metrics of this step only, for its snapshot."""
    found = {}
    for name, event in (("train", trained), ("valid", checked)):
        if event is not None and event.step == step:
            found[f"{name}_loss"] = event.loss
            if (accuracy := event.measures.get("token_accuracy")) is not None:
                found[f"{name}_token_accuracy"] = accuracy
    return found


def _num_tokens(plan: Plan, units: Sequence[Unit]) -> int:
    """Expected tokens of a step; for sampled answers, the upper bound."""
    rows = rows_of(units)
    prompts = sum(row.num_prompt_tokens for row in rows)
    return round(plan.objective.max_step_tokens(sum(row.num_tokens for row in rows), prompts, len(rows)))


def _is_validation_due(p: TrainingPlan, state: LoopState) -> bool:
    """Whether a validation is due after this step and not done yet: the run may have paused in between."""
    # The window is empty right after a validation, so that none is repeated when a run is resumed at its step.
    is_such = state.step == p.num_steps or state.step % p.validate_every_steps == 0
    return is_such and state.window_loss_weight > 0


def _resume(
    plan: Plan,
    model: TrainableModel,
    optimizer: MasterOptimizer,
    average: WeightAverage,
    checkpoints: SharedCheckpoints,
    units: Sequence[Unit],
    schedule: RunSchedule,
    world: World,
    warn: Callable[[int, str, str], None],
) -> LoopState:
    """Load the newest intact checkpoint into optimizer, method, average and schedule, or create the initial state."""
    checkpoint, broken = checkpoints.latest()
    step = 0 if checkpoint is None else checkpoint.state.step
    for message in broken:
        warn(step, "broken_checkpoint", f"{message}; continuing from the earlier step {step}")
    if checkpoint is None:
        model.module.eval()
        first = model.method.first_weights(model.module, _first_batches(plan, model, units, schedule), model.hidden)
        if first:
            optimizer.load_weights(optimizer.weight_state() | first)
        # New weights are drawn by each rank: those of rank 0 are the ones that count.
        world.broadcast_tensors(optimizer.masters)
        optimizer.round_into_model()
        watch = EarlyStopping(patience=plan.training.early_stopping_patience)
        return LoopState(plan_hash=plan.hash, early_stopping=watch, versions=_versions(model))
    _refuse_foreign(checkpoint, plan)
    if (versions := _other_versions(checkpoint.state, _versions(model))) is not None:
        warn(step, "other_versions", versions)
    num_updates = checkpoint.state.step * (plan.objective.num_iterations or 1)
    optimizer.load(checkpoint.weights, checkpoint.moments, num_updates)
    model.method.load_state(all_but_averages(checkpoint.method))
    average.load_state(checkpoint.method, optimizer.weight_state())
    schedule.resume_at(checkpoint.state.stream)
    return checkpoint.state.model_copy(update={"versions": _versions(model)})


def _first_batches(
    plan: Plan, model: TrainableModel, units: Sequence[Unit], schedule: RunSchedule
) -> Iterator[MicroBatch]:
    """The micro-batches of the first steps, for methods that look at training rows before they train on them."""
    # Of streamed rows the first step alone: reading further would lose the place where the run begins.
    for step in range(1 if plan.data.stream is not None else plan.training.num_steps):
        for indices in schedule.step(step):
            rows, prefixes = rows_of([units[i] for i in indices]), schedule.shared_tokens(indices)
            yield collate(rows, model.pad_id, model.device, prefix_lengths=prefixes)


def _refuse_foreign(checkpoint: Checkpoint, plan: Plan) -> None:
    if checkpoint.state.plan_hash != plan.hash:
        raise CheckpointError(
            f"checkpoint {checkpoint.path} belongs to plan {checkpoint.state.plan_hash[:12]}",
            expected=f"one of this run's plan {plan.hash[:12]}",
            do="start a new run: a checkpoint cannot be carried over to another plan",
        )


def _versions(model: TrainableModel) -> dict[str, str]:
    """Versions of what computes a step."""
    loops = (NUMBA,) if model.numba_kernels and has_numba() else ()
    return {name: version(name) for name in ("luthier", "torch", "transformers", "peft", *loops)}


def _other_versions(state: LoopState, versions: dict[str, str]) -> str | None:
    """What has another version than when this checkpoint was written; None for nothing, and where it is not known."""
    pairs = ((name, state.versions.get(name, now), now) for name, now in versions.items())
    changed = [f"{name} {now} in place of {before}" for name, before, now in pairs if before != now]
    if not changed:
        return None
    return (
        f"resumed after step {state.step} with {', '.join(changed)}: the steps from here on may differ in their last "
        "digits from those of an undisturbed run"
    )


def _stopped_early(state: LoopState) -> StopReason:
    watch = state.early_stopping
    return StopReason(
        f"early stopping at step {state.step}: {watch.num_since_best} validations without a loss below "
        f"{watch.best_loss:.4f} (step {watch.best_step})",
        "early_stopping",
    )


def _diverged(event: StepDone, good_step: int, learning_rate: float) -> DivergedError:
    return DivergedError(
        f"step {event.step}: loss {event.loss}, gradient norm {event.gradient_norm}",
        expected="finite numbers",
        do=f"lower training.learning_rate (now {learning_rate:g}) or check the rows of this step; the weights of "
        f"step {good_step}, the last good ones, are in the newest checkpoint",
    )
