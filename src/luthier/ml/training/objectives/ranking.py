"""A reranker: of two documents for a query, the more relevant one gets the higher score.

A unit is the relevant and the irrelevant document of a query, each read together with the query. The loss is -log of
the probability that the relevant one is the better of the two: the sigmoid of the difference of their scores. So scores
order the documents of one query; a single score is not a probability of relevance.

Source: Burges et al., 2005, "Learning to Rank using Gradient Descent", section 3.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from luthier.ml.training.objective_protocol import Batch, Losses, Unit
from luthier.ml.training.objectives.heads import HeadObjective, fitted_temperature, outputs_of

if TYPE_CHECKING:
    from luthier.ml.training.model import MicroBatch, TrainableModel


def pairwise_logistic(scores: Tensor) -> Tensor:
    """The loss of each pair in nats: [pairs].

    Args:
        scores: [2 * pairs], alternating the relevant and the irrelevant document of each pair.
    """
    return -F.logsigmoid(scores[0::2] - scores[1::2])


class Ranking(HeadObjective):
    """Learn which of two documents answers a query better. The loss is a mean over pairs."""

    def losses(self, model: TrainableModel, units: Sequence[Unit], batch: MicroBatch) -> Losses:  # noqa: ARG002
        """The summed loss of the pairs, and the number of pairs in the right order."""
        scores = model.head_outputs(batch)[:, 0]  # [2 * pairs]
        return Losses(pairwise_logistic(scores).sum(), {"pair_accuracy": (scores[0::2] > scores[1::2]).sum()})

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
