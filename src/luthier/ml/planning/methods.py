"""What each method takes, what it uses where the recipe is silent, and how many parameters it trains.

The training code of a method is in `train/methods/`; here is what a plan must know before anything is loaded. A method
that another package brings (entry point group `luthier.methods`) says the same in an attribute `rules` of its class.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from luthier.core.entry_points import entry_points
from luthier.core.errors import NotFoundError
from luthier.core.plan import MethodPlan
from luthier.core.recipe import METHOD_ENTRY_POINTS, METHODS
from luthier.ml.inference.models.structure import FEED_FORWARD_OUTPUTS, LinearLayer, Structure
from luthier.ml.planning import defaults

Setting = tuple[Any, str]
Count = Callable[[Structure, Sequence[LinearLayer], MethodPlan], int]


@dataclass(frozen=True, slots=True)
class MethodRules:
    """The settings that a method takes, each with its default and the reason for it; None where it is derived.

    learning_rate: default of training.learning_rate, with its reason. count: trainable parameters, from the structure,
    the matrices that are targeted and the plan of the method. why_not: why settings that are not among these are
    refused. takes_experts: whether it can be put on tensors that hold the matrices of experts. falls_with_width:
    whether the default rate is that of a model of width 2,000, from which `plan.rates` takes it to another one's.
    """

    settings: Mapping[str, Setting]
    learning_rate: tuple[float, str]
    count: Count
    why_not: str = "the method has no use for them, so they would be ignored"
    falls_with_width: bool = False
    takes_experts: bool = False


def rules_of(name: str) -> MethodRules:
    """The rules of a method. Raises NotFoundError for a name that no table knows, or a plug-in without rules."""
    if name in RULES:
        return RULES[name]
    for entry in entry_points(group=METHOD_ENTRY_POINTS):
        if entry.name == name:
            rules = getattr(entry.load(), "rules", None)
            if isinstance(rules, MethodRules):
                return rules
            raise NotFoundError(
                f"method {name!r} ({entry.value}) has rules={rules!r}",
                expected="an attribute `rules` of type luthier.ml.planning.methods.MethodRules",
                do="ask the author of the package that brings it",
            )
    raise NotFoundError(f"method {name!r}", expected=f"one of {', '.join(METHODS)}", do="correct method.name")


def low_rank_parameters(_: Structure, layers: Sequence[LinearLayer], method: MethodPlan) -> int:
    """rank x (inputs + outputs) over the targeted matrices, each expert's counted by itself."""
    return sum(
        ((method.expert_rank or 0) if x.role == "expert" else method.rank)
        * x.num_matrices
        * (x.num_inputs + x.num_outputs)
        for x in layers
    )


def _dora(structure: Structure, layers: Sequence[LinearLayer], method: MethodPlan) -> int:
    return low_rank_parameters(structure, layers, method) + sum(x.num_outputs for x in layers)


def _adalora(structure: Structure, layers: Sequence[LinearLayer], method: MethodPlan) -> int:
    return low_rank_parameters(structure, layers, method) + method.rank * len(layers)


def _ia3(_: Structure, layers: Sequence[LinearLayer], __: MethodPlan) -> int:
    # the inputs of an MLP's last matrix are scaled, the outputs of all others
    return sum(x.num_inputs if x.kind in FEED_FORWARD_OUTPUTS else x.num_outputs for x in layers)


def _prompt(structure: Structure, _: Sequence[LinearLayer], method: MethodPlan) -> int:
    return (method.num_virtual_tokens or 0) * structure.hidden_size


def _full(structure: Structure, _: Sequence[LinearLayer], __: MethodPlan) -> int:
    return structure.num_parameters


_PLACES: Final[dict[str, Setting]] = {"targets": defaults.LORA_TARGETS, "layers": (None, "every layer")}
_LOW_RANK: Final[dict[str, Setting]] = {
    "rank": defaults.LORA_RANK,
    "alpha": (None, "twice the rank: the usual scale"),
    "dropout": defaults.LORA_DROPOUT,
    **_PLACES,
}
_LORA: Final = MethodRules(
    _LOW_RANK, defaults.LORA_LEARNING_RATE, low_rank_parameters, falls_with_width=True, takes_experts=True
)
# What the initial product is taken out of the base with is put back by the adapter: the scale cancels out.
_FROM_BASE: Final = MethodRules(
    _LOW_RANK | {"alpha": (None, "the rank: a scale of 1, as in the paper")},
    defaults.FROM_BASE_LEARNING_RATE,
    low_rank_parameters,
    falls_with_width=True,
)

RULES: Final[Mapping[str, MethodRules]] = {
    "full": MethodRules(
        {},
        defaults.FULL_LEARNING_RATE,
        _full,
        "full fine-tuning has no adapter, and a base whose every weight moves cannot be held quantised",
        falls_with_width=True,
    ),
    "lora": _LORA,
    "rslora": replace(_LORA, settings=_LOW_RANK | {"alpha": defaults.RSLORA_ALPHA}),
    "dora": replace(_LORA, count=_dora, takes_experts=False),
    "loraplus": MethodRules(
        _LOW_RANK | {"learning_rate_ratio": defaults.LEARNING_RATE_RATIO},
        defaults.LORAPLUS_LEARNING_RATE,
        low_rank_parameters,
        falls_with_width=True,
        takes_experts=True,
    ),
    "pissa": replace(_FROM_BASE, settings={**_FROM_BASE.settings, "num_svd_iterations": defaults.NUM_SVD_ITERATIONS}),
    "olora": _FROM_BASE,
    "adalora": MethodRules(
        {
            "target_rank": defaults.ADALORA_TARGET_RANK,
            "initial_rank": (None, "half as many again as at the end, as far as the smallest matrix has them"),
            "alpha": (None, "twice the initial rank: the usual scale"),
            "dropout": defaults.LORA_DROPOUT,
            **_PLACES,
            "warmup_steps": (None, "a tenth of the run learns at full rank before any is taken away"),
            "final_steps": (None, "two fifths of the run go on with the ranks that were found"),
            "reallocate_every_steps": (None, "about fifty times between warm-up and final phase"),
            "orthogonality_weight": defaults.ORTHOGONALITY_WEIGHT,
            "sensitivity_smoothing": defaults.IMPORTANCE_SMOOTHING,
            "uncertainty_smoothing": defaults.IMPORTANCE_SMOOTHING,
        },
        defaults.ADALORA_LEARNING_RATE,
        _adalora,
        "AdaLoRA's ranks are initial_rank and target_rank; other settings would be ignored",
        falls_with_width=True,
    ),
    "qlora": replace(_LORA, settings=_LOW_RANK | {"quantisation": (None, "")}),
    "ia3": MethodRules(
        {"targets": (None, "keys, values and the MLP's last matrix, as in the paper"), "layers": (None, "every layer")},
        defaults.IA3_LEARNING_RATE,
        _ia3,
    ),
    "prompt_tuning": MethodRules(
        {"num_virtual_tokens": defaults.NUM_VIRTUAL_TOKENS}, defaults.PROMPT_LEARNING_RATE, _prompt
    ),
}
