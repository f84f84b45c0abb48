"""Kinds of tasks that a judge decides: pairs against the first system, and scores by a rubric.

Answers without a verdict are counted, left out and named in the cautions, and so is the judge's bias: request the
cautions once all systems have been judged, from the same kind object that gave the metrics.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from typing import ClassVar, Literal

import numpy as np

from luthier.core.errors import DataError, RequestError, RowProblem
from luthier.core.ports import Engine, Progress
from luthier.core.records.calibration import NoVerdictKind
from luthier.core.results.suite import Criterion, PairwiseTask, RubricTask, TaskCommon, TaskFigures
from luthier.ml.evaluation.judge.bias import bias_of, bias_sentences, check_missing, missing_sentence, pair_statistics
from luthier.ml.evaluation.judge.verdicts import (
    CALIBRATED_CRITERION,
    POINTS,
    NoVerdict,
    Pair,
    judge_answers,
    judge_pairs,
)
from luthier.ml.evaluation.metrics.protocol import Array, MetricDefinition, Observations
from luthier.ml.evaluation.tasks.protocol import Resources, TaskRow

_OPINION = (
    "These figures are the opinion of a model. To measure how far it agrees with people: luthier judge calibrate."
)
_MIDDLE_SCORE = 3.0


class _Judge:
    """The judge of one task, and what is known of its verdicts so far.

    Args:
        engine: the judge.
        name: its name in sentences.
        progress: shows its replies.
        what: what it judges, such as "pairs".
        clusters: the source of each row; None where every row is its own.
    """

    def __init__(
        self, engine: Engine, name: str, progress: Progress, what: str, clusters: Sequence[Hashable] | None
    ) -> None:
        self.engine, self.name, self.progress, self.what, self.clusters = engine, name, progress, what, clusters
        self.num_asked = 0
        self.missing: Counter[NoVerdictKind] = Counter()
        self.bias = np.zeros((0, 10))

    def count(self, num_asked: int, kinds: Sequence[NoVerdictKind]) -> None:
        """Count verdicts on one system.

        Raises:
            WorkError: most are none.
        """
        missing = Counter(kinds)
        check_missing(self.name, num_asked, missing, self.what)
        self.num_asked += num_asked
        self.missing += missing

    def cautions(self) -> tuple[str, ...]:
        lost = missing_sentence(self.name, self.num_asked, self.missing, self.what)
        bias = bias_of(self.bias, clusters=self.clusters) if len(self.bias) else None
        return (*bias_sentences(self.name, bias), *(() if lost is None else (lost,)))


class WinRate:
    """How often the judge prefers a system's answer to the first system's, shown in both orders; ties count half.

    The first system itself has 0.5: it ties with itself.
    """

    title: ClassVar[str] = "win rate against the first system"
    unit: ClassVar[str] = "fraction"
    lower: ClassVar[float] = 0.0
    upper: ClassVar[float] = 1.0
    higher_is_better: ClassVar[bool] = True
    needs: ClassVar[Literal["text"]] = "text"
    has_sample_values: ClassVar[bool] = True

    def __init__(self, criterion: Criterion, judge: _Judge) -> None:
        self._criterion, self._judge = criterion, judge
        self.judge_name = judge.name
        # Judges are compared with people on which answer is better overall: another question has another name.
        self.name = "win_rate" if criterion == CALIBRATED_CRITERION else f"win_rate_{criterion}"

    def statistics(self, observed: Observations) -> Array:
        """[num_samples, 3]: points, whether there is a verdict, one.

        Raises:
            WorkError: most verdicts are none.
        """
        own = observed.shown()
        texts = zip(observed.prompts, own, observed.first_shown() or own, strict=True)
        pairs = [Pair(prompt, answer, first) for prompt, answer, first in texts]
        verdicts = judge_pairs(self._judge.engine, self._criterion, pairs, self._judge.progress)
        # The first system is not compared with itself: that would dilute the share of missing verdicts.
        if any(pair.a != pair.b for pair in pairs):
            self._judge.count(len(pairs), [one.no_verdict for one in verdicts if one.no_verdict is not None])
            own_bias = pair_statistics(pairs, verdicts)
            # The bootstrap resamples rows: all systems' verdicts on a row belong together.
            self._judge.bias = own_bias + self._judge.bias if len(self._judge.bias) else own_bias
        points = [None if one.preference is None else POINTS[one.preference] for one in verdicts]
        return _left_out(points)

    def aggregate(self, sums: Array) -> Array:
        """[..., 3] -> [...]."""
        return _mean_of_verdicts(sums, POINTS["tie"])


class RubricScore:
    """The judge's score from 1 to 5 for one criterion, on average."""

    unit: ClassVar[str] = "1 to 5"
    lower: ClassVar[float] = 1.0
    upper: ClassVar[float] = 5.0
    higher_is_better: ClassVar[bool] = True
    needs: ClassVar[Literal["text"]] = "text"
    has_sample_values: ClassVar[bool] = True

    def __init__(self, criterion: Criterion, scores: _Scores) -> None:
        self._criterion, self._scores = criterion, scores
        self.name = f"judge_{criterion}"
        self.title = f"{criterion}, by the judge"
        self.judge_name = scores.judge.name

    def statistics(self, observed: Observations) -> Array:
        """[num_samples, 3]: score, whether there is one, one.

        Raises:
            WorkError: most verdicts are none.
        """
        found = self._scores.of(list(zip(observed.prompts, observed.shown(), strict=True)))
        return _left_out([None if isinstance(one, NoVerdict) else float(one[self._criterion]) for one in found])

    def aggregate(self, sums: Array) -> Array:
        """[..., 3] -> [...]."""
        return _mean_of_verdicts(sums, _MIDDLE_SCORE)


class _Scores:
    """All criteria are requested together; each metric reads its own from the reply."""

    def __init__(self, criteria: Sequence[Criterion], judge: _Judge) -> None:
        self._criteria, self.judge = criteria, judge
        self._known: dict[tuple[str, str], dict[Criterion, int] | NoVerdict] = {}
        self._counted: set[tuple[tuple[str, str], ...]] = set()

    def of(self, answers: Sequence[tuple[str, str]]) -> list[dict[Criterion, int] | NoVerdict]:
        new = list(dict.fromkeys(one for one in answers if one not in self._known))
        said = judge_answers(self.judge.engine, self._criteria, new, self.judge.progress)
        self._known.update(zip(new, said, strict=True))
        found = [self._known[one] for one in answers]
        # Each criterion covers the same answers: their missing verdicts are counted once.
        if tuple(answers) not in self._counted:
            self._counted.add(tuple(answers))
            self.judge.count(len(found), [one.kind for one in found if isinstance(one, NoVerdict)])
        return found


class Pairwise:
    """Kind `pairwise`: the judge compares each system's answer with that of the first system."""

    def __init__(self) -> None:
        self._judge: _Judge | None = None

    def check(self, task: PairwiseTask, rows: Sequence[TaskRow]) -> None:
        """Check that every row has a prompt.

        Raises:
            DataError: some have none.
        """
        _check_prompts(task.name, rows)

    def options(self, task: PairwiseTask, row: TaskRow) -> tuple[str, ...]:  # noqa: ARG002
        """None: the systems write."""
        return ()

    def metrics(self, task: PairwiseTask, rows: Sequence[TaskRow], resources: Resources) -> list[MetricDefinition]:
        """The win rate.

        Raises:
            RequestError: without a judge.
        """
        self._judge = _judge_of(task, rows, resources, "pairs")
        return [WinRate(task.criterion, self._judge)]

    def figures(self, task: PairwiseTask, observed: Observations) -> TaskFigures | None:  # noqa: ARG002
        """None."""
        return None

    def cautions(self, task: PairwiseTask) -> tuple[str, ...]:  # noqa: ARG002
        """What the judge gave no verdict on and its bias, for what it has judged so far."""
        return (_OPINION, *(self._judge.cautions() if self._judge else ()))


class Rubric:
    """Kind `rubric`: the judge gives each answer 1 to 5 for each criterion."""

    def __init__(self) -> None:
        self._judge: _Judge | None = None

    def check(self, task: RubricTask, rows: Sequence[TaskRow]) -> None:
        """Check that every row has a prompt.

        Raises:
            DataError: some have none.
        """
        _check_prompts(task.name, rows)

    def options(self, task: RubricTask, row: TaskRow) -> tuple[str, ...]:  # noqa: ARG002
        """None: the systems write."""
        return ()

    def metrics(self, task: RubricTask, rows: Sequence[TaskRow], resources: Resources) -> list[MetricDefinition]:
        """A score for each criterion.

        Raises:
            RequestError: without a judge.
        """
        self._judge = _judge_of(task, rows, resources, "answers")
        scores = _Scores(task.criteria, self._judge)
        return [RubricScore(criterion, scores) for criterion in task.criteria]

    def figures(self, task: RubricTask, observed: Observations) -> TaskFigures | None:  # noqa: ARG002
        """None."""
        return None

    def cautions(self, task: RubricTask) -> tuple[str, ...]:  # noqa: ARG002
        """Items without a verdict among those judged so far."""
        return (_OPINION, *(self._judge.cautions() if self._judge else ()))


def _judge_of(task: TaskCommon, rows: Sequence[TaskRow], resources: Resources, what: str) -> _Judge:
    if resources.judge is None:
        raise RequestError(
            f"task {task.name} is decided by a judge, and none is named",
            expected="a model that judges: a base model, a run, a GGUF file, or http(s)://host:port/v1#MODEL",
            do="add --judge MODEL",
        )
    clusters = None if task.cluster_by is None else [row.example.group for row in rows]
    return _Judge(resources.judge, resources.judge_name or resources.judge.name, resources.progress, what, clusters)


def _check_prompts(task: str, rows: Sequence[TaskRow]) -> None:
    lost = [row.example.id for row in rows if row.example.prompt is None]
    if lost:
        problems = []
        for one in lost:
            file, _, line = one.rpartition(":")
            problems.append(RowProblem(file, int(line) if line.isdecimal() else 0, "", "", "has no prompt to answer"))
        raise DataError(
            f"{len(lost):,} of {len(rows):,} rows of task {task} have no prompt",
            expected="rows with a prompt: chats, or prompts with completions",
            do="take them out, or name the fields with `map`",
            problems=problems,
        )


def _left_out(values: Sequence[float | None]) -> Array:
    """Statistics of a mean over the rows that have a value: [rows, 3]."""
    return np.array([(0.0, 0.0, 1.0) if value is None else (value, 1.0, 1.0) for value in values])


def _mean_of_verdicts(sums: Array, middle: float) -> Array:
    """The mean. A row alone without a verdict has none; a resample of rows without any says nothing: the middle."""
    total, num_verdicts, num_rows = sums[..., 0], sums[..., 1], sums[..., 2]
    # NaN keeps a row without a verdict out of the samples' scores.
    nothing = np.where(num_rows > 1, middle, np.nan)
    result: Array = np.where(num_verdicts > 0, total / np.maximum(num_verdicts, 1), nothing)
    return result
