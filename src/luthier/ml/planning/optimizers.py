"""The optimizer's part of a plan: what was asked, checked against what the update rule takes, and completed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
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
    given = asked.model_dump(exclude={"name", "options"}, exclude_none=True)
    options = asked.options or {}
    unused = [f"training.optimizer.{name}" for name in given if name not in takes]
    # What a recipe has a key of its own for is no option: one thing has one place.
    own = {name: default for name, default in takes.items() if name not in OptimizerRecipe.model_fields}
    if unused := unused + [f"training.optimizer.options.{name}" for name in options if name not in own]:
        raise RecipeError(
            f"optimizer {asked.name} with {', '.join(unused)}",
            expected=f"settings that {asked.name} takes: {_listed(takes, own)}; others would be ignored",
            do=f"remove {'it' if len(unused) == 1 else 'them'}, or choose another optimizer",
        )
    for name, value in options.items():
        _refuse_another_kind(asked.name, name, value, own[name])
    _refuse_useless(asked.name, method, device)
    sources.note("training.optimizer", "asked", "in the recipe")
    values: dict[str, Any] = {**{name: takes[name] for name in takes if name not in own}, **given}
    return OptimizerPlan(name=asked.name, options={**own, **options} or None, **values)


def _listed(takes: Iterable[str], own: Mapping[str, Any]) -> str:
    return ", ".join(f"options.{name}" if name in own else name for name in takes) or "none"


def _refuse_another_kind(optimizer: str, name: str, value: Any, default: Any) -> None:
    """Raise RecipeError for text or a truth value in the place of a number, and the other way round."""
    # A whole number is a number with a fraction, too; bool is a subclass of int, and none.
    fits = type(value) is type(default) or (type(default) is float and type(value) is int)
    if not fits:
        raise RecipeError(
            f"training.optimizer.options.{name}: {value!r}",
            expected=f"a value of the kind of its default, {default!r}",
            do=f"correct it, or leave it out: {optimizer} then takes {default!r}",
        )


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
