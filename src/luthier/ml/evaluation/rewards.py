"""Rewards: metrics, graders and lengths, weighted and summed for each answer sampled in training."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from luthier.core.errors import RequestError
from luthier.core.graders import LengthPenalty, Reward, RewardMetric
from luthier.core.ports import Grade, Rollout
from luthier.ml.evaluation.graders import fields_of, make_grader, sentence_bleu, written_sample
from luthier.ml.evaluation.metrics.protocol import Observations
from luthier.ml.evaluation.metrics.registry import bounds_of, load_metrics

Part = Callable[[Rollout, Mapping[str, Any]], float]


def need_answers(rewards: Sequence[Reward]) -> bool:
    """Whether one of them compares with the row's own answer."""
    graders = (reward.grader for reward in rewards if reward.grader is not None)
    return any(reward.metric is not None for reward in rewards) or any("reference" in fields_of(g) for g in graders)


class Rewards:
    """Grades answers by the rewards of a plan.

    A reward is the sum of its parts times their weights. Metrics read the text of an answer without its calls of tools,
    as in evaluations; graders can read these, too.

    Args:
        rewards: the parts with their weights.
        items: by row id, the row's fields, and its answer as `reference`.

    Raises:
        RequestError: a formula is invalid, or, while grading, a row lacks a field.
    """

    def __init__(self, rewards: Sequence[Reward], items: Mapping[str, Mapping[str, Any]]) -> None:
        self._items = items
        self._parts = [
            (name, reward.weight, _part(reward)) for name, reward in zip(names(rewards), rewards, strict=True)
        ]

    def __call__(self, attempts: Sequence[Rollout]) -> list[Grade]:
        """One grade per answer, in order."""
        return [self._grade(attempt) for attempt in attempts]

    def _grade(self, attempt: Rollout) -> Grade:
        item = self._items[attempt.row_id]
        parts = {name: part(attempt, item) for name, _, part in self._parts}
        return Grade(sum(weight * parts[name] for name, weight, _ in self._parts), parts)


def names(rewards: Sequence[Reward]) -> list[str]:
    """The name of each part; a second one of the same name is `name_2`."""
    found, counts = [], Counter[str]()
    for reward in rewards:
        counts[reward.name] += 1
        found.append(reward.name if counts[reward.name] == 1 else f"{reward.name}_{counts[reward.name]}")
    return found


def _part(reward: Reward) -> Part:
    if reward.length is not None:
        return _length(reward.length)
    if reward.grader is not None:
        grade = make_grader(reward.grader)
        return lambda attempt, item: grade(written_sample(attempt.text, attempt.tool_calls), item)
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
