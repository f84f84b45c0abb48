"""Labels that were given, compared with the true ones: macro-F1 and the confusion matrix."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from luthier.core.results.task_result import Confusion
from luthier.ml.evaluation.metrics.fraction import ratio
from luthier.ml.evaluation.metrics.label_accuracy import label
from luthier.ml.evaluation.metrics.protocol import Array, Needs, Observations, mean_statistics

LabelIndices = NDArray[np.int64]


@dataclass(frozen=True)
class Labelling:
    """The labels, and which one a text or a row of likelihoods gives: its place, or the number of labels for none."""

    labels: tuple[str, ...]
    keys: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        # The dataclass is frozen; the keys are computed once instead of for every row.
        object.__setattr__(self, "keys", tuple(map(self.key_of, self.labels)))

    @staticmethod
    def key_of(text: str) -> str:
        """The first line with text, case-folded: what makes two labels the same."""
        return label(text)

    def place(self, text: str) -> int | None:
        """Which label the text names; None for none of them."""
        key = self.key_of(text)
        return self.keys.index(key) if key and key in self.keys else None

    def true(self, observed: Observations) -> LabelIndices:
        """[rows]: the place of each row's own label."""
        return self._label_indices(observed.references)

    def given(self, observed: Observations) -> LabelIndices:
        """[rows]: the label written, or the likeliest; the number of labels where none of them was written."""
        if observed.option_scores:
            likeliest: LabelIndices = self.log_likelihoods(observed).argmax(axis=1)
            return likeliest
        return self._label_indices(observed.outputs)

    def log_likelihoods(self, observed: Observations) -> Array:
        """[rows, labels], in nats."""
        return -np.array([[score.nll_nats for score in row] for row in observed.option_scores], dtype=np.float64)

    def right(self, observed: Observations) -> Array:
        """[rows, 2]: 1 where the label is right, one."""
        return mean_statistics((self.true(observed) == self.given(observed)).tolist())

    def without_label(self, observed: Observations) -> Array:
        """[rows, 2]: 1 where the answer is none of the labels (an empty one too), one."""
        return mean_statistics((self.given(observed) == len(self.labels)).tolist())

    def _label_indices(self, texts: Sequence[str]) -> LabelIndices:
        found = (self.place(text) for text in texts)
        return np.array([len(self.labels) if place is None else place for place in found], dtype=np.int64)


@dataclass(frozen=True)
class MacroF1:
    """Mean of the labels' F1 scores, each label alike, however rare.

    Labels that no row has and no answer gives are left out, as scikit-learn's `f1_score(average="macro")` does with
    `labels` that occur and `zero_division=0`. An answer that is none of the labels is a miss of the row's own, and no
    label of its own. Source: Sokolova and Lapalme, "A systematic analysis of performance measures for classification
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
        """[rows, 3 * labels]: a one for each label that is true, that was given, and that was both."""
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
    """Which label was given for which."""
    size = len(labelling.labels)
    # The last column counts answers that are none of the labels.
    counts = np.zeros((size, size + 1), dtype=np.int64)
    true, given = labelling.true(observed), labelling.given(observed)
    known = true < size
    # Unbuffered: a plain += would count a repeated cell once.
    np.add.at(counts, (true[known], given[known]), 1)
    return Confusion(labels=labelling.labels, counts=tuple(tuple(map(int, row)) for row in counts))
