"""Ranking: items in an order, for recommendation and retrieval."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from luthier.core.results.suite import RankTask
from luthier.core.results.task_result import TaskFigures
from luthier.ml.evaluation.metrics.fraction import Fraction
from luthier.ml.evaluation.metrics.protocol import Array, MetricDefinition, Observations, mean_statistics
from luthier.ml.evaluation.metrics.ranking import Ranked, ranking_metrics
from luthier.ml.evaluation.tasks.protocol import Resources, TaskRow
from luthier.ml.evaluation.tasks.row_checks import check_rows

_BULLET = re.compile(r"^\s*(?:[-*•]\s+|\(?\d{1,4}[.):]\s+)?")


class Rank:
    """hit@k, NDCG@k and MRR of written lists, or of candidates by their likelihood."""

    def check(self, task: RankTask, rows: Sequence[TaskRow]) -> None:
        """Every row has right items and, for likelihoods, candidates that hold them all."""

        def problem(row: TaskRow) -> tuple[str, str] | None:
            relevant = _items(row.item.get(task.relevant))
            if not relevant:
                return task.relevant, "is no list of at least one item"
            if task.by == "text":
                return None
            candidates = _items(row.item.get(task.candidates))
            if len(candidates) < 2 or len(set(map(_key, candidates))) < len(candidates):
                return task.candidates, "is no list of at least two different items"
            missing = [item for item in relevant if _key(item) not in set(map(_key, candidates))]
            return (task.relevant, f"{missing[0]!r} is none of the candidates") if missing else None

        expected = f"lists of texts in {task.relevant!r} and, by likelihood, {task.candidates!r}"
        check_rows(task.name, rows, problem, expected=expected)

    def options(self, task: RankTask, row: TaskRow) -> tuple[str, ...]:
        """The row's candidates, where their likelihoods are compared."""
        return tuple(_items(row.item[task.candidates])) if task.by == "likelihood" else ()

    def metrics(self, task: RankTask, rows: Sequence[TaskRow], resources: Resources) -> list[MetricDefinition]:  # noqa: ARG002
        """See `ranking_metrics`; of written lists also how many are empty."""

        def written(observed: Observations) -> list[Ranked]:
            pairs = zip(observed.outputs, observed.items, strict=True)
            return [Ranked(written_items(output), _relevant(task, item)) for output, item in pairs]

        def by_likelihood(observed: Observations) -> list[Ranked]:
            pairs = zip(observed.option_scores, observed.items, strict=True)
            return [_by_likelihood(task, [s.nll_nats for s in scores], item) for scores, item in pairs]

        def empty(observed: Observations) -> Array:
            return mean_statistics([not written_items(output) for output in observed.outputs])

        if task.by == "likelihood":
            return [*ranking_metrics(by_likelihood, task.k, "options")]
        return [
            *ranking_metrics(written, task.k, "text"),
            Fraction("no_items", "answers without an item", empty, higher_is_better=False),
        ]

    def figures(self, task: RankTask, observed: Observations) -> TaskFigures | None:  # noqa: ARG002
        """Nothing is drawn."""
        return None

    def cautions(self, task: RankTask) -> tuple[str, ...]:
        """How a list is read, or what likelihoods favour."""
        if task.by == "text":
            return (
                "Each line of an answer is one item, without its bullet or number; lines that name nothing known take "
                "a place in the order.",
            )
        return ("Items are ordered by their whole likelihood, which favours short ones; ties count against the model.",)


def written_items(text: str) -> list[str]:
    """The items of an answer, one a line, as keys: without bullets and numbers, case-folded, each once."""
    lines = (_key(_BULLET.sub("", line, count=1)) for line in text.splitlines())
    # An item that is repeated keeps its first rank: repeats would else push others down or be counted twice.
    return list(dict.fromkeys(line for line in lines if line))


def _by_likelihood(task: RankTask, nats: Sequence[float], item: Mapping[str, Any]) -> Ranked:
    relevant = _relevant(task, item)
    keys = [_key(candidate) for candidate in _items(item[task.candidates])]
    # At equal likelihood the right item is ranked last, so that the order of the file gives no advantage.
    order = sorted(range(len(keys)), key=lambda place: (nats[place], keys[place] in relevant))
    return Ranked([keys[place] for place in order], relevant)


def _relevant(task: RankTask, item: Mapping[str, Any]) -> frozenset[str]:
    return frozenset(map(_key, _items(item[task.relevant])))


def _items(value: object) -> list[str]:
    """The texts of a list; a single text is a list of one; nothing where it is neither."""
    found = [value] if isinstance(value, str) else value
    if isinstance(found, list | tuple) and all(isinstance(one, str) and one.strip() for one in found):
        return list(found)
    return []


def _key(item: str) -> str:
    return " ".join(item.casefold().split())
