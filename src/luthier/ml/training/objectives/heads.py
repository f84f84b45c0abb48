"""Objectives that train a task head, not text: cross-entropy for classes, squared error for numbers, pairs for order.

A unit is one row: the prompt, and a slot token whose predicting state the head reads. The base is trained together with
the head, by an adapter or in full; vocabulary logits are never computed.

At the end of a run the probabilities of classes are calibrated on the validation rows: logits are divided by the
temperature that maximises the likelihood of these rows. It changes no answer, only the reported confidence.

A unit of a reranker is the relevant and the irrelevant document of a query, each read together with the query. The loss
is -log of the probability that the relevant one is the better of the two: the sigmoid of the difference of their
scores. So scores order the documents of one query; a single score is not a probability of relevance.

Sources: Guo et al., 2017, "On Calibration of Modern Neural Networks", arXiv:1706.04599, section 4.2. Class weights:
King and Zeng, 2001, "Logistic Regression in Rare Events Data", section 4.1. Label smoothing: Szegedy et al., 2016,
arXiv:1512.00567, section 7. Rerankers: Burges et al., 2005, "Learning to Rank using Gradient Descent", section 3.
Scores around 0: Eisenstein et al., 2023, "Helping or Herding? Reward Model Ensembles Mitigate but do not Eliminate
Reward Hacking", arXiv:2312.09244.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, logsigmoid

from luthier.core.events import PLAIN_LOSS
from luthier.core.plan import ObjectivePlan
from luthier.core.task_head import TaskHead
from luthier.ml.training.objective_protocol import NO_TOOLS, Batch, Losses, PlainObjective, Tools, Unit, rows_of

if TYPE_CHECKING:
    from luthier.ml.training.model import MicroBatch, TrainableModel

_NO_IDS: Final = array("i")


class HeadObjective(PlainObjective):
    """The base class of objectives whose loss is computed on the outputs of a task head."""

    def __init__(self, plan: ObjectivePlan, tools: Tools = NO_TOOLS) -> None:
        super().__init__(plan, tools)
        assert plan.task_head is not None
        self.head: TaskHead = plan.task_head

    def weight(self, units: Sequence[Unit]) -> float:
        """The number of rows."""
        return float(len(units))


class Classify(HeadObjective):
    """Learn the classes of a prompt."""

    def losses(self, model: TrainableModel, units: Sequence[Unit], batch: MicroBatch) -> Losses:
        """The summed cross-entropy in nats, and the number of rows with exactly the right classes.

        Smoothing and class weights act only in training, which also reports the plain loss as a measure; validation
        uses the plain loss only, so that runs with and without them can be compared.
        """
        logits = model.head_outputs(batch)  # [rows, classes]
        wanted = class_matrix(units, self.head, logits.device)
        with torch.no_grad():
            right = right_rows(logits, wanted, self.head).sum()
        plain = _cross_entropy(logits, wanted, self.head).sum()
        smoothing, weighted = self.plan.label_smoothing or 0.0, self.plan.class_weights == "balanced"
        if not model.module.training or not (smoothing or weighted):
            return Losses(plain, {"accuracy": right})
        smoothed = _smoothed(wanted, smoothing, self.head)
        if weighted and self.head.num_rows:
            each = binary_cross_entropy_with_logits(logits, smoothed, reduction="none")  # [rows, labels]
            softened = (each * _label_weights(wanted, self.head)).mean(-1)
        else:
            softened = _cross_entropy(logits, smoothed, self.head)
            if weighted:
                softened = softened * _row_weights(wanted, self.head)
        return Losses(softened.sum(), {"accuracy": right, PLAIN_LOSS: plain.detach()})

    def finish(self, model: TrainableModel, validation: Sequence[Batch]) -> None:
        """Set the temperature of the head to the value that maximises the likelihood of the validation rows."""
        logits, units = outputs_of(model, validation)
        if len(units):
            wanted = class_matrix(units, self.head, logits.device)
            model.task_head = self.head.model_copy(
                update={"temperature": fitted_temperature(logits, wanted, self.head)}
            )


class Regress(HeadObjective):
    """Learn the number of a prompt, standardised by mean and standard deviation of the training rows."""

    def losses(self, model: TrainableModel, units: Sequence[Unit], batch: MicroBatch) -> Losses:
        """The summed squared error of standardised numbers, and the summed absolute error in the unit of the rows."""
        found = model.head_outputs(batch)[:, 0]  # [rows]
        errors = found - found.new_tensor([row.target[0] for row in rows_of(units)])
        return Losses(errors.square().sum(), {"absolute_error": self.head.scale * errors.detach().abs().sum()})


def class_matrix(units: Sequence[Unit], head: TaskHead, device: torch.device) -> Tensor:
    """[rows, classes] float32: 1 where a row has a class, otherwise 0.

    Args:
        units: one row each.
        head: whose labels are the classes, in their order.
        device: of the result.
    """
    wanted = torch.zeros(len(units), len(head.labels))
    for number, row in enumerate(rows_of(units)):
        wanted[number, [int(one) for one in row.target]] = 1.0
    return wanted.to(device)


def right_rows(logits: Tensor, wanted: Tensor, head: TaskHead) -> Tensor:
    """[rows] bool: whether the predicted classes are exactly the target classes.

    Args:
        logits: [rows, classes].
        wanted: [rows, classes], 1 for each target class, otherwise 0.
        head: with one label (argmax) or several (sigmoid against its threshold).
    """
    if head.is_multi_label:
        return ((logits.sigmoid() >= head.threshold) == wanted.bool()).all(-1)
    # By index, not by value: of equal logits only the first class is predicted.
    return logits.argmax(-1) == wanted.argmax(-1)


def _cross_entropy(logits: Tensor, wanted: Tensor, head: TaskHead) -> Tensor:
    """[rows] in nats; of several labels the mean over the classes."""
    if head.is_multi_label:
        return binary_cross_entropy_with_logits(logits, wanted, reduction="none").mean(-1)
    return cross_entropy(logits, wanted, reduction="none")


def _smoothed(wanted: Tensor, smoothing: float, head: TaskHead) -> Tensor:
    """The target classes with a share of the weight spread over all classes: [rows, classes]."""
    if head.is_multi_label:
        # Each class is a yes-or-no question of its own, so the weight is spread over two outcomes.
        return wanted * (1 - smoothing) + smoothing / 2
    return wanted * (1 - smoothing) + smoothing / wanted.shape[-1]


def _row_weights(wanted: Tensor, head: TaskHead) -> Tensor:
    """[rows]: rows / (classes x rows of the class), whose mean over the training rows is 1.

    Classes are those that have training rows. One that the recipe names and that has none gets weight 0: with it the
    weights of all others would be too small, and their mean below 1.

    Of several labels a row, runs of versions that weighed whole rows continue like that: a row gets the mean of the
    weights of its labels, one without labels 1. New runs have `_label_weights`.
    """
    counts = wanted.new_tensor(head.label_counts)  # [classes]
    has_rows = counts > 0
    of_classes = counts.sum() / (has_rows.sum() * counts.clamp_min(1)) * has_rows
    num = wanted.sum(-1)
    return torch.where(num > 0, (wanted @ of_classes) / num.clamp_min(1), torch.ones_like(num))


def _label_weights(wanted: Tensor, head: TaskHead) -> Tensor:
    """[rows, labels]: of each label, rows with it weigh as much in all as rows without it, and 1 on average.

    That is rows / (2 x rows with it), or without it, as scikit-learn balances yes and no of each label. A weight for
    the whole row would also raise that of the common labels beside a rare one, and of all labels that the row lacks. A
    label that all rows have, or none, has nothing to balance: its rows weigh 1.
    """
    having = wanted.new_tensor(head.label_counts)  # [labels]
    others = head.num_rows - having
    is_balanced = (having > 0) & (others > 0)
    yes, no = (
        torch.where(is_balanced, head.num_rows / (2 * num.clamp_min(1)), torch.ones_like(num))
        for num in (having, others)
    )
    return torch.where(wanted > 0, yes, no)


@torch.no_grad()
def outputs_of(model: TrainableModel, batches: Sequence[Batch]) -> tuple[Tensor, list[Unit]]:
    """The head's outputs [rows, outputs] in float32 for prepared micro-batches, and their units in that order.

    The units are without their tokens, which may be more than fits into memory.
    """
    from luthier.ml.training.model import collate

    was_training = model.module.training
    model.module.eval()
    found: list[Tensor] = []
    units: list[Unit] = []
    for micro_batch, prefix_lengths in batches:
        batch = collate(rows_of(micro_batch), model.pad_id, model.device, prefix_lengths=prefix_lengths)
        found.append(model.head_outputs(batch))
        # Targets stay; tokens are dropped, since a validation set is held here as a whole.
        units += [tuple(replace(row, input_ids=_NO_IDS, loss_mask=b"") for row in unit) for unit in micro_batch]
    model.module.train(was_training)
    return (torch.cat(found) if found else torch.zeros(0)), units


_COLDEST, _HOTTEST = 0.05, 20.0
_GOLDEN: Final = (math.sqrt(5) - 1) / 2
_TOLERANCE: Final = 1e-4
_FEW: Final = 3


def fitted_temperature(logits: Tensor, wanted: Tensor, head: TaskHead) -> float:
    """The temperature in 0.05 to 20 that minimises the mean cross-entropy, rounded to three decimals.

    If all rows are right, the loss keeps falling with the temperature and has no minimum: the temperature is then 1.

    Args:
        logits: [rows, classes], of validation rows.
        wanted: [rows, classes], 1 for each target class, otherwise 0.
        head: with one label or several.
    """
    exact, wanted = logits.cpu().double(), wanted.cpu().double()
    if right_rows(exact, wanted, head).all():
        return 1.0

    def loss(log_temperature: float) -> float:
        return float(_cross_entropy(exact / math.exp(log_temperature), wanted, head).mean())

    return round(math.exp(_golden_section(loss, math.log(_COLDEST), math.log(_HOTTEST))), 3)


def _golden_section(f: Callable[[float], float], low: float, high: float) -> float:
    """The minimum of a unimodal function (Kiefer, 1953); the cross-entropy is convex in 1 / temperature."""
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
    """The same head for a small copy of the model, with another width and few classes."""
    if head is None:
        return None
    few = {"labels": head.labels[:_FEW], "label_counts": head.label_counts[:_FEW]}
    # The small copy has no score of its own that its head could start from.
    return head.model_copy(update={"width": width, "pair_format": "turns", **few})


def with_made_up_targets(units: Sequence[Unit], head: TaskHead | None) -> list[Unit]:
    """Synthetic units for a head: one slot after each prompt, with alternating classes or numbers."""
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


def pairwise_logistic(scores: Tensor) -> Tensor:
    """The loss of each pair in nats: [pairs].

    Args:
        scores: [2 * pairs], alternating the relevant and the irrelevant document of each pair.
    """
    return -logsigmoid(scores[0::2] - scores[1::2])


class Ranking(HeadObjective):
    """Learn which of two documents answers a query better. The loss is a mean over pairs.

    With `center_rewards_coefficient` it has a term that keeps the two scores of a pair around 0.
    """

    def losses(self, model: TrainableModel, units: Sequence[Unit], batch: MicroBatch) -> Losses:  # noqa: ARG002
        """The summed loss of the pairs, and the number of pairs in the right order."""
        scores = model.head_outputs(batch)[:, 0]  # [2 * pairs]
        total = pairwise_logistic(scores).sum()
        if self.plan.center_rewards_coefficient:
            total = total + self.plan.center_rewards_coefficient * (scores[0::2] + scores[1::2]).square().sum()
        return Losses(total, {"pair_accuracy": (scores[0::2] > scores[1::2]).sum()})

    def finish(self, model: TrainableModel, validation: Sequence[Batch]) -> None:
        """Set the temperature that maximises the likelihood of the order of the validation pairs."""
        outputs, units = outputs_of(model, validation)
        if units:
            logits = outputs[:, 0].view(-1, 2)
            # A pair is a choice among two, of which the first is right: its cross-entropy is the loss above.
            wanted = torch.zeros_like(logits)
            wanted[:, 0] = 1.0
            model.task_head = self.head.model_copy(
                update={"temperature": fitted_temperature(logits, wanted, self.head)}
            )
