"""Metrics that compare an output with a reference text: exact match, token F1, numbers, BLEU, ROUGE, chrF and METEOR.

Exact match goes character by character; token F1 counts shared words in any order; of numbers the distance counts. BLEU
is the n-gram precision of a whole corpus, with a penalty for being short; ROUGE the recall and precision of words,
pairs and the longest common sequence; chrF an F-score of character n-grams, fair to languages with rich word forms and
to code; METEOR matches words and stems, with a penalty for different order.
"""

from __future__ import annotations

import re
import string
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Final

import numpy as np

from luthier.core.text.written_numbers import NumberMarks, number_marks, read_number
from luthier.ml.evaluation.metrics.protocol import Array, MeanOfRows, Needs, Observations, mean_statistics
from luthier.ml.evaluation.metrics.rouge import rouge_l, rouge_n, stem


class ExactMatch(MeanOfRows):
    """Fraction of outputs equal to their reference; white space at both ends is removed first, nothing else.

    Source: Rajpurkar, Zhang, Lopyrev, Liang, "SQuAD: 100,000+ Questions for Machine Comprehension of Text", 2016,
    arXiv:1606.05250, section 6.1, without its removal of articles and punctuation.
    """

    name: ClassVar[str] = "exact_match"
    title: ClassVar[str] = "exact match"

    def statistics(self, observed: Observations) -> Array:
        """[num_samples, 2]: 1 where equal, one."""
        pairs = zip(observed.outputs, observed.references, strict=True)
        return mean_statistics([self._normal(output) == self._normal(reference) for output, reference in pairs])

    def _normal(self, text: str) -> str:
        return text.strip()


class ExactMatchIgnoringCase(ExactMatch):
    """Exact match after Unicode case folding; white space at both ends is removed, nothing else."""

    name: ClassVar[str] = "exact_match_ignoring_case"
    title: ClassVar[str] = "exact match ignoring case"

    def _normal(self, text: str) -> str:
        return text.strip().casefold()


_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


class TokenF1(MeanOfRows):
    """Mean over samples of the F1 of the bags of words, after SQuAD's normalisation.

    Lower case; ASCII punctuation and the articles a, an, the removed; split at white space. Two texts without words
    are equal (1); one without words is a miss (0), as in SQuAD 2.0.
    Source: Rajpurkar, Zhang, Lopyrev, Liang, "SQuAD: 100,000+ Questions for Machine Comprehension of Text", 2016,
    arXiv:1606.05250, section 6.1.
    """

    name: ClassVar[str] = "token_f1"
    title: ClassVar[str] = "token F1"
    unit: ClassVar[str] = "F1, 0 to 1"

    def statistics(self, observed: Observations) -> Array:
        """[num_samples, 2]: F1, one."""
        return mean_statistics([_f1(o, r) for o, r in zip(observed.outputs, observed.references, strict=True)])


def _f1(output: str, reference: str) -> float:
    said, meant = _words(output), _words(reference)
    if not said or not meant:
        return float(said == meant)
    num_shared = (Counter(said) & Counter(meant)).total()
    return 2.0 * num_shared / (len(said) + len(meant))


def _words(text: str) -> list[str]:
    return _ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split()


@dataclass(frozen=True)
class NormalisedAbsoluteError(MeanOfRows):
    """Mean distance of numbers from those of the references, as a share of the range of these: 0 where all are equal.

    An answer that is no number, or farther away than the range is wide, counts 1, so that every system has a figure on
    every row. Units and thousands separators are read as `read_number` does. Where all references are the same number,
    another one counts 1; where a reference is no number, the texts are compared.

    marks: of decimals and thousands, as the rows of the dataset write them; None finds them in the references.

    Source: Willmott and Matsuura, "Advantages of the mean absolute error (MAE) over the root mean square error (RMSE)
    in assessing average model performance", 2005.
    """

    marks: NumberMarks | None = None
    name: ClassVar[str] = "nmae"
    title: ClassVar[str] = "normalised absolute error"
    unit: ClassVar[str] = "0 to 1"
    higher_is_better: ClassVar[bool] = False

    def statistics(self, observed: Observations) -> Array:
        """[num_samples, 2]: the share of the range, one."""
        marks = self.marks or number_marks(observed.references)
        numbers = [read_number(reference, marks) for reference in observed.references]
        known = [number.value for number in numbers if number is not None]
        ends = (min(known), max(known)) if known else (0.0, 0.0)
        errors = []
        for output, reference, number in zip(observed.outputs, observed.references, numbers, strict=True):
            said = read_number(output, marks)
            if number is None:
                errors.append(float(output.strip() != reference.strip()))
            else:
                errors.append(1.0 if said is None else _distance(said.value, number.value, ends))
        return mean_statistics(errors)


def _distance(said: float, meant: float, ends: tuple[float, float]) -> float:
    # Halves: the difference of two finite numbers may be more than a float holds.
    wide, apart = ends[1] / 2 - ends[0] / 2, abs(said / 2 - meant / 2)
    return min(1.0, apart / wide) if wide > 0 else float(apart > 0)


_BLEU_ORDER = 4


class Bleu:
    """Corpus BLEU as sacrebleu computes it by default: 13a tokenizer, case kept, orders 1 to 4, exponential smoothing.

    0 to 100. Counts are summed over the corpus before any ratio is taken, so single samples have no BLEU.
    Sources: Papineni, Roukos, Ward, Zhu, "BLEU: a Method for Automatic Evaluation of Machine Translation", 2002,
    equations 1 to 3; Post, "A Call for Clarity in Reporting BLEU Scores", 2018, arXiv:1804.08771.
    """

    name: ClassVar[str] = "bleu"
    title: ClassVar[str] = "BLEU"
    unit: ClassVar[str] = "0 to 100"
    lower: ClassVar[float] = 0.0
    upper: ClassVar[float] = 100.0
    higher_is_better: ClassVar[bool] = True
    needs: ClassVar[Needs] = "text"
    has_sample_values: ClassVar[bool] = False

    def statistics(self, observed: Observations) -> Array:
        """[num_samples, 10]: length of the output and of the reference, then matches and n-grams of each order."""
        import sacrebleu

        scorer = sacrebleu.BLEU(effective_order=True)
        rows = []
        for output, reference in zip(observed.outputs, observed.references, strict=True):
            # Only its counts are used: sacrebleu's corpus score sums the same counts.
            score = scorer.sentence_score(output, [reference])
            rows.append([score.sys_len, score.ref_len, *score.counts, *score.totals])
        return np.array(rows, dtype=np.float64)

    def aggregate(self, sums: Array) -> Array:
        """[..., 10] -> [...]."""
        length, reference_length = sums[..., 0], sums[..., 1]
        matches, totals = sums[..., 2 : 2 + _BLEU_ORDER], sums[..., 2 + _BLEU_ORDER :]
        # The k-th order without a match counts as 1 / 2^k matches.
        num_smoothed = np.cumsum(matches == 0, axis=-1)
        smoothed = np.where(matches > 0, matches, 0.5**num_smoothed)
        # An order without any n-gram makes the whole score 0, as does an output without any match.
        possible = (totals > 0).all(axis=-1) & (matches > 0).any(axis=-1)
        precisions = smoothed / np.maximum(totals, 1.0)
        penalty = np.exp(np.minimum(0.0, 1.0 - reference_length / np.maximum(length, 1.0)))
        result: Array = np.where(possible, 100.0 * penalty * np.exp(np.log(precisions).mean(axis=-1)), 0.0)
        return result


class _Rouge(MeanOfRows):
    """The part that ROUGE-1, 2 and L have in common: the mean over samples of one F1, as `rouge_score` gives it."""

    unit: ClassVar[str] = "F1, 0 to 1"
    _score: ClassVar[Callable[[str, str], float]]

    def statistics(self, observed: Observations) -> Array:
        """[num_samples, 2]: F1, one."""
        score = type(self)._score
        return mean_statistics([score(o, r) for o, r in zip(observed.outputs, observed.references, strict=True)])


class Rouge1(_Rouge):
    """ROUGE-1: F1 of single words, Porter stemmer on, words of letters a-z and digits only, case ignored.

    Source: Lin, "ROUGE: A Package for Automatic Evaluation of Summaries", 2004, section 2.
    """

    name: ClassVar[str] = "rouge_1"
    title: ClassVar[str] = "ROUGE-1"
    _score: ClassVar[Callable[[str, str], float]] = staticmethod(rouge_n(1))


class Rouge2(_Rouge):
    """ROUGE-2: F1 of pairs of neighbouring words, words made as for ROUGE-1.

    Source: Lin, "ROUGE: A Package for Automatic Evaluation of Summaries", 2004, section 2.
    """

    name: ClassVar[str] = "rouge_2"
    title: ClassVar[str] = "ROUGE-2"
    _score: ClassVar[Callable[[str, str], float]] = staticmethod(rouge_n(2))


class RougeL(_Rouge):
    """ROUGE-L: F1 of the longest common subsequence of words over the whole text, words made as for ROUGE-1.

    Source: Lin, "ROUGE: A Package for Automatic Evaluation of Summaries", 2004, section 3.1.
    """

    name: ClassVar[str] = "rouge_l"
    title: ClassVar[str] = "ROUGE-L"
    _score: ClassVar[Callable[[str, str], float]] = staticmethod(rouge_l)


_CHRF_ORDER = 6
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
    needs: ClassVar[Needs] = "text"
    has_sample_values: ClassVar[bool] = True

    def statistics(self, observed: Observations) -> Array:
        """[num_samples, 18]: n-grams of the output, of the reference, and matches, each for orders 1 to 6."""
        rows = [_counts(o, r) for o, r in zip(observed.outputs, observed.references, strict=True)]
        return np.array(rows, dtype=np.float64)

    def aggregate(self, sums: Array) -> Array:
        """[..., 18] -> [...]."""
        outputs, references, matches = np.split(sums, 3, axis=-1)
        # [..., 6]: orders longer than a text have no n-grams and are excluded from the mean.
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
    for order in range(1, _CHRF_ORDER + 1):
        ours, theirs = _grams(said, order), _grams(meant, order)
        # Where the reference is too short for an order, sacrebleu leaves the output's n-grams out too.
        num_said.append(ours.total() if theirs else 0)
        num_meant.append(theirs.total())
        num_matches.append((ours & theirs).total())
    return [*num_said, *num_meant, *num_matches]


def _grams(text: str, order: int) -> Counter[str]:
    return Counter(text[start : start + order] for start in range(len(text) - order + 1))


_WORDS: Final = re.compile(r"\w+|[^\w\s]")
# alpha, beta and gamma of Lavie and Agarwal, 2007, section 2, as they were before any tuning to a language
_RECALL_WEIGHT: Final = 0.9
_PENALTY_POWER: Final = 3.0
_LARGEST_PENALTY: Final = 0.5


class Meteor(MeanOfRows):
    """Mean over samples of METEOR with the stages exact and Porter stem, without synonyms.

    Lower case; words are runs of letters and digits, and each other character that is no white space. First equal words
    are aligned, then equal stems, from the end of the output on, each to the last free one of the reference. With P
    and R the aligned share of output and reference, and c runs of neighbours among m aligned words, the figure is
    (1 - 0.5 (c / m)^3) P R / (0.9 P + 0.1 R); 0 where nothing is aligned.

    The third stage, WordNet synonyms, is omitted: it needs word lists that are not part of any package, and a figure
    must not depend on the machine. Figures with synonyms are higher.
    Sources: Banerjee and Lavie, "METEOR: An Automatic Metric for MT Evaluation with Improved Correlation with Human
    Judgments", 2005; Lavie and Agarwal, "METEOR: An Automatic Metric for MT Evaluation with High Levels of Correlation
    with Human Judgments", 2007.
    """

    name: ClassVar[str] = "meteor"
    title: ClassVar[str] = "METEOR"
    unit: ClassVar[str] = "0 to 1"

    def statistics(self, observed: Observations) -> Array:
        """[num_samples, 2]: METEOR, one."""
        pairs = zip(observed.outputs, observed.references, strict=True)
        return mean_statistics([_meteor(words(output), words(reference)) for output, reference in pairs])


def words(text: str) -> list[str]:
    """The words of a text in lower case, with punctuation marks as separate words."""
    return _WORDS.findall(text.lower())


def _meteor(output: Sequence[str], reference: Sequence[str]) -> float:
    aligned: dict[int, int] = {}
    for key in (str, stem):
        aligned |= _new_pairs(list(map(key, output)), list(map(key, reference)), aligned)
    if not aligned:
        return 0.0
    num = len(aligned)
    precision, recall = num / len(output), num / len(reference)
    mean = precision * recall / (_RECALL_WEIGHT * precision + (1 - _RECALL_WEIGHT) * recall)
    # A run begins where the previous word is not aligned to the reference's previous word.
    num_runs = sum(aligned.get(place - 1) != other - 1 for place, other in aligned.items())
    penalty: float = _LARGEST_PENALTY * (num_runs / num) ** _PENALTY_POWER
    return (1 - penalty) * mean


def _new_pairs(output: Sequence[str], reference: Sequence[str], aligned: dict[int, int]) -> dict[int, int]:
    """One-to-one alignment of equal keys that are not aligned yet: output index to reference index."""
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
