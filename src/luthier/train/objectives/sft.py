"""Supervised fine-tuning: the mean cross-entropy of the learned tokens, each counting the same."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from luthier.core.events import PLAIN_LOSS
from luthier.train.objectives.protocol import Losses, PlainObjective, Unit

if TYPE_CHECKING:
    from luthier.train.model import MicroBatch, TrainableModel


class Sft(PlainObjective):
    """Learn to write the answers. A unit is one example."""

    def losses(self, model: TrainableModel, units: Sequence[Unit], batch: MicroBatch) -> Losses:  # noqa: ARG002
        """The summed cross-entropy in nats, and how many learned tokens are predicted right.

        With label smoothing what is minimised in training is smoothed, and the plain loss stands beside it as a
        measure; validation knows the plain loss alone, so that runs with and without it can be compared.
        """
        smoothing = self.plan.label_smoothing or 0.0
        if smoothing and model.module.training:
            smoothed, plain, correct = model.smoothed_loss_sum(batch, smoothing)
            return Losses(smoothed, {"token_accuracy": correct, PLAIN_LOSS: plain})
        total, correct = model.loss_sum(batch)
        return Losses(total, {"token_accuracy": correct})
