"""DPO and IPO: a chosen completion is to gain more over the model at the start than the rejected one does.

Rafailov et al., 2023, "Direct Preference Optimization: Your Language Model is Secretly a Reward Model",
arXiv:2305.18290, equation 7; label smoothing as in Mitchell, 2023, "A note on DPO with noisy preferences", equation 3.
Azar et al., 2023, "A General Theoretical Paradigm to Understand Learning from Human Preferences", arXiv:2310.12036,
equation 17.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from luthier.ml.training.objective_protocol import Unit
from luthier.ml.training.objectives.pairs import AgainstReference, PairSums, smoothed


class Dpo(AgainstReference):
    """-log sigmoid(beta (h_chosen - h_rejected)), h the log-ratio to the model at the start."""

    def of_pairs(self, sums: PairSums, units: Sequence[Unit]) -> tuple[Tensor, Tensor, Tensor]:
        """The rewards are beta h."""
        chosen, rejected = self.log_ratios(sums, units)
        losses = smoothed(self.beta * (chosen - rejected), self.plan.label_smoothing or 0.0)
        return losses, self.beta * chosen, self.beta * rejected


class Ipo(AgainstReference):
    """(h_chosen - h_rejected - 1 / (2 beta))^2, h the log-ratio a token.

    The paper writes sums over whole completions; its authors' results, and TRL, use the mean a token, so that long
    completions do not weigh more.
    """

    def of_pairs(self, sums: PairSums, units: Sequence[Unit]) -> tuple[Tensor, Tensor, Tensor]:
        """The rewards are beta times the log-ratio of whole completions, as for DPO."""
        chosen, rejected = self.log_ratios(sums, units)
        # [P]: means a token, see above
        margin = chosen / sums.chosen_lengths - rejected / sums.rejected_lengths
        return (margin - 1 / (2 * self.beta)).square(), self.beta * chosen, self.beta * rejected
