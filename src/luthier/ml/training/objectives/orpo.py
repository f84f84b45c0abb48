"""ORPO: learn the chosen completion, and make its odds larger than those of the rejected one. No reference.

Hong et al., 2024, "ORPO: Monolithic Preference Optimization without Reference Model", arXiv:2403.07691, equations 4, 6
and 7.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from luthier.core.dataset import TokenisedExample
from luthier.ml.training.log_probabilities import summed_by_row
from luthier.ml.training.objective_protocol import Losses, Unit, rows_of
from luthier.ml.training.objectives.pairs import PairObjective, PairSums, reward_measures

if TYPE_CHECKING:
    from luthier.ml.training.model import MicroBatch, TrainableModel


def log_odds(means: Tensor) -> Tensor:
    """log(p / (1 - p)) of p = exp(means), the probability a token; exact where p is near 0 and near 1."""
    # log(1 - exp(m)): each form where it loses no digits (Maechler, 2012, "Accurately Computing log(1 - exp(-|a|))")
    near_one = torch.log(-torch.expm1(torch.clamp(means, min=-1.0, max=-1e-7)))
    near_zero = torch.log1p(-torch.exp(torch.clamp(means, max=-0.5)))
    return means - torch.where(means > -0.693, near_one, near_zero)


class Orpo(PairObjective):
    """Mean cross-entropy of the chosen rows, and beta times -log sigmoid(log-odds of chosen less those of rejected).

    The cross-entropy is of each token of a whole batch alike. `nll_over` says which: all tokens of the chosen rows, as
    the authors' code and TRL have it, or those of the completions, as the paper writes it.
    """

    num_learned: float

    def look(self, model: TrainableModel, micro_batches: Sequence[Sequence[Unit]]) -> None:  # noqa: ARG002
        """Count what the cross-entropy of the whole batch is divided by, for each of its pairs."""
        chosen = [unit[0] for units in micro_batches for unit in units]
        num_tokens = sum(self._with_mask(row).num_trained_tokens for row in chosen)
        self.num_learned = num_tokens / len(chosen)

    def losses(self, model: TrainableModel, units: Sequence[Unit], batch: MicroBatch) -> Losses:
        """The summed loss of the pairs, its two parts, and the rewards."""
        from luthier.ml.training.model import collate

        rows, marked = rows_of(units), batch
        if self.plan.nll_over == "all":
            with_prompts = [self._with_mask(row) if number % 2 == 0 else row for number, row in enumerate(rows)]
            prefix_lengths = () if batch.layout is None else batch.layout.prefix_tokens
            marked = collate(with_prompts, model.pad_id, model.device, prefix_lengths=prefix_lengths)
        found = model.log_probabilities(marked)  # [N of marked]
        # num_learned is tokens a pair; the loop divides by pairs: together a mean over the tokens of the batch.
        nll = -summed_by_row(found, marked.learned)[0::2].sum() / self.num_learned
        is_answer = torch.tensor(_answers(rows, marked.learned), device=found.device)
        sums = PairSums.of(summed_by_row(found * is_answer, marked.learned), batch.learned)
        losses, chosen, rejected = self.of_pairs(sums, units)
        measures = reward_measures(chosen, rejected, sums)
        parts = {"nll_loss": nll.detach(), "odds_ratio_loss": losses.detach().sum()}
        return Losses(nll + losses.sum(), measures | parts)

    def of_pairs(self, sums: PairSums, units: Sequence[Unit]) -> tuple[Tensor, Tensor, Tensor]:  # noqa: ARG002
        """The odds-ratio part; the rewards are beta times the mean log-probability a token."""
        chosen, rejected = sums.means()
        losses = -self.beta * F.logsigmoid(log_odds(chosen) - log_odds(rejected))
        return losses, self.beta * chosen, self.beta * rejected

    def _with_mask(self, row: TokenisedExample) -> TokenisedExample:
        """The row with all tokens learned that the cross-entropy is taken of; the first has nothing before it."""
        if self.plan.nll_over != "all":
            return row
        return replace(row, loss_mask=b"\0" + b"\1" * (row.num_tokens - 1))


def _answers(rows: Sequence[TokenisedExample], learned: Sequence[int]) -> list[bool]:
    """For each learned token of a micro-batch whether it is one of the row's completion."""
    found: list[bool] = []
    for row, count in zip(rows, learned, strict=True):
        if count == row.num_trained_tokens:
            found += [True] * count
        else:
            found += [mark == 1 for mark in row.loss_mask[1:]]
    return found
