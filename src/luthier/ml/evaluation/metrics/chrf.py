"""chrF: F-score of character n-grams; fair to languages with rich word forms, and to code."""

from __future__ import annotations

from collections import Counter
from typing import ClassVar, Literal

import numpy as np

from luthier.ml.evaluation.metrics.protocol import Array, Observations

_MAX_ORDER = 6
_BETA_SQUARED = 4.0


class Chrf:
    """Corpus chrF2 as sacrebleu computes it by default: orders 1 to 6, white space removed, beta 2, no word n-grams.

    0 to 100. Precision and recall are averaged over the orders that both sides have.
    Source: Popovic, "chrF: character n-gram F-score for automatic MT evaluation", 2015, equation 1.
    """

    name: ClassVar[str] = "chrf"
    title: ClassVar[str] = "chrF"
    unit: ClassVar[str] = "0 to 100"
    lower: ClassVar[float] = 0.0
    upper: ClassVar[float] = 100.0
    higher_is_better: ClassVar[bool] = True
    needs: ClassVar[Literal["likelihood", "text", "pairs"]] = "text"
    has_sample_values: ClassVar[bool] = True

    def statistics(self, observed: Observations) -> Array:
        """[num_samples, 18]: n-grams of the output, of the reference, and matches, each for orders 1 to 6."""
        rows = [_counts(o, r) for o, r in zip(observed.outputs, observed.references, strict=True)]
        return np.array(rows, dtype=np.float64)

    def aggregate(self, sums: Array) -> Array:
        """[..., 18] -> [...]."""
        outputs, references, matches = np.split(sums, 3, axis=-1)
        # [..., 6]: orders that are longer than a text have no n-grams, and are left out of the mean.
        both = (outputs > 0) & (references > 0)
        num_orders = np.maximum(both.sum(axis=-1), 1)
        precision = np.where(both, matches / np.maximum(outputs, 1.0), 0.0).sum(axis=-1) / num_orders
        recall = np.where(both, matches / np.maximum(references, 1.0), 0.0).sum(axis=-1) / num_orders
        below = _BETA_SQUARED * precision + recall
        found = below > 0
        score = (1.0 + _BETA_SQUARED) * precision * recall / np.where(found, below, 1.0)
        result: Array = np.where(found, 100.0 * score, 0.0)
        return result


def _counts(output: str, reference: str) -> list[int]:
    said, meant = "".join(output.split()), "".join(reference.split())
    num_said, num_meant, num_matches = [], [], []
    for order in range(1, _MAX_ORDER + 1):
        ours, theirs = _grams(said, order), _grams(meant, order)
        # Where the reference is too short for an order, sacrebleu leaves the output's n-grams out too.
        num_said.append(ours.total() if theirs else 0)
        num_meant.append(theirs.total())
        num_matches.append((ours & theirs).total())
    return [*num_said, *num_meant, *num_matches]


def _grams(text: str, order: int) -> Counter[str]:
    return Counter(text[start : start + order] for start in range(len(text) - order + 1))
