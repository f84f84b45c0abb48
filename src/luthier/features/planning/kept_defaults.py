"""Defaults that work which was stored began with: what another version or machine would decide differently.

What is compared has to be trained alike. A study that is resumed, or another seed of a run, is planned again, and where
today's defaults differ from those of the stored plan, the values of that plan are put into the recipe. How fast
something is computed is left to the machine.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from luthier.core.aliases import new_key
from luthier.core.frozen_model import FrozenModel
from luthier.core.plan import MethodPlan, ObjectivePlan, OptimizerPlan, Plan
from luthier.core.recipe import MethodRecipe, ObjectiveRecipe, OptimizerRecipe, Recipe, TrainingRecipe

_TRAINING: Final = (
    "epochs",
    "global_batch_size",
    "learning_rate",
    "schedule",
    "min_lr_ratio",
    "weight_decay",
    "clip_gradient_norm",
    "neftune_alpha",
    "max_length_tokens",
    "overlong",
    "order",
)
_OPTIMIZER: Final = "training.optimizer"
_WARMUP: Final = "training.warmup_fraction"
_LENGTH: Final = ("training.epochs", "training.global_batch_size", "training.learning_rate", _WARMUP)
_LEFT_OPEN: Final = {"options", "layers", "modules_to_save", "teacher", "quantisation"}
"""Settings that a plan has in another form than a recipe."""

KeptValues = Mapping[str, Any]
"""Values by the dotted key of a stored recipe; of an optimizer and a default method or objective as a whole."""


def changed_defaults(recipe: Recipe, today: Plan, before: Plan) -> dict[str, Any]:
    """The values of an earlier plan that a recipe leaves open, and that its plan of today has otherwise.

    Args:
        recipe: The request.
        today: Its plan, as made now.
        before: Its plan, as made earlier.
    """
    now, then = _decided(recipe, today), _decided(recipe, before)
    changed = {name for name, value in then.items() if now.get(name) != value}
    for group in (_LENGTH, *(tuple(n for n in then if n.startswith(section)) for section in ("method.", "objective."))):
        # Values of a group follow from each other: alpha from the rank, the rate from the batch size.
        if changed.intersection(group):
            changed.update(group)
    return {name: value for name, value in then.items() if name in changed}


def as_planned(recipe: Recipe, plan: Plan) -> Recipe:
    """The recipe with all that its plan has decided: equal for recipes that train the same, and only for comparison.

    Args:
        recipe: The request.
        plan: Its plan.
    """
    return with_values(recipe, _decided(recipe, plan))


def with_values(recipe: Recipe, kept: KeptValues) -> Recipe:
    """The recipe with these values where it leaves them open.

    Args:
        recipe: The request, or a variant of it.
        kept: As of `changed_defaults`.
    """
    sections: dict[str, dict[str, Any]] = {}
    for name, value in kept.items():
        section, _, key = name.partition(".")
        sections.setdefault(section, {})[key] = value
    changed: dict[str, Any] = {}
    for section, values in sections.items():
        own: FrozenModel | None = getattr(recipe, section)
        if own is None and section != "training":
            # A method or an objective that the recipe does not name, by the one that was the default then.
            kind = MethodRecipe if section == "method" else ObjectiveRecipe
            changed[section] = kind.model_validate(values)
            continue
        changed[section] = _filled(own or TrainingRecipe(), values)
    return recipe.model_copy(update=changed)


def defaults_format(kept: KeptValues) -> str:
    """The values as text, by the keys that people write."""
    return ", ".join(f"{new_key(name)} {_shown(value)}" for name, value in kept.items())


def _shown(value: Any) -> str:
    if isinstance(value, FrozenModel):
        return ", ".join(f"{name} {_shown(one)}" for name, one in value.model_dump(exclude_none=True).items())
    if isinstance(value, tuple):
        return " and ".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _filled(own: FrozenModel, values: Mapping[str, Any]) -> FrozenModel:
    update: dict[str, Any] = {}
    for key, value in values.items():
        found = getattr(own, key)
        if found is None:
            update[key] = value
        elif isinstance(found, OptimizerRecipe) and found.name == value.name:
            update[key] = _filled(found, value.model_dump(exclude_none=True, exclude={"name"}))
    return own.model_copy(update=update)


def _decided(recipe: Recipe, plan: Plan) -> dict[str, Any]:
    """What a plan has decided of what its recipe leaves open, by key, as the recipe would have it."""
    from luthier.ml.training.methods.rules import rules_of as method_rules
    from luthier.ml.training.objectives.rules import rules_of as objective_rules

    found = _training(recipe.training or TrainingRecipe(), plan)
    settings = {
        "method": set(method_rules(plan.method.name).settings),
        "objective": set(objective_rules(plan.objective.name).settings),
    }
    for section, taken in settings.items():
        asked, made = getattr(recipe, section), getattr(plan, section)
        if asked is None:
            found[f"{section}.name"] = made.name
        known = taken - _LEFT_OPEN
        if getattr(asked, "layers", None) is not None or bool(getattr(made, "expert_targets", None)):
            known -= {"targets"}  # the plan names matrices, and not by layers or with the experts
        for key, value in _settings(made, known).items():
            if asked is None or getattr(asked, key) is None:
                found[f"{section}.{key}"] = value
    return found


def _training(asked: TrainingRecipe, plan: Plan) -> dict[str, Any]:
    made = plan.training
    open_keys = [name for name in _TRAINING if getattr(asked, name) is None]
    if asked.global_batch_tokens is not None:
        open_keys.remove("global_batch_size")  # it follows from the rows; the recipe would be refused with both
    if asked.max_steps is not None and "epochs" in open_keys:
        open_keys.remove("epochs")
    found = {f"training.{name}": getattr(made, name) for name in open_keys}
    if asked.warmup_fraction is None and asked.warmup_steps is None:
        # Half a step less, so that rounding up gives the same number of steps again.
        fraction = max(0.0, made.num_warmup_steps - 0.5) / made.num_steps
        found[_WARMUP] = fraction if made.num_warmup_steps else 0.0
    if asked.optimizer is None or asked.optimizer.name == made.optimizer.name:
        found[_OPTIMIZER] = _optimizer(made.optimizer)
    return found


def _optimizer(made: OptimizerPlan) -> OptimizerRecipe:
    from luthier.ml.training.optimizers.rules import rules_of

    values = {name: getattr(made, name) for name in rules_of(made.name).settings if hasattr(made, name)}
    if "adamw_rate_factor" in values and values["adamw_rate_factor"] is None:
        values["adamw_rate_factor"] = 1.0  # a plan of before there was one: one rate for all weights
    return OptimizerRecipe(name=made.name, options=made.options or None, **values)


def _settings(made: MethodPlan | ObjectivePlan, known: set[str]) -> dict[str, Any]:
    fields = MethodRecipe.model_fields if isinstance(made, MethodPlan) else ObjectiveRecipe.model_fields
    return {name: getattr(made, name) for name in fields if name in known and getattr(made, name, None) is not None}
