"""The default learning rate: by method, width of the model, objective and optimizer; and its default schedule."""

from __future__ import annotations

from typing import Final

from luthier.core.plan import DataPlan, MethodPlan, ObjectivePlan
from luthier.core.recipe import ScheduleName
from luthier.ml.planning import defaults
from luthier.ml.training.methods.rules import rules_of as method_rules
from luthier.ml.training.objectives.rules import rules_of as objective_rules
from luthier.ml.training.optimizers.rules import rules_of as optimizer_rules

REFERENCE_WIDTH: Final = 2000
_POWER: Final = 0.781
NARROWEST: Final = 576
"""The narrowest model whose rate has been measured (docs/benchmarks.md): narrower ones take no more than that."""


def default_rate(method: str, objective: str, hidden_size: int, optimizer: str = "adamw") -> tuple[float, str]:
    """The default peak of the learning rate, and why.

    Methods that move weight matrices learn best at a rate that falls with the width of the model, to the power of
    0.781 (Schulman et al., 2025, "LoRA Without Regret", section on learning rates, and the fit of its authors over
    Llama models of width 2,048 to 8,192).

    Args:
        method: name of a method.
        objective: name of an objective.
        hidden_size: of the base model.
        optimizer: name of an update rule.

    Raises:
        NotFoundError: no such method, objective or optimizer.
    """
    rules = method_rules(method)
    usual, why = rules.learning_rate
    if rules.falls_with_width:
        # Held at the narrowest width that was measured: the fit would give ever higher rates below it.
        factor = (REFERENCE_WIDTH / max(hidden_size, NARROWEST)) ** _POWER
        why = f"{why}; {usual:g} at a width of {REFERENCE_WIDTH:,}, times {factor:.2g} at {hidden_size:,}"
        # Two digits: the fit is no more precise, and a plan shows what it uses.
        usual = float(f"{usual * factor:.2g}")
    return of_optimizer(optimizer, of_objective(objective, (usual, why)))


def of_objective(objective: str, of_method: tuple[float, str]) -> tuple[float, str]:
    """The default rate under an objective and why, from that of the method with SFT.

    Args:
        objective: name of an objective.
        of_method: the rate and its reason.
    """
    factor = objective_rules(objective).learning_rate_factor
    if factor is None:
        return of_method
    # Rounded, so that a plan shows 0.00013 and not the last bits of a product.
    return float(f"{of_method[0] * factor[0]:.6g}"), factor[1]


def of_optimizer(optimizer: str, of_adamw: tuple[float, str]) -> tuple[float, str]:
    """The default rate of an update rule and why, from that of AdamW.

    Args:
        optimizer: name of an update rule.
        of_adamw: the rate and its reason.
    """
    factor = optimizer_rules(optimizer).learning_rate_factor
    return of_adamw if factor is None else (factor[0] * of_adamw[0], factor[1])


def usual_schedule(optimizer: str) -> tuple[ScheduleName, str]:
    """The default schedule of the learning rate, and why.

    Args:
        optimizer: name of an update rule.

    Raises:
        NotFoundError: no such optimizer.
    """
    return optimizer_rules(optimizer).lr_schedule or defaults.SCHEDULE


def rate_of_run(
    method: MethodPlan,
    objective: ObjectivePlan,
    data: DataPlan,
    hidden_size: int,
    *,
    num_steps: int,
    batch_size: int,
    optimizer: str = "adamw",
) -> tuple[float, str]:
    """The default rate of a run and why: `default_rate`, and more where the run sees few rows.

    More only where it was measured: SFT with LoRA and AdamW, in steps of 8 rows and more, over fewer rows than
    `FEW_STEPS` steps of the usual size have, repeated rows counted again.

    Args:
        method: of the plan.
        objective: of the plan.
        data: of the plan.
        hidden_size: of the base model.
        num_steps: optimizer steps of the run.
        batch_size: rows a step.
        optimizer: name of the update rule.

    Raises:
        NotFoundError: no such method, objective or optimizer.
    """
    rate, reason = default_rate(method.name, objective.name, hidden_size, optimizer)
    is_measured = (method.name, objective.name, optimizer) == ("lora", "sft", "adamw")
    is_plain = data.replay is None and data.stream is None and not data.train.packed
    most = defaults.FEW_STEPS * defaults.GLOBAL_BATCH_SIZE[0]
    is_short = batch_size >= defaults.SMALL_BATCH_SIZE[0] and num_steps * batch_size < most
    if not (is_measured and is_plain and is_short):
        return rate, reason
    factor, why = defaults.SHORT_RUN_FACTOR
    return float(f"{rate * factor:.6g}"), f"{reason}; times {factor:g}: {why}"
