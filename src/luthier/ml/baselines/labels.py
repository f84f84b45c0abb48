"""Answers that repeat: the commonest one, the most popular of those that a prompt offers, and a linear classifier.

The classifier's probabilities are the softmax of its decision values times one factor, which is fitted on the fifth of
the training rows that its regularisation is chosen on (temperature scaling): the answers stay the same.

Sources: Wang and Manning, "Baselines and Bigrams: Simple, Good Sentiment and Topic Classification", 2012 (linear
classifiers on word n-grams are hard to beat on short texts); Fan et al., "LIBLINEAR", 2008, the solver; Guo et al., "On
Calibration of Modern Neural Networks", 2017, section 4.2 (temperature scaling); Platt, "Probabilistic Outputs for
Support Vector Machines", 1999 (targets that no number of rows makes certain).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from luthier.core.text.counted import counted
from luthier.ml.baselines.rows import WORDS, NotApplicable, TaskRow, evenly, same_label, spellings, within
from luthier.ml.evaluation.metrics.calibration import softmax

MAX_LABELS: Final = 500
"""Classes that one linear classifier is fitted for: one weight vector each."""
MAX_CHARACTERS: Final = 1_500_000
"""Of training prompts that a classifier is fitted on: n-grams of more take longer than some 10 s."""
_MAX_TRIED: Final = 4_000
"""Rows on which its regularisation is chosen."""
_STRENGTHS: Final = (0.1, 1.0, 10.0)
"""Inverse regularisation, of which the best on a fifth of the training rows is taken."""
_FACTORS: Final = (0.05, 50.0)
"""Between which the factor of decision values is looked for."""
_WORD: Final = re.compile(r"\w+")
_LOOKED_AT: Final = 1_000
"""Training rows by which it is decided whether prompts offer answers."""


def commonest_answer(rows: Sequence[TaskRow], num: int) -> list[str]:
    """The same answer for all `num` prompts: the one that most training rows have, case and spaces aside.

    Of equally common ones the first in the rows.

    Raises:
        NotApplicable: no answer occurs twice.
    """
    counts = Counter(same_label(row.answer) for row in rows)
    if not counts or max(counts.values()) < 2:
        raise NotApplicable("no answer occurs twice in the training rows")
    label = max(counts, key=lambda one: counts[one])
    return [spellings([row.answer for row in rows])[label]] * num


def popular_among_offered(rows: Sequence[TaskRow], prompts: Sequence[str]) -> list[str]:
    """Of the known answers that a prompt itself mentions, the one that most training rows have.

    Raises:
        NotApplicable: prompts rarely mention their answer, or answers do not repeat.
    """
    counts = Counter(same_label(row.answer) for row in rows)
    if len(rows) < 1.5 * len(counts) or not rows or len(counts) > MAX_LABELS:
        raise NotApplicable("the answers do not repeat" if len(counts) <= MAX_LABELS else "too many different answers")
    words = {label: frozenset(_WORD.findall(label)) for label in counts}
    looked_at = evenly(rows, _LOOKED_AT)
    offers = [(_offered(row.prompt, words), same_label(row.answer)) for row in looked_at]
    listed = [len(labels) for labels, answer in offers if answer in labels]
    # Some prompts must leave a choice between known answers, and nearly all must hold their own.
    if len(listed) < 0.9 * len(looked_at) or float(np.mean(listed)) < 1.3:
        raise NotApplicable("prompts do not list answers to choose from")
    forms, common = spellings([row.answer for row in rows]), max(counts, key=lambda one: counts[one])
    # max keeps the first of equals: the order of the training rows, not that of the prompt, which may be a hint.
    return [forms[max(_offered(prompt, words), key=lambda one: counts[one], default=common)] for prompt in prompts]


def _offered(prompt: str, words: Mapping[str, frozenset[str]]) -> list[str]:
    """The labels that occur in a prompt as whole words. words: the words of each label."""
    text = same_label(prompt)
    own = frozenset(_WORD.findall(text))
    # Words first: looking for every label in every prompt as text is the expensive part.
    return [
        label
        for label, its in words.items()
        if label and its <= own and re.search(rf"(?<!\w){re.escape(label)}(?!\w)", text) is not None
    ]


def rows_for_classifier(rows: Sequence[TaskRow]) -> Sequence[TaskRow]:
    """The rows that a classifier is fitted on: equally spaced ones where prompts are long."""
    return within(rows, MAX_CHARACTERS)


@dataclass(frozen=True, slots=True)
class Classified:
    """Answers of a classifier.

    Attributes:
        outputs: one for each prompt.
        classes: what it chooses among, as answers are written.
        probabilities: [prompts, classes]; None where too few rows were left to fit them on.
    """

    outputs: list[str]
    classes: tuple[str, ...]
    probabilities: NDArray[np.float64] | None


def linear_classifier(rows: Sequence[TaskRow], prompts: Sequence[str]) -> Classified:
    """A linear support vector machine on TF-IDF of words, word pairs and character n-grams.

    Its regularisation is chosen on a fifth of the training rows, then it is fitted on all. Labels that differ in case
    or spaces are one class.

    Raises:
        NotApplicable: one class only, more than `MAX_LABELS`, or too few rows of a class.
    """
    labels = [same_label(row.answer) for row in rows]
    num_labels = len(set(labels))
    if num_labels < 2:
        raise NotApplicable("all training rows have the same answer" if num_labels else "there are no training rows")
    if num_labels > MAX_LABELS:
        raise NotApplicable(f"{counted(num_labels, 'different answer')}, and it is fitted for at most {MAX_LABELS:,}")
    if len(rows) < 2 * num_labels:
        raise NotApplicable(f"{counted(num_labels, 'different answer')} in {len(rows):,} rows: answers hardly repeat")
    forms = spellings([row.answer for row in rows])
    rows = rows_for_classifier(rows)
    labels = [same_label(row.answer) for row in rows]
    seen, asked = _features([row.prompt for row in rows], prompts)
    if len(set(labels)) < 2:
        raise NotApplicable("the rows that fit into its bound have the same answer")
    tried = list(evenly(range(len(labels)), _MAX_TRIED))
    strength, factor = _tried(seen[tried], np.array(labels)[tried])
    fitted = _classifier(strength).fit(seen, labels)
    return Classified(
        outputs=[forms[str(label)] for label in fitted.predict(asked)],
        classes=tuple(forms[str(label)] for label in fitted.classes_),
        probabilities=None if factor is None else softmax(factor * _decisions(fitted, asked)),
    )


def _features(seen: Sequence[str], asked: Sequence[str]) -> tuple[Any, Any]:
    """Both as sparse matrices [texts, n-grams], by the n-grams of the first texts."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.pipeline import FeatureUnion

    # An n-gram of a single row says nothing about others, once there are some rows.
    least = 2 if len(seen) >= 50 else 1
    options = {"sublinear_tf": True, "min_df": least, "max_features": 200_000, "dtype": np.float32}
    union = FeatureUnion(
        [
            ("words", TfidfVectorizer(ngram_range=(1, 2), token_pattern=WORDS, **options)),
            ("characters", TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), **options)),
        ]
    )
    try:
        return union.fit_transform(seen), union.transform(asked)
    except ValueError as error:  # scikit-learn: no n-gram is left
        raise NotApplicable("the prompts hold no words that repeat") from error


def _tried(features: Any, labels: np.ndarray[Any, Any]) -> tuple[float, float | None]:
    """The best regularisation, and the factor of its decision values; None where there is no row to try it on."""
    # Every fifth row of each class, so that each side has every class that has two rows.
    place: Counter[str] = Counter()
    held = np.zeros(len(labels), dtype=bool)
    for number, label in enumerate(labels):
        held[number] = place[label] % 5 == 1
        place[label] += 1
    num_inside = len(set(labels[~held]))
    # With fewer than two rows a class nothing can be chosen by.
    if not held.any() or num_inside < 2 or 2 * num_inside > (~held).sum():
        return 1.0, None
    inside = np.flatnonzero(~held)
    fitted = [_classifier(one).fit(features[inside], labels[inside]) for one in _STRENGTHS]
    right = [float((one.predict(features[held]) == labels[held]).mean()) for one in fitted]
    # The strongest regularisation of equals: argmax takes the first.
    best = int(np.argmax(right))
    return _STRENGTHS[best], _factor(_decisions(fitted[best], features[held]), labels[held], fitted[best].classes_)


def _decisions(fitted: Any, features: Any) -> NDArray[np.float64]:
    """[rows, classes]: the distance from each class's boundary."""
    found = np.asarray(fitted.decision_function(features), dtype=np.float64)
    # Of two classes there is one boundary, with the second class above it.
    return found if found.ndim == 2 else np.stack([-found, found], axis=1)


def _factor(decisions: NDArray[np.float64], labels: np.ndarray[Any, Any], classes: np.ndarray[Any, Any]) -> float:
    """What decision values are multiplied by so that their softmax gives these labels the highest likelihood."""
    from scipy.optimize import minimize_scalar

    # Every held class is among the others: each fifth row is the second of its class at the earliest.
    own = np.searchsorted(classes, labels)
    # Platt's targets: a few rows that are all right do not make it certain.
    target = (len(own) + 1) / (len(own) + 2)
    wanted = np.full(decisions.shape, (1 - target) / (decisions.shape[1] - 1))
    wanted[np.arange(len(own)), own] = target

    def loss(log_factor: float) -> float:
        given = softmax(np.exp(log_factor) * decisions)
        return -float((wanted * np.log(np.maximum(given, 1e-300))).sum(axis=1).mean())

    return float(np.exp(minimize_scalar(loss, bounds=np.log(_FACTORS), method="bounded").x))


def _classifier(strength: float) -> Any:
    from sklearn.svm import LinearSVC

    # dual="auto" takes the primal solver where rows outnumber features; random_state: the dual one draws coordinates.
    return LinearSVC(C=strength, dual="auto", random_state=0, max_iter=2_000, class_weight=None)
