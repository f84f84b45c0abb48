"""One declaration per objective: its name, row shapes, settings, costs and defaults.

Nothing here loads torch: recipes, plans and pages read it. A plug-in objective (entry point group `luthier.objectives`)
declares the same in the attribute `rules` of its class.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal

from luthier.core.dataset import DatasetProfile, Shape
from luthier.core.defaults import NEW_TOKENS
from luthier.core.import_string import import_string
from luthier.core.registry import OBJECTIVES
from luthier.core.task_head import TaskHeadKind

if TYPE_CHECKING:
    from luthier.core.plan import ObjectivePlan
    from luthier.ml.training.objective_protocol import Objective, Tools

Setting = tuple[Any, str]
Approach = Literal["supervised", "self-supervised", "reinforcement-learning"]
"""Approaches to learning, by the names of CycloneDX 1.6."""


@dataclass(frozen=True, slots=True)
class ObjectiveRules:
    """The declaration of an objective.

    Attributes:
        title: Description in a plan.
        settings: Its settings, each with default and reason.
        shapes: Supported row shapes.
        name: Display name in forms.
        summary: What it does, in one sentence.
        implementation: "module:Class"; empty for a plug-in, whose entry point is the class.
        rows_per_unit: Rows of one unit in a micro-batch.
        learning_rate_factor: Factor on the method's default of training.learning_rate, with the reason; None for no
            change.
        reference_passes: Forward passes over each row before the first step, for the reference model.
        step_passes: Forward passes over each row of a step in addition to those of the loss.
        required: Settings that the recipe must set.
        takes_dropout: Whether it supports adapter dropout.
        needs_adapter_for: A setting that requires an adapter when it is above 0.
        needs_teacher: Whether objective.teacher must be given; it has no default.
        packs: Whether its units are fixed-size blocks into which texts of any length are packed.
        learns_preferences: Whether it compares answers, so that its loss is dimensionless.
        sees_step: Whether it needs all rows of a step together, so that micro-batches cannot be computed independently.
        compares_rows: Whether rows of a step are one another's negatives. Then, by default, they are not sorted by
            length: chance decides which ones meet.
        splits_by_length: Whether rows of two lengths go through the model apart, so that none is padded to the others.
        task_head: The task head that replaces text output; None for objectives that generate text.
        needs_all_rows: What it needs of all rows before the first step; empty if training rows can be streamed, so that
            `prepare` gets validation units alone (`Tools.is_streamed`).
        takes_adapted_head: Whether its loss takes the head as the method gives it (`TrainableModel.logit_parts`), so
            that the head can have an adapter.
        can_be_sharded: Whether it works with sharded weights (`sharding`): all it needs of the model is one pass a
            micro-batch.
        loss_settings: Settings that change what its loss measures on validation rows, so that the losses of two values
            cannot be compared, each with the values that are measured alike; none for most.
        measures: Titles of the charts of its measures, by name. In reports a measure without a title has no chart, and
            `chosen_reward` and `rejected_reward` share the chart `reward`.
        approach: How it learns, for the bill of materials of a bundle.
    """

    title: str
    settings: Mapping[str, Setting]
    shapes: tuple[Shape, ...]
    name: str = ""
    summary: str = ""
    implementation: str = ""
    rows_per_unit: int = 1
    learning_rate_factor: Setting | None = None
    reference_passes: int = 0
    step_passes: int = 0
    required: tuple[str, ...] = ()
    takes_dropout: bool = True
    needs_adapter_for: str | None = None
    needs_teacher: bool = False
    packs: bool = False
    learns_preferences: bool = False
    sees_step: bool = False
    compares_rows: bool = False
    splits_by_length: bool = False
    task_head: TaskHeadKind | None = None
    needs_all_rows: str = "all rows before the first step"
    takes_adapted_head: bool = False
    can_be_sharded: bool = False
    loss_settings: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    measures: Mapping[str, str] = field(default_factory=dict)
    approach: Approach = "supervised"

    @property
    def dropout_is_noise(self) -> bool:
        """Whether log-probabilities in training are compared with those of a model that draws no dropout."""
        return self.learns_preferences or not self.takes_dropout


def rules_of(name: str) -> ObjectiveRules:
    """The rules of an objective.

    Raises:
        NotFoundError: No table knows the name, or the plug-in has no rules.
    """
    rules: ObjectiveRules = OBJECTIVES.declaration(name)
    return rules


TEACHER_SHARE: Final = (0.5, "teacher and student have equal weights in the mixture (Agarwal et al., 2023, section 2)")

_ROUTERS: Final[Mapping[str, Setting]] = {"router_aux_loss": (None, "off")}
"""Resolved once method and structure are known (`router_loss.py`)."""

_ANSWERS: Final[tuple[Shape, ...]] = ("chat", "prompt_completion", "alpaca", "sharegpt", "text")

_LABELLED: Final[tuple[Shape, ...]] = ("chat", "prompt_completion", "alpaca", "sharegpt")
_PAIRS: Final[tuple[Shape, ...]] = ("preference",)
_BETA: Final = (
    0.1,
    "how strongly moving away from the start is penalised; 0.01 to 0.5 is usual (Rafailov et al., 2023, section 6)",
)
_SMOOTHING: Final = (0.0, "labels are used as they are; 0.1 assumes that one in ten is reversed")
LOSS_TYPES: Final[Mapping[str, str]] = {
    "sigmoid": "the usual one (DPO)",
    "sigmoid_norm": "per token, so that long answers do not weigh more",
    "hinge": "up to a margin (SLiC)",
    "robust": "for labels with a share of swapped ones",
    "exo_pair": "exact optimisation (EXO)",
    "nca_pair": "keeps chosen answers likely (NCA)",
    "bco_pair": "each answer by itself (BCO)",
    "sppo_hard": "towards a fixed gain and loss (SPPO)",
    "apo_zero": "chosen answers better than the model's own (APO zero)",
    "apo_down": "chosen answers worse than the model's own (APO down)",
}
"""The losses of a pair that dpo can have, and what each is for."""
LABEL_SMOOTHING: Final[Mapping[str, Setting]] = {
    "sigmoid": _SMOOTHING,
    "robust": (0.1, "one in ten labels is swapped; the share must be known for the loss to be unbiased"),
    "exo_pair": (0.001, "the labels are nearly certain, as in the paper; at 0 the loss would be infinite"),
}
"""Of the losses of dpo that have smoothing: its default."""
NO_SMOOTHING: Final = (0.0, "this loss takes none")
BETA_OF_MEANS: Final = (5.0, "rewards are means a token, so beta is larger than that of dpo (arXiv:2411.15124: 5)")
_NLL_WEIGHT: Final = (0.0, "off: preferences alone; 0.2 to 1 keeps the chosen answers likely (arXiv:2404.19733)")
# A factor on the method's own rate: an absolute rate would be wrong for full fine-tuning.
_SLOW: Final = (0.1, "preferences move a model that can answer already: a tenth of the rate at which it learns answers")
_STREAMED: Final = ""
"""Nothing is needed of all rows: each step has its own alone."""
_OF_PAIRS: Final[Mapping[str, str]] = {
    "reward_accuracy": "Reward accuracy, share of examples",
    "reward_margin": "Reward margin",
    "reward": "Rewards",
    "log_probability": "Log-probability of a completion, nats",
}
_NLL_LOSS: Final[Mapping[str, str]] = {"nll_loss": "Loss, the part of cross-entropy"}
_EACH: Final = (1.0, "both kinds have equal weight; give a much rarer kind more (arXiv:2402.01306)")
_SCALES: Final[Mapping[str, tuple[Any, ...]]] = {"beta": (), "label_smoothing": (), "nll_weight": ()}
"""A loss of preferences has no unit: each of these changes its scale, or adds to it."""

RULES: Final[Mapping[str, ObjectiveRules]] = {
    "sft": ObjectiveRules(
        "supervised fine-tuning on the answers",
        {
            "label_smoothing": (0.0, "off: the answers count as given; 0.05 to 0.2 is usual (docs/regularisation.md)"),
            "loss_weighting": (
                "token",
                "every learned token counts the same; sample: every row does, however long it is; dft: each token by "
                "its own probability (arXiv:2508.05629)",
            ),
            **_ROUTERS,
        },
        _ANSWERS,
        name="SFT",
        summary="Learn the answers of the rows.",
        implementation="luthier.ml.training.objectives.sft:Sft",
        needs_all_rows=_STREAMED,
        takes_adapted_head=True,
        can_be_sharded=True,
        # dft is validated by the plain loss, as token is
        loss_settings={"loss_weighting": ("token", "dft")},
    ),
    "pretraining": ObjectiveRules(
        "continued pre-training on plain text, in blocks",
        {**_ROUTERS},
        ("text",),
        packs=True,
        name="Continued pre-training",
        summary="Continue pretraining on plain texts, in blocks.",
        implementation="luthier.ml.training.objectives.sft:Pretraining",
        needs_all_rows="all texts before the first step: they are cut and filled into blocks",
        takes_adapted_head=True,
        can_be_sharded=True,
        approach="self-supervised",
    ),
    "distillation": ObjectiveRules(
        "the answers, and at each of their tokens the teacher's distribution",
        {
            "alpha": (0.5, "as much of the teacher as of the answers; 1 learns from the teacher alone"),
            "temperature": (
                1.0,
                "probabilities as they are; 2 to 4 shows more of what the teacher thinks unlikely",
            ),
            "divergence": (
                "forward_kl",
                "the student covers all that the teacher thinks possible (Hinton et al.)",
            ),
            "teacher_share": (None, "only for jensen_shannon"),
            **_ROUTERS,
        },
        _ANSWERS,
        needs_teacher=True,
        name="Distillation",
        summary="Learn the answers, and the distribution of a larger teacher.",
        implementation="luthier.ml.training.objectives.distillation:Distillation",
        needs_all_rows="a pass of the teacher over all rows before the first step",
        takes_adapted_head=True,
        loss_settings={"teacher": (), "alpha": (), "temperature": (), "divergence": (), "teacher_share": ()},
        measures={
            "cross_entropy": "Cross-entropy with the answers, nats a token",
            "divergence": "Divergence from the teacher, nats a token",
        },
    ),
    "classify": ObjectiveRules(
        "a class for each prompt, by a separate layer in place of text",
        {
            "multi_label": (False, "each row has one label; true: answers are lists of labels"),
            "classes": (None, "those of the training rows; named where rows are streamed from a remote source"),
            "class_weights": (
                "none",
                "every row counts the same; balanced: every class does, at the cost of the common ones",
            ),
            "label_smoothing": (0.0, "off: labels count as given; 0.05 to 0.1 where some of them are wrong"),
        },
        _LABELLED,
        name="Classification",
        summary="Learn which label each prompt has, with a probability; no text is written.",
        implementation="luthier.ml.training.objectives.heads:Classify",
        task_head="classify",
        needs_all_rows=_STREAMED,
        loss_settings={"multi_label": (), "classes": ()},
        measures={"accuracy": "Accuracy, share of rows"},
    ),
    "regress": ObjectiveRules(
        "a number for each prompt, by a separate layer in place of text",
        {},
        _LABELLED,
        name="Regression",
        summary="Learn the number that each prompt has; no text is written.",
        implementation="luthier.ml.training.objectives.heads:Regress",
        task_head="regress",
        needs_all_rows=_STREAMED,
        measures={"absolute_error": "Mean absolute error"},
    ),
    "rank": ObjectiveRules(
        "how relevant a document is to a query, by a separate layer in place of text",
        {
            "center_rewards_coefficient": (
                0.0,
                "off: only the difference of two scores counts; 0.01 keeps scores around 0 (arXiv:2312.09244)",
            ),
        },
        _PAIRS,
        rows_per_unit=2,
        name="Reranking",
        summary="Learn which document answers a query better; no text is written. Rows with chosen and rejected.",
        implementation="luthier.ml.training.objectives.heads:Ranking",
        task_head="rank",
        needs_all_rows=_STREAMED,
        loss_settings={"center_rewards_coefficient": (None, 0.0)},  # None: plans of before there was such a setting
        measures={"pair_accuracy": "Pair accuracy, share of pairs"},
    ),
    "embed": ObjectiveRules(
        "vectors of texts: those of a query and its document close, all others of a step far apart",
        {
            "temperature": (0.05, "cosine similarities times 20, as is usual for vectors of length 1"),
            "pooling": ("mean", "the mean over all tokens: the state of the last one alone is made to predict a word"),
            "dimensions": (None, "the whole vector alone; a list such as [256, 64] also trains its beginnings"),
            "query_prompt": (
                "",
                "queries as they are; an instruction before them helps where they look like documents",
            ),
            "document_prompt": ("", "documents as they are"),
        },
        ("prompt_completion", "chat", "alpaca", "sharegpt", "preference"),
        rows_per_unit=2,
        step_passes=1,
        name="Embeddings",
        summary="Learn vectors for search: a query's near its document's, far from the others. No text is written.",
        implementation="luthier.ml.training.objectives.embedding:Embedding",
        task_head="embed",
        sees_step=True,
        compares_rows=True,
        splits_by_length=True,
        needs_all_rows=_STREAMED,
        loss_settings={"temperature": (), "dimensions": ()},
        measures={"nearest_is_right": "Own document nearest, share of queries"},
    ),
    "dpo": ObjectiveRules(
        "direct preference optimisation, against the model at the start",
        {
            "loss_type": ("sigmoid", "the loss of the paper; the others: docs/objectives.md"),
            "beta": _BETA,
            "label_smoothing": _SMOOTHING,
            "nll_weight": _NLL_WEIGHT,
        },
        _PAIRS,
        rows_per_unit=2,
        learning_rate_factor=_SLOW,
        reference_passes=1,
        name="DPO",
        summary="Learn to prefer one answer to another, held near the start. Rows with chosen and rejected.",
        implementation="luthier.ml.training.objectives.preference:Dpo",
        learns_preferences=True,
        needs_all_rows=_STREAMED,
        takes_adapted_head=True,
        loss_settings={**_SCALES, "loss_type": (None, "sigmoid")},  # None: plans of before there was a choice
        measures={**_OF_PAIRS, **_NLL_LOSS},
    ),
    "ipo": ObjectiveRules(
        "identity preference optimisation: a margin a token to reach and not to pass",
        {
            "beta": (0.1, "the margin to reach is 1 / (2 beta), in nats a token (Azar et al., 2023, equation 17)"),
            "nll_weight": _NLL_WEIGHT,
        },
        _PAIRS,
        rows_per_unit=2,
        learning_rate_factor=_SLOW,
        reference_passes=1,
        name="IPO",
        summary="Learn preferences up to a margin: holds back where labels are certain.",
        implementation="luthier.ml.training.objectives.preference:Ipo",
        learns_preferences=True,
        needs_all_rows=_STREAMED,
        takes_adapted_head=True,
        loss_settings={"beta": (), "nll_weight": ()},
        measures={**_OF_PAIRS, **_NLL_LOSS},
    ),
    "orpo": ObjectiveRules(
        "odds-ratio preference optimisation: answers and preferences learned together",
        {
            "beta": (0.1, "weight of the odds ratio relative to the cross-entropy (lambda of Hong et al., 2024)"),
            "nll_over": ("all", "cross-entropy of prompt and answer, as the authors' code has it; or answer alone"),
        },
        _PAIRS,
        rows_per_unit=2,
        learning_rate_factor=(0.25, "it learns answers, too, so it goes faster than DPO (Hong et al., 2024: 8e-6)"),
        name="ORPO",
        summary="Learn answers and preferences together, without a reference.",
        implementation="luthier.ml.training.objectives.preference:Orpo",
        learns_preferences=True,
        sees_step=True,
        needs_all_rows=_STREAMED,
        takes_adapted_head=True,
        loss_settings={"beta": (), "nll_over": ()},
        measures={
            **_OF_PAIRS,
            **_NLL_LOSS,
            "odds_ratio_loss": "Loss, the part of the odds ratio",
        },
    ),
    "kto": ObjectiveRules(
        "Kahneman-Tversky optimisation: single answers, each desired or not",
        {"beta": _BETA, "desirable_weight": _EACH, "undesirable_weight": _EACH},
        ("unpaired", "preference"),
        learning_rate_factor=_SLOW,
        # KTO: each prompt also with the answer of another row, for the mean divergence from the reference.
        reference_passes=2,
        # The mismatched answers of a step, too, whose divergence is the reference point.
        step_passes=1,
        name="KTO",
        summary="Learn from single answers, each marked as desired or not.",
        implementation="luthier.ml.training.objectives.preference:Kto",
        learns_preferences=True,
        sees_step=True,
        needs_all_rows=_STREAMED,
        takes_adapted_head=True,
        loss_settings={"beta": (), "desirable_weight": (), "undesirable_weight": ()},
        measures={**_OF_PAIRS, "kl": "Distance from the start (KL estimate), nats a completion"},
    ),
    "simpo": ObjectiveRules(
        "simple preference optimisation: likelihood a token, without a reference",
        {
            "beta": (2.0, "2.0 to 2.5 is usual, since rewards are means a token (Meng et al., 2024, section 3)"),
            "gamma": (1.0, "the margin to reach: a half of beta is usual (Meng et al., 2024, section 3)"),
            "label_smoothing": _SMOOTHING,
            "nll_weight": _NLL_WEIGHT,
        },
        _PAIRS,
        rows_per_unit=2,
        learning_rate_factor=(0.05, "nothing keeps it near the start, so its rate is lower than that of DPO"),
        name="SimPO",
        summary="Learn preferences by likelihood a token, without a reference.",
        implementation="luthier.ml.training.objectives.preference:Simpo",
        learns_preferences=True,
        needs_all_rows=_STREAMED,
        takes_adapted_head=True,
        loss_settings={**_SCALES, "gamma": ()},
        measures={**_OF_PAIRS, **_NLL_LOSS},
    ),
    "grpo": ObjectiveRules(
        "reinforcement learning: the model's own answers, graded against each other",
        {
            "rewards": (None, "the value of an answer"),
            "num_samples": (
                8,
                "fewer make the group's mean a poor estimate; 16 and more multiply the cost of sampling",
            ),
            "num_iterations": (1, "answers are sampled for every update, by the weights that learn from them"),
            "clip_ratio_low": (0.2, "as PPO was published (arXiv:1707.06347)"),
            "clip_ratio_high": (0.2, "as PPO was published (arXiv:1707.06347); 0.28: DAPO (arXiv:2503.14476)"),
            "temperature": (
                1.0,
                "answers are sampled from the model as it is, so the gradient is that of what it really writes",
            ),
            "max_new_tokens": (NEW_TOKENS, "longer answers are cut, and counted as cut"),
            "kl_weight": (
                0.0,
                "rewards are rules, hard to deceive: nothing holds the model near where it began "
                "(arXiv:2503.14476, section 2.3)",
            ),
            "divide_by_spread": (True, "GRPO as published: easy and hard prompts have equal weight (arXiv:2402.03300)"),
            "mask_truncated": (
                False,
                "cut answers are learned as they are; true: they only count in their group (DAPO, arXiv:2503.14476)",
            ),
            "loss_weighting": (
                "token",
                "every token counts the same, in long answers too (arXiv:2503.14476, section 3.3)",
            ),
        },
        _LABELLED,
        learning_rate_factor=(
            0.2,
            "gradients of a few sampled answers are noisy: a fifth of the rate for given answers",
        ),
        required=("rewards",),
        takes_dropout=False,
        needs_adapter_for="kl_weight",
        name="GRPO",
        summary="Reinforcement learning: samples answers and learns from their grades.",
        implementation="luthier.ml.training.objectives.grpo:Grpo",
        sees_step=True,
        needs_all_rows="the prompt of every row before the first step: each must leave room for an answer and have "
        "what is graded",
        approach="reinforcement-learning",
    ),
}


def rows_of_unit(name: str, profile: DatasetProfile) -> int:
    """Rows of one unit of an objective in a micro-batch.

    Args:
        name: Of the objective.
        profile: Of the rows: of embeddings a hard negative is a third text.
    """
    rules = rules_of(name)
    if rules.task_head != "embed":
        return rules.rows_per_unit
    return max(rules.rows_per_unit, round(profile.rows_per_example))


def load_objective(plan: ObjectivePlan, tools: Tools | None = None) -> Objective:
    """The objective that a plan names, with the resources that the run provides; None for none.

    Raises:
        NotFoundError: the name is not registered.
    """
    from luthier.ml.training.objective_protocol import NO_TOOLS, PlainObjective
    from luthier.ml.training.plug_in_classes import with_defaults

    if plan.name in RULES:
        objective: Objective = import_string(RULES[plan.name].implementation)(plan, tools or NO_TOOLS)
    else:
        kind = with_defaults(OBJECTIVES.load(plan.name), PlainObjective)
        objective = kind(plan, tools or NO_TOOLS)
    return objective
