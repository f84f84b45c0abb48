"""The form of a recipe: its fields with labels, ranges and choices, and its text; the last change of either counts."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from luthier.core.aliases import new_key, stored_key, with_new_keys
from luthier.core.dataset import Shape
from luthier.core.errors import RecipeError
from luthier.core.registry import METHODS, OBJECTIVES
from luthier.features.recipes.file import RecipeDocument, parse_value
from luthier.features.recipes.service import Problem, problems_of, read_text, value_at, with_values, write_text


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


@dataclass(frozen=True, slots=True)
class Field:
    """A value of a recipe: a number, one of `options`, a list of numbers, or a text.

    Attributes:
        name: Its dotted key.
        label: Before the field.
        hint: Beside it.
        low: Where its slider begins; it has none where both ends are 0.
        high: Where its slider ends.
        scale: How far the slider moves a value.
        step: Of the slider; without meaning on a logarithmic scale.
        unit: Behind the value.
        kind: What is entered.
        options: Of a choice: its values, as YAML writes them.
    """

    name: str
    label: str
    hint: str
    low: float = 0.0
    high: float = 0.0
    scale: Literal["linear", "log2", "log10"] = "linear"
    step: float = 1.0
    unit: str = ""
    kind: Literal["number", "choice", "numbers", "text"] = "number"
    options: tuple[Choice, ...] = ()

    @property
    def key(self) -> str:
        """Of its element in a page."""
        return self.name.replace(".", "-")

    def shown(self, value: Any) -> str:
        """A value of the recipe as its element holds it; empty for none."""
        if value is None:
            return ""
        if self.kind == "numbers" and isinstance(value, list | tuple):
            return ", ".join(map(str, value))
        # YAML writes true and false in small letters.
        return str(value).lower() if isinstance(value, bool) else str(value)


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
    Field(
        "objective.multi_label",
        "Labels of a row",
        "",
        kind="choice",
        options=(Choice("false", "One", ""), Choice("true", "Several", "answers are lists of labels")),
    ),
    Field(
        "objective.class_weights",
        "Weights of classes",
        "",
        kind="choice",
        options=(Choice("none", "By row", "every row counts the same"), Choice("balanced", "Balanced", "every class")),
    ),
    Field(
        "objective.pooling",
        "Pooling",
        "what becomes the vector of a text",
        kind="choice",
        options=(Choice("mean", "Mean", "of the states of all tokens"), Choice("last", "Last", "the last token's")),
    ),
    Field("objective.dimensions", "Dimensions", "shorter lengths to train as well, such as 256, 64", kind="numbers"),
    Field("objective.query_prompt", "Query prompt", "put before each query", kind="text"),
    Field("objective.document_prompt", "Document prompt", "put before each document", kind="text"),
)
_OF_TEACHER: Final = Field("objective.temperature", "Temperature", "2 to 4 shows more of the teacher", 0.5, 5, step=0.1)
_OF_VECTORS: Final = Field("objective.temperature", "Temperature", "similarities are divided by it", 0.01, 1, "log10")
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
    """The fields that each method takes."""
    return {name: _fields("method", rules.settings) for name, rules in METHODS.declarations().items()}


def objective_fields() -> dict[str, tuple[Field, ...]]:
    """The fields that each objective takes."""
    found = {}
    for name, rules in OBJECTIVES.declarations().items():
        # The temperature of drawing answers has another range than those of a teacher and of similarities.
        own = [_OF_TEACHER] if rules.needs_teacher else [_OF_VECTORS] if rules.task_head == "embed" else []
        found[name] = _fields("objective", rules.settings, own)
    return found


def method_of(name: str | None) -> tuple[Field, ...]:
    """The fields that a method takes; those of LoRA where none is named, as the planner takes it then."""
    return method_fields().get(name or "lora", ())


def objective_of(name: str | None) -> tuple[Field, ...]:
    """The fields that an objective takes; those of SFT where none is named."""
    return objective_fields().get(name or "sft", ())


def _fields(section: str, settings: Iterable[str], instead: Iterable[Field] = ()) -> tuple[Field, ...]:
    """The fields of those settings that have one, in their order; those of `instead` win."""
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
"""What the planner takes where a recipe names none; once one of its fields is set, the name must be, too."""


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
        inner = (f"{place}.", f"{place}[")  # a key of a mapping, an item of a list
        return next((p.words for p in self.problems if p.place == place or p.place.startswith(inner)), "")


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
    """The fields that the form shows for a draft, by their section."""
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
    sections = (MAIN, MORE, BUDGET, *method_fields().values(), *objective_fields().values())
    fields = {one.name: one for section in sections for one in section}
    for place in sorted(fields.keys() & form.keys()):
        values[place] = _value(fields[place], value_at(keys, place), form[place])
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


def _value(one: Field, known: Any, text: str) -> Any:
    """What an element says; None where it is empty. known: what the recipe says so far."""
    if one.kind == "text":
        # Spaces at the ends are part of a prompt. Browsers send CRLF in text areas.
        return text.replace("\r\n", "\n") or None
    if one.kind == "numbers":
        parts = [_number(None, part) for part in re.split(r"[\s,;]+", text.strip().strip("[]")) if part]
        return None if not parts else known if known == parts else parts
    return _number(known, text.strip())


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
    """Fields of another method, which this one would refuse, taken out."""
    return _not_among(keys, "method", method_fields(), name or "lora")


def _not_of_objective(keys: Mapping[str, Any], name: str | None) -> dict[str, Any]:
    name = name or "sft"
    changed = _not_among(keys, "objective", objective_fields(), name)
    if name in (known := OBJECTIVES.declarations()) and name != value_at(keys, "objective.name"):
        # Settings without a field of their own, such as multi_label, would be refused by the new objective just so.
        every = {setting for rules in known.values() for setting in rules.settings} - set(known[name].settings)
        changed |= dict.fromkeys(sorted(new_key(f"objective.{setting}") for setting in every), None)
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
