"""A file of keys: read as YAML or JSON, and every problem in it described.

YAML is read without the traps of YAML 1.1 (core/text/plain_yaml.py). A problem says where it is, what was found, what
was expected, and which key was probably intended.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError

from luthier.core.aliases import new_key, typed_keys
from luthier.core.errors import NotFoundError, RecipeError, RequestError, validation_reason
from luthier.core.json_limits import JsonLimitError, fault_of_text
from luthier.core.recipe import Recipe
from luthier.core.text.plain_yaml import parse_yaml
from luthier.core.text.suggest import suggest_ids

_SUFFIXES = (".yaml", ".yml", ".json")


@dataclass(frozen=True, slots=True)
class RecipeDocument:
    """The content of a file, unchecked. `lines`: dotted key -> 1-based line, where the format provides it."""

    keys: dict[str, Any]
    lines: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class FileKind:
    """What a file of keys is called in errors, and how it begins.

    refuse: the class of those errors. has_switch_words: whether `yes` and `off` are true and false in its YAML.
    """

    word: str
    needs: str
    begin: str
    hint: str
    refuse: type[RequestError]
    has_switch_words: bool = False


RECIPE = FileKind(
    word="recipe",
    needs="a mapping with at least the keys base_model and data",
    begin="write `base_model: NAME` and `data: {train: FILE}`",
    hint="give the recipe's path; row files are named inside it, as data.train",
    refuse=RecipeError,
)


def read_recipe_file(path: Path, kind: FileKind = RECIPE) -> RecipeDocument:
    """Read a recipe, or another file of keys.

    Raises:
        NotFoundError: There is no such file.
        LuthierError: The file cannot be read or holds no keys; of the class `kind.refuse`, with the wrong place.
    """
    text = _read(path, kind)
    is_json = path.suffix.lower() == ".json"
    keys, lines = (
        _parse_json(path, text, kind)
        if is_json
        else parse_yaml(str(path), text, refuse=kind.refuse, has_switch_words=kind.has_switch_words)
    )
    if not isinstance(keys, dict):
        came = "is empty" if keys is None else f"holds {type(keys).__name__} {str(keys)[:60]!r}, not keys"
        raise kind.refuse(f"{kind.word} {path} {came}", expected=kind.needs, do=kind.begin)
    if kind is RECIPE:
        return RecipeDocument(typed_keys(keys), {new_key(place): line for place, line in lines.items()})
    return RecipeDocument(keys, lines)


def parse_value(place: str, text: str) -> Any:
    """One value as YAML, such as `3`, `2e-4` or `[rouge, bleu]`. `place` names it in a RecipeError."""
    return parse_yaml(place, text, refuse=RecipeError)[0]


def _read(path: Path, kind: FileKind) -> str:
    if not path.exists():
        folder = path.parent
        others = sorted(p.name for p in folder.iterdir() if p.suffix in _SUFFIXES) if folder.is_dir() else []
        raise NotFoundError(
            f"no {kind.word} {path}" + (f"; {suggest_ids(path.name, others)}" if others else ""),
            expected="an existing YAML or JSON file",
            do="check the path",
        )
    if not path.is_file() or path.suffix.lower() not in _SUFFIXES:
        came = f"ends in {path.suffix!r}" if path.is_file() else "is not a file"
        raise kind.refuse(
            f"{path} {came}",
            expected=f"a {kind.word}: a file that ends in {', '.join(_SUFFIXES)}",
            do=kind.hint,
        )
    try:
        # utf-8-sig drops the byte order mark that Windows editors write.
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise kind.refuse(
            f"{kind.word} {path} has byte 0x{error.object[error.start]:02x} at offset {error.start}",
            expected="UTF-8 text",
            do="save it as UTF-8",
        ) from error


def _parse_json(path: Path, text: str, kind: FileKind) -> tuple[Any, dict[str, int]]:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        keys = dict(pairs)
        # json.loads keeps the last of equal keys in silence.
        if len(keys) < len(pairs):
            names = [name for name, _ in pairs]
            raise ValueError(f"key {next(n for n in names if names.count(n) > 1)!r} appears twice in one object")
        return keys

    def refuse(constant: str) -> Any:
        raise ValueError(f"{constant} is not a JSON number")

    try:
        if (fault := fault_of_text(text)) is not None:
            raise JsonLimitError(fault)
        return json.loads(text, object_pairs_hook=once, parse_constant=refuse), {}
    except ValueError as error:
        raise kind.refuse(
            f"{kind.word} {path} is not valid JSON: {error}", expected="one JSON object", do="correct this place"
        ) from error


# What other tools call it, where the spelling gives no hint.
_ELSEWHERE = {
    "lr": "training.learning_rate",
    "r": "method.rank",
    "warmup_ratio": "training.warmup_fraction",
    "min_lr_rate": "training.min_lr_ratio",
    "cosine_min_lr_ratio": "training.min_lr_ratio",
    "max_seq_length": "training.max_length_tokens",
    "lr_scheduler_type": "training.lr_schedule",
    "eval_file": "data.held_out",
    "test": "data.held_out",
}
_MAX_SHOWN = 80


def describe_problems(
    error: ValidationError, lines: Mapping[str, int], overridden: Sequence[str], *, spec: type[BaseModel] = Recipe
) -> list[str]:
    """One line a wrong place, in the order of the file's keys.

    Args:
        error: What validation found.
        lines: The line in the file of each dotted key.
        overridden: The dotted keys that came from `--set`.
        spec: What the file should be; its fields may say in their description what is expected.
    """
    expectations: dict[str, list[str]] = {}
    came: dict[str, str] = {}
    for problem in error.errors(include_url=False):
        place, model, annotation = _locate(problem["loc"], spec)
        # An unknown key has nothing to expect, only a nearest known key.
        if problem["type"] == "extra_forbidden":
            came[place] = f"unknown key; {_nearest_key(place, model, spec)}"
            continue
        if problem["type"] == "missing":
            came[place] = "is missing"
        else:
            # Pydantic reports each branch of a union: one place, of which the expectations are joined by "or".
            came.setdefault(place, f"has {_show(problem['input'])}")
        expected = _expectation(problem, annotation, _described(place, model), f"{place}.")
        if expected not in expectations.setdefault(place, []):
            expectations[place].append(expected)
    described = []
    for place, words in came.items():
        expected = f", expected {' or '.join(expectations[place])}" if place in expectations else ""
        shown = new_key(place) if spec is Recipe else place
        described.append(f"{_where(shown, lines, overridden)}{shown}: {words}{expected}")
    return described


def known_keys(spec: type[BaseModel] = Recipe) -> list[str]:
    """Every key that such a file may have, dotted: `training.epochs`."""
    keys = _keys_of(spec, "")
    return [new_key(key) for key in keys] if spec is Recipe else keys


def _keys_of(model: type[BaseModel], prefix: str) -> list[str]:
    keys = []
    for name, info in model.model_fields.items():
        keys.append(f"{prefix}{name}")
        if (inner := inner_spec(info.annotation)) is not None:
            keys.extend(_keys_of(inner, f"{prefix}{name}."))
    return keys


def _locate(parts: tuple[int | str, ...], spec: type[BaseModel]) -> tuple[str, type[BaseModel] | None, Any]:
    """A place as pydantic reports it -> dotted key, the spec that holds it, and the type it should have.

    Pydantic also names the branch of a union that failed ("str", "constrained-float"): these are not part of the place.
    """
    place, annotation = "", None
    holder: type[BaseModel] | None = spec
    current: type[BaseModel] | None = spec
    for part in parts:
        if current is not None:
            place, holder = f"{place}.{part}" if place else str(part), current
            annotation = current.model_fields[str(part)].annotation if part in current.model_fields else None
            current = inner_spec(annotation)
        elif isinstance(part, int):
            place += f"[{part}]"
            current = _listed_spec(annotation)
            annotation = current or annotation
        elif _has(annotation, dict):
            place, annotation = f"{place}.{part}", None
    return place, holder, annotation


def inner_spec(annotation: Any) -> type[BaseModel] | None:
    """The spec of a section by its field's type; None where the field is no section."""
    for kind in (annotation, *get_args(annotation)):
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            return kind
    return None


def _listed_spec(annotation: Any) -> type[BaseModel] | None:
    """The spec of the items of a list, as far as they are sections of one kind: those of `data.train`."""
    if get_origin(annotation) is tuple:
        return inner_spec(annotation)
    return next((found for part in get_args(annotation) if (found := _listed_spec(part)) is not None), None)


def _has(annotation: Any, kind: type) -> bool:
    return any(get_origin(part) is kind for part in (annotation, *get_args(annotation)))


def _nearest_key(place: str, model: type[BaseModel] | None, spec: type[BaseModel]) -> str:
    prefix, _, name = place.rpartition(".")
    siblings = _names(model, f"{prefix}.") if model is not None else []
    everywhere = known_keys(spec)
    by_name: dict[str, str] = {}
    for key in everywhere:
        by_name.setdefault(key.rpartition(".")[2], key)
    if close := get_close_matches(name, siblings, n=1, cutoff=0.7):
        nearest = f"{prefix}.{close[0]}" if prefix else close[0]
    elif spec is Recipe and name in _ELSEWHERE:
        nearest = _ELSEWHERE[name]
    elif close := get_close_matches(name, list(by_name), n=1, cutoff=0.6):
        nearest = by_name[close[0]]
    else:
        return f"known here: {', '.join(siblings)}"
    return f"nearest known: {nearest}"


def _names(model: type[BaseModel], prefix: str) -> list[str]:
    """The keys of a section as people type them. prefix: the section with a full stop behind it."""
    known = model.__module__ == Recipe.__module__
    return [new_key(f"{prefix}{name}").removeprefix(prefix) if known else name for name in model.model_fields]


def _described(place: str, model: type[BaseModel] | None) -> str | None:
    field = model.model_fields.get(place.rpartition(".")[2]) if model is not None else None
    return field.description if field is not None else None


def _expectation(problem: Any, annotation: Any, described: str | None, prefix: str) -> str:
    context = problem.get("ctx", {})
    if described is not None and problem["type"] in ("missing", "string_type", "string_pattern_mismatch"):
        return described
    match problem["type"]:
        case "string_type":
            return "text"
        case "float_type" | "float_parsing":
            return "a number"
        case "finite_number":
            return "a finite number"
        case "int_type" | "int_from_float" | "int_parsing" | "int_parsing_size":
            return "a whole number"
        case "bool_type":
            return "true or false"
        case "tuple_type":
            return "a list"
        case "dict_type":
            return "a mapping of names to names"
        case "greater_than":
            return f"a number greater than {context['gt']:g}"
        case "greater_than_equal":
            return f"a number of at least {context['ge']:g}"
        case "less_than":
            return f"a number less than {context['lt']:,}"
        case "less_than_equal":
            return f"a number of at most {context['le']:,}"
        case "literal_error":
            return _one_of(context["expected"].replace(chr(39), ""), problem["input"])
        case "missing" | "model_type":
            inner = inner_spec(annotation)
            if form := getattr(inner, "form", None):
                return str(form)
            return f"a mapping with keys among {', '.join(_names(inner, prefix))}" if inner else "a value"
        case _:
            return validation_reason(problem)


def _one_of(known: str, given: Any) -> str:
    names = known.replace(" or ", ", ").split(", ")
    close = get_close_matches(given, names, n=1, cutoff=0.6) if isinstance(given, str) else []
    return f"one of {known}" + (f"; nearest: {close[0]}" if close else "")


def _where(place: str, lines: Mapping[str, int], overridden: Sequence[str]) -> str:
    key = place.partition("[")[0]
    if any(key == asked or key.startswith(f"{asked}.") for asked in overridden):
        return "--set "
    if key in lines:
        return f"line {lines[key]}, "
    if any(asked.startswith(f"{key}.") for asked in overridden):
        return "--set "
    # a name alone may replace a mapping with that name: `optimizer: muon`
    parent = key.rpartition(".")[0]
    return f"line {lines[parent]}, " if key.endswith(".name") and parent in lines else ""


def _show(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}..."
