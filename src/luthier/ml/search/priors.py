"""Where a search begins: what is known before the first trial, as recipes to try.

The learning rate decides most. The plan's own follows method and width (`planning.learning_rates`), but neither the
length of a run nor what it learns: short runs want more, long ones and such as learn little less. So the recipe is
tried with three times and a third of its rate; the first rung is cheap, and the sampler then knows on which side to
look.
"""

from __future__ import annotations

from typing import Final

from luthier.core.plan import Plan
from luthier.core.workflows.study import ALPHA_OVER_RANK, DATA_FRACTION, Parameter, Plain, Space, StartPoint, Values

RATE: Final = "training.learning_rate"
FACTORS: Final = (3.0, 1 / 3)


def own_values(plan: Plan, space: Space) -> Values:
    """What the recipe as it came sets of all that is searched, as far as its plan says it in one value."""
    document = plan.model_dump(mode="json")
    training = plan.training
    derived: Values = {
        "training.epochs": training.num_steps / training.num_steps_per_epoch,
        "training.warmup_fraction": training.num_warmup_steps / training.num_steps,
        DATA_FRACTION: 1.0 if plan.data.part is None else plan.data.part[1] - plan.data.part[0],
    }
    if plan.method.rank:
        derived[ALPHA_OVER_RANK] = plan.method.alpha / plan.method.rank
    found: Values = {}
    for parameter in space.parameters:
        section, _, key = parameter.name.partition(".")
        asked = getattr(getattr(plan.recipe, section, None), key, None)
        value = derived.get(parameter.name, document.get(section, {}).get(key) if key else None)
        # The plan lists resolved modules; what is searched is the group that was asked for.
        value = asked if isinstance(value, list) or parameter.name == "method.targets" else value
        if isinstance(value, bool | int | float | str):
            found[parameter.name] = _nearest(parameter, value)
    return found


def start_points(space: Space, own: Values) -> tuple[StartPoint, ...]:
    """Recipes to try first, from what is known of all tasks.

    Args:
        own: as `own_values` gives it.
    """
    parameter = next((p for p in space.parameters if p.name == RATE and p.kind == "float"), None)
    rate = own.get(RATE)
    if parameter is None or not isinstance(rate, float) or parameter.low is None or parameter.high is None:
        return ()
    found = []
    for factor in FACTORS:
        value = float(f"{rate * factor:.4g}")
        if parameter.low <= value <= parameter.high:
            why = f"{factor:.3g} times the plan's learning rate"
            found.append(StartPoint(values={RATE: value}, why=why))
    return tuple(found)


def _nearest(parameter: Parameter, value: Plain) -> Plain:
    """The choice that is meant: 3 of 100 steps of warm-up are a fraction of 0.03, and 2 epochs are 2.0."""
    numbers = [c for c in parameter.choices if isinstance(c, int | float) and not isinstance(c, bool)]
    if not isinstance(value, int | float) or isinstance(value, bool) or not numbers:
        return value
    nearest = min(numbers, key=lambda c: (abs(c - value), c))
    return nearest if abs(nearest - value) <= max(0.25 * abs(nearest), 0.01) else value
