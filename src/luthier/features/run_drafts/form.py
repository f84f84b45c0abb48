"""The form of a recipe: its fields with labels, ranges and choices, and its text; the last change of either counts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from luthier.core.aliases import stored_key, with_new_keys
from luthier.core.dataset import Shape
from luthier.core.errors import RecipeError
from luthier.core.registry import METHODS, OBJECTIVES
from luthier.features.recipes.file import RecipeDocument, parse_value
from luthier.features.recipes.service import Problem, problems_of, read_text, value_at, with_values, write_text


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


SHARE: Final = "share"
"""What is chosen in place of a file to take a share out of the training rows."""
_USUAL_SHARE: Final = 10.0
_SPLITS: Final = ("data.validation", "data.held_out")
_CHOICES: Final = (
    "base_model", "data.train", "method.name", "objective.name", "objective.teacher", "training.lr_schedule",
)  # fmt: skip
_TAKEN_WITHOUT_A_NAME: Final = {"method": "lora", "objective": "sft"}
"""What the planner takes where a recipe names none; once one of its numbers is set, the name must be, too."""


@dataclass(frozen=True, slots=True)
class Draft:
    """A recipe that is being drafted.

    Attributes:
        text: The recipe as it is shown.
        keys: Of the recipe; None where its text cannot be read.
        by_text: Whether the text was changed last, and not the fields.
        problems: What is wrong with keys and values.
        error: Why the text cannot be read.
        token: Names the draft, so that it is started once.
        lines: The line of each dotted key.
    """

    text: str
    keys: dict[str, Any] | None
    by_text: bool = False
    problems: tuple[Problem, ...] = ()
    error: RecipeError | None = None
    token: str = ""
    lines: Mapping[str, int] = field(default_factory=dict)

    @property
    def is_right(self) -> bool:
        """Whether it can be planned."""
        return self.keys is not None and not self.problems

    @property
    def is_open(self) -> bool:
        """Whether nothing is wrong with it but that model or rows have still to be chosen."""
        missing = {"base_model", "data", "data.train"}
        return self.keys is not None and {problem.place for problem in self.problems} <= missing

    def at(self, place: str) -> Any:
        """The value at a dotted key; None where there is none."""
        return None if self.keys is None else value_at(self.keys, place)

    def problem(self, place: str) -> str:
        """What is wrong at a dotted key; empty where nothing is."""
        return next((p.words for p in self.problems if p.place == place or p.place.startswith(f"{place}.")), "")


def draft_of(keys: Mapping[str, Any], names: Mapping[str, str], *, token: str = "") -> Draft:
    """A draft of these keys. names: names of files by id."""
    named = with_new_keys(keys)  # what an earlier version stored may have old ones
    text = write_text(named, names)
    lines = read_text(text).lines
    return Draft(text, named, problems=problems_of(RecipeDocument(named, lines)), token=token, lines=lines)


def read_form(form: Mapping[str, str], names: Mapping[str, str]) -> Draft:
    """The draft that a form says. What is wrong with it is in it, too.

    Where the text was changed last, it counts; else the fields do, over the rest of the text.
    """
    # Browsers send CRLF in text areas (HTML, "form submission"). The token only names a draft, so it is simply cut.
    text, token = form.get("text", "").replace("\r\n", "\n"), form.get("draft", "")[:64]
    by_text = form.get("side") == "text"
    try:
        document = read_text(text)
        keys = document.keys if by_text else _named(with_values(document.keys, _values(document.keys, form)))
        keys = with_options(keys, form.get("apply", ""))
    except RecipeError as error:
        return Draft(text, None, by_text, error=error, token=token)
    if by_text and not form.get("apply"):
        return Draft(text, keys, True, problems_of(document), token=token, lines=document.lines)
    return draft_of(keys, names, token=token)


def with_options(keys: dict[str, Any], options: str) -> dict[str, Any]:
    """The keys with what the planner advises, as options of the command line say it: `--set method.name=full`."""
    for option in options.split("--set ")[1:]:
        place, _, value = option.strip().partition("=")
        changed = {place: parse_value(place, value)}
        if place == "method.name":
            changed |= _not_of_method(keys, str(changed[place]))
        keys = with_values(keys, changed)
    return keys


def fields_of(draft: Draft) -> dict[str, Sequence[Any]]:
    """The numbers that the form shows for a draft, by their section."""
    return {
        "main": MAIN,
        "more": MORE,
        "budget": BUDGET,
        "method": method_of(draft.at("method.name")),
        "objective": objective_of(draft.at("objective.name")),
    }


def _values(keys: Mapping[str, Any], form: Mapping[str, str]) -> dict[str, Any]:
    """What the fields say, by dotted key; only those that the form has."""
    values: dict[str, Any] = {}
    for place in _CHOICES:
        if place in form:
            values[place] = form[place].strip() or None
    for place in _SPLITS:
        if place in form:
            values[place] = _split(keys, place, form)
    numbers = {one.name for section in (MAIN, MORE, BUDGET) for one in section}
    numbers |= {one.name for fields in (*method_fields().values(), *objective_fields().values()) for one in fields}
    for place in sorted(numbers & form.keys()):
        values[place] = _number(value_at(keys, place), form[place].strip())
    if "method.name" in values:
        values |= _not_of_method(keys, values["method.name"])
    if "objective.name" in values:
        values |= _not_of_objective(keys, values["objective.name"])
    return values


def _named(keys: dict[str, Any]) -> dict[str, Any]:
    for section, name in _TAKEN_WITHOUT_A_NAME.items():
        if isinstance(inner := keys.get(section), dict) and "name" not in inner:
            keys = keys | {section: {"name": name} | inner}
    return keys


def _number(known: Any, text: str) -> Any:
    if not text:
        return None
    try:
        value = parse_value("the field", text)
    except RecipeError:
        return text  # what is wrong with it is shown at its place
    # An equal value keeps its spelling in the text: 2e-4 stays 2e-4.
    return known if known == value else value


def _split(keys: Mapping[str, Any], place: str, form: Mapping[str, str]) -> Any:
    """A file, a share, or none. The share is in percent there, and a fraction in the recipe."""
    chosen = form[place].strip()
    if chosen != SHARE:
        return chosen or None
    known = value_at(keys, place)
    percent = _number(None, form.get(f"{place}-percent", "").strip())
    if percent is None:
        percent = _USUAL_SHARE
    if not isinstance(percent, int | float) or isinstance(percent, bool):
        return percent
    # A fraction that the percentage merely repeats is kept as it was written: 0.1 must not become 0.1000000001.
    return known if isinstance(known, float) and abs(known * 100 - percent) < 1e-9 else round(percent / 100, 6)


def _not_of_method(keys: Mapping[str, Any], name: str | None) -> dict[str, Any]:
    """Numbers of another method, which this one would refuse, taken out."""
    return _not_among(keys, "method", method_fields(), name or "lora")


def _not_of_objective(keys: Mapping[str, Any], name: str | None) -> dict[str, Any]:
    name = name or "sft"
    changed = _not_among(keys, "objective", objective_fields(), name)
    if name != "distillation":
        changed["objective.teacher"] = None
    if name != "grpo":
        changed["objective.rewards"] = None
    elif value_at(keys, "objective.rewards") is None:
        changed["objective.rewards"] = [dict(reward) for reward in FIRST_REWARD]
    return changed


def _not_among(keys: Mapping[str, Any], section: str, known: Mapping[str, Sequence[Any]], name: str) -> dict[str, Any]:
    before = value_at(keys, f"{section}.name")
    if name not in known or before == name:
        return {}
    own = {one.name for one in known[name]}
    others = {one.name for fields in known.values() for one in fields} - own
    return dict.fromkeys(sorted(others), None)
