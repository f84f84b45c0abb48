"""Write an answer, and hold it against the row's own by metrics of texts."""

from __future__ import annotations

from collections.abc import Sequence

from luthier.core.errors import RequestError
from luthier.core.results.suite import GenerateTask
from luthier.core.results.task_result import TaskFigures
from luthier.ml.evaluation.metrics.protocol import MetricDefinition, Observations
from luthier.ml.evaluation.metrics.registry import as_definitions
from luthier.ml.evaluation.tasks.protocol import Resources, TaskRow
from luthier.ml.evaluation.tasks.row_checks import refuse_rows
from luthier.ml.evaluation.verdict import primary_metric


class Generate:
    """Text answers against the row's own; the first metric that the task names sums it up.

    Where it names none, that is chosen by `verdict.primary_metric`, since equality counts for short answers only.
    """

    def check(self, task: GenerateTask, rows: Sequence[TaskRow]) -> None:
        """Check that every row has a prompt and a text answer.

        Raises:
            DataError: some have not.
        """
        refuse_rows(
            task.name,
            [
                (row.example.id, "has no prompt with an answer in words")
                for row in rows
                if row.example.prompt is None or not (row.example.reference or "").strip()
            ],
            expected="rows with a prompt and an answer, as prompt and completion, or messages",
        )

    def options(self, task: GenerateTask, row: TaskRow) -> tuple[str, ...]:  # noqa: ARG002
        """None: the model writes."""
        return ()

    def metrics(self, task: GenerateTask, rows: Sequence[TaskRow], resources: Resources) -> list[MetricDefinition]:  # noqa: ARG002
        """Those that the task names.

        Raises:
            NotFoundError: an unknown one.
            RequestError: one of likelihoods.
        """
        names = list(task.metrics)
        if "metrics" not in task.model_fields_set:
            names.insert(0, primary_metric(names, [row.example.reference for row in rows]))
        found = as_definitions(names)
        if wrong := [metric.name for metric in found if metric.needs != "text"]:
            raise RequestError(
                f"task {task.name}: {', '.join(wrong)} of written answers",
                expected="metrics of texts, such as rouge, bleu, exact_match, token_f1",
                do="take them out; perplexity and bits_per_byte are metrics of a task of kind likelihood",
            )
        return found

    def figures(self, task: GenerateTask, observed: Observations) -> TaskFigures | None:  # noqa: ARG002
        """Nothing is drawn."""
        return None

    def cautions(self, task: GenerateTask) -> tuple[str, ...]:  # noqa: ARG002
        """None beside what each metric says of itself."""
        return ()
