"""What a kind of task is: a check of its rows, the options where there are any, its metrics, and what is drawn."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

from luthier.core.dataset import Example
from luthier.core.ports import Engine, Progress, SilentProgress
from luthier.core.results.suite import TaskCommon
from luthier.core.results.task_result import TaskFigures
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
    """What a kind may use beside its rows.

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
        """What is counted, the most telling first.

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
