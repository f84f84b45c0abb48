"""Supervised fine-tuning and continued pre-training: the mean cross-entropy of the learned tokens.

By `loss_weighting` every token counts the same (`token`), or every row of the data does (`sample`): its loss is then
the mean over the learned tokens of all its answers, across any number of sequences. With `dft` (dynamic fine-tuning)
the loss of each token is multiplied by the probability p that the model gives it, and no gradient flows through that
factor: -p log p with the gradient of p. Unlikely tokens then have less influence: the factor removes the 1 / p by which
cross-entropy differs from a policy gradient. In pre-training every token of plain text is learned except the first of
each piece.

Source: Wu et al., 2025, "On the Generalization of SFT: A Reinforcement Learning Perspective with Reward Rectification",
arXiv:2508.05629, equation 9 (DFT).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from luthier.core.events import PLAIN_LOSS
from luthier.ml.training.losses.cross_entropy import summed_by_row
from luthier.ml.training.objective_protocol import Losses, PlainObjective, Unit

if TYPE_CHECKING:
    from luthier.ml.training.model import MicroBatch, TrainableModel


class Sft(PlainObjective):
    """Learn the answers. A unit is one example: one sequence, or one for each answer of a conversation."""

    def weight(self, units: Sequence[Unit]) -> float:
        """The trained tokens of all rows, or the number of examples."""
        return float(len(units)) if self.plan.loss_weighting == "sample" else super().weight(units)

    def losses(self, model: TrainableModel, units: Sequence[Unit], batch: MicroBatch) -> Losses:
        """The summed cross-entropy in nats, and the number of correct predictions.

        With label smoothing or DFT training minimises another loss and reports the plain loss as a measure; validation
        uses the plain loss only, so that runs with and without them can be compared.
        """
        if self.plan.loss_weighting == "sample":
            return Losses(_mean_of_each(model, units, batch))
        if self.plan.loss_weighting == "dft" and model.module.training:
            log_p = model.log_probabilities(batch)  # [learned tokens]
            # detach: the probability is a weight without gradient
            return Losses(-(log_p.detach().exp() * log_p).sum(), {PLAIN_LOSS: -log_p.detach().sum()})
        smoothing = self.plan.label_smoothing or 0.0
        if smoothing and model.module.training:
            smoothed, plain, correct = model.smoothed_loss_sum(batch, smoothing)
            return Losses(smoothed, {"token_accuracy": correct, PLAIN_LOSS: plain})
        total, correct = model.loss_sum(batch)
        return Losses(total, {"token_accuracy": correct})


def _mean_of_each(model: TrainableModel, units: Sequence[Unit], batch: MicroBatch) -> Tensor:
    """The sum over units of the mean cross-entropy of their learned tokens, in nats."""
    # [rows]: 1 / learned tokens of the row's whole unit
    shares = [1 / sum(row.num_trained_tokens for row in unit) for unit in units for _ in unit]
    by_row = summed_by_row(model.log_probabilities(batch), batch.learned)
    return -(by_row * by_row.new_tensor(shares)).sum()


class Pretraining(Sft):
    """Continued pre-training. A unit is a block: pieces of documents that do not attend to one another."""
