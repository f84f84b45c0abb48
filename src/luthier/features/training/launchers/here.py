"""Training in one process: shared by single-process runs, `luthier train --devices`, torchrun, Slurm and Ray."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from luthier.core.data_stream import StreamCounts
from luthier.core.errors import RequestError
from luthier.core.events import Event, WarningRaised
from luthier.core.plan import Plan
from luthier.core.ports import EventSink, Progress, SilentProgress
from luthier.core.run import StopReason, TrainResult, cause_of
from luthier.core.system import process_memory
from luthier.core.system.process_setup import collect_as_usual
from luthier.features.planning.service import Prepared
from luthier.features.training.preparation import is_spread, warn_of_memory, warn_of_the_data, warn_of_the_kinds
from luthier.ml.charts import figures
from luthier.ml.data.files.sequences import chained
from luthier.platform.home.context import Context
from luthier.platform.processes.stop_signals import AGAIN, stop_signals

if TYPE_CHECKING:
    from luthier.ml.evaluation.rewards import RewardTools
    from luthier.ml.inference.engine_wrappers import ResultCache
    from luthier.ml.training.budget import Meter
    from luthier.ml.training.distributed import World
    from luthier.ml.training.loop import LoopOutcome
    from luthier.ml.training.model import TrainableModel
    from luthier.ml.training.objective_protocol import Batch, Objective
    from luthier.ml.training.sample_prompts import AnswerSamples
    from luthier.ml.training.step import RunSchedule


@dataclass(frozen=True, slots=True)
class Hooks:
    """The folder, callbacks and limits of a training process.

    Attributes:
        folder: Of the run; checkpoints and weights go there.
        emit: Receives its events.
        progress: Shows progress.
        meter: Bills its time, and stops it when a cap is reached.
        stop_requested: Returns a reason to stop; None handles SIGTERM and SIGINT as requests while the loop runs.
        num_snapshots: Number of last epochs whose weights are also kept.
        keeps_snapshot: Whether those of a step are kept although they are older; None for none.
        replies: Stores what models that grade reply; None stores nothing.
    """

    folder: Path
    emit: EventSink
    progress: Progress
    meter: Meter
    stop_requested: Callable[[], str | None] | None = None
    num_snapshots: int = 0
    keeps_snapshot: Callable[[int], bool] | None = None
    replies: ResultCache | None = None


class Launcher(Protocol):
    """The processes that train a run. flags: options that the resume command needs for the same processes."""

    num_processes: int
    flags: str

    def check(self, plan: Plan) -> None:
        """Raise RequestError if these processes cannot share the plan."""
        ...

    def train(
        self, context: Context, run_id: str, prepared: Prepared, meter: Meter, emit: EventSink, lock: int
    ) -> TrainResult:
        """Train to the end of the plan or to a stop request.

        Args:
            context: The home.
            run_id: The run, whose folder holds checkpoints.
            prepared: The plan with its rows.
            meter: Counts what the run spends.
            emit: Gets the events of the run.
            lock: The descriptor that holds the run's lock, for processes that are to hold it, too.
        """
        ...


class InProcessLauncher:
    """Trains a run in this process. num_snapshots, keeps_snapshot: see `Hooks`."""

    num_processes = 1
    flags = ""

    def __init__(self, num_snapshots: int = 0, keeps_snapshot: Callable[[int], bool] | None = None) -> None:
        self.num_snapshots, self.keeps_snapshot = num_snapshots, keeps_snapshot

    def check(self, plan: Plan) -> None:
        """Any plan can be trained by one process."""

    def train(
        self,
        context: Context,
        run_id: str,
        prepared: Prepared,
        meter: Meter,
        emit: EventSink,
        lock: int,  # noqa: ARG002
    ) -> TrainResult:
        """Train in this process; arguments as `Launcher.train`."""
        from luthier.features.planning.judges import replies_of

        folder = context.settings.run_folder(run_id)
        hooks = Hooks(
            folder,
            emit,
            context.progress,
            meter,
            num_snapshots=self.num_snapshots,
            keeps_snapshot=self.keeps_snapshot,
            replies=replies_of(context),
        )
        return train_worker(prepared, hooks)


def silent_hooks(
    folder: Path, stop_requested: Callable[[], str | None] | None = None, replies: ResultCache | None = None
) -> Hooks:
    """Hooks of a rank other than 0."""
    from luthier.ml.training.budget import Meter

    return Hooks(folder, lambda _event: None, SilentProgress(), Meter(), stop_requested, replies=replies)


def train_worker(prepared: Prepared, hooks: Hooks, world: World | None = None) -> TrainResult:
    """Train a plan, from its newest checkpoint if there is one; writes the trained weights if the run is done.

    world: the processes that share the work, all of which call this; None is only this one. The result is that of rank
    0; on other ranks only status and counts are meaningful.

    Raises:
        DivergedError: The loss is not finite any more.
        CheckpointError: The newest checkpoint is of another plan, or cannot be read.
        RequestError: This machine has no device of the kind that the run was planned for, the examples of a step
            cannot be divided evenly among the processes, no reply of a model that grades can be read, or code that
            grades fails.
    """
    from luthier.features.planning.judges import opened

    # The models that grade stay loaded while the run trains, and are let go of before it is evaluated.
    note = partial(_grader_failed, hooks)
    with opened(prepared.plan, hooks.replies, hooks.folder.name, hooks.progress, note, hooks.folder) as graders:
        return _train(prepared, hooks, world, graders)


def _grader_failed(hooks: Hooks, message: str) -> None:
    hooks.emit(WarningRaised(step=0, code="grader_failed", message=message))


def _train(prepared: Prepared, hooks: Hooks, world: World | None, graders: RewardTools) -> TrainResult:
    import torch

    from luthier.features.planning import batch_schedules as schedules
    from luthier.features.planning.objective_inputs import tools_for
    from luthier.ml.inference import accelerator
    from luthier.ml.inference.accelerator import compute_exactly
    from luthier.ml.training.checkpoint import CheckpointStore
    from luthier.ml.training.distributed import World, refuse_unequal_shares
    from luthier.ml.training.loop import train
    from luthier.ml.training.objectives.rules import load_objective

    plan, training = prepared.plan, prepared.plan.training
    world = _on_planned_device(world or World(device=training.device), training.device)
    refuse_unequal_shares(training.global_batch_size, world.size)
    # The processes of one machine share its cores: more threads than cores would slow down all of them.
    torch.set_num_threads(max(1, training.num_threads // world.local_size))
    compute_exactly(world.device)
    accelerator.forget_peaks(world.device)
    # The teacher runs before the student is loaded, so that both are never in memory together.
    if (stopped := _ask_teacher(prepared, hooks, world)) is not None:
        return stopped
    hooks.meter.begin("loading")
    spreads = is_spread(plan, world, hooks.emit)
    if world.size == 1:
        warn_of_memory(plan, hooks.emit)
    model, shares, packs = _loaded(plan, world, hooks.emit, spreads=spreads)
    warn_of_the_data(plan, hooks.emit)
    warn_of_the_kinds(prepared, hooks.emit)
    objective = load_objective(plan.objective, tools_for(prepared, world, graders))
    hooks.meter.begin("reference")
    _prepare(objective, model, prepared, hooks, world)
    validation = schedules.of_validation(prepared, shares_prefix=shares, packs=packs)
    listening = stop_signals(lambda: pause_notice(hooks)) if hooks.stop_requested is None else None
    # A step that leaves cycles behind must not hold its memory for long.
    collect_as_usual()
    with (
        listening or nullcontext(hooks.stop_requested or _nobody) as stop_requested,
        schedules.of_run(prepared, shares_prefix=shares, packs=packs, folder=hooks.folder) as (trained_units, schedule),
    ):
        outcome = train(
            plan,
            model,
            objective,
            trained_units,
            validation,
            schedule,
            CheckpointStore(hooks.folder / "checkpoints", training.keep_checkpoints),
            emit=hooks.emit,
            stop_requested=stop_requested,
            progress=hooks.progress,
            meter=hooks.meter,
            world=world,
            snapshot=_snapshots(plan, hooks),
            samples=_samples(prepared, hooks, world, spreads=spreads),
        )
        counts = _streamed(prepared, schedule, outcome)
    _finish(objective, model, validation, outcome, world)
    hooks.meter.begin("saving")
    # A collective call: every rank must reach it, also where it keeps nothing.
    peak = max(map(int, world.gather(str(accelerator.device_peak_memory_bytes(world.device)))))
    model = _made_whole(plan, model, world) if spreads else model
    return _with_counts(_result(hooks.folder, plan, model, outcome, peak, is_kept=world.is_first), counts)


def _on_planned_device(world: World, kind: str) -> World:
    """The processes on the kind of device that the run was planned for.

    Raises:
        RequestError: This machine has none.
    """
    from luthier.ml.inference import accelerator

    if kind != "cpu" and (here := accelerator.device_type()) != kind:
        raise RequestError(
            f"the run was planned for {kind}, and this machine has {'no accelerator' if here == 'cpu' else here}",
            expected=f"a device of the kind {kind}: the precision and the size of batches follow from it",
            do="resume it on a machine that has one, or start a new run of its recipe here",
        )
    # The processes of a launcher join by the device that they see, before they have the plan.
    return world if accelerator.kind_of(world.device) == kind else replace(world, device=kind)


def _streamed(prepared: Prepared, schedule: RunSchedule, outcome: LoopOutcome) -> StreamCounts | None:
    """What was read of a stream; None of other rows."""
    if prepared.train.stream is None:
        return None
    from luthier.ml.data.stream.schedule import StreamSchedule

    assert isinstance(schedule, StreamSchedule)
    return schedule.counts(outcome.state.step)


def _with_counts(result: TrainResult, counts: StreamCounts | None) -> TrainResult:
    """A result with what was read of a stream, and a warning where rows were left out or cut."""
    if counts is None:
        return result
    return result.model_copy(update={"stream": counts, "warnings": (*result.warnings, *counts.warnings)})


def _prepare(objective: Objective, model: TrainableModel, prepared: Prepared, hooks: Hooks, world: World) -> None:
    """Rank 0 first: other ranks that share its folder find its results."""
    # Streamed rows are not there yet: their objectives compute what they need of them in each step.
    trained = prepared.trained_units if prepared.train.stream is None else ()
    units = chained(trained, prepared.validation.units if prepared.validation else ())
    if world.is_first:
        objective.prepare(model, units, hooks.folder, hooks.progress)
    world.gather("prepared")
    if not world.is_first:
        objective.prepare(model, units, hooks.folder, hooks.progress)


def _finish(
    objective: Objective, model: TrainableModel, validation: Sequence[Batch], outcome: LoopOutcome, world: World
) -> None:
    """Data of a task head other than its weights is measured on the rank that writes it."""
    if model.task_head is not None and outcome.status == "succeeded" and world.is_first:
        objective.finish(model, validation)


def pause_notice(hooks: Hooks) -> str:
    """The message after a stop request: what happens now, how long it takes, and how to resume."""
    left = figures.duration(hooks.meter.seconds_left()).replace(figures.NO_BREAK, " ")
    saved = figures.duration(hooks.meter.expected_seconds("checkpoint", 0)).replace(figures.NO_BREAK, " ")
    return (
        f"the current step ends in about {left}, then a checkpoint is written (about {saved}) and the run is paused; "
        f"resume with `luthier train --resume {hooks.folder.name}`. {AGAIN}: steps since the last checkpoint are then "
        "computed again"
    )


def _nobody() -> str | None:
    return None


def _snapshots(plan: Plan, hooks: Hooks) -> Callable[[TrainableModel, int], Path] | None:
    """The function that writes a snapshot after each epoch, if requested."""
    from luthier.ml.training.checkpoint import Snapshots

    if not hooks.num_snapshots:
        return None
    is_used = hooks.keeps_snapshot or (lambda _: False)
    return Snapshots(Path(plan.base_model.path), hooks.folder, hooks.num_snapshots, is_used).save


def _samples(prepared: Prepared, hooks: Hooks, world: World, *, spreads: bool) -> AnswerSamples | None:
    """What answers the fixed prompts of the run, where it has some; on the rank that reports."""
    plan = prepared.plan
    if not plan.evaluation.sample_prompts or prepared.validation is None or not world.is_first:
        return None
    from luthier.ml.training.sample_prompts import SamplePrompts, chosen_rows

    if spreads:
        message = "the sample prompts are not answered: the weights are spread over the devices"
        hooks.emit(WarningRaised(step=0, code="no_samples", message=message))
        return None
    rows = chosen_rows(
        prepared.validation.tokenised,
        plan.evaluation.sample_prompts,
        context_length_tokens=plan.base_model.context_length_tokens,
    )
    return SamplePrompts(rows, prepared.template, hooks.emit, plan.evaluation.max_new_tokens)


def _ask_teacher(prepared: Prepared, hooks: Hooks, world: World) -> TrainResult | None:
    """Run the teacher, if any; returns the common result if a rank was stopped meanwhile.

    Rank 0 first: other ranks that share its folder find its states.
    """
    from luthier.features.planning.objective_inputs import ask_teacher, not_begun

    if prepared.plan.objective.teacher is None:
        return None
    stopped = None
    for is_our_turn in (world.is_first, not world.is_first):
        if is_our_turn:
            stopped = ask_teacher(prepared, hooks)
        # All ranks must leave together, otherwise the others would wait in the next collective call forever.
        own = None if stopped is None else StopReason(stopped.stopped_because, stopped.stop_cause)
        if (reason := world.agreed(own)) is not None:
            return stopped or not_begun(prepared, reason)
    return None


def _made_whole(plan: Plan, model: TrainableModel, world: World) -> TrainableModel:
    """On rank 0 an unsharded model for writing; other ranks only send their shards."""
    from luthier.ml.training.model import TrainableModel
    from luthier.ml.training.objectives.rules import rules_of
    from luthier.ml.training.sharding import fill_in

    base_dropout = not rules_of(plan.objective.name).dropout_is_noise
    made = TrainableModel.load(plan, "cpu", base_dropout=base_dropout) if world.is_first else None
    fill_in(made, {name: weight for name, weight in model.module.named_parameters() if weight.requires_grad})
    return made or model


def _loaded(
    plan: Plan, world: World, emit: Callable[[Event], None], *, spreads: bool
) -> tuple[TrainableModel, bool, bool]:
    """The model, compiled if planned; whether prefixes are shared, and whether rows are packed."""
    from luthier.ml.training.model import TrainableModel
    from luthier.ml.training.objectives.rules import rules_of
    from luthier.ml.training.sharding import spread

    base_dropout = not rules_of(plan.objective.name).dropout_is_noise
    # a model to be sharded is loaded on the CPU: unsharded it may not fit on the device
    model = TrainableModel.load(plan, "cpu" if spreads else world.device, base_dropout=base_dropout)
    _tell_path(model, emit)
    _tell_dropout(plan, emit)
    shares = _shares_prefix(plan, model, world, emit)
    packs = _packs(plan, model, world, emit, spreads=spreads)
    _compile(plan, model, emit, spreads=spreads)
    _warn_without_loops(plan, emit)
    if spreads:
        spread(model, world)
    return model, shares, packs


def _tell_path(model: TrainableModel, emit: Callable[[Event], None]) -> None:
    """Warn about fast paths that could not be verified, and name their replacement."""
    if not model.path.is_fast:
        message = f"computed the same but slower, by {model.path.words}: {'; '.join(model.path.reasons)}"
        emit(WarningRaised(step=0, code="forward_path", message=message))


def _tell_dropout(plan: Plan, emit: Callable[[Event], None]) -> None:
    """Warn where the base has dropout of its own that an objective switches off."""
    from luthier.features.training.first_step import own_dropout
    from luthier.ml.training.objectives.rules import rules_of

    if rules_of(plan.objective.name).dropout_is_noise and (names := own_dropout(Path(plan.base_model.path))):
        message = (
            f"the dropout of the base model ({', '.join(names)}) is off: objective {plan.objective.name} compares "
            "log-probabilities with those of a model that draws none"
        )
        emit(WarningRaised(step=0, code="no_base_dropout", message=message))


def _shares_prefix(plan: Plan, model: TrainableModel, world: World, emit: Callable[[Event], None]) -> bool:
    """Whether shared prefixes are computed once: requested, and verified for the model on every rank."""
    if not plan.training.shared_prefix:
        return False
    # Decided together: it decides how validation rows fall into micro-batches, which are then shared out by number.
    own = model.can_share_prefix()
    if world.all_true(own):
        return True
    name = type(model.base).__name__ + (" of another process" if own else "")
    message = (
        f"{name} computes something else when a beginning is shared, so none is: "
        "training takes as long as without training.shared_prefix"
    )
    emit(WarningRaised(step=0, code="no_shared_prefix", message=message))
    return False


def _packs(plan: Plan, model: TrainableModel, world: World, emit: Callable[[Event], None], *, spreads: bool) -> bool:
    """Whether rows are packed: planned, and verified for the model on every rank."""
    from luthier.ml.training.equivalence import why_not_packed

    if not plan.training.packing:
        return False
    why_not = "weights are spread over the devices, none of which can prove it" if spreads else why_not_packed(model)
    if world.all_true(why_not is None):
        return True
    reason = why_not or "another process cannot prove it on its device"
    message = f"rows are not packed but padded, which takes longer and trains the same: {reason}"
    emit(WarningRaised(step=0, code="no_packing", message=message))
    return False


def _warn_without_loops(plan: Plan, emit: Callable[[Event], None]) -> None:
    """Warn where the plan has loops compiled by Numba and this machine does not use them."""
    if not plan.training.numba_kernels:
        return
    import torch

    from luthier.ml.training.fused_operations import why_not

    if (reason := why_not(getattr(torch, plan.training.precision))) is not None:
        message = f"elementwise work is done by torch's operations, which takes longer and trains the same: {reason}"
        emit(WarningRaised(step=0, code="no_numba_kernels", message=message))


def _compile(plan: Plan, model: TrainableModel, emit: Callable[[Event], None], *, spreads: bool) -> None:
    """Compile the layers, if planned and verified to compute the same."""
    from luthier.ml.training.equivalence import why_not_compiled

    if not plan.training.compile:
        return
    why_not = "weights are spread over the devices, none of which can prove it" if spreads else why_not_compiled(model)
    if why_not is not None:
        message = f"layers are not compiled, which takes longer and trains the same: {why_not}"
        emit(WarningRaised(step=0, code="no_compile", message=message))


def _result(
    folder: Path, plan: Plan, model: TrainableModel, outcome: LoopOutcome, peak_memory_bytes: int, *, is_kept: bool
) -> TrainResult:
    """What came out, in numbers; writes the trained weights where the run is done. peak: of the largest process."""
    from luthier.ml.training.checkpoint import save_model

    state, path, digest = outcome.state, None, None
    if outcome.status == "succeeded" and is_kept:
        path, digest = save_model(model, Path(plan.base_model.path), folder)
    # A run resumed at its end has trained for 0 s.
    seconds = max(state.seconds, 1e-9)
    plain = None if state.plain_loss_sum is None else state.plain_loss_sum / max(1.0, state.plain_loss_weight)
    return TrainResult(
        status=outcome.status,
        stopped_because=str(outcome.reason),
        stop_cause=cause_of(outcome.reason),
        num_steps=state.step,
        num_tokens=state.num_tokens,
        num_trained_tokens=state.num_trained_tokens,
        num_examples=state.num_examples,
        num_trainable_parameters=model.num_trainable_parameters,
        trainable_fraction=model.num_trainable_parameters / model.num_parameters,
        # Weighted by trained tokens: the mean over steps would favour short batches.
        train_loss=state.loss_sum / max(1.0, state.loss_weight),
        plain_train_loss=plain,
        best_validation_loss=state.early_stopping.best_loss,
        best_step=state.early_stopping.best_step if state.early_stopping.best_loss is not None else state.step,
        seconds=state.seconds,
        tokens_per_second=state.num_tokens / seconds,
        examples_per_second=state.num_examples / seconds,
        seconds_per_step=state.seconds / max(1, state.step),
        peak_memory_bytes=peak_memory_bytes,
        host_peak_memory_bytes=None if plan.training.device == "cpu" else process_memory.peak_memory_bytes(),
        adapter_path=None if path is None else str(path),
        adapter_sha256=digest,
        warnings=outcome.warnings,
        ranks=model.method.ranks(),
    )
