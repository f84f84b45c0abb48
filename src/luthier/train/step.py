"""One optimizer update, and one look at the validation split: what the loop does again and again.

The random numbers of a step are seeded from (seed, step), and its units depend on (seed, step) alone.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from functools import partial
from typing import Protocol

import torch

from luthier.core.events import StepDone, ValidationDone
from luthier.core.plan import Plan
from luthier.core.ports import Progress
from luthier.train.checkpoint import LoopState
from luthier.train.model import MicroBatch, TrainableModel, collate
from luthier.train.objectives.protocol import Losses, Objective, Unit, rows_of
from luthier.train.optimizer import MasterOptimizer
from luthier.train.origin import by_origin, with_origin
from luthier.train.schedule import learning_rate_factor

# Odd and large, so that (seed, step) pairs of nearby runs do not share random numbers.
_SEED_STRIDE = 1_000_003

ValidationBatch = tuple[Sequence[Unit], tuple[int, ...]]
"""A ready-made micro-batch, and the beginnings that its rows share (`collate`)."""


class StepSchedule(Protocol):
    """Which units make up a step: micro-batches of indices, a function of (seed, step) alone.

    shared_tokens: the beginnings in a micro-batch that are computed once (`collate`): none, one of all its rows, or one
    of each unit.
    """

    def step(self, step: int) -> tuple[tuple[int, ...], ...]: ...
    def shared_tokens(self, micro_batch: Sequence[int]) -> tuple[int, ...]: ...
    def epoch_of(self, step: int) -> float: ...


def one_step(
    plan: Plan,
    model: TrainableModel,
    objective: Objective,
    optimizer: MasterOptimizer,
    units: Sequence[Unit],
    schedule: StepSchedule,
    state: LoopState,
) -> tuple[LoopState, StepDone]:
    """One optimizer update over one global batch.

    Each micro-batch's sum of the loss is divided by the weight of the whole batch (all its trained tokens, say), so
    that any cut into micro-batches gives the same gradient. Where loss or gradient norm is not finite the update is not
    made, and the returned state is the one given.
    """
    start, p = time.perf_counter(), plan.training
    torch.manual_seed((p.seed * _SEED_STRIDE + state.step) % 2**63)
    indices = schedule.step(state.step)
    micro_batches = objective.draw(model, state.step, [[units[i] for i in batch] for batch in indices])
    objective.look(model, micro_batches)
    weight = objective.weight([unit for micro_batch in micro_batches for unit in micro_batch])
    sums = _Sums()
    model.module.train()
    for micro_batch, drawn_from in zip(micro_batches, indices, strict=True):
        beginnings = schedule.shared_tokens(drawn_from)
        batch = collate(rows_of(micro_batch), model.pad_id, model.device, beginnings=beginnings)
        losses = objective.losses(model, micro_batch, batch)
        if plan.data.replay is not None:
            losses = with_origin(losses, micro_batch, objective.weight(micro_batch))
        (losses.total / weight).backward()
        optimizer.collect()
        sums.add(losses, batch)
    model.method.before_step(optimizer.weight_state(), optimizer.gradient_state())
    norm, loss = optimizer.gradient_norm(), sums.loss / weight
    rate = 0.0
    if finite := math.isfinite(norm) and math.isfinite(loss):
        factor = learning_rate_factor(
            state.step, num_steps=p.num_steps, num_warmup_steps=p.num_warmup_steps, schedule=p.schedule
        )
        rate = optimizer.step(norm, factor, partial(model.method.after_step, state.step + 1))
    seconds = time.perf_counter() - start
    event = StepDone.model_construct(
        step=state.step + 1,
        epoch=schedule.epoch_of(state.step + 1),
        loss=loss,
        learning_rate=rate,
        gradient_norm=norm,
        num_tokens=sums.num_tokens,
        num_trained_tokens=sums.num_trained_tokens,
        seconds=seconds,
        measures=sums.means(weight) if plan.data.replay is None else by_origin(sums.means(weight), loss),
    )
    if not finite:
        return state, event
    return _counted(state, sums, weight, num_examples=sum(map(len, indices)), seconds=seconds), event


def _counted(state: LoopState, sums: _Sums, weight: float, *, num_examples: int, seconds: float) -> LoopState:
    """The state after a step."""
    after = {
        "step": state.step + 1,
        "loss_sum": state.loss_sum + sums.loss,
        "loss_weight": state.loss_weight + weight,
        "num_tokens": state.num_tokens + sums.num_tokens,
        "num_trained_tokens": state.num_trained_tokens + sums.num_trained_tokens,
        "num_examples": state.num_examples + num_examples,
        "window_loss_sum": state.window_loss_sum + sums.loss,
        "window_loss_weight": state.window_loss_weight + weight,
        "seconds": state.seconds + seconds,
    }
    return state.model_copy(update=after)


class _Sums:
    """The loss, the measures and the tokens of several micro-batches, added up."""

    def __init__(self) -> None:
        self.loss, self.num_tokens, self.num_trained_tokens = 0.0, 0, 0
        self.measures: dict[str, float] = {}

    def add(self, losses: Losses, batch: MicroBatch) -> None:
        self.loss += losses.total.item()
        self.num_tokens += batch.num_tokens
        self.num_trained_tokens += batch.num_trained_tokens
        for name, value in losses.measures.items():
            self.measures[name] = self.measures.get(name, 0.0) + value.item()

    def means(self, weight: float) -> dict[str, float]:
        return {name: value / weight for name, value in self.measures.items()}


@torch.no_grad()
def validate(
    model: TrainableModel,
    objective: Objective,
    validation: Sequence[ValidationBatch],
    state: LoopState,
    progress: Progress,
) -> tuple[LoopState, ValidationDone]:
    """Loss over the whole validation split, and the state with the watch moved on."""
    start = time.perf_counter()
    model.module.eval()
    weight, sums = 0.0, _Sums()
    objective.look(model, [micro_batch for micro_batch, _ in validation])
    with progress.task("validating", len(validation), "batch") as bar:
        for micro_batch, beginnings in validation:
            batch = collate(rows_of(micro_batch), model.pad_id, model.device, beginnings=beginnings)
            sums.add(objective.losses(model, micro_batch, batch), batch)
            weight += objective.weight(micro_batch)
            bar.advance()
    loss = sums.loss / weight
    watch = state.early_stopping
    if model.method.may_be_outcome(state.step):
        watch = watch.after(state.step, loss, state.window_loss_sum / state.window_loss_weight)
    event = ValidationDone(
        step=state.step,
        loss=loss,
        num_trained_tokens=sums.num_trained_tokens,
        is_best=watch.best_step == state.step,
        seconds=time.perf_counter() - start,
        measures=sums.means(weight),
    )
    after = {"early_stopping": watch, "window_loss_sum": 0.0, "window_loss_weight": 0.0}
    return state.model_copy(update=after), event
