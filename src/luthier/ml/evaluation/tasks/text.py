"""Tasks of texts: answers compared with the row's own by metrics of texts, answers in JSON, likelihood of a text.

JSON answers are checked for three things: is it JSON, does it fit the schema, which fields are right? Likelihood tasks
measure how well the row's own answer, or plain text, is predicted: perplexity and bits per byte.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from luthier.core.errors import NotFoundError, RequestError
from luthier.core.results.suite import GenerateTask, JsonTask, LikelihoodTask, TaskFigures
from luthier.core.text.utf8 import read_utf8
from luthier.ml.evaluation.metrics.protocol import Array, Fraction, MetricDefinition, Observations, mean_statistics
from luthier.ml.evaluation.metrics.registry import as_definitions
from luthier.ml.evaluation.metrics.scripts import NOT_SEEN, is_seen_by_rouge
from luthier.ml.evaluation.metrics.structured_output import (
    Found,
    SchemaCheck,
    count_fields,
    equal,
    find_json,
    read_json,
    value_at,
)
from luthier.ml.evaluation.tasks.protocol import Resources, TaskRow, check_rows, own_answer, refuse_rows
from luthier.ml.evaluation.verdict import primary_metric


class Generate:
    """Text answers against the row's own; the first metric that the task names sums it up.

    Where it names none, that is chosen by `verdict.primary_metric`, since equality counts for short answers only.
    """

    def __init__(self) -> None:
        self._is_blind = False

    def check(self, task: GenerateTask, rows: Sequence[TaskRow]) -> None:
        """Check that every row has a prompt and a text answer.

        Raises:
            DataError: some have not.
        """
        refuse_rows(
            task.name,
            [
                (row.example.id, "has no prompt with an answer as text")
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
        names, references = list(task.metrics), [row.example.reference or "" for row in rows]
        if "metrics" not in task.model_fields_set:
            # chrF is only taken where ROUGE does not see the answers: both are in the same order of metrics.
            names.insert(0, primary_metric([*names, "chrf"], references))
        found = as_definitions(names)
        self._is_blind = any(one.name.startswith("rouge_") for one in found) and not is_seen_by_rouge(references)
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
        """That ROUGE does not see the answers of the rows that `metrics` had."""
        return (NOT_SEEN,) if self._is_blind else ()


class Likelihood:
    """The row's own words, as the model would have to guess them."""

    def check(self, task: LikelihoodTask, rows: Sequence[TaskRow]) -> None:
        """Check that every row has text to predict.

        Raises:
            DataError: some have none.
        """
        problems = [(row.example.id, "has no text to predict") for row in rows if row.example.learned_bytes == 0]
        refuse_rows(task.name, problems, expected="rows with text, or with an answer as text")

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


class JsonAnswers:
    """Field accuracy, exact match, validity, and how often only the prose around it is at fault."""

    def check(self, task: JsonTask, rows: Sequence[TaskRow]) -> None:
        """Every row's own answer is JSON, with the fields that are compared."""
        if isinstance(task.json_schema, dict):
            SchemaCheck(task.json_schema)

        def problem(row: TaskRow) -> tuple[str, str] | None:
            found = read_json(own_answer(row))
            if found is None:
                return "answer", f"{own_answer(row)[:60]!r} is not JSON"
            missing = [field for field in task.fields or () if value_at(found.value, field) is None]
            return ("answer", f"has no field {missing[0]!r}") if missing else None

        check_rows(task.name, rows, problem, expected="a JSON answer with the compared fields in every row")

    def options(self, task: JsonTask, row: TaskRow) -> tuple[str, ...]:  # noqa: ARG002
        """None: the model writes."""
        return ()

    def metrics(self, task: JsonTask, rows: Sequence[TaskRow], resources: Resources) -> list[MetricDefinition]:
        """Field accuracy first: it says most about answers that are nearly right."""

        def fields(observed: Observations) -> Array:
            pairs = zip(observed.outputs, observed.references, strict=True)
            return count_fields([(find_json(o).value, read_json(r)) for o, r in pairs], task.fields)

        def exact(observed: Observations) -> Array:
            pairs = zip(observed.outputs, observed.references, strict=True)
            return mean_statistics([equal(find_json(o).value, read_json(r)) for o, r in pairs])

        metrics = [
            Fraction("field_accuracy", "fields right", fields),
            Fraction("json_exact", "whole answers right", exact),
            Fraction("json_valid", "valid JSON", _share(lambda found: found.value is not None)),
        ]
        if (schema := _schema(task, resources)) is not None:
            # A schema that the rows' own answers do not fit would count right answers as wrong.
            _check_own_answers(task.name, rows, schema)
            fits: Callable[[Found], bool] = lambda found: found.value is not None and schema.fits(found.value.value)  # noqa: E731
            metrics.append(Fraction("schema_valid", "answers that fit the schema", _share(fits)))
        prose = _share(lambda found: found.is_in_prose)
        metrics.append(Fraction("json_in_prose", "JSON with prose around it", prose, higher_is_better=False))
        return [*metrics]

    def figures(self, task: JsonTask, observed: Observations) -> TaskFigures | None:  # noqa: ARG002
        """Nothing is drawn."""
        return None

    def cautions(self, task: JsonTask) -> tuple[str, ...]:  # noqa: ARG002
        """What counts as JSON, and what a wrong answer costs."""
        return (
            "An answer is JSON where all of it is, or where it is one fenced block and nothing else; with prose around "
            "it all its fields count as wrong, and it is counted under json_in_prose.",
        )


def _share(holds: Callable[[Found], bool]) -> Callable[[Observations], Array]:
    return lambda observed: mean_statistics([holds(find_json(output)) for output in observed.outputs])


def _schema(task: JsonTask, resources: Resources) -> SchemaCheck | None:
    if not isinstance(task.json_schema, str):
        return None if task.json_schema is None else SchemaCheck(task.json_schema)
    path = resources.file("json_schema", task.json_schema)
    if not path.is_file():
        raise NotFoundError(str(path), expected="a file with a JSON schema", do="correct `json_schema` of the task")
    found = read_json(read_utf8(path, "the JSON schema"))
    document: Any = found.value if found else None
    if not isinstance(document, dict):
        raise RequestError(f"{path} holds no JSON object", expected="a JSON schema", do="correct the file")
    return SchemaCheck(document)


def _check_own_answers(task: str, rows: Sequence[TaskRow], schema: SchemaCheck) -> None:
    def problem(row: TaskRow) -> tuple[str, str] | None:
        found = read_json(own_answer(row))
        fault = schema.fault(found.value) if found else "is not JSON"
        return ("answer", fault) if fault else None

    check_rows(task, rows, problem, expected="answers that fit the task's own schema")
