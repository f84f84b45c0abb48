"""Tasks with a fixed set of answers: choose among options, classify, and rank items.

Options and labels are scored by how likely the model finds each of them; of labels it is also measured whether the
model's confidence can be believed. Ranking is for recommendation and retrieval.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from luthier.core.errors import RequestError
from luthier.core.results.suite import ChooseTask, ClassifyTask, RankTask, TaskFigures
from luthier.ml.evaluation.metrics.calibration import reliability_bins
from luthier.ml.evaluation.metrics.classification import (
    BrierScore,
    CalibrationError,
    Labelling,
    MacroF1,
    confusion,
    labels_in,
)
from luthier.ml.evaluation.metrics.likelihood import ChoiceAccuracy, ChoiceAccuracyPerByte
from luthier.ml.evaluation.metrics.protocol import Array, Fraction, MetricDefinition, Observations, mean_statistics
from luthier.ml.evaluation.metrics.ranking import Ranked, ranking_metrics
from luthier.ml.evaluation.tasks.protocol import Resources, TaskRow, check_rows, own_answer, refuse_rows


class Choose:
    """The likeliest option, as a whole and for each of its bytes; the second sums it up."""

    def check(self, task: ChooseTask, rows: Sequence[TaskRow]) -> None:
        """Check that every row can be chosen in.

        Raises:
            DataError: a row has no prompt, no two different options, or no right one.
        """
        problems = []
        for row in rows:
            if row.example.conversation is None:
                problems.append((row.example.id, "has no prompt"))
            elif (wrong := what_is_wrong(row.item, task.options, task.answer)) is not None:
                problems.append((row.example.id, wrong))
        refuse_rows(
            task.name,
            problems,
            expected=f"a prompt, a list of texts as {task.options!r}, and as {task.answer!r} the place (from 0), "
            "letter or text of the right one",
        )

    def options(self, task: ChooseTask, row: TaskRow) -> tuple[str, ...]:
        """The row's own."""
        return tuple(row.item[task.options])

    def metrics(self, task: ChooseTask, rows: Sequence[TaskRow], resources: Resources) -> list[MetricDefinition]:  # noqa: ARG002
        """Accuracy by the likelihood for each byte, and by that of the whole."""
        right = [place_of(row.item[task.options], row.item[task.answer]) or 0 for row in rows]
        return [ChoiceAccuracyPerByte(right), ChoiceAccuracy(right)]

    def figures(self, task: ChooseTask, observed: Observations) -> TaskFigures | None:  # noqa: ARG002
        """Nothing is drawn."""
        return None

    def cautions(self, task: ChooseTask) -> tuple[str, ...]:  # noqa: ARG002
        """What choosing does not show."""
        return ("Choosing by likelihood does not show whether the model would write the right answer by itself.",)


def what_is_wrong(item: Mapping[str, Any], options_field: str, answer_field: str) -> str | None:
    """The problem as text; None where the options and the answer can be used.

    Args:
        item: one row of the task.
        options_field: its field with the options, a list of texts.
        answer_field: its field with the right option: position, text or letter.
    """
    options = item.get(options_field)
    if not isinstance(options, Sequence) or isinstance(options, str) or len(options) < 2:
        return f"has no list of two options or more as {options_field!r}"
    if any(not isinstance(option, str) or not option.strip() for option in options):
        return f"has an option that is not text, or empty, in {options_field!r}"
    if len(set(options)) < len(options):
        return f"has the same option twice in {options_field!r}"
    if answer_field not in item or place_of(options, item[answer_field]) is None:
        return f"has {item.get(answer_field)!r} as {answer_field!r}, which names none of its {len(options)} options"
    return None


def place_of(options: Sequence[str], answer: Any) -> int | None:
    """The place of the right option: by its place from 0 on, its text, or its letter; None where it names none."""
    if isinstance(answer, bool):
        return None
    if isinstance(answer, int):
        return answer if 0 <= answer < len(options) else None
    if not isinstance(answer, str):
        return None
    # The text comes before the letter: an option may itself be "A".
    if answer in options:
        return list(options).index(answer)
    letter = answer.strip().rstrip(".)").upper()
    if len(letter) == 1 and 0 <= ord(letter) - ord("A") < len(options):
        return ord(letter) - ord("A")
    return int(letter) if letter.isdecimal() and int(letter) < len(options) else None


class Classify:
    """Accuracy, macro-F1 and, by likelihood, expected calibration error and Brier score."""

    def check(self, task: ClassifyTask, rows: Sequence[TaskRow]) -> None:
        """Every row's own answer is one of the labels.

        Raises:
            RequestError: the task names no labels for likelihoods, two labels are alike, there is only one, or an
                answer is none.
        """
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
                return "answer", f"{own_answer(row)[:60]!r} is not one of {', '.join(labelling.labels)}"
            return None

        check_rows(task.name, rows, problem, expected="an answer that is one of the labels in every row")
        if len(labelling.labels) < 2:
            raise RequestError(
                f"task {task.name} has the labels {list(labelling.labels)}",
                expected="at least two",
                do="name all of them as `labels`, or evaluate rows of more than one",
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
        if task.by == "text":
            return TaskFigures(confusion=confusion(labelling, observed))
        given, own = labelling.probabilities(observed), labelling.true(observed)
        bins = reliability_bins(given, own, num_bins=task.num_bins, bins="equal_width")
        return TaskFigures(confusion=confusion(labelling, observed), reliability=bins)

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
    return labels_in(answers) if task.labels is None else task.labels


# Chinese and Japanese write no space behind a number or bullet; before Latin letters it tells `1. Zip` from `7.Zip`.
_BULLET = re.compile(
    r"^\s*(?:[-*•]\s+|[•●・]\s*"
    r"|[(（]?\d{1,4}(?:[.):]\s+|[、．）：]\s*|[.):](?=[^\x00-\x7f])))?"
)


class Rank:
    """hit@k, NDCG@k and MRR of written lists, or of candidates by their likelihood."""

    def check(self, task: RankTask, rows: Sequence[TaskRow]) -> None:
        """Every row has right items and, for likelihoods, candidates that hold them all."""

        def problem(row: TaskRow) -> tuple[str, str] | None:
            relevant = _items(row.item.get(task.relevant))
            if not relevant:
                return task.relevant, "is not a list of at least one item"
            if task.by == "text":
                return None
            candidates = _items(row.item.get(task.candidates))
            if len(candidates) < 2 or len(set(map(_key, candidates))) < len(candidates):
                return task.candidates, "is not a list of at least two different items"
            missing = [item for item in relevant if _key(item) not in set(map(_key, candidates))]
            return (task.relevant, f"{missing[0]!r} is not one of the candidates") if missing else None

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
