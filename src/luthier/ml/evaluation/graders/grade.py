"""A grader of a recipe, made ready: a function from a written text and its row to a number."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from luthier.core.graders import Grader, MultiGrader, StringCheck, TextSimilarity
from luthier.ml.evaluation.graders.fill import filled, item_fields
from luthier.ml.evaluation.graders.formula import Formula
from luthier.ml.evaluation.graders.similarity import similarity

Grade = Callable[[str, Mapping[str, Any]], float]
"""(output, item) -> score. item: the row's fields, and its answer as `reference`."""


def fields_of(grader: Grader) -> tuple[str, ...]:
    """The fields of a row that a grader asks for.

    Raises:
        RequestError: a place that no text fills.
    """
    parts = list(grader.graders.values()) if isinstance(grader, MultiGrader) else [grader]
    names = [name for part in parts for text in (part.input, part.reference) for name in item_fields(text)]
    return tuple(dict.fromkeys(names))


def make_grader(grader: Grader) -> Grade:
    """The function of a grader.

    Raises:
        RequestError: a formula that is none.
    """
    if isinstance(grader, StringCheck):
        return _checked(grader)
    if isinstance(grader, TextSimilarity):
        return _similar(grader)
    made = {name: make_grader(part) for name, part in grader.graders.items()}
    formula = Formula(grader.calculate_output, list(made))
    return lambda output, item: formula({name: part(output, item) for name, part in made.items()})


def _checked(grader: StringCheck) -> Grade:
    def grade(output: str, item: Mapping[str, Any]) -> float:
        said, meant = filled(grader.input, output, item), filled(grader.reference, output, item)
        if grader.operation == "ilike":
            return float(meant.casefold() in said.casefold())
        if grader.operation == "like":
            return float(meant in said)
        # One comparison for eq and ne.
        return float((said == meant) == (grader.operation == "eq"))

    return grade


def _similar(grader: TextSimilarity) -> Grade:
    measure = similarity(grader.evaluation_metric)
    return lambda output, item: measure(filled(grader.input, output, item), filled(grader.reference, output, item))
