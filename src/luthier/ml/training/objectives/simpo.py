"""SimPO: the log-probability a token is the reward, and chosen must be ahead of rejected by a margin. No reference.

Meng et al., 2024, "SimPO: Simple Preference Optimization with a Reference-Free Reward", arXiv:2405.14734, equation 6.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from luthier.ml.training.objective_protocol import Unit
from luthier.ml.training.objectives.pairs import PairObjective, PairSums, smoothed


class Simpo(PairObjective):
    """-log sigmoid(beta (m_chosen - m_rejected) - gamma), m the mean log-probability a token."""

    def of_pairs(self, sums: PairSums, units: Sequence[Unit]) -> tuple[Tensor, Tensor, Tensor]:  # noqa: ARG002
        """The rewards are beta m."""
        chosen, rejected = (self.beta * mean for mean in sums.means())
        margin = chosen - rejected - (self.plan.gamma or 0.0)
        return smoothed(margin, self.plan.label_smoothing or 0.0), chosen, rejected
