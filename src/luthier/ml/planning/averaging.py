"""Recipe -> plan, the average of the weights."""

from __future__ import annotations

import math

from luthier.core.errors import RecipeError
from luthier.core.plan import AveragePlan
from luthier.core.recipe import AverageRecipe
from luthier.ml.planning import defaults
from luthier.ml.planning.provenance import Provenance

_OF_KIND = {"ema": ("decay",), "uniform": ("from_step", "every_steps")}


def resolve_average(
    recipe: AverageRecipe | None, method: str, num_steps: int, sources: Provenance
) -> AveragePlan | None:
    """How the weights are averaged, or None.

    Raises:
        RecipeError: settings of the other kind, an average that would begin after the last step, and AdaLoRA: an
            average over steps with different ranks has ranks that were switched off.
    """
    if recipe is None:
        sources.note("training.average", "default", "off: the weights of the best step count (docs/regularisation.md)")
        return None
    if method == "adalora":
        raise RecipeError(
            f"training.average {recipe.kind} with method adalora",
            expected="another method: an average over the steps would bring back ranks that are switched off",
            do="remove training.average, or take lora",
        )
    given = [name for name in ("decay", "from_step", "every_steps") if getattr(recipe, name) is not None]
    if unknown := [name for name in given if name not in _OF_KIND[recipe.kind]]:
        raise RecipeError(
            f"training.average {recipe.kind} with {', '.join(unknown)}",
            expected=f"settings of {recipe.kind}: {', '.join(_OF_KIND[recipe.kind])}",
            do="remove them: they would be ignored",
        )
    if recipe.kind == "ema":
        most, least, share = defaults.AVERAGE_DECAY
        # An EMA looks back over about 1 / (1 - decay) steps; `share` of the run are wanted.
        decay = recipe.decay if recipe.decay is not None else max(least, min(most, 1 - share / num_steps))
        why = f"the average looks back over about {1 / (1 - decay):.3g} steps"
        sources.note("training.average", "asked", why if recipe.decay is not None else f"{why}, a tenth of the run")
        return AveragePlan(kind="ema", decay=decay)
    first = recipe.from_step or num_steps - math.ceil(num_steps * defaults.AVERAGED_SHARE) + 1
    if first > num_steps:
        raise RecipeError(
            f"training.average from step {first:,} of {num_steps:,}",
            expected=f"a step of the run, 1 to {num_steps:,}",
            do="lower training.average.from_step, or leave it out",
        )
    every = recipe.every_steps or 1
    num = (num_steps - first) // every + 1
    sources.note("training.average", "asked", f"the mean of the weights of {num:,} steps at the end")
    return AveragePlan(kind="uniform", from_step=first, every_steps=every)
