"""Forms that start workflows: which options of a command a page offers, and how they are read from what was sent.

Help, default and bounds of a field are those of the command's own option, so that a page and `--help` say the same. The
same declaration gives the command line that is shown beside the button.
"""

from __future__ import annotations

import inspect
import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, Final, Literal, get_args, get_origin, get_type_hints

from luthier.core.errors import NotFoundError, RequestError
from luthier.core.import_string import import_string
from luthier.core.text.written_numbers import typed_number, typed_whole
from luthier.features.recipes.service import value_at
from luthier.features.run_drafts.form import SOURCES
from luthier.features.workflows.declared_forms import FORMS, FormEntry, WorkflowForm

_MAX_CHARACTERS: Final = 20_000
_MAX_CHOSEN: Final = 50
_SEVERAL: Final = ("models", "panels")


@dataclass(frozen=True, slots=True)
class Field:
    """A field of a form, with what its option declares.

    Attributes:
        entry: What the form declares.
        option: The option of the command, such as `--budget-hours`; empty for an argument and for a key of a recipe.
        negated: What turns a flag off, such as `--no-probe`; empty for none.
        help: A sentence.
        default: The value without one.
        least: The smallest number.
        most: The largest number.
        choices: Of a choice.
    """

    entry: FormEntry
    option: str
    negated: str
    help: str
    default: Any
    least: float | None
    most: float | None
    choices: tuple[str, ...]

    @property
    def begins_with(self) -> Any:
        """What the form shows first."""
        found = self.default if self.entry.default is None else self.entry.default
        return f"{found:g}" if isinstance(found, float) else found


def find_form(name: str) -> WorkflowForm:
    """A form by its command.

    Raises:
        NotFoundError: No form has this command.
    """
    if name not in FORMS:
        raise NotFoundError(
            f"no workflow {name[:60]!r}", expected=f"one of {', '.join(FORMS)}", do="choose one on the page of studies"
        )
    return FORMS[name]


@cache
def fields_of(name: str) -> tuple[Field, ...]:
    """The fields of a form, each with the help, default and bounds of its option."""
    form = FORMS[name]
    command = import_string(form.command)
    hints, parameters = get_type_hints(command, include_extras=True), inspect.signature(command).parameters
    return tuple(_field(entry, hints.get(entry.name), parameters.get(entry.name)) for entry in form.entries)


def _field(entry: FormEntry, hint: Any, parameter: inspect.Parameter | None) -> Field:
    if parameter is None or entry.recipe_key or get_origin(hint) is not Annotated:
        return Field(entry, "", "", entry.help, None, entry.least, entry.most, entry.choices)
    kind, info = get_args(hint)[0], hint.__metadata__[0]
    # Within Annotated, Typer takes the first name for the default, and puts it right when it builds the command.
    declared = (info.default, *(info.param_decls or ()))
    names = [name for name in declared if isinstance(name, str) and name.startswith("--")]
    option, _, negated = (names[0] if names else "").partition("/")
    default = None if parameter.default is inspect.Parameter.empty else parameter.default
    named = get_args(kind) if get_origin(kind) is Literal else ()
    if not named and "|" in (info.metavar or ""):
        named = tuple(info.metavar.split("|"))
    return Field(
        entry=entry,
        option=option,
        negated=negated,
        help=entry.help or str(info.help or ""),
        default=default,
        least=info.min if info.min is not None else entry.least,
        most=info.max if info.max is not None else entry.most,
        choices=entry.choices or tuple(str(one) for one in named),
    )


def read_form(
    name: str, sent: Mapping[str, Sequence[str]], decimal_mark: str = "."
) -> tuple[dict[str, Any], dict[str, str]]:
    """The values of a form that were given, and what is wrong, by the name of the field.

    Args:
        name: Of the form.
        sent: Every field with its values, as a browser sends it.
        decimal_mark: That of the page: the other one separates thousands.
    """
    values: dict[str, Any] = {}
    problems: dict[str, str] = {}
    for field in fields_of(name):
        entry = field.entry
        texts = [text.replace("\r\n", "\n").strip() for text in sent.get(entry.name, ())]
        texts = [text for text in texts if text]
        if entry.kind == "file" and texts == [SOURCES]:
            texts = []  # they are in the text of the recipe
        if entry.kind == "flag":
            # A box that is not ticked is not sent: only the form itself shows that it had one.
            if f"{entry.name}.shown" in sent or texts:
                values[entry.name] = bool(texts)
            continue
        if not texts:
            if entry.is_required:
                problems[entry.name] = _missing(field)
            continue
        try:
            values[entry.name] = _value(field, texts, decimal_mark)
        except ValueError as error:
            problems[entry.name] = f"{entry.label}: {error}"
    for field in fields_of(name):
        # What the text of the recipe says need not be in a field, too.
        if problems.get(field.entry.name) == _missing(field) and in_recipe(field, values) is not None:
            del problems[field.entry.name]
    return values, problems


def in_recipe(field: Field, values: Mapping[str, Any]) -> Any:
    """What the text of the recipe has at the key of a field; None for nothing."""
    recipe = values.get("recipe")
    if not field.entry.recipe_key or not isinstance(recipe, Mapping):
        return None
    return value_at(recipe, field.entry.recipe_key)


def _missing(field: Field) -> str:
    return f"{field.entry.label} is missing"


def check_values(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a form that came as JSON, checked as those of a page are.

    Raises:
        RequestError: A field is unknown, missing or has a wrong value.
    """
    known = {field.entry.name for field in fields_of(name)}
    unknown = sorted(set(given) - known)
    sent: dict[str, list[str]] = {}
    for key, value in given.items():
        if isinstance(value, bool):
            sent |= {f"{key}.shown": [], key: ["true"] if value else []}
        elif isinstance(value, dict):
            sent[key] = ["\n".join(f"{one}={other}" for one, other in value.items())]
        elif value is not None:
            sent[key] = [str(one) for one in (value if isinstance(value, list) else [value])]
    values, problems = read_form(name, sent)
    if unknown:
        problems["unknown"] = f"unknown: {', '.join(unknown)[:200]}"
    refuse_problems(problems)
    return values


def refuse_problems(problems: Mapping[str, str]) -> None:
    """Raise RequestError with all that is wrong, if anything is."""
    if problems:
        raise RequestError(
            "; ".join(problems.values()), expected="a form without these problems", do="correct the fields named"
        )


def _value(field: Field, texts: Sequence[str], decimal_mark: str) -> Any:
    """One value. Raises ValueError with what was expected."""
    kind = field.entry.kind
    if len(texts) > _MAX_CHOSEN or sum(map(len, texts)) > _MAX_CHARACTERS:
        raise ValueError(f"too long; at most {_MAX_CHOSEN} choices and {_MAX_CHARACTERS:,} characters")
    if kind in _SEVERAL:
        return list(dict.fromkeys(texts))
    text = texts[-1]
    if kind in ("number", "whole"):
        return _number(field, text, decimal_mark)
    if kind == "choice" and text not in field.choices:
        raise ValueError(f"{text[:40]!r} is not one of {', '.join(field.choices)}")
    if kind == "mapping":
        return _mapping(text)
    if kind == "yaml":
        return _keys(text)
    return text


def _number(field: Field, text: str, decimal_mark: str) -> float | int:
    try:
        value = (_whole if field.entry.kind == "whole" else typed_number)(text, decimal_mark)
    except ValueError:
        is_whole = field.entry.kind == "whole"
        raise ValueError(
            f"{text[:40]!r} is not a whole number" if is_whole else f"{text[:40]!r} is not a number"
        ) from None
    low, high = field.least, field.most
    if not _is_finite(value) or (low is not None and value < low) or (high is not None and value > high):
        ends = {"at least": low, "at most": high}
        wanted = " and ".join(f"{words} {end:g}" for words, end in ends.items() if end is not None)
        raise ValueError(f"{text[:40]} is out of range: {wanted or 'a finite number'}")
    return value


def _whole(text: str, decimal_mark: str) -> int:
    try:
        return typed_whole(text, decimal_mark)
    except ValueError:
        return int(text)  # a negative number, which is out of range in most fields, and said to be


def _is_finite(value: float) -> bool:
    """Whether a number has a float: a whole number of more than 308 digits has none."""
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def _mapping(text: str) -> dict[str, str]:
    found = {}
    for line in filter(None, (one.strip() for one in text.splitlines())):
        name, is_pair, column = line.partition("=")
        if not (name.strip() and is_pair and column.strip()):
            raise ValueError(f"{line[:60]!r} is not FIELD=COLUMN, such as prompt=question")
        found[name.strip()] = column.strip()
    return found


def _keys(text: str) -> dict[str, Any]:
    from luthier.core.text.plain_yaml import has_alias, parse_yaml

    # Aliases expand: a few lines of nested ones grow to gigabytes.
    if has_alias(text):
        raise ValueError("it repeats a part by its name (*name); write it out")
    try:
        keys, _ = parse_yaml("the text", text)
    except RequestError as error:
        raise ValueError(error.came) from None
    if not isinstance(keys, dict):
        raise ValueError("it is not a mapping of keys to values, such as `training: {epochs: 3}`")
    return keys


def recipe_of(name: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe that a form describes: its free keys, and above them the fields that are keys of a recipe."""
    free = values.get("recipe", {})
    recipe: dict[str, Any] = {key: dict(value) if isinstance(value, dict) else value for key, value in free.items()}
    for field in fields_of(name):
        key = field.entry.recipe_key
        if not key or field.entry.name not in values:
            continue
        section, _, last = key.rpartition(".")
        if not section:
            recipe[last] = values[field.entry.name]
        else:
            place = recipe.get(section)
            recipe[section] = (place if isinstance(place, dict) else {}) | {last: values[field.entry.name]}
    return recipe


def command_line(name: str, values: Mapping[str, Any], names: Mapping[str, str]) -> str:
    """The command that does the same on the machine.

    Args:
        name: Of the form.
        values: As `read_form` gives them.
        names: Names of files, by their ids.
    """
    arguments: list[str] = ["recipe.yaml"] if any(field.entry.recipe_key for field in fields_of(name)) else []
    options: list[str] = []
    for field in fields_of(name):
        entry, value = field.entry, values.get(field.entry.name)
        is_replaced = entry.name == "student" and "layers" in values
        if entry.recipe_key or entry.name in ("recipe", "layers") or value is None or is_replaced:
            continue
        shown = names.get(str(value), str(value)) if entry.kind == "file" else value
        if not field.option:
            arguments.append(str(shown))
        elif entry.kind == "flag":
            if value != bool(field.default):
                options.append(field.option if value else field.negated)
        elif not _is_usual(field, value):
            options += _words(field, shown)
    if "layers" in values:
        options += ["--student", f"layers:{values['layers']}"]
    return shlex.join(["luthier", name, *arguments, *options])


def _is_usual(field: Field, value: Any) -> bool:
    """Whether the command takes the same without the option."""
    # Defaults of some options are None or text, and their help says what that means.
    usual = {field.default, None if field.entry.is_required else field.entry.default}
    return str(value) in {str(one) for one in usual if one is not None}


def _words(field: Field, value: Any) -> list[str]:
    kind = field.entry.kind
    if kind == "models":
        return [field.option, ",".join(value)]
    if kind == "mapping":
        return [word for one, other in value.items() for word in (field.option, f"{one}={other}")]
    if kind == "panels":
        return [word for one in value for word in (field.option, one)]
    if kind == "yaml":
        return [field.option, f"{field.entry.name}.yaml"]
    if kind == "long" and field.entry.name == "overrides":
        return [word for line in value.split("\n") if line.strip() for word in (field.option, line.strip())]
    return [field.option, f"{value:g}" if isinstance(value, float) else str(value)]
