"""Confidence in labels, and its uses: calibration, and selective answering.

For a language model, each label is scored as the whole answer including its end token (otherwise `great` would always
be likelier than `great value`). The softmax over labels is its confidence, given that the answer is one of them; its
prediction is the likeliest label. A classifier's probabilities are used directly.

Only labels of the training rows have a probability: a held-out label that was never trained always counts as wrong.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from luthier.core.evaluation import Coverage, LabelConfidence, Metric, ReliabilityBin
from luthier.core.evaluation_plan import SHARES_OF_CORRECT, Bar
from luthier.core.text.counted import counted
from luthier.ml.charts.spec import Axis, Mark, Plot, Role, Series, points_of
from luthier.ml.charts.system_names import chart_name
from luthier.ml.evaluation.metrics.calibration import (
    brier_score,
    confidence_of,
    expected_calibration_error,
    group_numbers,
    reliability_bins,
)
from luthier.ml.evaluation.metrics.classification import Labelling, labels_in
from luthier.ml.evaluation.metrics.selective import risk_coverage_curve, selective_accuracy
from luthier.ml.evaluation.statistics.intervals import Interval

Array = NDArray[np.float64]

MAX_TOKENS: Final = 500_000
"""Maximum tokens for scoring every label of every row."""
MIN_ROWS: Final = 20
"""Minimum held-out rows for calibration or a threshold."""
_FIRST_ROWS: Final = 5
_MAX_POINTS: Final = 200


def trained_labels(labels: Sequence[str], training: Sequence[str]) -> tuple[str, ...]:
    """The labels of the training rows, in order; all labels if no training row is known or has one.

    Args:
        labels: those of held-out and training rows (`answer_labels`).
        training: the answers of the training rows.
    """
    known = set(map(Labelling.key_of, labels_in(training)))
    return tuple(label for label in labels if Labelling.key_of(label) in known) or tuple(labels)


def why_left_out(labels: Sequence[str], num_rows: int, num_tokens: int, *, has_thoughts: bool) -> str:
    """Why labels are not scored; empty if they are.

    Args:
        labels: the labels to score.
        num_rows: held-out rows.
        num_tokens: tokens of all rows, each with its own answer.
        has_thoughts: whether rows have reasoning before the answer.
    """
    if len(labels) < 2:
        return "all training rows have the same label"
    if has_thoughts:
        return "a thought comes before each answer, and how likely a label is depends on it"
    if num_rows < MIN_ROWS:
        return f"{counted(num_rows, 'held-out row is', 'held-out rows are')} too few: it takes {MIN_ROWS}"
    if num_tokens * len(labels) > MAX_TOKENS:
        return (
            f"{counted(len(labels), 'label')} of {num_rows:,} rows are {num_tokens * len(labels):,} tokens to read, "
            f"and the limit is {MAX_TOKENS:,}"
        )
    return ""


def label_confidence(
    system: str,
    probabilities: Array,
    labelling: Labelling,
    references: Sequence[str],
    bar: Bar | None,
    *,
    validation: tuple[Array, Sequence[str]] | None = None,
    clusters: Sequence[Hashable] | None = None,
) -> LabelConfidence:
    """Calibration of one system and, with an accuracy bar, the share of cases that it can answer alone.

    Args:
        system: its name.
        probabilities: [rows, labels].
        labelling: the labels, in the order of the columns.
        references: the rows' own answers.
        bar: the requested accuracy.
        validation: probabilities [validation rows, labels] and answers of rows that choose the threshold; None uses
            cross-validation on the rows themselves.
        clusters: the group of each row; None where every row counts by itself.
    """
    # [rows] int64: the column of the right label.
    own = _positions(labelling, references)
    confidence, is_right = confidence_of(probabilities, own)
    found = LabelConfidence(
        system=system,
        num_labels=len(labelling.labels),
        calibration_error=_metric(expected_calibration_error(probabilities, own, clusters=clusters), "0 to 1"),
        brier=_metric(brier_score(probabilities, own, clusters=clusters), "0 to 2"),
        bins=reliability_bins(probabilities, own, clusters=clusters),
        confidence=tuple(confidence.tolist()),
        is_right=tuple(bool(right) for right in is_right),
        groups=() if clusters is None else group_numbers(clusters),
    )
    if validation is not None:
        # Kept beside the figures: another bar can be asked for later without asking the model again.
        sure, right = confidence_of(validation[0], _positions(labelling, validation[1]))
        chosen = {"validation_confidence": tuple(sure.tolist()), "validation_is_right": tuple(map(bool, right))}
        found = found.model_copy(update=chosen)
    if bar is None or not is_accuracy(bar):
        return found
    return found.model_copy(update={"coverage": coverage_at(found, bar.value)})


def _positions(labelling: Labelling, answers: Sequence[str]) -> NDArray[np.int64]:
    """The column of each answer; one past the last for a label without a probability, which never matches."""
    places = (labelling.place(answer) for answer in answers)
    return np.array([len(labelling.labels) if place is None else place for place in places], dtype=np.int64)


def arranged(probabilities: Array, classes: Sequence[str], labelling: Labelling) -> Array:
    """A classifier's probabilities in the order of the labels: [rows, classes] -> [rows, labels].

    Classes outside the labels are dropped and the others renormalised; a row with only such classes becomes uniform.
    """
    found = np.zeros((len(probabilities), len(labelling.labels)))
    for column, name in enumerate(classes):
        # Several classes may be spellings of one label: their probabilities add up.
        place = labelling.place(name)
        if place is not None:
            found[:, place] += probabilities[:, column]
    # A tiny share for each, so that rows without any known class get equal probabilities.
    found += 1e-12
    result: Array = found / found.sum(axis=1, keepdims=True)
    return result


def is_accuracy(bar: Bar | None) -> bool:
    """Whether coverage can be computed for this bar."""
    return bar is not None and bar.metric in SHARES_OF_CORRECT and 0 < bar.value < 1


def coverage_at(of: LabelConfidence, accuracy: float) -> Coverage:
    """The share of cases that a system can answer alone; its validation rows choose the threshold, if it has any.

    Args:
        of: the system's confidence.
        accuracy: the required accuracy, in (0, 1).
    """
    other = (of.validation_confidence, of.validation_is_right) if of.validation_confidence else None
    found = selective_accuracy(of.confidence, of.is_right, accuracy, chosen_on=other, clusters=of.groups or None)
    value, low, high = found.accuracy or (None, None, None)
    return Coverage(
        asked=accuracy,
        threshold=found.threshold,
        num_rows=found.num_rows,
        num_answered=found.num_answered,
        share=found.share.value,
        share_low=found.share.low,
        share_high=found.share.high,
        accuracy=value,
        low=low,
        high=high,
        chosen_on="held_out" if other is None else "validation",
        num_validation_rows=len(of.validation_confidence),
    )


def coverage_sentence(coverage: Coverage, subject: str = "It") -> str:
    """`It can answer 62% of cases alone at 90% accuracy; the rest goes to a person.`"""
    # "can" only where the lower end of the interval reaches the bar; else "might".
    asked = f"{100 * coverage.asked:g}%"
    if coverage.accuracy is None or not coverage.num_answered:
        return (
            f"{subject} can answer no share of cases alone at {asked} accuracy: it is wrong too often where it is sure."
        )
    cases = "all cases" if coverage.is_of_all else f"{coverage.percent} of cases"
    rest = "" if coverage.is_of_all else "; the rest goes to a person"
    if coverage.is_shown:
        return f"{subject} can answer {cases} alone at {asked} accuracy{rest}."
    return (
        f"{subject} might answer {cases} alone{rest}: {100 * coverage.accuracy:.0f}% of those are right "
        f"[{100 * (coverage.low or 0.0):.0f}%, {100 * (coverage.high or 0.0):.0f}%], which does not show {asked}."
    )


def confidence_details(found: LabelConfidence) -> tuple[str, ...]:
    """Sentences of a verdict on a system's confidence: calibration, and the most confident half compared with all."""
    error = found.calibration_error
    belief = f"calibration error {error.value:.2f} [{error.low:.2f}, {error.high:.2f}]"
    sure, right = float(np.mean(found.confidence)), float(np.mean(found.is_right))
    curve = risk_coverage_curve(found.confidence, found.is_right)
    # argmax of booleans is the first true one: the shortest beginning with at least half of the rows.
    half = int(np.argmax(curve.share >= 0.5))
    lines = [
        f"By the probabilities of its labels it is {100 * sure:.0f}% sure on average, and right in {100 * right:.0f}% "
        f"({belief}); of the {100 * curve.share[half]:.0f}% of rows that it is surest of, in "
        f"{100 * curve.accuracy[half]:.0f}%."
    ]
    at = found.coverage
    if at is not None and at.accuracy is not None and at.threshold is not None:
        lines.append(
            f"Alone from a confidence of {at.threshold:.2f} on: {at.num_answered:,} of {at.num_rows:,} rows (share "
            f"{at.share:.2f} [{at.share_low:.2f}, {at.share_high:.2f}]), accuracy {at.accuracy:.3f} "
            f"[{at.low:.3f}, {at.high:.3f}], {_chosen_by(at)}."
        )
    return tuple(lines)


def _chosen_by(coverage: Coverage) -> str:
    if coverage.chosen_on == "validation":
        return f"by a threshold from {coverage.num_validation_rows:,} validation rows"
    return "each row by a threshold from other held-out rows (five folds)"


def confidence_plots(
    found: Sequence[LabelConfidence], colours: Mapping[str, Role], *, size_pixels: int = 420
) -> list[Plot]:
    """The reliability diagram, and accuracy against coverage; none without confidences.

    Args:
        found: one per system.
        colours: of each system, by its name.
        size_pixels: width of the drawings; the first is a square.
    """
    if not found:
        return []
    bins = [(one.system, one.bins) for one in found]
    return [
        reliability_plot("chart-label-reliability", "confidence in the label", bins, colours, size_pixels),
        _coverage_plot(found, colours, size_pixels),
    ]


def reliability_plot(
    key: str,
    measured: str,
    found: Sequence[tuple[str, Sequence[ReliabilityBin]]],
    colours: Mapping[str, Role],
    size_pixels: int,
) -> Plot:
    """The reliability diagram: accuracy against confidence, bin by bin. Bins without rows are left out.

    Args:
        key: the id of the chart on its page.
        measured: what the x axis measures.
        found: bins from low to high confidence, by system.
        colours: of each system, by its name.
        size_pixels: width and height.
    """
    lines = [Series("as sure as right", ((0.0, 0.0), (1.0, 1.0)), "muted", is_dashed=True, radius_pixels=0.0)]
    words = []
    for system, bins in found:
        # An empty bin has no accuracy; a point at 0 would look like a wrong one.
        filled = [part for part in bins if part.num_rows]
        labels = [counted(part.num_rows, "row") for part in filled]
        points = [(part.confidence, part.accuracy) for part in filled]
        lines.append(Series(chart_name(system), points, colours[system], labels=labels))
        said = [f"{x:.2f} sure, {y:.2f} right ({rows})" for (x, y), rows in zip(points, labels, strict=True)]
        words.append(f"Reliability of {system}: {'; '.join(said)}.")
    return Plot(
        key,
        "Reliability",
        Axis(measured, low=0.0, high=1.0),
        Axis("fraction right", low=0.0, high=1.0),
        lines,
        caption="How often it is right at each confidence; below the dashed line it is overconfident.",
        description=" ".join(words),
        width_pixels=size_pixels,
        height_pixels=size_pixels,
    )


def _coverage_plot(found: Sequence[LabelConfidence], colours: Mapping[str, Role], size_pixels: int) -> Plot:
    lines, words = [], []
    for one in found:
        curve = risk_coverage_curve(one.confidence, one.is_right)
        # The first few rows are noisy and make the line jump over the whole height.
        kept = np.flatnonzero(curve.share * len(one.confidence) >= min(_FIRST_ROWS, len(one.confidence)))
        # At most 200 of them, evenly spread: a browser draws no more, and the first and last stay.
        kept = kept[np.unique(np.linspace(0, len(kept) - 1, _MAX_POINTS).astype(np.int64))]
        points = points_of(curve.share[kept], curve.accuracy[kept])
        labels = [f"from a confidence of {value:.2f} on" for value in curve.threshold[kept]]
        lines.append(Series(chart_name(one.system), points, colours[one.system], labels=labels, radius_pixels=0.0))
        half = int(np.argmax(curve.share >= 0.5))
        shares = f"{curve.accuracy[half]:.2f} of the surest half, {curve.accuracy[-1]:.2f} of all"
        words.append(f"Right answers of {one.system}: {shares}.")
    asked = next((one.coverage.asked for one in found if one.coverage is not None), None)
    marks = () if asked is None else (Mark(asked, f"asked for: {asked:g}", axis="y"),)
    return Plot(
        "chart-coverage",
        "What it can answer alone",
        Axis("share answered alone, the surest first", low=0.0, high=1.0),
        Axis("fraction right of those", high=1.0),
        lines,
        marks=marks,
        caption="Accuracy of the rows that it answers alone, where a person gets the rest.",
        description=" ".join(("Accuracy against the share answered alone.", *words)),
        width_pixels=size_pixels,
        height_pixels=size_pixels,
    )


def _metric(found: Interval, unit: str) -> Metric:
    return Metric(value=found.value, low=found.low, high=found.high, unit=unit, higher_is_better=False)
