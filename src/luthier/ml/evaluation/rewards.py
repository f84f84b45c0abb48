"""Rewards: metrics, graders and lengths, weighted and summed for each answer sampled in training.

All answers of a step are graded together, so that a model that grades is asked about them in batches.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any, Final

from luthier.core.errors import RequestError
from luthier.core.graders import (
    Grader,
    LengthPenalty,
    ModelGrader,
    MultiReward,
    PythonGraderSpec,
    Reward,
    RewardMetric,
    ScoreModelReward,
    fault_of,
)
from luthier.core.ports import Engine, Grade, Progress, ProgressTask, Prompt, Rollout
from luthier.ml.evaluation.graders import Formula, fields_of, make_grader, sentence_bleu, written_sample
from luthier.ml.evaluation.judge.model_graders import question_of, scores_of
from luthier.ml.evaluation.judge.verdicts import NoVerdict
from luthier.ml.evaluation.metrics.protocol import Observations
from luthier.ml.evaluation.metrics.registry import bounds_of, load_metrics

if TYPE_CHECKING:
    from luthier.ml.evaluation.sandbox.runners import PythonGrade

Pairs = Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]]
"""The fields of an answer (`written_sample`), and of its row."""
JudgeOf = Callable[[str], Engine]
"""The model that grades, by its name."""
RunPython = Callable[[PythonGraderSpec, Pairs, Progress], "list[PythonGrade]"]
"""The grade of each answer by code."""


@dataclass(frozen=True, slots=True)
class RewardTools:
    """What grading needs in a run.

    Attributes:
        judge_of: opens models that grade.
        run_python: runs code that grades.
        progress: shows how many answers are graded.
        note: is given what a person should know: the first failure of code.
    """

    judge_of: JudgeOf
    run_python: RunPython
    progress: Progress
    note: Callable[[str], None]


_NUM_TRIED: Final = 4
GRADING: Final = "Grading answers"
"""What the replies of models that grade are counted under, while a step or a validation waits for them."""


def need_answers(rewards: Sequence[Reward]) -> bool:
    """Whether one of them compares with the row's own answer."""
    graders = (reward.grader for reward in rewards if reward.grader is not None)
    return any(reward.metric is not None for reward in rewards) or any("reference" in fields_of(g) for g in graders)


class Rewards:
    """Grades answers by the rewards of a plan.

    A reward is the sum of its parts times their weights. Metrics read the text of an answer without its calls of tools,
    as in evaluations; graders can read these, too. Where a model that grades gives no score that can be read, asked
    twice, the end of its scale counts that is worse for the answer, so that none is worth more for confusing it; where
    code fails, 0 counts. Such answers are marked.

    Args:
        rewards: the parts with their weights.
        items: by row id, the row's fields, and its answer as `reference`.
        tools: asks models and runs code; None where nothing is graded yet.

    Raises:
        RequestError: a formula or a scale is invalid, or, while grading, a row lacks a field.
    """

    def __init__(
        self,
        rewards: Sequence[Reward],
        items: Mapping[str, Mapping[str, Any]],
        tools: RewardTools | None = None,
    ) -> None:
        self._items, self._tools = items, tools
        self._noted = False
        self._rewards = list(zip(names(rewards), rewards, strict=True))
        self._graders = {
            name: _GraderOf(reward.grader, self._asked, self._run, is_penalty=reward.weight < 0)
            for name, reward in self._rewards
            if reward.grader is not None
        }
        self._parts = {name: _part(reward) for name, reward in self._rewards if reward.grader is None}

    def __call__(self, attempts: Sequence[Rollout]) -> list[Grade]:
        """One grade per answer, in order."""
        items = [self._items[attempt.row_id] for attempt in attempts]
        pairs = [(written_sample(one.text, one.tool_calls), item) for one, item in zip(attempts, items, strict=True)]
        ungraded: set[int] = set()
        parts: list[dict[str, float]] = [{} for _ in attempts]
        for name, _ in self._rewards:
            if name in self._graders:
                scores = self._graders[name](pairs, ungraded)
            else:
                part = self._parts[name]
                scores = [part(attempt, item) for attempt, item in zip(attempts, items, strict=True)]
            for place, score in enumerate(scores):
                parts[place][name] = score
        weights = [(name, reward.weight) for name, reward in self._rewards]
        return [
            Grade(sum(weight * own[name] for name, weight in weights), own, is_ungraded=place in ungraded)
            for place, own in enumerate(parts)
        ]

    def try_graders(self) -> None:
        """Have models and code that grade try a few rows with their own answers, before anything is trained.

        Raises:
            RequestError: no reply of a model can be read, or the code fails on each of them, so that every answer would
                be worth the same.
        """
        some = list(self._items.values())[:_NUM_TRIED]
        pairs = [(written_sample(str(item.get("reference") or ""), ()), item) for item in some]
        for grader in self._graders.values():
            for part in grader.model_graders:
                said = self._asked(part, pairs)
                if said and all(isinstance(one, NoVerdict) for one in said):
                    raise _unreadable(part, said)
            # Without its own answer a row says nothing of code: what reads JSON, say, fails on an empty text.
            own = [pair for pair, item in zip(pairs, some, strict=True) if item.get("reference")]
            for code in grader.code:
                grades = self._run(code, own)
                if grades and all(one.word != "graded" for one in grades):
                    raise _failing(code, grades)

    def questions(self, num_rows: int) -> list[tuple[ModelGrader, list[Prompt]]]:
        """What each grader that asks a model asks about empty answers to the first rows: its length without them."""
        some = list(self._items.values())[:num_rows]
        empty = written_sample("", ())
        return [
            (part, [question_of(part, empty, item) for item in some])
            for grader in self._graders.values()
            for part in grader.model_graders
        ]

    def _asked(self, grader: ModelGrader, pairs: Pairs) -> list[float | NoVerdict]:
        assert self._tools is not None
        return scores_of(grader, pairs, self._tools.judge_of(grader.model), _Titled(self._tools.progress))

    def _run(self, grader: PythonGraderSpec, pairs: Pairs) -> list[PythonGrade]:
        assert self._tools is not None
        grades = self._tools.run_python(grader, pairs, _Titled(self._tools.progress))
        failed = next((one for one in grades if one.word != "graded"), None)
        if failed is not None and not self._noted:
            # Once a process: `ungraded_fraction` counts all of them in each step.
            self._noted = True
            self._tools.note(
                f"grader {grader.name!r} has given an answer no score ({_failure(failed)}); such answers count 0, and "
                "ungraded_fraction says how many there are"
            )
        return grades


class _Titled:
    """Progress of grading, whatever the engine and the judge call their work."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def task(self, title: str, total: float | None, unit: str, done: float = 0) -> ProgressTask:  # noqa: ARG002
        return self._progress.task(GRADING, total, unit, done)


class _GraderOf:
    """A grader for all answers of a step.

    Args:
        grader: of the plan.
        ask: gives the scores of a model that grades.
        run: gives the grades of code.
        is_penalty: whether more is worse: its weight is negative.
    """

    def __init__(
        self,
        grader: Grader,
        ask: Callable[[ModelGrader, Pairs], list[float | NoVerdict]],
        run: Callable[[PythonGraderSpec, Pairs], list[PythonGrade]],
        *,
        is_penalty: bool = False,
    ) -> None:
        self._ask, self._run, self._is_penalty = ask, run, is_penalty
        self._parts = grader.graders if isinstance(grader, MultiReward) else {grader.name: grader}
        self._formula = Formula(grader.calculate_output, list(self._parts)) if isinstance(grader, MultiReward) else None
        self.model_graders = [part for part in self._parts.values() if isinstance(part, ModelGrader)]
        self.code = [part for part in self._parts.values() if isinstance(part, PythonGraderSpec)]
        for part in self.model_graders:
            if (fault := fault_of(part)) is not None:
                raise RequestError(
                    f"grader {part.name!r}: {fault.came}",
                    expected=fault.expected,
                    do=f"correct {fault.field} of the grader in objective.rewards",
                )

    def __call__(self, pairs: Pairs, ungraded: set[int]) -> list[float]:
        """The score of each answer; adds to `ungraded` the places of those that a model or code gave none."""
        scores: dict[str, list[float]] = {}
        unread: dict[str, set[int]] = {}
        for name, part in self._parts.items():
            scores[name], failed = self._scores(part, pairs)
            ungraded |= failed
            if isinstance(part, ModelGrader):
                unread[name] = failed
        return [
            self._score(
                {name: own[place] for name, own in scores.items()}, [name for name in unread if place in unread[name]]
            )
            for place in range(len(pairs))
        ]

    def _score(self, values: dict[str, float], unread: list[str]) -> float:
        """The score of an answer; where a reply could not be read, the worst that the ends of its scale lead to."""
        if not unread:
            return self._combined(values)
        found, refused = [], None
        for ends in product(*(_scale_of(self._parts[name]) for name in unread)):
            try:
                found.append(self._combined(values | dict(zip(unread, ends, strict=True))))
            except RequestError as error:  # the formula has no value there, and may have one at the other end
                refused = error
        if not found:
            assert refused is not None
            raise refused
        return max(found) if self._is_penalty else min(found)

    def _combined(self, values: Mapping[str, float]) -> float:
        return next(iter(values.values())) if self._formula is None else self._formula(values)

    def _scores(self, part: Any, pairs: Pairs) -> tuple[list[float], set[int]]:
        """The score of each answer by one part, and the places of those that it gave none, which have 0."""
        if isinstance(part, PythonGraderSpec):
            grades = self._run(part, pairs)
            return [one.score for one in grades], {at for at, one in enumerate(grades) if one.word != "graded"}
        if not isinstance(part, ModelGrader):
            grade = make_grader(part)
            return [grade(answer, item) for answer, item in pairs], set()
        said = self._ask(part, pairs)
        return (
            [0.0 if isinstance(one, NoVerdict) else one for one in said],
            {at for at, one in enumerate(said) if isinstance(one, NoVerdict)},
        )


def _scale_of(grader: Any) -> tuple[float, float]:
    """The ends of the scores that a model can give."""
    return (grader.range[0], grader.range[1]) if isinstance(grader, ScoreModelReward) else (0.0, 1.0)


def _unreadable(grader: ModelGrader, said: Sequence[float | NoVerdict]) -> RequestError:
    reply = next(one for one in said if isinstance(one, NoVerdict))
    wanted = (
        f"a number from {grader.range[0]:g} to {grader.range[1]:g}"
        if isinstance(grader, ScoreModelReward)
        else f"one of {', '.join(grader.labels)}"
    )
    return RequestError(
        f"grader {grader.name!r}: no reply of {grader.model} to {len(said)} rows can be read as a score, such as "
        f"{reply.reply[:200]!r} ({reply.kind})",
        expected=f"{wanted} in its replies",
        do="have the messages of the grader ask for that alone, or name another model",
    )


_SHOWN_CHARACTERS: Final = 300


def _failure(grade: PythonGrade) -> str:
    words = {"timeout": "it took too long", "memory": "it took too much memory"}
    return words.get(grade.word) or grade.message[:_SHOWN_CHARACTERS]


def _failing(grader: PythonGraderSpec, grades: Sequence[PythonGrade]) -> RequestError:
    return RequestError(
        f"grader {grader.name!r} gives the own answers of {len(grades)} rows no score: {_failure(grades[0])}",
        expected="a function grade(sample, item) that returns a number for each of them",
        do="correct the source of the grader in objective.rewards",
    )


def names(rewards: Sequence[Reward]) -> list[str]:
    """The name of each part; a second one of the same name is `name_2`."""
    found, counts = [], Counter[str]()
    for reward in rewards:
        counts[reward.name] += 1
        found.append(reward.name if counts[reward.name] == 1 else f"{reward.name}_{counts[reward.name]}")
    return found


Part = Callable[[Rollout, Mapping[str, Any]], float]


def _part(reward: Reward) -> Part:
    if reward.length is not None:
        return _length(reward.length)
    assert reward.metric is not None
    return _metric(reward.metric)


def _metric(name: RewardMetric) -> Part:
    """A metric for one answer, scaled to 0 to 1. Corpus BLEU is replaced by sentence BLEU."""
    if name == "bleu":
        return lambda attempt, item: sentence_bleu(attempt.text, item["reference"])
    metric = load_metrics([name])[0]  # a family begins with the figure of its name
    lower, upper = bounds_of(metric)
    if metric.needs != "text" or not math.isfinite(upper - lower):
        raise RequestError(
            f"metric {name} as a reward: it reads {metric.needs}, and its figure is from {lower:g} to {upper:g}",
            expected="a metric of written texts with a lower and an upper bound",
            do="choose another metric in objective.rewards",
        )

    def grade(attempt: Rollout, item: Mapping[str, Any]) -> float:
        observed = Observations(outputs=[attempt.text], references=[item["reference"]])
        # Scaled to 0 to 1, so that weights mean the same for all figures.
        return (float(metric.aggregate(metric.statistics(observed)[0])) - lower) / (upper - lower)

    return grade


def _length(penalty: LengthPenalty) -> Part:
    over, room = penalty.free_tokens, penalty.max_tokens - penalty.free_tokens

    def grade(attempt: Rollout, item: Mapping[str, Any]) -> float:  # noqa: ARG001 - of any row
        # Falls evenly from 0 at `free_tokens` to -1 at `max_tokens`.
        return -min(1.0, max(0.0, (attempt.num_new_tokens - over) / room))

    return grade
