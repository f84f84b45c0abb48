"""What each optimizer takes, what it uses where the recipe is silent, and where it cannot be used.

The update rules themselves are in `train/optimizers/`; here is what a plan must know before anything is loaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from luthier.core.errors import RecipeError
from luthier.core.plan import OptimizerPlan
from luthier.core.recipe import OptimizerName, OptimizerRecipe
from luthier.ml.planning import defaults
from luthier.ml.planning.provenance import Provenance

_ADAM: Final = {"beta1": 0.9, "beta2": 0.999, "epsilon": 1e-8}

SETTINGS: Final[Mapping[OptimizerName, Mapping[str, float]]] = {
    "adamw": _ADAM,
    "adamw_8bit": _ADAM,
    "paged_adamw_8bit": _ADAM,
    "adafactor": {},
    "muon": _ADAM | {"momentum": 0.95, "num_iterations": 5},
}
"""The settings of each rule with their defaults: those of the papers. Muon's betas are those of what AdamW moves."""


# Muon's update has a root mean square of 0.2, AdamW's first ones have nearly 1 (docs/log.md).
_MUON_FACTOR: Final = 5.0


def default_rate(usual: tuple[float, str], name: OptimizerName) -> tuple[float, str]:
    """The default learning rate and its reason, from those that AdamW would have."""
    if name != "muon":
        return usual
    return _MUON_FACTOR * usual[0], f"{_MUON_FACTOR:g} times AdamW's, since Muon's updates are that much smaller"


def resolve_optimizer(asked: OptimizerRecipe | None, method: str, device: str, sources: Provenance) -> OptimizerPlan:
    """The update rule with all of its settings.

    Raises:
        RecipeError: settings that the rule does not take, Muon without full tuning, and paging without a device to page
            from.
    """
    if asked is None:
        sources.note("training.optimizer", "default", defaults.OPTIMIZER[1])
        return OptimizerPlan()
    takes = SETTINGS[asked.name]
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


def _refuse_useless(name: OptimizerName, method: str, device: str) -> None:
    if name == "muon" and method != "full":
        raise RecipeError(
            f"optimizer muon with method {method}",
            expected="method full: Muon evens out the singular values of a whole matrix's update, and an adapter's two "
            "thin matrices are none",
            do="set method.name: full, or training.optimizer: adamw",
        )
    if name == "paged_adamw_8bit" and device == "cpu":
        raise RecipeError(
            "optimizer paged_adamw_8bit on a CPU",
            expected="a GPU: paging keeps the moments in the host's memory, and on a CPU they are there anyway",
            do="set training.optimizer: adamw_8bit, which is the same without the paging",
        )
