"""What a kind of task is: a check of its rows, the options where there are any, its metrics, and what is drawn.

Kinds are named in a table of "module:Class" strings. All rows that a task cannot use are named together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

from luthier.core.dataset import Example
from luthier.core.errors import DataError, RowProblem
from luthier.core.import_string import import_string
from luthier.core.ports import Engine, Progress, SilentProgress
from luthier.core.results.suite import TaskCommon, TaskFigures
from luthier.ml.evaluation.metrics.protocol import MetricDefinition, Observations

AnyTask = TypeVar("AnyTask", bound=TaskCommon, contravariant=True)


@dataclass(frozen=True, slots=True)
class TaskRow:
    """A row of a task.

    Attributes:
        example: the row with its own answer.
        item: its fields as the file has them.
    """

    example: Example
    item: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Resources:
    """What a kind may use besides its rows.

    Attributes:
        folder: of the suite, which files are relative to.
        judge: the engine that judges; None where none was named.
        judge_name: its name in sentences.
        allows_code: the command line allows to run code that a model wrote.
        documents: the texts of the corpus by name; None where the task has no corpus.
        progress: shows what takes long.
        find_file: the file of a field (its name and what it holds); None takes paths relative to the folder.
        is_remote: whether the suite comes from a caller over the network: what it brings is run in a locked-down
            process, or not at all.
    """

    folder: Path
    judge: Engine | None = None
    judge_name: str | None = None
    allows_code: bool = False
    documents: Mapping[str, str] | None = None
    progress: Progress = field(default_factory=SilentProgress)
    find_file: Callable[[str, str], Path] | None = None
    is_remote: bool = False

    def file(self, place: str, name: str) -> Path:
        """The file that a field of the task or of a row names.

        Raises:
            RequestError: one that may not be named.
        """
        return self.folder / name if self.find_file is None else self.find_file(place, name)


class TaskKind(Protocol[AnyTask]):
    """One kind, as the registry's table names it."""

    def check(self, task: AnyTask, rows: Sequence[TaskRow]) -> None:
        """Check that the rows have what the task looks at.

        Raises:
            DataError: some lack it; each is named.
            RequestError: the task itself is wrong.
        """
        ...

    def options(self, task: AnyTask, row: TaskRow) -> tuple[str, ...]:
        """The answers whose likelihoods are compared; empty where the model writes, or predicts the row's own."""
        ...

    def metrics(self, task: AnyTask, rows: Sequence[TaskRow], resources: Resources) -> list[MetricDefinition]:
        """The metrics, the most informative first.

        Raises:
            RequestError: a resource is missing.
        """
        ...

    def figures(self, task: AnyTask, observed: Observations) -> TaskFigures | None:
        """What is drawn of one system's answers."""
        ...

    def cautions(self, task: AnyTask) -> tuple[str, ...]:
        """Limits of the figures, a sentence each."""
        ...


BUILT_IN: Final = {
    "generate": "luthier.ml.evaluation.tasks.text:Generate",
    "likelihood": "luthier.ml.evaluation.tasks.text:Likelihood",
    "choose": "luthier.ml.evaluation.tasks.choices:Choose",
    "classify": "luthier.ml.evaluation.tasks.choices:Classify",
    "rank": "luthier.ml.evaluation.tasks.choices:Rank",
    "json": "luthier.ml.evaluation.tasks.text:JsonAnswers",
    "sql": "luthier.ml.evaluation.tasks.execution:Sql",
    "code": "luthier.ml.evaluation.tasks.execution:Code",
    "pairwise": "luthier.ml.evaluation.tasks.judged:Pairwise",
    "rubric": "luthier.ml.evaluation.tasks.judged:Rubric",
    "citations": "luthier.ml.evaluation.tasks.citations:Citations",
    "graded": "luthier.ml.evaluation.tasks.graded:Graded",
}


def task_kind(kind: str) -> TaskKind[Any]:
    """The kind of this name; `core.suite` knows no other names."""
    found: TaskKind[Any] = import_string(BUILT_IN[kind])()
    return found


def own_answer(row: TaskRow) -> str:
    """The row's own answer; empty where it has none."""
    return row.example.reference or ""


def check_rows(
    task: str, rows: Sequence[TaskRow], problem_of: Callable[[TaskRow], tuple[str, str] | None], *, expected: str
) -> None:
    """Check all rows of a task.

    Args:
        task: name of the task.
        rows: all of its rows.
        problem_of: a field and what is wrong with it; None for a row that is right.
        expected: what a row should have, for the message.

    Raises:
        DataError: some rows are wrong; all of them are in `problems`.
    """
    problems = []
    for row in rows:
        if (found := problem_of(row)) is not None:
            value = row.item.get(found[0])
            problems.append(_problem(row.example.id, found[1], found[0], "" if value is None else repr(value)[:80]))
    _refuse(task, problems, expected)


def refuse_rows(task: str, problems: Sequence[tuple[str, str]], *, expected: str, field: str = "") -> None:
    """Refuse rows that are known to be wrong.

    Args:
        task: name of the task.
        problems: id of the row, and what is wrong with it.
        expected: what a row should have, for the message.
        field: the field that is wrong.

    Raises:
        DataError: there are problems.
    """
    _refuse(task, [_problem(row_id, reason, field) for row_id, reason in problems], expected)


def _problem(row_id: str, reason: str, field: str, value: str = "") -> RowProblem:
    file, _, line = row_id.rpartition(":")
    return RowProblem(file or row_id, int(line) if line.isdigit() else 0, field, value, reason)


def _refuse(task: str, problems: Sequence[RowProblem], expected: str) -> None:
    if problems:
        raise DataError(
            f"task {task}: {len(problems):,} {'row' if len(problems) == 1 else 'rows'} cannot be evaluated",
            expected=expected,
            do="correct these rows or take them out; `map` says which field of the file is which",
            problems=problems,
        )
