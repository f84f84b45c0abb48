"""How many general rows a step replays."""

from __future__ import annotations

from luthier.core.errors import RecipeError
from luthier.core.plan import DataPlan, ObjectivePlan
from luthier.core.recipe import Recipe, TrainingRecipe
from luthier.ml.planning import defaults
from luthier.ml.training.objectives.rules import rules_of


def num_replayed_per_step(recipe: Recipe) -> tuple[int, int]:
    """Replayed examples a step, and the examples of a step in all.

    The nearest whole number to the share that was requested, at least one where it is above 0.

    Raises:
        RecipeError: no example of the task would be left.
    """
    asked, training = recipe.data.replay, recipe.training or TrainingRecipe()
    size = training.global_batch_size or defaults.GLOBAL_BATCH_SIZE[0]
    if asked is None:
        return 0, size
    fraction = defaults.REPLAY_FRACTION[0] if asked.fraction is None else asked.fraction
    num = max(1, round(fraction * size)) if fraction else 0
    if num >= size:
        raise RecipeError(
            f"data.replay.fraction {fraction:g} makes {num} of the {size} examples of a step",
            expected="room for at least one example of the task in each step",
            do="raise training.global_batch_size, or lower data.replay.fraction",
        )
    return num, size


def num_replayed(data: DataPlan, objective: ObjectivePlan) -> int:
    """Replayed examples a step.

    Raises:
        RecipeError: objectives that do not learn from the answers of rows.
    """
    num = data.replay.num_per_step if data.replay else 0
    if num and (objective.draws or rules_of(objective.name).rows_per_unit != 1):
        raise RecipeError(
            f"data.replay with objective {objective.name}",
            expected="an objective that learns from the answers of single rows, such as sft",
            do="remove data.replay",
        )
    return num
