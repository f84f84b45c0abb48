"""Token F1: how many words output and reference share, in any order."""

from __future__ import annotations

import re
import string
from collections import Counter
from typing import ClassVar, Literal

from luthier.ml.evaluation.metrics.protocol import Array, Observations, mean_of_sums, mean_statistics

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


class TokenF1:
    """Mean over samples of the F1 of the bags of words, after SQuAD's normalisation.

    Lower case; ASCII punctuation and the articles a, an, the removed; split at white space. Two texts without words
    are equal (1); one without words is a miss (0), as in SQuAD 2.0.
    Source: Rajpurkar, Zhang, Lopyrev, Liang, "SQuAD: 100,000+ Questions for Machine Comprehension of Text", 2016,
    arXiv:1606.05250, section 6.1.
    """

    name: ClassVar[str] = "token_f1"
    title: ClassVar[str] = "token F1"
    unit: ClassVar[str] = "F1, 0 to 1"
    lower: ClassVar[float] = 0.0
    upper: ClassVar[float] = 1.0
    higher_is_better: ClassVar[bool] = True
    needs: ClassVar[Literal["likelihood", "text", "pairs"]] = "text"
    has_sample_values: ClassVar[bool] = True

    def statistics(self, observed: Observations) -> Array:
        """[num_samples, 2]: F1, one."""
        return mean_statistics([_f1(o, r) for o, r in zip(observed.outputs, observed.references, strict=True)])

    def aggregate(self, sums: Array) -> Array:
        """[..., 2] -> [...]."""
        return mean_of_sums(sums)


def _f1(output: str, reference: str) -> float:
    said, meant = _words(output), _words(reference)
    if not said or not meant:
        return float(said == meant)
    num_shared = (Counter(said) & Counter(meant)).total()
    return 2.0 * num_shared / (len(said) + len(meant))


def _words(text: str) -> list[str]:
    return _ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split()
