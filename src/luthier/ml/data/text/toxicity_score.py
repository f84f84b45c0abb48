"""How likely a text is toxic, judged by a list of words alone: logistic regression on counts by class.

The weights were fitted by `benchmarks/toxicity.py` on the training part (60%, by hash) of the 24,783 tweets of Davidson
et al. 2017 (hate or offensive against neither), both classes weighted the same: a probability answers "if half of such
texts were toxic". Where toxic texts are rarer, fewer of those reported are.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from luthier.ml.data.text.toxic_words import ToxicWord, WordList, counts_by_class, english

MAX_COUNTED: Final = 3
THRESHOLD: Final = 0.5
INTERCEPT: Final = -3.329
WEIGHTS: Final[Mapping[str, float]] = {
    "slur": 4.07,
    "insult": 6.508,
    "profanity": 4.12,
    "mild": 0.994,
    "threat": 3.379,  # not fitted: too few tweets threaten, so a threat alone is set to reach the threshold
    "harassment": 1.42,
}
# What `benchmarks/toxicity.py` measured with these weights: [value, low, high], 95% intervals (Wilson 1927).
MEASURED: Final[Mapping[str, Any]] = {
    "date": "2026-11-25",
    "davidson_2017_other_40_percent": {
        "num": 9987,
        "precision": [0.9868, 0.9841, 0.9891],
        "recall": [0.9538, 0.9491, 0.9581],
        "false_alarms": [0.0634, 0.0527, 0.0761],
        "precision_if_toxic_are": {"0.5": 0.938, "0.1": 0.626, "0.01": 0.132},
        "calibration_error": 0.0042,
    },
    "hatecheck_2021_accuracy": {
        "all": [0.3568, 0.3415, 0.3723],
        "not hateful, uses such words, negation or quotation": [0.5965, 0.5631, 0.6289],
        "hateful, without slur or profanity": [0.0265, 0.0205, 0.0343],
    },
}
CANNOT_SEE: Final = (
    "a list of words sees words, not what is meant: on HateCheck it is right in 36% of all cases, in 60% of those that "
    "use such words harmlessly (quoting, reclaiming, swearing at a thing), and finds 3% of hate without a slur or "
    "profanity; English only; --toxicity-model FOLDER puts a text classifier in its place"
)


@dataclass(frozen=True, slots=True)
class Toxicity:
    """How toxic a text seems.

    Attributes:
        probability: that it is toxic, 0 to 1.
        words: entries of the list that were found in it.
    """

    probability: float
    words: tuple[ToxicWord, ...]


def toxicity_of(text: str, words: WordList | None = None) -> Toxicity:
    """Judge one text. A text with no word of the list has the lowest probability that there is, not 0."""
    found = (words or english()).find(text)
    return Toxicity(probability_of(counts_by_class(found)), tuple(found))


def probability_of(counts: Counter[str]) -> float:
    """The probability for a number of finds by class, each counted up to three times."""
    score = INTERCEPT + sum(weight * min(counts[kind], MAX_COUNTED) for kind, weight in WEIGHTS.items())
    return 1 / (1 + math.exp(-score))


def features(found: Sequence[ToxicWord], kinds: Sequence[str]) -> list[float]:
    """What the regression sees of a text: its finds by class, each counted up to three times."""
    counts = counts_by_class(list(found))
    return [float(min(counts[kind], MAX_COUNTED)) for kind in kinds]
