"""Supervised fine-tuning: the mean cross-entropy of the learned tokens, each counting the same."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from luthier.train.objectives.protocol import Losses, PlainObjective, Unit

if TYPE_CHECKING:
    from luthier.train.model import MicroBatch, TrainableModel


class Sft(PlainObjective):
    """Learn to write the answers. A unit is one example."""

    def losses(self, model: TrainableModel, units: Sequence[Unit], batch: MicroBatch) -> Losses:  # noqa: ARG002
        """The summed cross-entropy in nats, and how many learned tokens are predicted right."""
        total, correct = model.loss_sum(batch)
        return Losses(total, {"token_accuracy": correct})
