"""Bits per byte: likelihood in a unit that does not depend on the tokenizer."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import numpy as np

from luthier.ml.evaluation.metrics.protocol import Array, Observations


class BitsPerByte:
    """Total negative log-likelihood in bits / UTF-8 bytes of the learned text.

    The tokens that end a turn are paid for in bits but have no bytes: on very short answers that shows.
    Source: Gao et al., "The Pile: An 800GB Dataset of Diverse Text for Language Modeling", 2020, arXiv:2101.00027,
    section 3.1.
    """

    name: ClassVar[str] = "bits_per_byte"
    title: ClassVar[str] = "bits per byte"
    unit: ClassVar[str] = "bits per byte"
    lower: ClassVar[float] = 0.0
    upper: ClassVar[float] = math.inf
    higher_is_better: ClassVar[bool] = False
    needs: ClassVar[Literal["likelihood", "text", "pairs"]] = "likelihood"
    has_sample_values: ClassVar[bool] = True

    def statistics(self, observed: Observations) -> Array:
        """[num_samples, 2]: bits, bytes."""
        bits = np.array([score.nll_nats for score in observed.scores], dtype=np.float64) / np.log(2)
        return np.stack([bits, np.asarray(observed.num_bytes, dtype=np.float64)], axis=1)

    def aggregate(self, sums: Array) -> Array:
        """[..., 2] -> [...]."""
        result: Array = sums[..., 0] / sums[..., 1]
        return result
