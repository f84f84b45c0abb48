"""Metrics of preferences: which of two completions of a prompt a model finds likelier, and what has changed in that.

All are of whole completions, in nats, as the objectives on pairs have them (Rafailov et al., 2023, arXiv:2305.18290,
section 4). No text is generated.
"""

from __future__ import annotations

import math
from typing import ClassVar, Literal

from luthier.ml.evaluation.metrics.protocol import Array, Observations, mean_of_sums, mean_statistics


class RewardAccuracy:
    """Share of pairs in which the chosen completion has gained more likelihood than the rejected one has.

    Gained over the first of the systems that are judged, the base model; where nothing has changed, half a pair counts,
    so that the first system itself has 0.5. It is what training on pairs is to raise, and no length of completions
    is in its way: those are the same before and after.
    """

    name: ClassVar[str] = "reward_accuracy"
    title: ClassVar[str] = "reward accuracy"
    unit: ClassVar[str] = "fraction"
    lower: ClassVar[float] = 0.0
    upper: ClassVar[float] = 1.0
    higher_is_better: ClassVar[bool] = True
    needs: ClassVar[Literal["likelihood", "text", "pairs"]] = "pairs"
    has_sample_values: ClassVar[bool] = True

    def statistics(self, observed: Observations) -> Array:
        """[num_samples, 2]: 1, 0.5 or 0, one."""
        pairs = zip(margins(observed), observed.first_margins, strict=True)
        return mean_statistics([0.5 if now == first else float(now > first) for now, first in pairs])

    def aggregate(self, sums: Array) -> Array:
        """[..., 2] -> [...]."""
        return mean_of_sums(sums)


class PreferenceAccuracy:
    """Share of pairs in which the chosen completion is likelier than the rejected one; a tie is a miss.

    The shorter completion is nearly always the likelier one, so the figure of a base model reflects lengths.
    """

    name: ClassVar[str] = "preference_accuracy"
    title: ClassVar[str] = "preference accuracy"
    unit: ClassVar[str] = "fraction"
    lower: ClassVar[float] = 0.0
    upper: ClassVar[float] = 1.0
    higher_is_better: ClassVar[bool] = True
    needs: ClassVar[Literal["likelihood", "text", "pairs"]] = "pairs"
    has_sample_values: ClassVar[bool] = True

    def statistics(self, observed: Observations) -> Array:
        """[num_samples, 2]: 1 where the chosen completion is likelier, one."""
        return mean_statistics([margin > 0 for margin in margins(observed)])

    def aggregate(self, sums: Array) -> Array:
        """[..., 2] -> [...]."""
        return mean_of_sums(sums)


class PreferenceMargin:
    """Mean of log p(chosen) - log p(rejected), in nats a pair.

    Long completions are unlikelier than short ones, so the figure of one model says little; its change says how far the
    model has moved towards what is chosen.
    """

    name: ClassVar[str] = "preference_margin"
    title: ClassVar[str] = "preference margin"
    unit: ClassVar[str] = "nats a pair"
    lower: ClassVar[float] = -math.inf
    upper: ClassVar[float] = math.inf
    higher_is_better: ClassVar[bool] = True
    needs: ClassVar[Literal["likelihood", "text", "pairs"]] = "pairs"
    has_sample_values: ClassVar[bool] = True

    def statistics(self, observed: Observations) -> Array:
        """[num_samples, 2]: the margin, one."""
        return mean_statistics(margins(observed))

    def aggregate(self, sums: Array) -> Array:
        """[..., 2] -> [...]."""
        return mean_of_sums(sums)


def margins(observed: Observations) -> list[float]:
    """log p(chosen) - log p(rejected) of each pair, in nats."""
    pairs = zip(observed.scores, observed.rejected_scores, strict=True)
    return [rejected.nll_nats - chosen.nll_nats for chosen, rejected in pairs]
