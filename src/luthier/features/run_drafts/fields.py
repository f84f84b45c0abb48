"""The fields of a recipe's form: what each is called, where its slider ends, and what the choices mean."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from luthier.core.dataset import Shape


@dataclass(frozen=True, slots=True)
class Field:
    """A number of a recipe. name: its dotted key. low, high, step: of its slider, which is none where both are 0.

    scale: how far the slider moves a value; on the logarithmic ones `step` has no meaning.
    """

    name: str
    label: str
    hint: str
    low: float = 0.0
    high: float = 0.0
    scale: Literal["linear", "log2", "log10"] = "linear"
    step: float = 1.0
    unit: str = ""

    @property
    def key(self) -> str:
        """Of its element in a page."""
        return self.name.replace(".", "-")


@dataclass(frozen=True, slots=True)
class Choice:
    """One of several. title: what people call it. words: what it means to choose it."""

    name: str
    title: str
    words: str


EPOCHS: Final = Field("training.epochs", "Epochs", "passes over the training rows", 0.5, 10, step=0.5)
LEARNING_RATE: Final = Field(
    "training.learning_rate", "Learning rate", "how far a step moves the weights", 1e-6, 1e-2, "log10"
)
BATCH: Final = Field("training.global_batch_size", "Batch size", "examples a step", 1, 256, "log2")
LENGTH: Final = Field(
    "training.max_length_tokens", "Longest row", "longer ones are refused", 64, 32768, "log2", unit="tokens"
)
MAIN: Final = (EPOCHS, LEARNING_RATE, BATCH, LENGTH)
MORE: Final = (
    Field("training.warmup_fraction", "Warm-up", "share of the steps", 0, 0.3, step=0.01),
    Field("training.weight_decay", "Weight decay", "pulls weights towards 0", 0, 0.3, step=0.01),
    Field("training.early_stopping_patience", "Patience", "validations without a gain; 0: never stop early", 0, 10),
    Field("training.neftune_alpha", "NEFTune noise", "on the embeddings; 0: none", 0, 15),
    Field("training.seed", "Seed", "the same seed gives the same run"),
)
BUDGET: Final = (
    Field("budget.hours", "Hours", "at most", unit="h"),
    Field("budget.usd", "Money", "at most", unit="USD"),
    Field("budget.energy_kwh", "Energy", "at most", unit="kWh"),
)

_RANK: Final = Field("method.rank", "Rank", "room of the adapter", 1, 256, "log2")
_ALPHA: Final = Field("method.alpha", "Alpha", "scale of the adapter", 1, 512, "log2")
_DROPOUT: Final = Field("method.dropout", "Dropout", "share of the adapter's inputs", 0, 0.5, step=0.01)
_LOW_RANK: Final = (_RANK, _ALPHA, _DROPOUT)
METHOD_FIELDS: Final[dict[str, tuple[Field, ...]]] = {
    "full": (),
    "lora": _LOW_RANK,
    "rslora": _LOW_RANK,
    "dora": _LOW_RANK,
    "loraplus": (
        *_LOW_RANK,
        Field("method.learning_rate_ratio", "Ratio", "rate of B over that of A", 1, 64, "log2"),
    ),
    "pissa": _LOW_RANK,
    "olora": _LOW_RANK,
    "adalora": (
        Field("method.target_rank", "Average rank at the end", "room of the adapter", 1, 256, "log2"),
        _ALPHA,
        _DROPOUT,
    ),
    "qlora": _LOW_RANK,
    "ia3": (),
    "prompt_tuning": (Field("method.num_virtual_tokens", "Virtual tokens", "length of the prompt", 1, 128, "log2"),),
}
METHODS: Final = (
    Choice("lora", "LoRA", "A small adapter on a base that stays as it is. Forgets least; the usual choice."),
    Choice("qlora", "QLoRA", "LoRA over a base held in 4 bits: least memory, slower, a coarser base."),
    Choice("full", "Full fine-tuning", "Every weight moves: learns most, forgets most; every copy is a whole model."),
    Choice("adalora", "AdaLoRA", "LoRA whose ranks move to where they help; wants many steps."),
    Choice("dora", "DoRA", "LoRA that learns direction and size of weights apart: a little better, a little slower."),
    Choice("rslora", "rsLoRA", "LoRA scaled by the root of the rank: for large ranks."),
    Choice("loraplus", "LoRA+", "LoRA whose two halves learn at rates of their own: faster."),
    Choice("pissa", "PiSSA", "LoRA that starts from the largest directions of the base: learns faster at first."),
    Choice("olora", "OLoRA", "LoRA that starts from an orthonormal part of the base: steadier."),
    Choice("ia3", "IA3", "Scales a few activations: thousands of parameters, for very narrow tasks."),
    Choice("prompt_tuning", "Prompt tuning", "Learns a prompt and no weight: the smallest of all."),
)

_BETA: Final = Field("objective.beta", "Beta", "how firmly it is held near its start", 0.01, 5, "log10")
_SMOOTHING: Final = Field("objective.label_smoothing", "Label smoothing", "0: labels count as given", 0, 0.4, step=0.01)
OBJECTIVE_FIELDS: Final[dict[str, tuple[Field, ...]]] = {
    "sft": (_SMOOTHING,),
    "pretraining": (),
    "distillation": (
        Field("objective.alpha", "Share of the teacher", "1: of the teacher alone", 0, 1, step=0.05),
        Field("objective.temperature", "Temperature", "2 to 4 shows more of the teacher", 0.5, 5, step=0.1),
    ),
    "dpo": (_BETA, _SMOOTHING),
    "ipo": (_BETA,),
    "orpo": (_BETA,),
    "kto": (
        _BETA,
        Field("objective.desirable_weight", "Weight of wanted answers", "raise that of the rarer kind", 0, 4, step=0.1),
        Field("objective.undesirable_weight", "Weight of unwanted answers", "", 0, 4, step=0.1),
    ),
    "simpo": (
        _BETA,
        Field("objective.gamma", "Margin", "half of beta is usual", 0, 5, step=0.1),
        _SMOOTHING,
    ),
    "grpo": (
        Field("objective.num_generations", "Answers a prompt", "graded against each other", 2, 64, "log2"),
        Field("objective.max_new_tokens", "Longest answer", "longer ones are cut", 8, 2048, "log2", unit="tokens"),
        Field("objective.temperature", "Temperature", "of drawing", 0.1, 2, step=0.1),
        Field("objective.kl_coef", "Hold", "how firmly it is held near its start", 0, 1, step=0.01),
    ),
}
OBJECTIVES: Final = (
    Choice("sft", "SFT", "Learn the answers of the rows."),
    Choice("dpo", "DPO", "Learn to prefer one answer to another, held near the start. Rows with chosen and rejected."),
    Choice("orpo", "ORPO", "Learn answers and preferences at once, without a reference."),
    Choice("simpo", "SimPO", "Learn preferences by likelihood a token, without a reference."),
    Choice("ipo", "IPO", "Learn preferences up to a margin: holds back where labels are certain."),
    Choice("kto", "KTO", "Learn from single answers, each marked as wanted or not."),
    Choice("grpo", "GRPO", "Reinforcement: draws answers and learns from how they are graded."),
    Choice("distillation", "Distillation", "Learn the answers, and what a larger teacher would have said."),
    Choice("pretraining", "Continued pre-training", "Go on reading plain texts, in blocks."),
)
_ANSWERS: Final[tuple[Shape, ...]] = ("chat", "prompt_completion", "alpaca", "sharegpt", "text")
SHAPES: Final[dict[str, tuple[Shape, ...]]] = {
    "sft": _ANSWERS,
    "pretraining": ("text",),
    "distillation": _ANSWERS,
    "dpo": ("preference",),
    "ipo": ("preference",),
    "orpo": ("preference",),
    "simpo": ("preference",),
    "kto": ("unpaired", "preference"),
    "grpo": _ANSWERS[:-1],
}
"""The shapes of rows that an objective learns from, as `plan.objectives` has them (a test holds the two together)."""
SCHEDULES: Final = (
    Choice("cosine", "Cosine", "slowly, then fast, then slowly"),
    Choice("linear", "Linear", "evenly"),
    Choice("constant", "Constant", "not at all"),
)
FIRST_REWARD: Final = [{"metric": "token_f1", "weight": 1.0}]
"""What GRPO grades by until the recipe says otherwise."""


def method_of(name: str | None) -> tuple[Field, ...]:
    """The numbers that a method takes; those of LoRA where none is named, as the planner takes it then."""
    return METHOD_FIELDS.get(name or "lora", ())


def objective_of(name: str | None) -> tuple[Field, ...]:
    """The numbers that an objective takes; those of SFT where none is named."""
    return OBJECTIVE_FIELDS.get(name or "sft", ())
