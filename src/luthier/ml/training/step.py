"""One step, which is an optimizer update or several with the same rows, and one validation pass.

The random numbers of a step are seeded from (seed, step, rank), and its units depend on (seed, step) alone. Sums are
added over micro-batches and then over all ranks; the losses of replayed rows and of the task's rows are reported
separately.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Final, Protocol

import torch

from luthier.core.data_sources import SourcePlan, source_place
from luthier.core.data_stream import StreamPosition
from luthier.core.errors import DivergedError
from luthier.core.events import PLAIN_LOSS, ROUTER_LOSS, StepDone, ValidationDone
from luthier.core.plan import Plan
from luthier.core.ports import Progress
from luthier.ml.inference.accelerator import widest_float
from luthier.ml.training.checkpoint import LoopState
from luthier.ml.training.distributed import ALONE, World
from luthier.ml.training.losses.replay_loss import (
    REPLAYED_SUM,
    REPLAYED_WEIGHT,
    split_loss_by_source,
    with_source_loss,
)
from luthier.ml.training.model import MicroBatch, TrainableModel, collate
from luthier.ml.training.objective_protocol import Batch, Losses, Objective, Unit, rows_of, sees_all_together
from luthier.ml.training.optimizer import MasterOptimizer, learning_rate_factor
from luthier.ml.training.sharding import idle_pass, loss_divisor, missing_passes

if TYPE_CHECKING:
    from luthier.ml.training.micro_batch_workers import MicroBatchWorkers

_MEASURE = "measure "
_SOURCE_SUM: Final = "loss sum of source {}"
_SOURCE_WEIGHT: Final = "weight of source {}"


class Counted(Protocol):
    """The counts of a micro-batch: tokens without padding, and learned tokens."""

    @property
    def num_tokens(self) -> int: ...
    @property
    def num_trained_tokens(self) -> int: ...


@dataclass(slots=True)
class StepSums:
    """Sums of the loss, the objective's measures by name, and counts.

    Attributes:
        loss: summed over the micro-batches.
        num_tokens: tokens without padding.
        num_trained_tokens: of these, tokens with loss mask 1.
        num_examples: rows.
        measures: sums of the objective's measures, by name.
    """

    loss: float = 0.0
    num_tokens: int = 0
    num_trained_tokens: int = 0
    num_examples: int = 0
    measures: dict[str, float] = field(default_factory=dict)
    _pending: list[Losses] = field(default_factory=list)

    def add(self, losses: Losses, batch: Counted) -> None:
        """Add one micro-batch. Its numbers stay on their device until `over`: reading one would synchronise."""
        self.num_tokens += batch.num_tokens
        self.num_trained_tokens += batch.num_trained_tokens
        measures = {name: value.detach() for name, value in losses.measures.items()}
        self._pending.append(replace(losses, total=losses.total.detach(), measures=measures))

    def _read(self) -> None:
        """Copy the added numbers from the device in one transfer, and add them in order of arrival."""
        # One transfer for all micro-batches: each .item() would wait for the device. float64, if there is any, so that
        # the order of the additions does not affect the reported loss.
        found = [value for losses in self._pending for value in (losses.total, *losses.measures.values())]
        values = iter(torch.stack([value.to(widest_float(value.device)) for value in found]).tolist() if found else [])
        for losses in self._pending:
            self.loss += next(values)
            for name in losses.measures:
                self.measures[name] = self.measures.get(name, 0.0) + next(values)
        self._pending.clear()

    def over(self, world: World) -> StepSums:
        """The sums over all ranks, the same on each."""
        self._read()
        own = {"loss": self.loss, "tokens": self.num_tokens, "trained": self.num_trained_tokens}
        own["examples"] = self.num_examples
        found = world.sums(own | {_MEASURE + name: value for name, value in self.measures.items()})
        measures = {n.removeprefix(_MEASURE): value for n, value in found.items() if n.startswith(_MEASURE)}
        tokens, trained, examples = (int(found[name]) for name in ("tokens", "trained", "examples"))
        return StepSums(found["loss"], tokens, trained, examples, measures)

    def plus(self, other: StepSums) -> StepSums:
        """The sums of two updates; both are read from the device."""
        measures = {name: self.measures.get(name, 0.0) + value for name, value in other.measures.items()}
        return StepSums(
            self.loss + other.loss,
            self.num_tokens + other.num_tokens,
            self.num_trained_tokens + other.num_trained_tokens,
            self.num_examples + other.num_examples,
            self.measures | measures,
        )

    def means(self, weight: float) -> dict[str, float]:
        """The measures, divided by the weight of all units."""
        return {name: value / weight for name, value in self.measures.items()}


# Odd and large, so that (seed, step, rank, micro-batch) of nearby runs do not share random numbers.
_SEED_STRIDE, _RANK_STRIDE, _MICRO_BATCH_STRIDE = 1_000_003, 7_654_321_987_657, 2_305_843_009_213_967


def seed_random(plan: Plan, step: int, device: str, *, rank: int = 0, micro_batch: int = 0) -> None:
    """Seed torch's generators for the random numbers of a step: dropout, noise, and samples of the objective.

    Args:
        plan: has the seed of the run.
        step: steps that are done.
        device: torch's name of the device that the model is on.
        rank: of this process.
        micro_batch: its number in the step, if each micro-batch has separate random numbers.
    """
    number = plan.training.seed * _SEED_STRIDE + rank * _RANK_STRIDE + micro_batch * _MICRO_BATCH_STRIDE + step
    if device == "cpu":
        # For devices that are not in use `torch.manual_seed` writes the stack down as text, three times a call.
        torch.default_generator.manual_seed(number % 2**63)
    else:
        torch.manual_seed(number % 2**63)  # of all devices


class StepSchedule(Protocol):
    """The units of a step: micro-batches of indices, a function of (seed, step) alone.

    Attributes:
        share: the part of the step that one of several ranks trains.
        shared_tokens: the shared prefixes of a micro-batch (`collate`): none, one for all its rows, or one per unit.
    """

    def step(self, step: int) -> tuple[tuple[int, ...], ...]: ...
    def share(self, step: int, rank: int, size: int) -> tuple[tuple[int, ...], ...]: ...
    def shared_tokens(self, micro_batch: Sequence[int]) -> tuple[int, ...]: ...
    def epoch_of(self, step: int) -> float | None: ...


class RunSchedule(StepSchedule, Protocol):
    """The steps of a whole run, which may be resumed.

    Attributes:
        position: where the rows of a step are, of rows that are streamed; None of all others.
        resume_at: continues from such a position.
    """

    def position(self, step: int) -> StreamPosition | None: ...
    def resume_at(self, position: StreamPosition | None) -> None: ...


def _drawn(
    units: Sequence[Unit], schedule: StepSchedule, step: int, indices: Sequence[Sequence[int]]
) -> tuple[list[Batch], list[list[Unit]]]:
    """The micro-batches of this rank, and all micro-batches of the step.

    Each unit is made once: rows in files are other objects at each look, and objectives know units by identity.
    """
    whole = schedule.step(step)
    made = {i: units[i] for batch in (*whole, *indices) for i in batch}
    return (
        [([made[i] for i in batch], schedule.shared_tokens(batch)) for batch in indices],
        [[made[i] for i in batch] for batch in whole],
    )


# Why things happen in this order:
# - What no backward pass has reached is found before the sums over ranks, which write to all gradients.
# - `before_step` comes after the sums over ranks, so that methods that read gradients (AdaLoRA) decide alike on each.
def _gradients(
    plan: Plan,
    model: TrainableModel,
    objective: Objective,
    optimizer: MasterOptimizer,
    batches: Sequence[Batch],
    idle_unit: Unit,
    weight: float,
    step: int,
    sums: StepSums,
    world: World,
    workers: MicroBatchWorkers | None,
) -> StepSums:
    """The gradients of one update, summed over micro-batches and ranks in the optimizer; returns the sums of all ranks.

    Args:
        batches: the micro-batches of this rank.
        idle_unit: for passes that only keep this rank in step with the others.
        weight: of the whole batch.
        step: steps that are done.
        sums: takes those of this rank.
        plan, model, objective, optimizer, world, workers: as for `one_step`.
    """
    divisor, num_missing = loss_divisor(model, weight, world), missing_passes(model, len(batches), world)
    if workers is not None:
        workers.compute(step, len(batches), divisor, optimizer.gradients, sums.add)
    else:
        model.module.train()
        for micro_batch, prefix_lengths in batches:
            losses, batch = accumulate(plan, model, objective, micro_batch, prefix_lengths, divisor)
            optimizer.collect()  # into fp32 sums: bf16 would drop small micro-batch gradients next to a large sum
            sums.add(losses, batch)
    for _ in range(num_missing):  # sharded weights are gathered in every pass: ranks must make equally many
        idle_pass(model, idle_unit).backward()
        optimizer.collect()
    optimizer.find_unreached(world)
    world.sum_gradients(optimizer.gradients)  # once an update: gradients cross the network as fp32 sums
    found = sums.over(world)  # from here on loss and counts are those of the whole global batch, the same on all ranks
    model.method.before_step(optimizer.weight_state(), optimizer.gradient_state())
    return found


# Why things happen in this order:
# - Numbers are seeded by step and rank alone: a run that is resumed draws the same dropout as one that never stopped.
# - `look` gets the whole step, not only this rank's share: contrastive losses compare with the rows of other ranks.
# - The weight is summed over ranks before the first backward pass: each micro-batch divides by the whole step's.
# - Norm and loss are the same on all ranks, so either all of them take an update or none does.
# - Checkpoints are between steps, so that answers which several updates learn from need not be stored: a resumed run
#   samples them again from the same weights. A method moves its state once a step, after the last update.
# - `model_construct`: validating ten fields would cost more than the small steps of a tiny model take.
def one_step(
    plan: Plan,
    model: TrainableModel,
    objective: Objective,
    optimizer: MasterOptimizer,
    units: Sequence[Unit],
    schedule: StepSchedule,
    state: LoopState,
    world: World = ALONE,
    workers: MicroBatchWorkers | None = None,
) -> tuple[LoopState, StepDone]:
    """One optimizer update over one global batch, divided among the ranks; several where the objective's plan says so.

    The summed loss of each micro-batch is divided by the weight of the whole batch (for example, all its trained
    tokens), so that any split into ranks and micro-batches gives the same total gradient. If the loss or the gradient
    norm is not finite, the update is skipped and the given state is returned.

    Args:
        plan: of the run.
        model: whose weights are updated.
        objective: of the plan.
        optimizer: holds the fp32 masters, the summed gradients and the moments.
        units: all training units, indexed by `schedule`.
        schedule: which units belong to the step and to this rank.
        state: the counters before the step.
        world: the ranks among which the batch is divided.
        workers: processes that compute the micro-batches in parallel; None computes them in this process.

    Returns:
        The counters after the step, and its event. Loss, gradient norm and counts are those of the whole batch, the
        same on all ranks; the time is this rank's. Of several updates the loss and the measures are means, the gradient
        norm is the largest, and tokens are counted in each.
    """
    start, p = time.perf_counter(), plan.training
    seed_random(plan, state.step, model.device, rank=world.rank)
    indices = schedule.share(state.step, world.rank, world.size)
    given, whole = _drawn(units, schedule, state.step, indices)
    batches = objective.draw(model, state.step, given)
    objective.look(model, whole)
    weight = world.sum(objective.weight([unit for micro_batch, _ in batches for unit in micro_batch]))
    sums, num_updates = StepSums(), plan.objective.num_iterations or 1
    rate = largest_norm = 0.0
    factor = learning_rate_factor(
        state.step,
        num_steps=p.num_steps,
        num_warmup_steps=p.num_warmup_steps,
        schedule=p.schedule,
        min_lr_ratio=p.min_lr_ratio,
    )
    for number in range(1, num_updates + 1):
        own = StepSums(num_examples=sum(map(len, indices)) if number == 1 else 0)
        found = _gradients(
            plan, model, objective, optimizer, batches, whole[-1][-1], weight, state.step, own, world, workers
        )
        sums = sums.plus(found)
        norm, loss = optimizer.gradient_norm(), found.loss / weight
        largest_norm = max(largest_norm, norm)
        if not (finite := math.isfinite(norm) and math.isfinite(loss)):
            largest_norm = norm
            break
        after = partial(model.method.after_step, state.step + 1) if number == num_updates else None
        rate = optimizer.step(norm, factor, after)
    weight, loss = weight * number, sums.loss / (weight * number)
    seconds = time.perf_counter() - start
    event = StepDone.model_construct(
        step=state.step + 1,
        epoch=schedule.epoch_of(state.step + 1),
        loss=loss,
        learning_rate=rate,
        gradient_norm=largest_norm,
        num_tokens=sums.num_tokens,
        num_trained_tokens=sums.num_trained_tokens,
        seconds=seconds,
        measures=sums.means(weight) if plan.data.replay is None else split_loss_by_source(sums.means(weight), loss),
    )
    if not finite:
        return state, event
    return _after(state, sums, weight, seconds), event


def accumulate(
    plan: Plan,
    model: TrainableModel,
    objective: Objective,
    units: Sequence[Unit],
    prefix_lengths: tuple[int, ...],
    divisor: float,
) -> tuple[Losses, MicroBatch]:
    """The losses of a micro-batch; its gradients, divided by `divisor`, are added to those of the weights.

    Args:
        plan: of the run.
        model: in training mode.
        objective: of the plan.
        units: of this micro-batch.
        prefix_lengths: tokens of the prefixes that its rows share; empty for none.
        divisor: the weight of the whole batch.
    """
    batch = collate(rows_of(units), model.pad_id, model.device, prefix_lengths=prefix_lengths)
    losses = model.within(partial(_losses, objective, model, units, batch))
    minimised = losses.total
    if model.router_loss is not None:
        minimised = minimised + model.router_loss.coefficient * losses.measures[ROUTER_LOSS]
    if plan.data.replay is not None:
        losses = with_source_loss(losses, units, objective.weight(units))
    # Divided before the backward pass: dividing gradients later would need a pass over all weights.
    (minimised / divisor).backward()
    return losses, batch


def _losses(objective: Objective, model: TrainableModel, units: Sequence[Unit], batch: MicroBatch) -> Losses:
    """The losses of a micro-batch, including the router loss, if any, as a differentiable measure.

    It is multiplied by the weight of the units, like every sum, so that a step yields its mean.
    """
    if model.router_loss is None:
        return objective.losses(model, units, batch)
    with model.router_loss.recording():
        losses = objective.losses(model, units, batch)
    of_routers = model.router_loss.of(batch) * objective.weight(units)
    return replace(losses, measures={**losses.measures, ROUTER_LOSS: of_routers})


def _after(state: LoopState, sums: StepSums, weight: float, seconds: float) -> LoopState:
    """The state after a step."""
    # As `comparable_loss`: of the rows of the task and without regularisation, which a validation has not either.
    loss = sums.measures.get(PLAIN_LOSS, sums.loss) - sums.measures.get(REPLAYED_SUM, 0.0)
    loss_weight = weight - sums.measures.get(REPLAYED_WEIGHT, 0.0)
    plain_sum = 0.0 if state.step == 0 else state.plain_loss_sum
    return state.model_copy(
        update={
            "step": state.step + 1,
            "loss_sum": state.loss_sum + sums.loss,
            "loss_weight": state.loss_weight + weight,
            "plain_loss_sum": None if plain_sum is None else plain_sum + loss,
            "plain_loss_weight": state.plain_loss_weight + loss_weight,
            "num_tokens": state.num_tokens + sums.num_tokens,
            "num_trained_tokens": state.num_trained_tokens + sums.num_trained_tokens,
            "num_examples": state.num_examples + sums.num_examples,
            "window_loss_sum": state.window_loss_sum + loss,
            "window_loss_weight": state.window_loss_weight + loss_weight,
            "seconds": state.seconds + seconds,
        }
    )


def validation_losses(
    model: TrainableModel, objective: Objective, given: Batch, sources: Sequence[SourcePlan] = ()
) -> tuple[Losses, MicroBatch]:
    """The losses of a validation micro-batch, with the model in evaluation mode.

    Args:
        model: in evaluation mode.
        objective: of the plan.
        given: units of the micro-batch, and the prefixes that its rows share.
        sources: of the validation rows, of which a micro-batch has one; empty where they are of one source.
    """
    micro_batch, prefix_lengths = given
    batch = collate(rows_of(micro_batch), model.pad_id, model.device, prefix_lengths=prefix_lengths)
    losses = model.within(partial(objective.losses, model, micro_batch, batch))
    if not sources:
        return losses, batch
    place, weight = source_place(sources, micro_batch[0][0].id), objective.weight(micro_batch)
    of_source = {_SOURCE_SUM.format(place): losses.total, _SOURCE_WEIGHT.format(place): losses.total.new_tensor(weight)}
    return replace(losses, measures={**losses.measures, **of_source}), batch


def _loss_by_source(sums: dict[str, float], sources: Sequence[SourcePlan]) -> dict[str, float]:
    """The mean loss over the rows of each source, by its name; takes the sums of the sources out of the measures."""
    found = {}
    for place, source in enumerate(sources):
        total, weight = sums.pop(_SOURCE_SUM.format(place), 0.0), sums.pop(_SOURCE_WEIGHT.format(place), 0.0)
        if weight > 0:
            found[source.name] = total / weight
    return found


@torch.no_grad()
def validate(
    model: TrainableModel,
    objective: Objective,
    validation: Sequence[Batch],
    state: LoopState,
    progress: Progress,
    world: World = ALONE,
    workers: MicroBatchWorkers | None = None,
    sources: Sequence[SourcePlan] = (),
) -> tuple[LoopState, ValidationDone]:
    """Loss over the whole validation split, shared out over the ranks, and the state with the watch moved on.

    Args:
        model: left in evaluation mode.
        objective: of the plan.
        validation: all micro-batches of the validation rows.
        state: before the validation; it has the state of early stopping.
        progress: shows the work.
        world: the ranks that share the micro-batches.
        workers: processes that compute the micro-batches side by side; None computes them here.
        sources: as for `validation_losses`.

    Raises:
        DivergedError: the loss is NaN or infinite.
    """
    start = time.perf_counter()
    model.module.eval()
    # Micro-batches of rows in files are made when they are asked for, other objects each time, and none is kept; an
    # objective that compares them knows units by identity.
    validation = list(validation) if sees_all_together(objective) else validation
    mine = objective.draw_validation(model, validation[world.rank :: world.size])
    sums, num_missing = StepSums(), missing_passes(model, len(mine), world)
    if sees_all_together(objective):
        objective.look(model, [micro_batch for micro_batch, _ in validation])
    with progress.task("validating", len(mine), "batch") as bar:

        def take(losses: Losses, counts: Counted) -> None:
            sums.add(losses, counts)
            bar.advance()

        if workers is not None:
            workers.validate(state.step, take)
        else:
            for one in mine:
                take(*validation_losses(model, objective, one, sources))
    weight: float = sum(objective.weight(micro_batch) for micro_batch, _ in mine)
    for _ in range(num_missing):
        idle_pass(model, validation[0][0][0])
    sums, weight = sums.over(world), world.sum(weight)
    loss, loss_by_source = sums.loss / weight, _loss_by_source(sums.measures, sources)
    if not math.isfinite(loss):  # after the last step nothing else would find it
        raise DivergedError(
            f"validation after step {state.step}: loss {loss}",
            expected="a finite number",
            do="lower training.learning_rate, or look at the validation rows; the newest checkpoint before this "
            "validation has the last good weights",
        )
    watch = state.early_stopping
    if model.method.may_be_outcome(state.step):
        mean = state.window_loss_sum / state.window_loss_weight if objective.loss_tells_overfitting else 0.0
        watch = watch.after(state.step, loss, mean)
    event = ValidationDone(
        step=state.step,
        loss=loss,
        num_trained_tokens=sums.num_trained_tokens,
        is_best=watch.best_step == state.step,
        seconds=time.perf_counter() - start,
        measures=sums.means(weight),
        loss_by_source=loss_by_source,
    )
    after = {"early_stopping": watch, "window_loss_sum": 0.0, "window_loss_weight": 0.0}
    return state.model_copy(update=after), event
