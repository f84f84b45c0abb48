"""Which of several answers is the likeliest: as a whole, or for each of its bytes.

Gao et al., "A framework for few-shot language model evaluation" (lm-evaluation-harness), call the two acc and acc_norm.
A whole likelihood favours short answers, since every token costs; bytes instead of tokens make models with different
tokenizers comparable.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from luthier.ml.evaluation.metrics.protocol import Array, Needs, Observations, mean_of_sums, mean_statistics


class ChoiceAccuracy:
    """Fraction of rows whose likeliest option is the right one.

    Options that are equally likely share the row: one of two likeliest counts a half.

    Args:
        right: index of the right option, one a row.
    """

    name: str = "choice_accuracy"
    title: str = "accuracy of the likeliest option"
    unit: str = "fraction"
    lower: float = 0.0
    upper: float = 1.0
    higher_is_better: bool = True
    needs: Needs = "options"
    has_sample_values: bool = True

    def __init__(self, right: Sequence[int]) -> None:
        self._right = right

    def statistics(self, observed: Observations) -> Array:
        """[num_samples, 2]: 1 where the right option is the likeliest, one."""
        shares = []
        for place, right in enumerate(self._right):
            losses = self._losses(observed, place)
            is_best = losses == losses.min()
            shares.append(float(is_best[right]) / int(is_best.sum()))
        return mean_statistics(shares)

    def aggregate(self, sums: Array) -> Array:
        """[..., 2] -> [...]."""
        return mean_of_sums(sums)

    def _losses(self, observed: Observations, row: int) -> Array:
        """Nats of each option of a row."""
        return np.array([score.nll_nats for score in observed.option_scores[row]])


class ChoiceAccuracyPerByte(ChoiceAccuracy):
    """The same by the likelihood for each UTF-8 byte of an option, so that long ones are not at a disadvantage."""

    name: str = "choice_accuracy_per_byte"
    title: str = "accuracy of the option likeliest for each byte"

    def _losses(self, observed: Observations, row: int) -> Array:
        found: Array = super()._losses(observed, row) / np.array(observed.option_bytes[row])
        return found
