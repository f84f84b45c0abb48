"""Metrics of classification: label accuracy, macro-F1 and the confusion matrix, and calibration of the confidence.

The confidence in each label is the softmax of the labels' log-likelihoods, given that the answer is one of them.
Functions on it are in `luthier.ml.evaluation.metrics.calibration`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Final, Literal

import numpy as np
from numpy.typing import NDArray

from luthier.ml.evaluation.metrics.calibration import (
    bins_of,
    brier_distances,
    calibration_error_of,
    calibration_statistics,
    confidence_of,
    softmax,
)
from luthier.ml.evaluation.metrics.protocol import Array, Needs, Observations, mean_of_sums, mean_statistics, ratio

if TYPE_CHECKING:
    from luthier.core.results.suite import Confusion


class LabelAccuracy:
    """Fraction of outputs whose first line with text names the reference's label; white space, case and a full stop at
    its end are ignored.

    Text after that line is ignored, so that verbose models are not penalised. An output without text is a miss.
    """

    name: ClassVar[str] = "label_accuracy"
    title: ClassVar[str] = "label accuracy"
    unit: ClassVar[str] = "fraction"
    lower: ClassVar[float] = 0.0
    upper: ClassVar[float] = 1.0
    higher_is_better: ClassVar[bool] = True
    needs: ClassVar[Literal["likelihood", "text", "pairs"]] = "text"
    has_sample_values: ClassVar[bool] = True

    def statistics(self, observed: Observations) -> Array:
        """[num_samples, 2]: 1 if the label is right, one."""
        pairs = zip(observed.outputs, observed.references, strict=True)
        return mean_statistics([bool(label(o)) and label(o) == label(r) for o, r in pairs])

    def aggregate(self, sums: Array) -> Array:
        """[..., 2] -> [...]."""
        return mean_of_sums(sums)


def label(text: str) -> str:
    """The first line with text, without white space around it and a full stop at its end, case-folded; or nothing."""
    first = next((line.strip() for line in text.splitlines() if line.strip()), "")
    return (first.removesuffix(".").rstrip() or first).casefold()


def num_other_spellings(answers: Iterable[tuple[str, str]], metric: str) -> int:
    """How many answers name the label of their reference and are not equal to it.

    Args:
        answers: with their references.
        metric: exact_match, or exact_match_ignoring_case.
    """
    fold = str.strip if metric == "exact_match" else lambda text: text.strip().casefold()
    return sum(
        fold(said) != fold(meant) and bool(label(said)) and label(said) == label(meant) for said, meant in answers
    )


MAX_LABELS: Final = 50
MAX_LABEL_CHARACTERS: Final = 60
MIN_LABELLED_ROWS: Final = 20
MIN_ROWS_PER_LABEL: Final = 5


def labels_in(answers: Sequence[str]) -> tuple[str, ...]:
    """The labels of these answers in alphabetical order, each in its first spelling; empty answers have none."""
    first: dict[str, str] = {}
    for answer in answers:
        if answer.strip():
            # The first spelling of a label is used for all that differ only in case.
            first.setdefault(label(answer), answer.strip().splitlines()[0].strip())
    return tuple(first[key] for key in sorted(first))


def answer_labels(references: Sequence[str], training: Sequence[str] = ()) -> tuple[str, ...]:
    """The labels of the rows' answers; empty if the answers are not labels.

    Labels are single lines of at most 60 characters, at least 2 and at most 50 of them, over at least 20 rows and 5
    rows per label on average. Held-out and training rows are considered together, so that labels that occur in only one
    of them count; if the training rows contain other text as well, only the held-out rows.

    Args:
        references: the answers of the held-out rows.
        training: the answers of the training rows.
    """
    for answers in ([*references, *training], references):
        found = labels_in(answers)
        are_short = all(len(text) <= MAX_LABEL_CHARACTERS and "\n" not in text for text in map(str.strip, answers))
        least = max(MIN_LABELLED_ROWS, MIN_ROWS_PER_LABEL * len(found))
        if are_short and 2 <= len(found) <= MAX_LABELS and len(answers) >= least:
            return found
    return ()


LabelIndices = NDArray[np.int64]


@dataclass(frozen=True)
class Labelling:
    """The labels, and the label index of a text or a row of likelihoods; the number of labels means none."""

    labels: tuple[str, ...]
    keys: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        # The dataclass is frozen; the keys are computed once instead of for every row.
        object.__setattr__(self, "keys", tuple(map(self.key_of, self.labels)))

    @staticmethod
    def key_of(text: str) -> str:
        """The first line with text, case-folded and without a full stop: the key for equal labels."""
        return label(text)

    def place(self, text: str) -> int | None:
        """The label that the text names, or None."""
        key = self.key_of(text)
        return self.keys.index(key) if key and key in self.keys else None

    def true(self, observed: Observations) -> LabelIndices:
        """[rows]: the index of each row's label."""
        return self._label_indices(observed.references)

    def given(self, observed: Observations) -> LabelIndices:
        """[rows]: the generated or likeliest label; the number of labels if none was generated."""
        if observed.option_scores:
            likeliest: LabelIndices = self.log_likelihoods(observed).argmax(axis=1)
            return likeliest
        return self._label_indices(observed.outputs)

    def probabilities(self, observed: Observations) -> Array:
        """[rows, labels]: the softmax of the labels' likelihoods."""
        return softmax(self.log_likelihoods(observed))

    def log_likelihoods(self, observed: Observations) -> Array:
        """[rows, labels], in nats."""
        return -np.array([[score.nll_nats for score in row] for row in observed.option_scores], dtype=np.float64)

    def right(self, observed: Observations) -> Array:
        """[rows, 2]: 1 if the label is right, one."""
        return mean_statistics((self.true(observed) == self.given(observed)).tolist())

    def without_label(self, observed: Observations) -> Array:
        """[rows, 2]: 1 if the answer is none of the labels (or empty), one."""
        return mean_statistics((self.given(observed) == len(self.labels)).tolist())

    def _label_indices(self, texts: Sequence[str]) -> LabelIndices:
        found = (self.place(text) for text in texts)
        return np.array([len(self.labels) if place is None else place for place in found], dtype=np.int64)


@dataclass(frozen=True)
class MacroF1:
    """Mean of the labels' F1 scores, with equal weights.

    Labels that occur in no row and no answer are skipped, as in scikit-learn's `f1_score(average="macro")` with
    occurring `labels` and `zero_division=0`. An answer that is none of the labels is a miss of the row's label, and not
    a separate label. Source: Sokolova and Lapalme, "A systematic analysis of performance measures for classification
    tasks", 2009, table 3, with the mean taken over F1 instead of over precision and recall.
    """

    labelling: Labelling
    needs: Needs = "text"
    name: ClassVar[str] = "macro_f1"
    title: ClassVar[str] = "macro-F1"
    unit: ClassVar[str] = "0 to 1"
    lower: ClassVar[float] = 0.0
    upper: ClassVar[float] = 1.0
    higher_is_better: ClassVar[bool] = True
    has_sample_values: ClassVar[bool] = False

    def statistics(self, observed: Observations) -> Array:
        """[rows, 3 * labels]: one-hot columns for the true label, the given label, and both."""
        every = np.arange(len(self.labelling.labels))
        # [rows, labels] one-hot; the index of "none of them" equals no column, so that row is all zeros.
        true = self.labelling.true(observed)[:, None] == every
        given = self.labelling.given(observed)[:, None] == every
        return np.concatenate([true, given, true & given], axis=1).astype(np.float64)

    def aggregate(self, sums: Array) -> Array:
        """[..., 3 * labels] -> [...]. F1 = 2 both / (true + given)."""
        true, given, both = np.split(sums, 3, axis=-1)
        occurs = true + given
        f1 = ratio(2.0 * both, occurs)
        return ratio(f1.sum(axis=-1), (occurs > 0).sum(axis=-1).astype(np.float64))


def confusion(labelling: Labelling, observed: Observations) -> Confusion:
    """The confusion matrix."""
    from luthier.core.results.suite import Confusion

    size = len(labelling.labels)
    # The last column counts answers that are none of the labels.
    counts = np.zeros((size, size + 1), dtype=np.int64)
    true, given = labelling.true(observed), labelling.given(observed)
    known = true < size
    # Unbuffered: a plain += would count a repeated cell once.
    np.add.at(counts, (true[known], given[known]), 1)
    return Confusion(labels=labelling.labels, counts=tuple(tuple(map(int, row)) for row in counts))


def joined_labels(found: Confusion, most: int) -> Confusion:
    """The confusion matrix of the `most` most frequent labels; all others are merged into "other"."""
    from luthier.core.results.suite import Confusion

    if len(found.labels) <= most:
        return found
    counts = np.array(found.counts)
    # Stable: ties go to the first in the table.
    kept = np.sort(np.argsort(-counts.sum(axis=1), kind="stable")[:most])
    group = np.full(len(found.labels) + 1, most)
    group[kept] = np.arange(most)
    # The last column, answers that are none of the labels, stays the last.
    group[-1] = most + 1
    joined = np.zeros((most + 1, most + 2), dtype=np.int64)
    np.add.at(joined, (group[:-1, None], group[None, :]), counts)
    names = [found.labels[place] for place in kept.tolist()]
    # An existing label of that name keeps it.
    name = "other" if "other" not in map(label, names) else "all other labels"
    return Confusion(labels=(*names, name), counts=tuple(tuple(map(int, row)) for row in joined))


@dataclass(frozen=True)
class CalibrationError:
    """Mean distance of confidence and accuracy over bins of equal width, weighted by their rows.

    Source: Guo et al., "On Calibration of Modern Neural Networks", 2017, equation 3 (after Naeini et al., "Obtaining
    Well Calibrated Probabilities Using Bayesian Binning", 2015); bins are [low, high), the last one closed.
    """

    labelling: Labelling
    num_bins: int = 10
    name: ClassVar[str] = "calibration_error"
    title: ClassVar[str] = "expected calibration error"
    unit: ClassVar[str] = "0 to 1"
    lower: ClassVar[float] = 0.0
    upper: ClassVar[float] = 1.0
    higher_is_better: ClassVar[bool] = False
    needs: ClassVar[Literal["options"]] = "options"
    has_sample_values: ClassVar[bool] = False

    def statistics(self, observed: Observations) -> Array:
        """[rows, 3 * bins], see `calibration_statistics`."""
        confidence, is_right = confidence_of(self.labelling.probabilities(observed), self.labelling.true(observed))
        where = bins_of(confidence, self.num_bins, "equal_width")
        return calibration_statistics(confidence, is_right, where, self.num_bins)

    def aggregate(self, sums: Array) -> Array:
        """[..., 3 * bins] -> [...]: the sum over bins of |right - confidence|, by rows."""
        return calibration_error_of(sums, debiased=False)


@dataclass(frozen=True)
class BrierScore:
    """Mean squared distance of the confidences from the truth, summed over all labels: 0 (certain and right) to 2.

    Source: Brier, "Verification of Forecasts Expressed in Terms of Probability", 1950, equation 2. For two labels it is
    twice what libraries call the Brier score of the second one.
    """

    labelling: Labelling
    name: ClassVar[str] = "brier"
    title: ClassVar[str] = "Brier score"
    unit: ClassVar[str] = "0 to 2"
    lower: ClassVar[float] = 0.0
    upper: ClassVar[float] = 2.0
    higher_is_better: ClassVar[bool] = False
    needs: ClassVar[Literal["options"]] = "options"
    has_sample_values: ClassVar[bool] = True

    def statistics(self, observed: Observations) -> Array:
        """[rows, 2]: the row's squared distance, one."""
        distances = brier_distances(self.labelling.probabilities(observed), self.labelling.true(observed))
        return np.stack([distances, np.ones(len(distances))], axis=1)

    def aggregate(self, sums: Array) -> Array:
        """[..., 2] -> [...]."""
        return ratio(sums[..., 0], sums[..., 1])
