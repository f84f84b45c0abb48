"""METEOR: words of the output that the reference has, in whatever form, less a penalty for their disorder."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import ClassVar, Final, Literal

from luthier.ml.evaluation.metrics.protocol import Array, Observations, mean_of_sums, mean_statistics

_WORDS: Final = re.compile(r"\w+|[^\w\s]")
# alpha, beta and gamma of Lavie and Agarwal, 2007, section 2, as they were before any tuning to a language
_RECALL_WEIGHT: Final = 0.9
_PENALTY_POWER: Final = 3.0
_LARGEST_PENALTY: Final = 0.5


class Meteor:
    """Mean over samples of METEOR with the stages exact and Porter stem, without synonyms.

    Lower case; words are runs of letters and digits, and each other character that is no white space. First equal words
    are aligned, then equal stems, from the end of the output on, each to the last free one of the reference. With P
    and R the aligned share of output and reference, and c runs of neighbours among m aligned words, the figure is
    (1 - 0.5 (c / m)^3) P R / (0.9 P + 0.1 R); 0 where nothing is aligned.

    The third stage, synonyms of WordNet, is left out: it needs word lists that are not part of any package, and a
    figure must not depend on what a machine happens to have. Figures with synonyms are higher.
    Sources: Banerjee and Lavie, "METEOR: An Automatic Metric for MT Evaluation with Improved Correlation with Human
    Judgments", 2005; Lavie and Agarwal, "METEOR: An Automatic Metric for MT Evaluation with High Levels of Correlation
    with Human Judgments", 2007.
    """

    name: ClassVar[str] = "meteor"
    title: ClassVar[str] = "METEOR"
    unit: ClassVar[str] = "0 to 1"
    lower: ClassVar[float] = 0.0
    upper: ClassVar[float] = 1.0
    higher_is_better: ClassVar[bool] = True
    needs: ClassVar[Literal["likelihood", "text", "pairs"]] = "text"
    has_sample_values: ClassVar[bool] = True

    def statistics(self, observed: Observations) -> Array:
        """[num_samples, 2]: METEOR, one."""
        from nltk.stem.porter import PorterStemmer  # type: ignore[import-untyped]  # comes with rouge-score

        stem = PorterStemmer().stem
        pairs = zip(observed.outputs, observed.references, strict=True)
        return mean_statistics([_meteor(words(output), words(reference), stem) for output, reference in pairs])

    def aggregate(self, sums: Array) -> Array:
        """[..., 2] -> [...]."""
        return mean_of_sums(sums)


def words(text: str) -> list[str]:
    """The words of a text in lower case, marks of punctuation as words of their own."""
    return _WORDS.findall(text.lower())


def _meteor(output: Sequence[str], reference: Sequence[str], stem: Callable[[str], str]) -> float:
    aligned: dict[int, int] = {}
    for key in (str, stem):
        aligned |= _new_pairs(list(map(key, output)), list(map(key, reference)), aligned)
    if not aligned:
        return 0.0
    num = len(aligned)
    precision, recall = num / len(output), num / len(reference)
    mean = precision * recall / (_RECALL_WEIGHT * precision + (1 - _RECALL_WEIGHT) * recall)
    # A run begins where the word before is not aligned to the reference's word before.
    num_runs = sum(aligned.get(place - 1) != other - 1 for place, other in aligned.items())
    penalty: float = _LARGEST_PENALTY * (num_runs / num) ** _PENALTY_POWER
    return (1 - penalty) * mean


def _new_pairs(output: Sequence[str], reference: Sequence[str], aligned: dict[int, int]) -> dict[int, int]:
    """Places of equal keys that are not aligned yet, one to one: output to reference."""
    free = defaultdict[str, list[int]](list)
    taken = set(aligned.values())
    for place, key in enumerate(reference):
        if place not in taken:
            free[key].append(place)
    found = {}
    # From the end, as nltk does it: the choice among equal words changes the number of runs.
    for place in reversed(range(len(output))):
        if place not in aligned and (places := free.get(output[place])):
            found[place] = places.pop()
    return found
