"""Tasks that graders of OpenAI's API decide: what an eval is when it has become a task of a suite.

Each grader gives two figures: the share of answers that reach its threshold, and, where its scores are no right or
wrong, their mean. Graders in Python run in the locked-down child; those that ask a model ask the judge of the command.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from luthier.core.errors import RequestError
from luthier.core.graders import (
    LabelModelSpec,
    MultiGrader,
    PythonGraderSpec,
    ScoreModelSpec,
    SuiteGrader,
    fault_of,
)
from luthier.core.results.suite import GradedTask, TaskFigures, TaskGrader
from luthier.ml.evaluation.graders import fields_of, item_fields, make_grader, written_sample
from luthier.ml.evaluation.judge.model_graders import scores_of
from luthier.ml.evaluation.judge.verdicts import NoVerdict
from luthier.ml.evaluation.metrics.protocol import Array, Fraction, MetricDefinition, Observations, mean_statistics
from luthier.ml.evaluation.sandbox.runners import PythonGrader, isolation, require_isolation
from luthier.ml.evaluation.tasks.protocol import Resources, TaskRow, check_rows

_NOT_PLAIN: Final = re.compile(r"[^a-z0-9]+")
_SCORE: Final = "_score"
"""Ends the name of a mean score, behind that of its grader."""


class Graded:
    """The share of answers that pass each grader, and the mean score of graders with more than right and wrong.

    Replies of the judge that cannot be read are counted: request the cautions once all systems have been graded, from
    the same object that gave the metrics.
    """

    def __init__(self) -> None:
        self._scores: list[_Scores] = []

    def check(self, task: GradedTask, rows: Sequence[TaskRow]) -> None:
        """Every row has the fields that the graders refer to, and each figure has its own name.

        Raises:
            DataError: a row lacks a field.
            RequestError: two graders have names that give two figures the same one, or one gives all answers the same.
        """
        _names(task)
        for one in task.graders:
            if (fault := fault_of(one.grader, one.pass_threshold)) is not None:
                raise RequestError(
                    f"task {task.name}: grader {one.grader.name!r}: {fault.came}",
                    expected=fault.expected,
                    do=f"correct {fault.field} of the grader",
                )
        wanted = dict.fromkeys(name for one in task.graders for name in _fields(one.grader))

        def problem(row: TaskRow) -> tuple[str, str] | None:
            item = item_of(task, row.item)
            if item is None:
                return str(task.item), "holds no fields"
            missing = next((name for name in wanted if name not in item), None)
            return None if missing is None else (missing, "is not there, and a grader refers to it")

        check_rows(task.name, rows, problem, expected=f"the fields {', '.join(wanted) or 'of an item'} in every row")

    def options(self, task: GradedTask, row: TaskRow) -> tuple[str, ...]:  # noqa: ARG002
        """None: the model writes."""
        return ()

    def metrics(self, task: GradedTask, rows: Sequence[TaskRow], resources: Resources) -> list[MetricDefinition]:  # noqa: ARG002
        """One or two for each grader, in their order.

        Raises:
            RequestError: a grader needs a judge and there is none, or code that may not be run.
        """
        metrics: list[MetricDefinition] = []
        self._scores = []
        for name, one in zip(_names(task), task.graders, strict=True):
            _check_allowed(task, one.grader, resources)
            scores = _Scores(task, one, resources)
            self._scores.append(scores)
            judge = _judge_of(one.grader, resources)
            metrics.append(_Passed(name, f"answers that pass {one.grader.name}", scores.passed, judge_name=judge))
            if (ends := _ends(one.grader)) is not None:
                title, own = f"mean score by {one.grader.name}", f"{name}{_SCORE}"
                low, high = ends
                metrics.append(_Mean(own, title, scores.mean, unit="score", lower=low, upper=high, judge_name=judge))
        return metrics

    def figures(self, task: GradedTask, observed: Observations) -> TaskFigures | None:  # noqa: ARG002
        """Nothing is drawn."""
        return None

    def cautions(self, task: GradedTask) -> tuple[str, ...]:
        """What was in force, and whose opinion some figures are."""
        kinds = {one.grader.type for one in task.graders}
        found = [isolation().sentence] if "python" in kinds and task.allow_code else []
        if kinds & {"score_model", "label_model"}:
            found.append(
                "Graders that ask a model are the opinion of the judge; answers that it did not grade count 0."
            )
        return (*found, *(sentence for one in self._scores if (sentence := one.caution())))


def _names(task: GradedTask) -> list[str]:
    """The names of the figures of the graders, in their order.

    Raises:
        RequestError: the mean score of one grader would have the name of another grader's figure.
    """
    names: list[str] = []
    taken: dict[str, str] = {}
    for number, one in enumerate(task.graders, 1):
        name = _NOT_PLAIN.sub("_", one.grader.name.lower()).strip("_") or f"grader_{number}"
        name = f"{name}_{number}" if name in taken else name
        for figure in (name, *((f"{name}{_SCORE}",) if _ends(one.grader) is not None else ())):
            if figure in taken:
                raise RequestError(
                    f"task {task.name}: the graders {taken[figure]!r} and {one.grader.name!r} both give the figure "
                    f"{figure!r}",
                    expected="names of graders that give each figure a different name",
                    do="rename one of the two graders",
                )
            taken[figure] = one.grader.name
        names.append(name)
    return names


def _judge_of(grader: SuiteGrader, resources: Resources) -> str | None:
    """The name of the judge whose opinion the figures of a grader are; None for a grader that asks no model."""
    if resources.judge is None or not isinstance(grader, ScoreModelSpec | LabelModelSpec):
        return None
    return resources.judge_name or resources.judge.name


@dataclass(frozen=True)
class _Passed(Fraction):
    """The share of answers that pass. judge_name: of the model that has graded them; None where none has."""

    judge_name: str | None = None


class _Mean(_Passed):
    """The mean of scores, which may have any ends."""

    def aggregate(self, sums: Array) -> Array:
        """[..., 2] -> [...]."""
        result: Array = sums[..., 0] / sums[..., 1]
        return result


class _Scores:
    """The scores of one grader, computed once for each system."""

    def __init__(self, task: GradedTask, one: TaskGrader, resources: Resources) -> None:
        self._task, self._one, self._resources = task, one, resources
        self._seen: tuple[Observations, list[float | None]] | None = None
        self._num_graded = self._num_unread = 0

    def passed(self, observed: Observations) -> Array:
        threshold = self._one.pass_threshold
        return mean_statistics([score is not None and score >= threshold for score in self._of(observed)])

    def mean(self, observed: Observations) -> Array:
        return mean_statistics([score or 0.0 for score in self._of(observed)])

    def caution(self) -> str | None:
        """How many replies of the judge could not be read; None where all could."""
        if not self._num_unread:
            return None
        share = self._num_unread / self._num_graded
        return (
            f"Grader {self._one.grader.name!r}: {self._num_unread:,} of {self._num_graded:,} replies of "
            f"{self._resources.judge_name} ({share:.0%}) could not be read. These answers do not pass, and their score "
            "counts 0."
        )

    def _of(self, observed: Observations) -> list[float | None]:
        # Both figures of a grader read the same observations, one after the other.
        if self._seen is None or self._seen[0] is not observed:
            items = [item_of(self._task, item) or {} for item in observed.items]
            calls = observed.tool_calls or [()] * len(observed.outputs)
            answers = [written_sample(*one) for one in zip(observed.outputs, calls, strict=True)]
            scores = _graded(self._one.grader, answers, items, self._resources)
            self._num_graded += len(scores)
            self._num_unread += scores.count(None)
            self._seen = (observed, scores)
        return self._seen[1]


def item_of(task: GradedTask, row: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """What `{{item.x}}` refers to; None where the row lacks it."""
    if task.item is None:
        return row
    found = row.get(task.item)
    return found if isinstance(found, Mapping) else None


def _graded(
    grader: SuiteGrader,
    answers: Sequence[Mapping[str, Any]],
    items: Sequence[Mapping[str, Any]],
    resources: Resources,
) -> list[float | None]:
    """The score of each answer; None where the judge gave none that can be read, asked twice."""
    pairs = list(zip(answers, items, strict=True))
    if isinstance(grader, PythonGraderSpec):
        with ExitStack() as stack:
            code = stack.enter_context(PythonGrader(grader.source))
            return [code.grade(answer, item).score for answer, item in pairs]
    if isinstance(grader, ScoreModelSpec | LabelModelSpec):
        return _by_judge(grader, pairs, resources)
    grade = make_grader(grader)
    return [grade(answer, item) for answer, item in pairs]


def _by_judge(
    grader: ScoreModelSpec | LabelModelSpec,
    pairs: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]],
    resources: Resources,
) -> list[float | None]:
    assert resources.judge is not None  # `_check_allowed` has refused it otherwise
    said = scores_of(grader, pairs, resources.judge, resources.progress)
    return [None if isinstance(one, NoVerdict) else one for one in said]


def _check_allowed(task: GradedTask, grader: SuiteGrader, resources: Resources) -> None:
    if isinstance(grader, ScoreModelSpec | LabelModelSpec) and resources.judge is None:
        raise RequestError(
            f"task {task.name}: grader {grader.name!r} asks a model, and there is no judge",
            expected="a judge on the command line: --judge ENGINE",
            do="name one, or take the grader out",
        )
    if not isinstance(grader, PythonGraderSpec):
        return
    if not (task.allow_code and resources.allows_code):
        missing = "the command line" if task.allow_code else "the task (`allow_code: true`)"
        raise RequestError(
            f"task {task.name}: grader {grader.name!r} is Python code, which {missing} does not allow",
            expected="leave from both: `allow_code: true` in the task, --allow-code on the command line",
            do="give it if you trust the lock-down that docs/tasks.md describes, or take the grader out",
        )
    require_isolation()


def _fields(grader: SuiteGrader) -> tuple[str, ...]:
    if isinstance(grader, PythonGraderSpec):
        return ()
    if isinstance(grader, ScoreModelSpec | LabelModelSpec):
        return tuple(name for one in grader.input for name in item_fields(one.content))
    return fields_of(grader)


def _ends(grader: SuiteGrader) -> tuple[float, float] | None:
    """The ends of its scores; None where they are only right and wrong."""
    if isinstance(grader, ScoreModelSpec):
        return (min(0.0, grader.range[0]), max(0.0, grader.range[1]))
    if isinstance(grader, PythonGraderSpec | MultiGrader):
        return (-np.inf, np.inf)
    return (0.0, 1.0) if grader.type == "text_similarity" else None
