"""Metrics of preferences: which of two completions of a prompt a model finds likelier, and by how much.

Both are of whole completions, in nats, as the objectives on pairs have them (Rafailov et al., 2023, arXiv:2305.18290,
section 4): what training moved is the difference between tuned and base. No text is generated.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from luthier.evaluate.metrics.protocol import Array, Observations, mean_of_sums, mean_statistics


class PreferenceAccuracy:
    """Share of pairs in which the chosen completion is likelier than the rejected one; a tie is a miss."""

    name: ClassVar[str] = "preference_accuracy"
    title: ClassVar[str] = "preference accuracy"
    unit: ClassVar[str] = "fraction"
    higher_is_better: ClassVar[bool] = True
    needs: ClassVar[Literal["likelihood", "text", "pairs"]] = "pairs"
    has_sample_values: ClassVar[bool] = True

    def statistics(self, observed: Observations) -> Array:
        """[num_samples, 2]: 1 where the chosen completion is likelier, one."""
        return mean_statistics([margin > 0 for margin in _margins(observed)])

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
    higher_is_better: ClassVar[bool] = True
    needs: ClassVar[Literal["likelihood", "text", "pairs"]] = "pairs"
    has_sample_values: ClassVar[bool] = True

    def statistics(self, observed: Observations) -> Array:
        """[num_samples, 2]: the margin, one."""
        return mean_statistics(_margins(observed))

    def aggregate(self, sums: Array) -> Array:
        """[..., 2] -> [...]."""
        return mean_of_sums(sums)


def _margins(observed: Observations) -> list[float]:
    pairs = zip(observed.scores, observed.rejected_scores, strict=True)
    return [rejected.nll_nats - chosen.nll_nats for chosen, rejected in pairs]
