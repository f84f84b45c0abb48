"""Choose among a row's options by how likely the model finds each of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from luthier.core.results.suite import ChooseTask
from luthier.core.results.task_result import TaskFigures
from luthier.ml.evaluation.metrics.choice import ChoiceAccuracy, ChoiceAccuracyPerByte
from luthier.ml.evaluation.metrics.protocol import MetricDefinition, Observations
from luthier.ml.evaluation.tasks.protocol import Resources, TaskRow
from luthier.ml.evaluation.tasks.row_checks import refuse_rows


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
    """In words; None where the options and the answer can be used."""
    options = item.get(options_field)
    if not isinstance(options, Sequence) or isinstance(options, str) or len(options) < 2:
        return f"has no list of two options or more as {options_field!r}"
    if any(not isinstance(option, str) or not option.strip() for option in options):
        return f"has an option that is no text, or empty, in {options_field!r}"
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
