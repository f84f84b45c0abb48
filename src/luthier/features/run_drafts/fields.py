"""The fields of a recipe's form: what each is called, where its slider ends, and what the choices mean."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Literal

from luthier.core.aliases import stored_key
from luthier.core.dataset import Shape
from luthier.core.registry import METHODS, OBJECTIVES


@dataclass(frozen=True, slots=True)
class Field:
    """A number of a recipe.

    Attributes:
        name: Its dotted key.
        label: Before the field.
        hint: Beside it.
        low: Where its slider begins; it has none where both ends are 0.
        high: Where its slider ends.
        scale: How far the slider moves a value.
        step: Of the slider; without meaning on a logarithmic scale.
        unit: Behind the value.
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
    """One of several values.

    Attributes:
        name: In the recipe.
        title: What people call it.
        words: What it means to choose it.
    """

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

_OF_METHODS: Final = (
    Field("method.rank", "Rank", "room of the adapter", 1, 256, "log2"),
    Field("method.target_rank", "Average rank at the end", "room of the adapter", 1, 256, "log2"),
    Field("method.alpha", "Alpha", "scale of the adapter", 1, 512, "log2"),
    Field("method.dropout", "Dropout", "share of the adapter's inputs", 0, 0.5, step=0.01),
    Field("method.learning_rate_ratio", "Ratio", "rate of B over that of A", 1, 64, "log2"),
    Field("method.num_virtual_tokens", "Virtual tokens", "length of the prompt", 1, 128, "log2"),
)
_OF_OBJECTIVES: Final = (
    Field("objective.beta", "Beta", "how firmly it is held near its start", 0.01, 5, "log10"),
    Field("objective.gamma", "Margin", "half of beta is usual", 0, 5, step=0.1),
    Field("objective.label_smoothing", "Label smoothing", "0: labels count as given", 0, 0.4, step=0.01),
    Field("objective.desirable_weight", "Weight of wanted answers", "raise that of the rarer kind", 0, 4, step=0.1),
    Field("objective.undesirable_weight", "Weight of unwanted answers", "", 0, 4, step=0.1),
    Field("objective.alpha", "Share of the teacher", "1: of the teacher alone", 0, 1, step=0.05),
    Field("objective.num_generations", "Answers a prompt", "graded against each other", 2, 64, "log2"),
    Field("objective.max_new_tokens", "Longest answer", "longer ones are cut", 8, 2048, "log2", unit="tokens"),
    Field("objective.temperature", "Temperature", "of drawing", 0.1, 2, step=0.1),
    Field("objective.kl_coef", "Hold", "how firmly it is held near its start", 0, 1, step=0.01),
)
_OF_TEACHER: Final = Field("objective.temperature", "Temperature", "2 to 4 shows more of the teacher", 0.5, 5, step=0.1)
_BY_SETTING: Final = {stored_key(field.name): field for field in (*_OF_METHODS, *_OF_OBJECTIVES)}
_FIRST_METHODS: Final = ("lora", "qlora", "full")


def methods() -> list[Choice]:
    """The methods to choose from, plug-ins last: the usual ones first, then in the order of their table."""
    found = [Choice(name, rules.title, rules.summary) for name, rules in METHODS.declarations().items()]
    # The sort is stable, so the others keep the order of their table.
    first = {name: place for place, name in enumerate(_FIRST_METHODS)}
    return sorted(found, key=lambda choice: first.get(choice.name, len(first)))


def objectives() -> list[Choice]:
    """The objectives to choose from, plug-ins last."""
    found = OBJECTIVES.declarations().items()
    return [Choice(name, rules.name or name, rules.summary or rules.title) for name, rules in found]


def fitting(shape: Shape | None) -> set[str]:
    """The objectives that learn from rows of a shape; all where it is not known."""
    return {name for name, rules in OBJECTIVES.declarations().items() if shape is None or shape in rules.shapes}


SCHEDULES: Final = (
    Choice("cosine", "Cosine", "slowly, then fast, then slowly"),
    Choice("linear", "Linear", "evenly"),
    Choice("constant", "Constant", "not at all"),
)
FIRST_REWARD: Final = [{"metric": "token_f1", "weight": 1.0}]
"""What GRPO grades by until the recipe says otherwise."""


def method_fields() -> dict[str, tuple[Field, ...]]:
    """The numbers that each method takes."""
    return {name: _fields("method", rules.settings) for name, rules in METHODS.declarations().items()}


def objective_fields() -> dict[str, tuple[Field, ...]]:
    """The numbers that each objective takes."""
    return {
        name: _fields("objective", rules.settings, [_OF_TEACHER] if rules.needs_teacher else [])
        for name, rules in OBJECTIVES.declarations().items()
    }


def method_of(name: str | None) -> tuple[Field, ...]:
    """The numbers that a method takes; those of LoRA where none is named, as the planner takes it then."""
    return method_fields().get(name or "lora", ())


def objective_of(name: str | None) -> tuple[Field, ...]:
    """The numbers that an objective takes; those of SFT where none is named."""
    return objective_fields().get(name or "sft", ())


def _fields(section: str, settings: Iterable[str], instead: Iterable[Field] = ()) -> tuple[Field, ...]:
    """The fields of those settings that have one, in their order."""
    # `instead` wins: the temperature of a teacher has another range than that of sampling.
    known = _BY_SETTING | {field.name: field for field in instead}
    return tuple(known[place] for name in settings if (place := f"{section}.{name}") in known)
