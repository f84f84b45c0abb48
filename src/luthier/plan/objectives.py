"""What each objective takes, what it uses where the recipe is silent, and which rows it can learn from.

The training code of an objective is in `train/objectives/`; here is what a plan must know before anything is loaded. An
objective that another package brings (entry point group `luthier.objectives`) says the same in an attribute `rules` of
its class.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any, Final

from luthier.core.dataset import Shape
from luthier.core.errors import NotFoundError, RecipeError
from luthier.core.plan import ObjectivePlan
from luthier.core.recipe import OBJECTIVE_ENTRY_POINTS, OBJECTIVES, ObjectiveRecipe
from luthier.plan.sources import Sources

Setting = tuple[Any, str]


@dataclass(frozen=True, slots=True)
class ObjectiveRules:
    """What an objective is in words, and the settings that it takes, each with its default and the reason for it.

    shapes: the shapes of row that it can learn from. rows_per_unit: rows that stand side by side in a micro-batch.
    learning_rate: default of training.learning_rate with its reason; None where that of the method is right.
    """

    title: str
    settings: Mapping[str, Setting]
    shapes: tuple[Shape, ...]
    rows_per_unit: int = 1
    learning_rate: Setting | None = None


_ANSWERS: Final[tuple[Shape, ...]] = ("chat", "prompt_completion", "alpaca", "sharegpt", "text")

RULES: Final[Mapping[str, ObjectiveRules]] = {
    "sft": ObjectiveRules("supervised fine-tuning on the answers", {}, _ANSWERS),
}


def rules_of(name: str) -> ObjectiveRules:
    """The rules of an objective. Raises NotFoundError for a name that no table knows, or a plug-in without rules."""
    if name in RULES:
        return RULES[name]
    for entry in entry_points(group=OBJECTIVE_ENTRY_POINTS):
        if entry.name == name:
            rules = getattr(entry.load(), "rules", None)
            if isinstance(rules, ObjectiveRules):
                return rules
            raise NotFoundError(
                f"objective {name!r} ({entry.value}) has rules={rules!r}",
                expected="an attribute `rules` of type luthier.plan.objectives.ObjectiveRules",
                do="ask the author of the package that brings it",
            )
    raise NotFoundError(f"objective {name!r}", expected=f"one of {', '.join(OBJECTIVES)}", do="correct objective.name")


def resolve_objective(recipe: ObjectiveRecipe | None, shape: Shape, sources: Sources) -> ObjectivePlan:
    """The objective's part of a plan. shape: of the training rows.

    Raises RecipeError for settings that the objective does not take, and for rows that it cannot learn from.
    """
    asked = recipe or ObjectiveRecipe(name="sft")
    rules = rules_of(asked.name)
    sources.note("objective.name", "asked" if recipe else "default", rules.title)
    given = {k: v for k, v in asked.model_dump(exclude={"name", "options"}).items() if v is not None}
    if unknown := sorted(set(given) - set(rules.settings)):
        raise RecipeError(
            f"objective {asked.name} with {', '.join(f'objective.{name}' for name in unknown)}",
            expected=f"settings of {asked.name}: {', '.join(rules.settings) or 'none'}",
            do="remove them: they would be ignored",
        )
    if shape not in rules.shapes:
        raise RecipeError(
            f"objective {asked.name} with {shape} rows",
            expected=f"rows of shape {', '.join(rules.shapes)}",
            do="give it such rows, or choose another objective",
        )
    values = {
        name: sources.pick(f"objective.{name}", given.get(name), default) for name, default in rules.settings.items()
    }
    return ObjectivePlan(name=asked.name, options=asked.options or {}, **values)
