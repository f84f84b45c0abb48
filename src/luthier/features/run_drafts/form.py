"""The form of a recipe: what its fields and its text say; the last change of either counts."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from luthier.core.aliases import with_new_keys
from luthier.core.errors import RecipeError
from luthier.core.registry import OBJECTIVES
from luthier.features.recipes.file import RecipeDocument, parse_value
from luthier.features.recipes.service import Problem, problems_of, read_text, value_at, with_values, write_text
from luthier.features.run_drafts.fields import (
    CHOSEN,
    SECTIONS,
    SPLITS,
    Field,
    all_fields,
    leaf_keys,
    leaf_types,
    method_fields,
    method_of,
    objective_fields,
    objective_of,
)

FIRST_REWARD: Final = [{"metric": "token_f1", "weight": 1.0}]
"""What GRPO grades by until the recipe says otherwise."""
SHARE: Final = "share"
"""What is chosen in place of a file to take a share out of the training rows."""
SOURCES: Final = "sources"
"""What is chosen in place of a file where the text of the recipe names several sources: they stay as they are."""
_USUAL_SHARE: Final = 10.0
_MAX_PERCENT: Final = 1_000_000
"""More is shown as it was entered, as no share: a number of hundreds of digits cannot be divided."""
_TAKEN_WITHOUT_A_NAME: Final = {"method": "lora", "objective": "sft"}
"""What the planner takes where a recipe names none; once one of its fields is set, the name must be, too."""


@dataclass(frozen=True, slots=True)
class Draft:
    """A recipe that is being drafted.

    Attributes:
        text: The recipe as shown.
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

    def text_at(self, place: str) -> str:
        """The text at a dotted key; empty where there is none or another value, which is one of the problems."""
        value = self.at(place)
        return value if isinstance(value, str) else ""

    @property
    def objective(self) -> Any:
        """The declaration of its objective, SFT where none is named; None where there is no such objective."""
        return OBJECTIVES.find(self.text_at("objective.name") or "sft")

    def problem(self, place: str) -> str:
        """What is wrong at a dotted key; empty where nothing is."""
        inner = (f"{place}.", f"{place}[")  # a key of a mapping, an item of a list
        return next((p.words for p in self.problems if p.place == place or p.place.startswith(inner)), "")


def draft_of(keys: Mapping[str, Any], names: Mapping[str, str], *, token: str = "") -> Draft:
    """A draft of these keys.

    Args:
        keys: The keys of a recipe.
        names: Names of files by id.
        token: Names the draft, so that it is started once.
    """
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


def fields_of(draft: Draft) -> dict[str, Sequence[Field]]:
    """The fields that the form shows for a draft, by their section."""
    return {
        **SECTIONS,
        "method": method_of(draft.text_at("method.name")),
        "objective": objective_of(draft.text_at("objective.name")),
    }


def _values(keys: Mapping[str, Any], form: Mapping[str, str]) -> dict[str, Any]:
    """What the fields say, by dotted key; only those that the form has."""
    values: dict[str, Any] = {}
    for place in CHOSEN:
        if place in form:
            values[place] = form[place].strip() or None
    for place in SPLITS:
        if place in form:
            values[place] = _split(keys, place, form)
    for place in ("data.train", "data.validation", "data.held_out"):
        if values.get(place) == SOURCES and isinstance(known := value_at(keys, place), list):
            values[place] = known
    fields = all_fields()
    for place in sorted(fields.keys() & form.keys()):
        values[place] = _value(fields[place], value_at(keys, place), form[place])
    if "method.name" in values:
        values |= _not_of_method(keys, values["method.name"])
    if "objective.name" in values:
        values |= _not_of_objective(keys, values["objective.name"])
    name = "training.optimizer.name"
    if name in values and values[name] != value_at(keys, name):
        # Each optimizer has its own settings, which another one would refuse.
        values |= dict.fromkeys((key for key in leaf_keys("training.optimizer") if key != name), None)
    return values


def _named(keys: dict[str, Any]) -> dict[str, Any]:
    for section, name in _TAKEN_WITHOUT_A_NAME.items():
        if isinstance(inner := keys.get(section), dict) and "name" not in inner:
            keys = keys | {section: {"name": name} | inner}
    return keys


def _value(one: Field, known: Any, text: str) -> Any:
    """The value of an element; None where it is empty. known: the recipe so far."""
    if one.kind == "text":
        # Spaces at the ends are part of a prompt. Browsers send CRLF in text areas.
        return text.replace("\r\n", "\n") or None
    if one.kind in ("line", "file"):
        return text.strip() or None
    if one.kind == "list":
        if text == one.shown(known) and (isinstance(known, list) or str in leaf_types(one.name)):
            return known  # a pattern with a comma in it is one item
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
    if not isinstance(percent, int | float) or isinstance(percent, bool) or abs(percent) > _MAX_PERCENT:
        return percent
    # A fraction that the percentage merely repeats is kept as written: 0.1 must not become 0.1000000001.
    return known if isinstance(known, float) and abs(known * 100 - percent) < 1e-9 else round(percent / 100, 6)


def _not_of_method(keys: Mapping[str, Any], name: str | None) -> dict[str, Any]:
    """Fields of another method, which this one would refuse, taken out."""
    return _not_among(keys, "method", method_fields(), name or "lora")


def _not_of_objective(keys: Mapping[str, Any], name: str | None) -> dict[str, Any]:
    name = name or "sft"
    changed = _not_among(keys, "objective", objective_fields(), name)
    for one in objective_of(name) if changed else ():
        # Two objectives may have a setting in common, and not all of its values.
        known = value_at(keys, one.name)
        if one.options and known is not None and one.shown(known) not in {choice.name for choice in one.options}:
            changed[one.name] = None
    rules = OBJECTIVES.find(name)
    if rules is None or not rules.needs_teacher:
        changed["objective.teacher"] = None
    if rules is None or "rewards" not in rules.settings:
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
