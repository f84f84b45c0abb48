"""A file of keys -> plain document: YAML without the traps of YAML 1.1 (core/text/plain_yaml.py), or JSON."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from luthier.core.aliases import new_key, typed_keys
from luthier.core.errors import NotFoundError, RecipeError, RequestError
from luthier.core.json_limits import JsonLimitError, fault_of_text
from luthier.core.text.plain_yaml import parse_yaml
from luthier.core.text.suggest import suggest_ids

_SUFFIXES = (".yaml", ".yml", ".json")


@dataclass(frozen=True, slots=True)
class RecipeDocument:
    """What stands in a file, unchecked. `lines`: dotted key -> 1-based line, where the format tells."""

    keys: dict[str, Any]
    lines: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class FileKind:
    """What a file of keys is called in errors, and how it begins. refuse: the class of those errors."""

    word: str
    needs: str
    begin: str
    hint: str
    refuse: type[RequestError]


RECIPE = FileKind(
    word="recipe",
    needs="a mapping with at least the keys base_model and data",
    begin="write `base_model: NAME` and `data: {train: FILE}`",
    hint="give the recipe's path; row files are named inside it, as data.train",
    refuse=RecipeError,
)


def read_recipe_file(path: Path, kind: FileKind = RECIPE) -> RecipeDocument:
    """Read a recipe, or another file of keys. Raises NotFoundError, and `kind.refuse` with the wrong place."""
    text = _read(path, kind)
    is_json = path.suffix.lower() == ".json"
    keys, lines = _parse_json(path, text, kind) if is_json else parse_yaml(str(path), text, refuse=kind.refuse)
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
        came = f"ends in {path.suffix!r}" if path.is_file() else "is no file"
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
            raise ValueError(f"key {next(n for n in names if names.count(n) > 1)!r} stands twice in one object")
        return keys

    def refuse(constant: str) -> Any:
        raise ValueError(f"{constant} is no JSON number")

    try:
        if (fault := fault_of_text(text)) is not None:
            raise JsonLimitError(fault)
        return json.loads(text, object_pairs_hook=once, parse_constant=refuse), {}
    except ValueError as error:
        raise kind.refuse(
            f"{kind.word} {path} is not right JSON: {error}", expected="one JSON object", do="correct this place"
        ) from error
