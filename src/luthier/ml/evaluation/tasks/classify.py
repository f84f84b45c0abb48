"""Classification: which label a row has, and whether the model's confidence can be believed."""

from __future__ import annotations

from collections.abc import Sequence

from luthier.core.errors import RequestError
from luthier.core.results.suite import ClassifyTask
from luthier.core.results.task_result import TaskFigures
from luthier.ml.evaluation.metrics.calibration import BrierScore, CalibrationError, reliability
from luthier.ml.evaluation.metrics.classification import Labelling, MacroF1, confusion
from luthier.ml.evaluation.metrics.fraction import Fraction
from luthier.ml.evaluation.metrics.protocol import MetricDefinition, Observations
from luthier.ml.evaluation.tasks.protocol import Resources, TaskRow
from luthier.ml.evaluation.tasks.row_checks import check_rows, own_answer


class Classify:
    """Accuracy, macro-F1 and, by likelihood, expected calibration error and Brier score."""

    def check(self, task: ClassifyTask, rows: Sequence[TaskRow]) -> None:
        """Every row's own answer is one of the labels."""
        if task.by == "likelihood" and task.labels is None:
            raise RequestError(
                f"task {task.name} compares likelihoods, and names no labels",
                expected="labels: all that there are, as the model would write them",
                do="write `labels: [...]` into the task",
            )
        labelling = Labelling(labels_of(task, [own_answer(row) for row in rows]))
        if task.labels is not None and len(set(labelling.keys)) < len(task.labels):
            raise RequestError(
                f"labels {', '.join(task.labels)}",
                expected="labels that differ by more than capital letters and white space",
                do="name each label once",
            )

        def problem(row: TaskRow) -> tuple[str, str] | None:
            if labelling.place(own_answer(row)) is None:
                return "answer", f"{own_answer(row)[:60]!r} is none of {', '.join(labelling.labels)}"
            return None

        check_rows(task.name, rows, problem, expected="an answer that is one of the labels in every row")
        if len(labelling.labels) < 2:
            raise RequestError(
                f"task {task.name} has the labels {list(labelling.labels)}",
                expected="at least two",
                do="name all of them as `labels`, or judge rows of more than one",
            )

    def options(self, task: ClassifyTask, row: TaskRow) -> tuple[str, ...]:  # noqa: ARG002
        """All labels, where their likelihoods are compared."""
        return task.labels or () if task.by == "likelihood" else ()

    def metrics(self, task: ClassifyTask, rows: Sequence[TaskRow], resources: Resources) -> list[MetricDefinition]:  # noqa: ARG002
        """Macro-F1 comes second: accuracy is what people ask for, and what McNemar's test is about."""
        labelling = Labelling(labels_of(task, [own_answer(row) for row in rows]))
        if task.by == "text":
            return [
                Fraction("accuracy", "accuracy", labelling.right),
                MacroF1(labelling),
                Fraction("no_label", "answers without a label", labelling.without_label, higher_is_better=False),
            ]
        return [
            Fraction("accuracy", "accuracy", labelling.right, needs="options"),
            MacroF1(labelling, needs="options"),
            CalibrationError(labelling, task.num_bins),
            BrierScore(labelling),
        ]

    def figures(self, task: ClassifyTask, observed: Observations) -> TaskFigures | None:
        """The confusion matrix and, by likelihood, the reliability bins."""
        labelling = Labelling(labels_of(task, observed.references))
        return TaskFigures(
            confusion=confusion(labelling, observed),
            reliability=reliability(labelling, observed, task.num_bins) if task.by == "likelihood" else (),
        )

    def cautions(self, task: ClassifyTask) -> tuple[str, ...]:
        """How a label is read, and what a calibration error of few rows is worth."""
        if task.by == "text":
            return (
                "A label is the answer's first line with text, without regard to capitals; anything else is a miss.",
            )
        return (
            "The label is the likeliest of those named, by its whole likelihood, so an answer outside of them never "
            "shows.",
            f"A calibration error over {task.num_bins} bins is too high on average where bins hold few rows.",
        )


def labels_of(task: ClassifyTask, answers: Sequence[str]) -> tuple[str, ...]:
    """The task's labels, or those of the rows in alphabetical order, each as first written."""
    if task.labels is not None:
        return task.labels
    first: dict[str, str] = {}
    for answer in answers:
        if answer.strip():
            # The first spelling of a label is taken for all that differ in case only.
            first.setdefault(Labelling.key_of(answer), answer.strip().splitlines()[0].strip())
    return tuple(first[key] for key in sorted(first))
