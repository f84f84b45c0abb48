"""Logits made log-probabilities, for runtimes that give logits."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from luthier.ml.export.runtimes.protocol import LogProbabilities


def log_softmax(logits: NDArray[np.float32]) -> LogProbabilities:
    """[positions, vocabulary], in place, summed in float64."""
    # The largest becomes 0, so that exp cannot overflow.
    logits -= logits.max(axis=1, keepdims=True)
    for row in logits:
        row -= np.log(np.exp(row, dtype=np.float64).sum())
    return logits
