"""The optimizer's part of a plan: what was asked, checked against what the update rule takes, and completed."""

from __future__ import annotations

from typing import Any

from luthier.core.errors import RecipeError
from luthier.core.plan import OptimizerPlan
from luthier.core.recipe import OptimizerRecipe
from luthier.ml.planning import defaults
from luthier.ml.planning.provenance import Provenance
from luthier.ml.training.optimizers.rules import rules_of


def default_rate(usual: tuple[float, str], name: str) -> tuple[float, str]:
    """The default learning rate and its reason, from those that AdamW would have."""
    factor = rules_of(name).learning_rate_factor
    return usual if factor is None else (factor[0] * usual[0], factor[1])


def resolve_optimizer(asked: OptimizerRecipe | None, method: str, device: str, sources: Provenance) -> OptimizerPlan:
    """The update rule with all of its settings.

    Raises:
        RecipeError: Settings that the rule does not take, a rule for full tuning with an adapter, or one for an
            accelerator on a CPU.
    """
    if asked is None:
        sources.note("training.optimizer", "default", defaults.OPTIMIZER[1])
        return OptimizerPlan()
    takes = rules_of(asked.name).settings
    given = {name: value for name, value in asked.model_dump(exclude={"name"}).items() if value is not None}
    if unused := [f"training.optimizer.{name}" for name in given if name not in takes]:
        raise RecipeError(
            f"optimizer {asked.name} with {', '.join(unused)}",
            expected=f"settings that {asked.name} takes: {', '.join(takes) or 'none'}; others would be ignored",
            do=f"remove {'it' if len(unused) == 1 else 'them'}, or choose another optimizer",
        )
    _refuse_useless(asked.name, method, device)
    sources.note("training.optimizer", "asked", "in the recipe")
    values: dict[str, Any] = {**takes, **given}
    return OptimizerPlan(name=asked.name, **values)


def _refuse_useless(name: str, method: str, device: str) -> None:
    rules = rules_of(name)
    if rules.only_full and method != "full":
        raise RecipeError(
            f"optimizer {name} with method {method}",
            expected=f"method full: {rules.only_full}",
            do="set method.name: full, or training.optimizer: adamw",
        )
    if rules.only_accelerator is not None and device == "cpu":
        why, instead = rules.only_accelerator
        do = f"set training.optimizer: {instead}"
        raise RecipeError(f"optimizer {name} on a CPU", expected=f"a GPU: {why}", do=do)
