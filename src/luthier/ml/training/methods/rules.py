"""One declaration per method: its name, settings, costs, defaults and implementing class.

Nothing here loads torch: recipes, plans and pages read it. A plug-in method (entry point group `luthier.methods`)
declares the same in the attribute `rules` of its class.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, Literal

from luthier.core.registry import METHODS
from luthier.ml.inference.models.structure import FEED_FORWARD_OUTPUTS, LinearLayer, Structure

if TYPE_CHECKING:
    from luthier.core.plan import MethodPlan

Setting = tuple[Any, str]
Count = Callable[[Structure, Sequence[LinearLayer], "MethodPlan"], int]
CostModel = Literal["full", "lora", "adalora", "qlora"]


@dataclass(frozen=True, slots=True)
class MethodRules:
    """The declaration of a method.

    Attributes:
        settings: Its settings, each with default and reason; a default of None is derived.
        learning_rate: Default of training.learning_rate, with its reason.
        count: Number of trainable parameters, from the structure, the targeted matrices and the plan of the method.
        costs_as: The built-in method whose activations and base weights the planner uses for memory and time.
        title: Display name.
        summary: When to choose it and what it implies, in one sentence.
        implementation: "module:Class"; empty for a plug-in, whose entry point is the class.
        why_not: Why settings outside `settings` are rejected.
        falls_with_width: Whether the default rate is for a model of width 2,000 and scaled to other widths by
            `planning.learning_rates.default_rate`.
        takes_experts: Whether it supports tensors that hold the matrices of experts.
        takes_outer: Whether it supports embeddings and head.
        can_be_sharded: Whether it works with sharded weights: its step never needs a whole weight, and its base is not
            packed.
        alpha_over_rank: The scale alpha / rank that sets alpha where its default is derived.
        can_be_compiled: Whether a compiler sees through its matrices; otherwise it would compile every layer by itself.
        not_averaged: Why its weights cannot be averaged over steps; empty if they can.
        takes_decay: Whether weight decay acts on any of its parameters (`decays` of its class).
        num_first_rows: Training rows that it computes once before the first step (`first_weights` of its class).
    """

    settings: Mapping[str, Setting]
    learning_rate: tuple[float, str]
    count: Count
    costs_as: CostModel
    title: str
    summary: str
    implementation: str = ""
    why_not: str = "the method has no use for them, so they would be ignored"
    falls_with_width: bool = False
    takes_experts: bool = False
    takes_outer: bool = False
    can_be_sharded: bool = False
    alpha_over_rank: float = 2.0
    can_be_compiled: bool = False
    not_averaged: str = ""
    takes_decay: bool = True
    num_first_rows: int = 0


def rules_of(name: str) -> MethodRules:
    """The rules of a method.

    Raises:
        NotFoundError: No table knows the name, or the plug-in has no rules.
    """
    rules: MethodRules = METHODS.declaration(name)
    return rules


def low_rank_parameters(_: Structure, layers: Sequence[LinearLayer], method: MethodPlan) -> int:
    """rank x (inputs + outputs), summed over the targeted matrices; each expert's matrix counts separately.

    Args:
        layers: the targeted matrices.
        method: with the rank, and that of experts.
    """
    # Of A [rank, inputs] and B [outputs, rank]; the targeted matrix itself stays frozen.
    return sum(
        ((method.expert_rank or 0) if x.role == "expert" else method.rank)
        * x.num_matrices
        * (x.num_inputs + x.num_outputs)
        for x in layers
    )


def _dora(structure: Structure, layers: Sequence[LinearLayer], method: MethodPlan) -> int:
    # One magnitude for each output, besides A and B.
    return low_rank_parameters(structure, layers, method) + sum(x.num_outputs for x in layers)


def _adalora(structure: Structure, layers: Sequence[LinearLayer], method: MethodPlan) -> int:
    # A singular value for each rank, between the two factors.
    return low_rank_parameters(structure, layers, method) + method.rank * len(layers)


def _ia3(_: Structure, layers: Sequence[LinearLayer], __: MethodPlan) -> int:
    # scales the inputs of an MLP's last matrix and the outputs of all others
    return sum(x.num_inputs if x.kind in FEED_FORWARD_OUTPUTS else x.num_outputs for x in layers)


def _prompt(structure: Structure, _: Sequence[LinearLayer], method: MethodPlan) -> int:
    # One embedding for each virtual token: they replace no weight of the base.
    return (method.num_virtual_tokens or 0) * structure.hidden_size


def _full(structure: Structure, _: Sequence[LinearLayer], __: MethodPlan) -> int:
    return structure.num_parameters


LORA_RANK: Final = (16, "enough for style, format and narrow tasks; 8 to 64 is usual")
LORA_DROPOUT: Final = (0.1, "guards small data sets against memorisation; 0 to 0.3 is usual")
_IMPORTANCE_SMOOTHING: Final = (0.85, "importance of one step alone is noise (Zhang et al., 2023, section 3.2)")
_PLACES: Final[dict[str, Setting]] = {
    "targets": ("all-linear", "adapters on every matrix learn more at the same rank than on attention alone"),
    "layers": (None, "every layer"),
    "modules_to_save": (None, "none: embeddings and head stay as they are"),
}
_LOW_RANK: Final[dict[str, Setting]] = {
    "rank": LORA_RANK,
    "alpha": (None, "twice the rank: the usual scale"),
    "dropout": LORA_DROPOUT,
    **_PLACES,
}
_LORA: Final = MethodRules(
    _LOW_RANK,
    (5e-4, "the usual rate for adapters"),
    low_rank_parameters,
    "lora",
    "LoRA",
    "A small adapter on an unchanged base. Forgets least; the usual choice.",
    "luthier.ml.training.methods.lora:Lora",
    falls_with_width=True,
    takes_experts=True,
    takes_outer=True,
    can_be_sharded=True,
    can_be_compiled=True,
)
# The initial product is subtracted with the same scale with which it is added, so the scale cancels out.
_FROM_BASE: Final = replace(
    _LORA,
    settings=_LOW_RANK | {"alpha": (None, "the rank: a scale of 1, as in the paper")},
    alpha_over_rank=1.0,
    learning_rate=(2e-4, "the largest directions of the base move at once, which needs smaller steps"),
    takes_experts=False,
    takes_outer=False,
)

RULES: Final[Mapping[str, MethodRules]] = {
    "full": MethodRules(
        {},
        (5e-5, "the usual rate when every weight moves: a tenth of an adapter's"),
        _full,
        "full",
        "Full fine-tuning",
        "Every weight moves: learns most, forgets most; every copy is a whole model.",
        "luthier.ml.training.methods.full:Full",
        why_not="full fine-tuning has no adapter, and it changes all weights, so the base model cannot be quantised",
        falls_with_width=True,
        can_be_sharded=True,
        can_be_compiled=True,
    ),
    "lora": _LORA,
    "rslora": replace(
        _LORA,
        settings=_LOW_RANK | {"alpha": (8.0, "with the square root of rank 16 it makes LoRA's usual scale of 2")},
        title="rsLoRA",
        summary="LoRA scaled by the root of the rank: for large ranks.",
        implementation="luthier.ml.training.methods.lora:RsLora",
    ),
    "dora": replace(
        _LORA,
        count=_dora,
        title="DoRA",
        summary="LoRA that learns direction and size of weights separately: a little better, a little slower.",
        implementation="luthier.ml.training.methods.lora:Dora",
        takes_experts=False,
        takes_outer=False,
        can_be_sharded=False,
        can_be_compiled=False,
    ),
    "loraplus": replace(
        _LORA,
        settings=_LOW_RANK
        | {"learning_rate_ratio": (16.0, "B learns best well above A's rate (Hayou et al., 2024, arXiv:2402.12354)")},
        learning_rate=(1.25e-4, "of A; B moves faster by method.learning_rate_ratio"),
        title="LoRA+",
        summary="LoRA whose two halves have different learning rates: faster.",
        implementation="luthier.ml.training.methods.lora:LoraPlus",
        takes_outer=False,
    ),
    "pissa": replace(
        _FROM_BASE,
        settings={
            **_FROM_BASE.settings,
            "num_svd_iterations": (
                16,
                "a randomised SVD, exact to a few digits in a fraction of the time; 0: the exact one",
            ),
        },
        title="PiSSA",
        summary="LoRA that starts from the largest directions of the base: learns faster at first.",
        implementation="luthier.ml.training.methods.from_base:Pissa",
    ),
    "olora": replace(
        _FROM_BASE,
        title="OLoRA",
        summary="LoRA that starts from an orthonormal part of the base: steadier.",
        implementation="luthier.ml.training.methods.from_base:OLora",
    ),
    "adalora": MethodRules(
        {
            "target_rank": (16, "the average rank at the end: as many ranks as LoRA has by default"),
            "initial_rank": (None, "one and a half times the final number, limited by the smallest matrix"),
            "alpha": (None, "twice the initial rank: the usual scale"),
            "dropout": LORA_DROPOUT,
            **_PLACES,
            "warmup_steps": (None, "a tenth of the run learns at full rank before any is taken away"),
            "final_steps": (None, "two fifths of the run continue with the ranks that were found"),
            "reallocate_every_steps": (None, "about fifty times between warm-up and final phase"),
            "orthogonality_weight": (0.5, "keeps the ranks of a matrix distinct; 0.1 to 0.5 is usual"),
            "sensitivity_smoothing": _IMPORTANCE_SMOOTHING,
            "uncertainty_smoothing": _IMPORTANCE_SMOOTHING,
        },
        (2.5e-3, "singular values start at zero and learn slower than LoRA's B"),
        _adalora,
        "adalora",
        "AdaLoRA",
        "LoRA that moves its ranks to the matrices that need them; needs many steps.",
        "luthier.ml.training.methods.adalora:AdaLora",
        why_not="AdaLoRA's ranks are initial_rank and target_rank; other settings would be ignored",
        falls_with_width=True,
        not_averaged="an average over the steps would restore ranks that are switched off",
    ),
    "qlora": replace(
        _LORA,
        settings=_LOW_RANK | {"quantisation": (None, "")},
        costs_as="qlora",
        title="QLoRA",
        summary="LoRA over a base held in 4 bits: least memory, slower, a coarser base.",
        implementation="luthier.ml.training.methods.lora:QLora",
        can_be_sharded=False,
        can_be_compiled=False,
    ),
    "eva": replace(
        _LORA,
        title="EVA",
        summary="LoRA that starts along the main directions of the inputs that the training rows give each matrix: "
        "learns faster at first.",
        implementation="luthier.ml.training.methods.eva:Eva",
        num_first_rows=64,
        takes_experts=False,
        takes_outer=False,
        can_be_sharded=False,
        can_be_compiled=False,
    ),
    "ia3": MethodRules(
        {"targets": (None, "keys, values and the MLP's last matrix, as in the paper"), "layers": (None, "every layer")},
        (3e-3, "few parameters, each a factor near 1 (Liu et al., 2022, arXiv:2205.05638)"),
        _ia3,
        "lora",
        "IA3",
        "Scales a few activations: thousands of parameters, for very narrow tasks.",
        "luthier.ml.training.methods.ia3:Ia3",
        takes_decay=False,
    ),
    "prompt_tuning": MethodRules(
        {"num_virtual_tokens": (20, "longer prompts hardly help beyond 20 (Lester et al., 2021, section 3.2)")},
        (1e-2, "only the prompt is trained"),
        _prompt,
        "lora",
        "Prompt tuning",
        "Learns a prompt and no weight: the smallest of all.",
        "luthier.ml.training.methods.prompt_tuning:PromptTuning",
    ),
}
