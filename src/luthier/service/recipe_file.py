"""Recipe text -> plain document: YAML without the traps of YAML 1.1, or JSON.

What differs from PyYAML's safe loader, each because it hurt people:
    2e-4, 1e5       numbers (YAML 1.1 wants a dot and a sign: it reads them as text)
    yes, no, on     text (they become true and false there), so that a check of types can refuse them
    010, 1:30       10, and text (octal and base 60 there)
    2026-11-25      text (a date there)
    a key twice     an error (the last one wins there)
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from luthier.core.errors import NotFoundError, RecipeError
from luthier.store.nearest import nearest_ids

_SUFFIXES = (".yaml", ".yml", ".json")


@dataclass(frozen=True, slots=True)
class RecipeDocument:
    """What stands in a file, unchecked. `lines`: dotted key -> 1-based line, where the format tells."""

    keys: dict[str, Any]
    lines: dict[str, int] = field(default_factory=dict)


def read_recipe_file(path: Path) -> RecipeDocument:
    """Read a recipe file. Raises NotFoundError and RecipeError (with line and column for wrong syntax)."""
    text = _read(path)
    keys, lines = _parse_json(path, text) if path.suffix.lower() == ".json" else _parse_yaml(str(path), text)
    if not isinstance(keys, dict):
        came = "is empty" if keys is None else f"holds {type(keys).__name__} {str(keys)[:60]!r}, not keys"
        raise RecipeError(
            f"recipe {path} {came}",
            expected="a mapping with at least the keys base_model and data",
            do="write `base_model: NAME` and `data: {train: FILE}`",
        )
    return RecipeDocument(keys, lines)


def parse_value(place: str, text: str) -> Any:
    """One value as YAML, such as `3`, `2e-4` or `[rouge, bleu]`. `place` names it in a RecipeError."""
    return _parse_yaml(place, text)[0]


def _read(path: Path) -> str:
    if not path.exists():
        folder = path.parent
        others = sorted(p.name for p in folder.iterdir() if p.suffix in _SUFFIXES) if folder.is_dir() else []
        raise NotFoundError(
            f"no recipe {path}; {nearest_ids(path.name, others)}" if others else f"no recipe {path}",
            expected="an existing YAML or JSON file",
            do="check the path",
        )
    if not path.is_file() or path.suffix.lower() not in _SUFFIXES:
        kind = f"ends in {path.suffix!r}" if path.is_file() else "is no file"
        raise RecipeError(
            f"{path} {kind}",
            expected=f"a recipe: a file that ends in {', '.join(_SUFFIXES)}",
            do="give the recipe's path; row files are named inside it, as data.train",
        )
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RecipeError(
            f"recipe {path} has byte 0x{error.object[error.start]:02x} at offset {error.start}",
            expected="UTF-8 text",
            do="save it as UTF-8",
        ) from error


def _parse_json(path: Path, text: str) -> tuple[Any, dict[str, int]]:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        keys = dict(pairs)
        if len(keys) < len(pairs):
            names = [name for name, _ in pairs]
            raise ValueError(f"key {next(n for n in names if names.count(n) > 1)!r} stands twice in one object")
        return keys

    def refuse(constant: str) -> Any:
        raise ValueError(f"{constant} is no JSON number")

    try:
        return json.loads(text, object_pairs_hook=once, parse_constant=refuse), {}
    except (ValueError, RecursionError) as error:
        raise RecipeError(
            f"recipe {path} is not right JSON: {error}", expected="one JSON object", do="correct this place"
        ) from error


def _parse_yaml(place: str, text: str) -> tuple[Any, dict[str, int]]:
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None, {}
        lines: dict[str, int] = {}
        _note_lines(node, "", lines, depth=0)
        return loader.construct_document(node), lines
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{place}:{mark.line + 1}:{mark.column + 1}" if mark else place
        words = " ".join(filter(None, (error.context, error.problem)))
        raise RecipeError(
            f"{where} is not right YAML: {words}",
            expected="keys and values, each key once",
            do="correct this line; look at its indentation, colons and brackets",
        ) from error
    except (yaml.YAMLError, RecursionError) as error:
        raise RecipeError(
            f"{place} is not right YAML: {str(error).splitlines()[0]}", expected="plain YAML text", do="correct it"
        ) from error


def _note_lines(node: yaml.Node, prefix: str, lines: dict[str, int], depth: int) -> None:
    # A recipe is two levels deep, a map in it three; deeper is wrong, and a cycle of aliases has no end.
    if not isinstance(node, yaml.MappingNode) or depth > 3:
        return
    for key, value in node.value:
        if isinstance(key, yaml.ScalarNode):
            name = f"{prefix}{key.value}"
            lines[name] = key.start_mark.line + 1
            _note_lines(value, f"{name}.", lines, depth + 1)


def _resolvers() -> dict[str, list[tuple[str, re.Pattern[str]]]]:
    """Which plain scalars are more than text, by their first character (as PyYAML keeps it)."""
    number = r"[0-9]+(_[0-9]+)*"
    kinds = (
        ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
        ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
        ("int", rf"[-+]?{number}", list("-+0123456789")),
        ("float", rf"[-+]?(\.[0-9]+|{number}(\.[0-9]*)?)([eE][-+]?[0-9]+)?", list("-+0123456789.")),
        ("float", r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", list("-+.")),
        ("merge", r"<<", ["<"]),
    )
    resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}
    for kind, pattern, firsts in kinds:
        for first in firsts:
            entry = (f"tag:yaml.org,2002:{kind}", re.compile(rf"^(?:{pattern})$"))
            resolvers.setdefault(first, []).append(entry)
    return resolvers


def _construct_int(_: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    return int(node.value, 10)


def _construct_float(_: yaml.SafeLoader, node: yaml.ScalarNode) -> float:
    return float(node.value.lower().replace(".inf", "inf").replace(".nan", "nan"))


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with the scalars of YAML 1.2 and unique keys."""

    yaml_implicit_resolvers = _resolvers()
    yaml_constructors = {  # noqa: RUF012 - PyYAML reads it from the class
        **yaml.SafeLoader.yaml_constructors,
        "tag:yaml.org,2002:int": _construct_int,
        "tag:yaml.org,2002:float": _construct_float,
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """As the safe loader does, but a key that stands twice is an error."""
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"key {key.value!r} stands twice", key.start_mark
                    )
                seen.add(key.value)
        return super().construct_mapping(node, deep)
