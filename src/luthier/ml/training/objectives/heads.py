"""Objectives that train a task head in place of text: classes by cross-entropy, numbers by squared error.

A unit is one row: the prompt, and a slot token whose predicting state the head reads. The base learns with its head, by
an adapter or whole; the vocabulary's logits are never computed.

At the end of a run the probabilities of classes are calibrated on the validation rows: logits are divided by the one
temperature under which these rows are likeliest. It changes no answer, only how sure the head says that it is.

Sources: Guo et al., 2017, "On Calibration of Modern Neural Networks", arXiv:1706.04599, section 4.2. Class weights:
King and Zeng, 2001, "Logistic Regression in Rare Events Data", section 4.1. Label smoothing: Szegedy et al., 2016,
arXiv:1512.00567, section 7.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from luthier.core.events import PLAIN_LOSS
from luthier.core.plan import ObjectivePlan
from luthier.core.task_head import TaskHead
from luthier.ml.training.objective_protocol import NO_TOOLS, Batch, Losses, PlainObjective, Tools, Unit, rows_of

if TYPE_CHECKING:
    from luthier.ml.training.model import MicroBatch, TrainableModel


class HeadObjective(PlainObjective):
    """An objective whose loss is computed on the outputs of a task head: the base of all of them."""

    def __init__(self, plan: ObjectivePlan, tools: Tools = NO_TOOLS) -> None:
        super().__init__(plan, tools)
        assert plan.task_head is not None
        self.head: TaskHead = plan.task_head

    def weight(self, units: Sequence[Unit]) -> float:
        """How many rows there are."""
        return float(len(units))


class Classify(HeadObjective):
    """Learn which classes a prompt has."""

    def losses(self, model: TrainableModel, units: Sequence[Unit], batch: MicroBatch) -> Losses:
        """The summed cross-entropy in nats, and how many rows have exactly the right classes.

        Smoothing and class weights act in training alone, where the plain loss is a measure beside; validation knows
        the plain loss only, so that runs with and without them can be compared.
        """
        logits = model.head_outputs(batch)  # [rows, classes]
        wanted = class_matrix(units, self.head, logits.device)
        with torch.no_grad():
            right = right_rows(logits, wanted, self.head).sum()
        plain = _cross_entropy(logits, wanted, self.head).sum()
        smoothing, weighted = self.plan.label_smoothing or 0.0, self.plan.class_weights == "balanced"
        if not model.module.training or not (smoothing or weighted):
            return Losses(plain, {"accuracy": right})
        softened = _cross_entropy(logits, _smoothed(wanted, smoothing, self.head), self.head)
        if weighted:
            softened = softened * _row_weights(wanted, self.head)
        return Losses(softened.sum(), {"accuracy": right, PLAIN_LOSS: plain.detach()})

    def finish(self, model: TrainableModel, validation: Sequence[Batch]) -> None:
        """Set the temperature of the head to the one under which the validation rows are likeliest."""
        logits, units = outputs_of(model, validation)
        if len(units):
            wanted = class_matrix(units, self.head, logits.device)
            model.task_head = self.head.model_copy(
                update={"temperature": fitted_temperature(logits, wanted, self.head)}
            )


class Regress(HeadObjective):
    """Learn the number of a prompt, standardised by mean and standard deviation of the training rows."""

    def losses(self, model: TrainableModel, units: Sequence[Unit], batch: MicroBatch) -> Losses:
        """The summed squared error of standardised numbers, and the summed absolute error in the rows' own unit."""
        found = model.head_outputs(batch)[:, 0]  # [rows]
        errors = found - found.new_tensor([row.target[0] for row in rows_of(units)])
        return Losses(errors.square().sum(), {"absolute_error": self.head.scale * errors.detach().abs().sum()})


def class_matrix(units: Sequence[Unit], head: TaskHead, device: torch.device) -> Tensor:
    """[rows, classes] float32: 1 where a row has a class, else 0."""
    wanted = torch.zeros(len(units), len(head.labels))
    for number, row in enumerate(rows_of(units)):
        wanted[number, [int(one) for one in row.target]] = 1.0
    return wanted.to(device)


def right_rows(logits: Tensor, wanted: Tensor, head: TaskHead) -> Tensor:
    """[rows] bool: whether the given classes are exactly the wanted ones."""
    if head.is_multi_label:
        return ((logits.sigmoid() >= head.threshold) == wanted.bool()).all(-1)
    # By index, not by value: of equal logits the first class is given, and only that one.
    return logits.argmax(-1) == wanted.argmax(-1)


def _cross_entropy(logits: Tensor, wanted: Tensor, head: TaskHead) -> Tensor:
    """[rows] in nats; of several labels the mean over the classes."""
    if head.is_multi_label:
        return binary_cross_entropy_with_logits(logits, wanted, reduction="none").mean(-1)
    return cross_entropy(logits, wanted, reduction="none")


def _smoothed(wanted: Tensor, smoothing: float, head: TaskHead) -> Tensor:
    """The wanted classes with a share of the weight spread over all: [rows, classes]."""
    if head.is_multi_label:
        return wanted * (1 - smoothing) + smoothing / 2
    return wanted * (1 - smoothing) + smoothing / wanted.shape[-1]


def _row_weights(wanted: Tensor, head: TaskHead) -> Tensor:
    """[rows]: rows / (classes x rows of the class), whose mean over the training rows is 1.

    A row of several labels has the mean of theirs, one without any label 1.
    """
    counts = wanted.new_tensor(head.label_counts)
    of_classes = counts.sum() / (len(counts) * counts)
    num = wanted.sum(-1)
    return torch.where(num > 0, (wanted @ of_classes) / num.clamp_min(1), torch.ones_like(num))


@torch.no_grad()
def outputs_of(model: TrainableModel, batches: Sequence[Batch]) -> tuple[Tensor, list[Unit]]:
    """The head's outputs [rows, outputs] for ready-made micro-batches, in float32, and their units in that order."""
    from luthier.ml.training.model import collate

    was_training = model.module.training
    model.module.eval()
    found: list[Tensor] = []
    units: list[Unit] = []
    for micro_batch, prefix_lengths in batches:
        batch = collate(rows_of(micro_batch), model.pad_id, model.device, prefix_lengths=prefix_lengths)
        found.append(model.head_outputs(batch))
        units += micro_batch
    model.module.train(was_training)
    return (torch.cat(found) if found else torch.zeros(0)), units


_COLDEST, _HOTTEST = 0.05, 20.0
_GOLDEN: Final = (math.sqrt(5) - 1) / 2
_TOLERANCE: Final = 1e-4
_FEW: Final = 3


def fitted_temperature(logits: Tensor, wanted: Tensor, head: TaskHead) -> float:
    """The temperature in 0.05 to 20 that minimises the mean cross-entropy, rounded to three digits behind the point.

    Where all rows are right the loss falls without end as the temperature does: the coldest one is no measurement then,
    and 1 stays.
    """
    exact, wanted = logits.double().cpu(), wanted.double().cpu()
    if right_rows(exact, wanted, head).all():
        return 1.0

    def loss(log_temperature: float) -> float:
        return float(_cross_entropy(exact / math.exp(log_temperature), wanted, head).mean())

    return round(math.exp(_golden_section(loss, math.log(_COLDEST), math.log(_HOTTEST))), 3)


def _golden_section(f: Callable[[float], float], low: float, high: float) -> float:
    """Where a function of one dip is smallest (Kiefer, 1953); the cross-entropy is convex in 1 / temperature."""
    left, right = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
    at_left, at_right = f(left), f(right)
    while high - low > _TOLERANCE:
        if at_left <= at_right:
            high, right, at_right = right, left, at_left
            left = high - _GOLDEN * (high - low)
            at_left = f(left)
        else:
            low, left, at_left = left, right, at_right
            right = low + _GOLDEN * (high - low)
            at_right = f(right)
    return (low + high) / 2


def small_head(head: TaskHead | None, width: int) -> TaskHead | None:
    """The same head for a small copy of the model: of another width, and with few classes."""
    if head is None:
        return None
    few = {"labels": head.labels[:_FEW], "label_counts": head.label_counts[:_FEW]}
    return head.model_copy(update={"width": width, **few})


def with_made_up_targets(units: Sequence[Unit], head: TaskHead | None) -> list[Unit]:
    """Made-up units as a head reads them: one slot behind each prompt, and classes or numbers by turns."""
    if head is None:
        return list(units)
    made = []
    for number, unit in enumerate(units):
        target = (float(number % max(1, len(head.labels))),) if head.kind == "classify" else (float(number % 2),)
        made.append(
            tuple(
                replace(row, loss_mask=bytes([*bytes(row.num_tokens - 1), 1]), target=target, is_wanted=None)
                for row in unit
            )
        )
    return made
