"""Perplexity: how many tokens, equally likely, the model hesitates between."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import numpy as np

from luthier.ml.evaluation.metrics.protocol import Array, Observations


class Perplexity:
    """exp(total negative log-likelihood / number of tokens), over the learned tokens of all rows.

    A long row counts for more than a short one. Only models with the same tokenizer and template may be compared by it.
    Source: Jelinek, Mercer, Bahl, Baker, "Perplexity - a measure of the difficulty of speech recognition tasks", 1977.
    """

    name: ClassVar[str] = "perplexity"
    title: ClassVar[str] = "perplexity"
    unit: ClassVar[str] = "per token"
    lower: ClassVar[float] = 1.0
    upper: ClassVar[float] = math.inf
    higher_is_better: ClassVar[bool] = False
    needs: ClassVar[Literal["likelihood", "text", "pairs"]] = "likelihood"
    has_sample_values: ClassVar[bool] = True

    def statistics(self, observed: Observations) -> Array:
        """[num_samples, 2]: nats, learned tokens."""
        return np.array([[score.nll_nats, score.num_tokens] for score in observed.scores], dtype=np.float64)

    def aggregate(self, sums: Array) -> Array:
        """[..., 2] -> [...]."""
        result: Array = np.exp(sums[..., 0] / sums[..., 1])
        return result
