"""The learning rate where a recipe is silent: by method, width of the model, objective and optimizer."""

from __future__ import annotations

from typing import Final

from luthier.ml.planning.resolve_objective import learning_rate
from luthier.ml.planning.resolve_optimizer import default_rate as rate_of_optimizer
from luthier.ml.training.methods.rules import rules_of

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
        NotFoundError: no such method or objective.
    """
    rules = rules_of(method)
    usual, why = rules.learning_rate
    if rules.falls_with_width:
        # Held at the narrowest width that was measured: the fit would give ever higher rates below it.
        factor = (REFERENCE_WIDTH / max(hidden_size, NARROWEST)) ** _POWER
        why = f"{why}; {usual:g} at a width of {REFERENCE_WIDTH:,}, times {factor:.2g} at {hidden_size:,}"
        # Two digits: the fit is no more precise, and a plan shows what it uses.
        usual = float(f"{usual * factor:.2g}")
    return rate_of_optimizer(learning_rate(objective, (usual, why)), optimizer)
