"""Whether the losses of two plans on their validation rows measure the same, so that the lower one is the better.

A preference loss with a larger beta is another number for the same model, and so is the divergence from a teacher at
another temperature. Where rows are cut or left out at another length, other rows are measured.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from luthier.core.aliases import new_key
from luthier.core.dataset import DatasetProfile
from luthier.core.errors import RequestError
from luthier.core.plan import Plan
from luthier.core.registry import OBJECTIVES
from luthier.core.workflows.study import Parameter, Space

_SECTION = "objective."


def refuse_incomparable(space: Space, own: Plan) -> None:
    """Raise RequestError where a space varies what the loss of an objective measures.

    Args:
        space: what is searched.
        own: the plan of the recipe, with which all trials are compared.
    """
    for parameter in space.parameters:
        if not parameter.name.startswith(_SECTION):
            continue
        key = parameter.name.removeprefix(_SECTION)
        if not _measure_alike(own, key, (*_values_of(parameter), getattr(own.objective, key, None))):
            raise RequestError(
                f"{new_key(parameter.name)} among what is searched",
                expected=f"settings that leave the loss of {own.objective.name} on validation rows what it is: trials "
                "are compared by it",
                do="leave it out; to compare values of it, train a run with each and compare their evaluations",
            )


def why_incomparable(plan: Plan, own: Plan) -> str:
    """Why the validation losses of a plan cannot be compared with those of the recipe; empty where they can.

    Args:
        plan: of a trial.
        own: the plan of the recipe.
    """
    for key in ("name", *_loss_settings(own)):
        one, other = getattr(plan.objective, key, None), getattr(own.objective, key, None)
        if not _measure_alike(own, key, (one, other)):
            name = new_key(f"{_SECTION}{key}")
            return f"its losses cannot be compared with those of the recipe: {name} is {one}, not {other}"
    if _counted(plan.data.validation) != _counted(own.data.validation):
        return "its losses cannot be compared with those of the recipe: its validation rows are others, or are cut"
    return ""


def _measure_alike(own: Plan, key: str, values: Iterable[Any]) -> bool:
    """Whether the loss measures the same with each of these values of a setting of the objective."""
    found = list(values)
    if key != "name" and key not in _loss_settings(own):
        return True
    alike = _loss_settings(own).get(key, ())
    return all(value == found[0] for value in found) or all(value in alike for value in found)


def _loss_settings(plan: Plan) -> dict[str, tuple[Any, ...]]:
    rules = OBJECTIVES.find(plan.objective.name)
    return {} if rules is None else dict(rules.loss_settings)


def _values_of(parameter: Parameter) -> tuple[Any, ...]:
    return parameter.choices if parameter.kind == "choice" else (parameter.low, parameter.high)


def _counted(rows: DatasetProfile | None) -> tuple[Any, ...]:
    return () if rows is None else (rows.sha256, rows.num_examples, rows.num_tokens, rows.num_trained_tokens)
