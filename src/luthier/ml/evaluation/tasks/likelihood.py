"""How well the row's own answer, or plain text, is predicted: perplexity and bits per byte."""

from __future__ import annotations

from collections.abc import Sequence

from luthier.core.results.suite import LikelihoodTask
from luthier.core.results.task_result import TaskFigures
from luthier.ml.evaluation.metrics.protocol import MetricDefinition, Observations
from luthier.ml.evaluation.metrics.registry import as_definitions
from luthier.ml.evaluation.tasks.protocol import Resources, TaskRow
from luthier.ml.evaluation.tasks.row_checks import refuse_rows


class Likelihood:
    """The row's own words, as the model would have to guess them."""

    def check(self, task: LikelihoodTask, rows: Sequence[TaskRow]) -> None:
        """Check that every row has text to predict.

        Raises:
            DataError: some have none.
        """
        problems = [(row.example.id, "has no text to predict") for row in rows if row.example.learned_bytes == 0]
        refuse_rows(task.name, problems, expected="rows with text, or with an answer in words")

    def options(self, task: LikelihoodTask, row: TaskRow) -> tuple[str, ...]:  # noqa: ARG002
        """None: the row's own answer is scored."""
        return ()

    def metrics(self, task: LikelihoodTask, rows: Sequence[TaskRow], resources: Resources) -> list[MetricDefinition]:  # noqa: ARG002
        """Those that the task names."""
        return as_definitions(task.metrics)

    def figures(self, task: LikelihoodTask, observed: Observations) -> TaskFigures | None:  # noqa: ARG002
        """Nothing is drawn."""
        return None

    def cautions(self, task: LikelihoodTask) -> tuple[str, ...]:
        """Perplexities hang on the tokenizer."""
        if "perplexity" not in task.metrics:
            return ()
        return ("Perplexity counts tokens, so it is compared only between models with the same tokenizer.",)
