"""Objectives of streamed rows: those that look at one row, or the rows of one step, at a time.

What an objective needs of all rows before the first step (`ObjectiveRules.needs_all_rows`) cannot be had of a stream,
and is refused by name.
"""

from __future__ import annotations

from luthier.core.dataset import Shape
from luthier.core.errors import RecipeError
from luthier.core.recipe import Recipe
from luthier.core.registry import OBJECTIVES


def refused_objective(recipe: Recipe) -> tuple[str, str, str] | None:
    """What of the objective a stream cannot have: what came, what it needs, what to do; None where all of it can be."""
    asked = recipe.objective
    if asked is None:
        return None
    from luthier.ml.training.objectives.rules import rules_of

    rules = rules_of(asked.name)
    if rules.needs_all_rows:
        streamed = (name for name, one in OBJECTIVES.declarations().items() if not one.needs_all_rows)
        return f"objective {asked.name}", rules.needs_all_rows, f"choose one of {', '.join(streamed)}"
    if asked.class_weights == "balanced":
        return "objective.class_weights balanced", "the number of rows of each class", "remove it"
    if rules.reference_passes and recipe.method is not None and recipe.method.name == "full":
        return (
            f"objective {asked.name} with method full",
            "a second copy of all weights: the reference of each step is computed by the model as it began",
            "choose an adapter such as method lora",
        )
    return None


def check_streamed_shape(recipe: Recipe, shape: Shape) -> None:
    """Raise RecipeError for rows of which the objective makes several units that steps count one by one."""
    if recipe.objective is not None and recipe.objective.name == "kto" and shape == "preference":
        raise RecipeError(
            "objective kto on preference pairs with data.streaming",
            expected="rows with one completion and a label",
            do="choose objective dpo, ipo, orpo or simpo for pairs, or write each pair as two rows",
        )
