"""The optimizer's part of a plan: its settings, checked and completed, the course of the rate, and the average."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, Final

from luthier.core.errors import RecipeError
from luthier.core.plan import AveragePlan, OptimizerPlan
from luthier.core.recipe import AverageRecipe, OptimizerRecipe, TrainingRecipe
from luthier.ml.planning import defaults
from luthier.ml.planning.defaults import Provenance
from luthier.ml.planning.learning_rates import usual_schedule
from luthier.ml.training.methods.rules import rules_of as method_rules
from luthier.ml.training.optimizers.rules import rules_of


def resolve_optimizer(
    asked: OptimizerRecipe | None, method: str, device: str, batch_size: int, sources: Provenance
) -> OptimizerPlan:
    """The update rule with all of its settings.

    Args:
        asked: What the recipe has; None takes the default.
        method: Its name.
        device: What is trained on.
        batch_size: Rows of an optimizer step.
        sources: Takes where the values come from.

    Raises:
        RecipeError: Settings that the rule does not take, a rule for full tuning with an adapter, one for an
            accelerator on a CPU, one that averages the weights with a method whose weights cannot be averaged, a
            setting that must be above 0, or `beta2: auto` of a rule without a second moment.
    """
    if asked is None:
        sources.note("training.optimizer", "default", defaults.OPTIMIZER[1])
        return OptimizerPlan()
    takes = rules_of(asked.name).settings
    given = asked.model_dump(exclude={"name", "options"}, exclude_none=True)
    options = asked.options or {}
    unused = [f"training.optimizer.{name}" for name in given if name not in takes]
    # What has its own recipe key is not an option: one thing has one place.
    own = {name: default for name, default in takes.items() if name not in OptimizerRecipe.model_fields}
    if unused := unused + [f"training.optimizer.options.{name}" for name in options if name not in own]:
        raise RecipeError(
            f"optimizer {asked.name} with {', '.join(unused)}",
            expected=f"settings that {asked.name} takes: {_listed(takes, own)}; others would be ignored",
            do=f"remove {'it' if len(unused) == 1 else 'them'}, or choose another optimizer",
        )
    for name, value in options.items():
        _refuse_another_kind(asked.name, name, value, own[name])
    for name, reason in rules_of(asked.name).above_zero.items():
        if {**given, **options}.get(name) == 0:
            raise RecipeError(
                f"training.optimizer.{name} 0 with optimizer {asked.name}",
                expected=f"a number above 0: {reason}",
                do=f"raise it, or leave it out: {asked.name} then takes {takes[name]!r}",
            )
    _refuse_useless(asked.name, method, device)
    why = "in the recipe"
    if given.get("beta2") == "auto":
        given["beta2"], why = _beta2_by_tokens(asked.name, takes, batch_size)
    sources.note("training.optimizer", "asked", why)
    values: dict[str, Any] = {**{name: takes[name] for name in takes if name not in own}, **given}
    return OptimizerPlan(name=asked.name, options={**own, **options} or None, **values)


_BETA2_DIGITS: Final = 8


def _beta2_by_tokens(name: str, takes: Mapping[str, Any], batch_size: int) -> tuple[float, str]:
    """beta2 whose half-life in tokens is that of the default at the default batch size, and the reason as text.

    A step of B rows moves the second moment once: with beta2 = b ** (B / B0) it has halved after as many tokens as with
    b at B0, for any length of the rows.

    Source: Marek et al., 2025, "Small Batch Size Training for Language Models", arXiv:2507.07101 (rule for beta2).
    """
    if not rules_of(name).has_second_moment:
        raise RecipeError(
            f"training.optimizer.beta2: auto with optimizer {name}",
            expected="an optimizer with a second moment, such as adamw: it is the half-life of that which is held",
            do="give a number, or leave it out",
        )
    usual, rows = takes["beta2"], defaults.GLOBAL_BATCH_SIZE[0]
    # Rounded, so that the plan's hash does not depend on the last bit of a power.
    found = round(usual ** (batch_size / rows), _BETA2_DIGITS)
    return found, (
        f"in the recipe; beta2 {found:g} for {batch_size} rows a step: the second moment halves after as many tokens "
        f"as with {usual:g} and {rows} rows (arXiv:2507.07101)"
    )


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
    if rules.averages_weights and (why := method_rules(method).not_averaged):
        raise RecipeError(
            f"optimizer {name} with method {method}",
            expected=f"another method, since {name} averages the weights: {why}",
            do="set training.optimizer: adamw, or take lora",
        )
    if rules.only_accelerator is not None and device == "cpu":
        why, instead = rules.only_accelerator
        do = f"set training.optimizer: {instead}"
        raise RecipeError(f"optimizer {name} on a CPU", expected=f"a GPU: {why}", do=do)


def num_warmup_steps(recipe: TrainingRecipe, num_steps: int, sources: Provenance) -> int:
    """The steps in which the learning rate rises: asked for, or a share of the steps.

    Args:
        recipe: What is asked for.
        num_steps: Optimizer steps of the run.
        sources: Takes where the value comes from.

    Raises:
        RecipeError: Both a number and a share are given.
    """
    asked, name = recipe.warmup_steps, "training.num_warmup_steps"
    if asked is None:
        fraction = sources.pick("training.warmup_fraction", recipe.warmup_fraction, defaults.WARMUP_FRACTION)
        sources.found[name] = sources.found.pop("training.warmup_fraction")
        # Rounding must not add a step: 0.07 x 100 is 7.000000000000001.
        return math.ceil(fraction * num_steps - 1e-9)
    if recipe.warmup_fraction is not None:
        raise RecipeError(
            f"training.warmup_steps {asked:,} with training.warmup_fraction {recipe.warmup_fraction:g}",
            expected="one of the two: both say how long the learning rate rises",
            do="remove one of them",
        )
    why = "training.warmup_steps in the recipe"
    if asked > num_steps:  # as in a run on a part of the rows, for a learning curve
        why = f"training.warmup_steps {asked:,} in the recipe: the rate rises to the last step, as the run has no more"
    sources.note(name, "asked", why)
    return min(asked, num_steps)


def min_lr_ratio(recipe: TrainingRecipe, optimizer: str, sources: Provenance) -> float:
    """Where a falling learning rate ends, as a share of its peak.

    Args:
        recipe: What is asked for.
        optimizer: Name of the update rule, which may have a schedule of its own.
        sources: Takes where the value comes from.

    Raises:
        RecipeError: It is given with a schedule that does not fall.
    """
    name, asked = "training.min_lr_ratio", recipe.min_lr_ratio
    if (recipe.schedule or usual_schedule(optimizer)[0]) == "constant":
        if asked:
            raise RecipeError(
                f"{name} {asked:g} with training.lr_schedule constant",
                expected="a schedule that falls: cosine or linear",
                do=f"remove {name}, or choose one of these schedules",
            )
        return sources.pick(name, asked, (0.0, "not used: the rate is constant after the warm-up"))
    return sources.pick(name, asked, defaults.MIN_LR_RATIO)


_OF_KIND = {"ema": ("decay",), "uniform": ("from_step", "every_steps")}


def resolve_average(
    recipe: AverageRecipe | None, method: str, num_steps: int, sources: Provenance, optimizer: str = "adamw"
) -> AveragePlan | None:
    """How the weights are averaged, or None.

    Raises:
        RecipeError: settings of the other kind, an average that would begin after the last step, a method whose weights
            cannot be averaged, or an optimizer that averages them itself.
    """
    averages_itself = rules_of(optimizer).averages_weights
    if recipe is None and averages_itself:
        sources.note("training.average", "default", f"off: {optimizer} keeps its own average of the weights")
        return None
    if recipe is None:
        sources.note("training.average", "default", "off: the weights of the best step count (docs/regularisation.md)")
        return None
    if averages_itself:
        raise RecipeError(
            f"training.average {recipe.kind} with optimizer {optimizer}",
            expected=f"one average: {optimizer} validates and saves its own",
            do="remove training.average, or set training.optimizer: adamw",
        )
    if why := method_rules(method).not_averaged:
        raise RecipeError(
            f"training.average {recipe.kind} with method {method}",
            expected=f"another method: {why}",
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
        # An EMA looks back over about 1 / (1 - decay) steps; `share` of the run is the target.
        decay = recipe.decay if recipe.decay is not None else max(least, min(most, 1 - share / num_steps))
        why = f"the average looks back over about {1 / (1 - decay):.3g} steps"
        sources.note("training.average", "asked", why if recipe.decay is not None else f"{why}, a tenth of the run")
        return AveragePlan(kind="ema", decay=decay)
    # Counted from 1: the last ceil(share * num_steps) steps, the last one included.
    first = recipe.from_step or num_steps - math.ceil(num_steps * defaults.AVERAGED_SHARE) + 1
    if first > num_steps:
        raise RecipeError(
            f"training.average from step {first:,} of {num_steps:,}",
            expected=f"a step of the run, 1 to {num_steps:,}",
            do="lower training.average.from_step, or leave it out",
        )
    every = recipe.every_steps or 1
    # Step `first` itself and every following one up to the last step.
    num = (num_steps - first) // every + 1
    sources.note("training.average", "asked", f"the mean of the weights of {num:,} steps at the end")
    return AveragePlan(kind="uniform", from_step=first, every_steps=every)
