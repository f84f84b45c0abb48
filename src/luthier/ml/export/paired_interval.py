"""How much worse an export predicts, with how sure that is: a paired bootstrap over prompts.

Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13 (percentile interval).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from luthier.core.records.export import Interval

_NUM_RESAMPLES = 10_000
_SEED = 20_240_101


def increase_a_token(export_nats: Sequence[float], source_nats: Sequence[float], num_tokens: Sequence[int]) -> Interval:
    """Export minus source in nats a token, with its 95% interval. One item a prompt in each: totals, and its tokens.

    Prompts are resampled, not tokens: those of one answer are alike. From one prompt no spread can be seen, from none
    no increase.
    """
    if not num_tokens:
        return Interval(value=0.0, low=0.0, high=0.0)
    differences = np.asarray(export_nats, dtype=np.float64) - np.asarray(source_nats, dtype=np.float64)
    tokens = np.asarray(num_tokens, dtype=np.float64)
    # [resamples, prompts] of places, with replacement. Seeded: the same findings give the same interval.
    draws = np.random.default_rng(_SEED).integers(0, len(tokens), size=(_NUM_RESAMPLES, len(tokens)))
    # A ratio of sums: long answers count by their tokens, as in a perplexity.
    resampled = differences[draws].sum(axis=1) / tokens[draws].sum(axis=1)
    low, high = np.quantile(resampled, [0.025, 0.975])
    return Interval(value=float(differences.sum() / tokens.sum()), low=float(low), high=float(high))
