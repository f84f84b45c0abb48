"""Recipes: read from files, overridden, checked with all problems together, and drafted value by value."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel, ValidationError

from luthier.core.aliases import new_key, typed_key, typed_keys, with_new_keys, with_stored_keys
from luthier.core.data_sources import is_remote
from luthier.core.errors import RecipeError, library_reason
from luthier.core.recipe import ObjectiveRecipe, Recipe
from luthier.core.system.files import expanded
from luthier.core.text.plain_yaml import has_alias, parse_yaml, write_yaml
from luthier.features.recipes.file import RecipeDocument, describe_problems, inner_spec, parse_value, read_recipe_file


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe file and override single values of it.

    Args:
        path: YAML or JSON.
        overrides: `training.epochs=3`, `evaluation.metrics=[rouge, bleu]`: values are YAML, nothing after `=` takes the
            value out.

    Relative paths, those of overrides too, count from the recipe's folder and come back absolute.

    Raises:
        NotFoundError: There is no such file.
        RecipeError: Wrong syntax, unknown keys (the nearest known is named), wrong types or values; all of them are
            listed.
    """
    document = read_recipe_file(path)
    # Overrides are set in a copy; `override_value` copies the inner mappings that it changes.
    keys = dict(document.keys)
    overridden = [override_value(keys, override) for override in overrides]
    keys = typed_keys(keys)  # `--set training={...}` may hold an old key, too
    return with_absolute_paths(_check(str(path), keys, document.lines, overridden), path.absolute().parent)


def recipe_from(document: Mapping[str, Any], *, base_dir: Path) -> Recipe:
    """A recipe from a plain document, such as a dict in a notebook; relative paths count from `base_dir`.

    Raises:
        RecipeError: Unknown keys (the nearest known is named), wrong types or values; all of them are listed.
    """
    return with_absolute_paths(_check("", document, {}, ()), base_dir.absolute())


def _check(name: str, keys: Mapping[str, Any], lines: Mapping[str, int], overridden: Sequence[str]) -> Recipe:
    recipe = f"recipe {name}" if name else "the recipe"
    try:
        # By way of JSON, since there strict means: a list for a tuple, but no text and no true for a number.
        return Recipe.model_validate_json(json.dumps(with_stored_keys(keys)), strict=True)
    except ValidationError as error:
        problems = describe_problems(error, lines, overridden)
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        raise RecipeError(
            "\n    ".join([f"{recipe} has {count}:", *problems]),
            expected="only known keys, each with a value of its kind",
            do="correct the places named",
        ) from error
    except (TypeError, ValueError, RecursionError) as error:
        raise RecipeError(
            f"{recipe} contains something that is not a plain value: {library_reason(error)}",
            expected="text, numbers, true, false, lists and mappings",
            do="write the value in full",
        ) from error


def override_value(keys: dict[str, Any], override: str) -> str:
    """Set one value in place (`training.epochs=3`) and return its name; copies what it changes of inner mappings.

    Raises:
        RecipeError: The override is no `key=value`, the value is no YAML, or a part of the key holds no keys.
    """
    name, separator, text = override.partition("=")
    parts = name.strip().split(".")
    if not separator or not all(parts):
        raise RecipeError(
            f"--set {override!r}",
            expected="a dotted key, an equals sign and a value",
            do="write for example: --set training.epochs=3",
        )
    value = parse_value(f"--set {override}", text)
    parts = typed_key(".".join(parts)).split(".")
    level = keys
    for index, part in enumerate(parts[:-1]):
        inner = level.get(part)
        if inner is not None and not isinstance(inner, dict):
            raise RecipeError(
                f"--set {override!r}: {'.'.join(parts[: index + 1])} is {inner!r} in the recipe",
                expected="a mapping of keys to set one of",
                do="set the whole of it, or correct the recipe",
            )
        # Assigns the copy to the key, then steps into it (targets are assigned from left to right).
        level[part] = level = dict(inner or {})
    level[parts[-1]] = value
    return ".".join(parts)


def with_absolute_paths(recipe: Recipe, folder: Path) -> Recipe:
    """The recipe with paths counted from `folder` made absolute, so that a resume finds its files from anywhere."""
    changed = recipe.data.with_files({key: _absolute(file, folder) for key, file in recipe.data.files().items()})
    found: dict[str, Any] = {"data": changed, "base_model": _absolute_model(recipe.base_model, folder)}
    if recipe.objective is not None:
        found["objective"] = _absolute_objective(recipe.objective, folder)
    if recipe.tracking is not None:
        from luthier.ml.tracking.registry import absolute_location

        found["tracking"] = tuple(
            one.model_copy(update={"location": absolute_location(one.location, folder)}) for one in recipe.tracking
        )
    search = recipe.evaluation.optimised_prompt if recipe.evaluation is not None else None
    if recipe.evaluation is not None and search is not None and search.reflection_model is not None:
        search = search.model_copy(update={"reflection_model": _absolute_model(search.reflection_model, folder)})
        found["evaluation"] = recipe.evaluation.model_copy(update={"optimised_prompt": search})
    return recipe.model_copy(update=found)


def _absolute_objective(objective: ObjectiveRecipe, folder: Path) -> ObjectiveRecipe:
    found: dict[str, Any] = {}
    if objective.teacher is not None:
        found["teacher"] = _absolute_model(objective.teacher, folder)
    if objective.rewards is not None:
        found["rewards"] = tuple(
            reward.with_judges({name: _absolute_model(name, folder) for name in reward.judges})
            for reward in objective.rewards
        )
    return objective.model_copy(update=found)


def _absolute(path: str, folder: Path) -> str:
    if is_remote(path):
        return path
    return str(folder / expanded(path))


def _absolute_model(name: str, folder: Path) -> str:
    """Model names stay; a path is resolved like every other path of the recipe."""
    from luthier.ml.inference.models import catalog
    from luthier.ml.inference.models.smaller_models import PREFIX

    if name.startswith("hub:") or name in catalog.entries():
        return name
    if name.startswith(PREFIX):
        layers, at, teacher = name.partition("@")
        return f"{layers}{at}{_absolute_model(teacher, folder)}"
    # A bare name is a path only if such a folder is there: otherwise it is a catalogue name with a typo.
    is_path = name.startswith((".", "~", "/")) or name.endswith(".gguf") or (bool(name) and (folder / name).is_dir())
    return _absolute(name, folder) if is_path else name


MAX_CHARACTERS: Final = 65_536
_PLACE = re.compile(r"(?:line \d+, )?(?P<place>[^\s:]+): ")
_FILE_ID = re.compile(r"^.*?: \[?(file-[A-Za-z0-9-]+)\]?$")


@dataclass(frozen=True, slots=True)
class Problem:
    """One wrong place of a draft.

    Attributes:
        place: Its dotted key.
        words: Where it is, what is there, and what was expected.
    """

    place: str
    words: str


def read_text(text: str) -> RecipeDocument:
    """The keys of a recipe as YAML, unchecked; none for an empty text. Raises RecipeError with the wrong place."""
    if len(text) > MAX_CHARACTERS:
        raise RecipeError(
            f"a recipe of {len(text):,} characters", expected=f"at most {MAX_CHARACTERS:,}", do="leave comments out"
        )
    # YAML aliases expand: a few nested ones make billions of values out of a short text.
    if has_alias(text):
        raise RecipeError("the recipe repeats a part by its name (`*name`)", expected="plain values", do="write it out")
    keys, lines = parse_yaml("the recipe", text, refuse=RecipeError)
    if keys is None:
        return RecipeDocument({})
    if not isinstance(keys, dict) or not all(isinstance(key, str) for key in keys):
        raise RecipeError(
            f"the recipe holds {type(keys).__name__} {str(keys)[:60]!r}, not keys",
            expected="a mapping with at least the keys base_model and data",
            do="write `base_model: NAME` and `data: {train: FILE}`",
        )
    return RecipeDocument(with_new_keys(keys), {new_key(place): line for place, line in lines.items()})


def problems_of(document: RecipeDocument) -> tuple[Problem, ...]:
    """All that is wrong with keys and values, unknown keys with the nearest known; empty where nothing is."""
    try:
        Recipe.model_validate_json(json.dumps(with_stored_keys(document.keys)), strict=True)
    except ValidationError as error:
        described = describe_problems(error, document.lines, ())
        return tuple(Problem(found["place"] if (found := _PLACE.match(line)) else "", line) for line in described)
    # json.dumps refuses dates and deep nesting, which YAML can write.
    except (TypeError, ValueError, RecursionError) as error:
        return (Problem("", f"the recipe contains something that is not a plain value: {library_reason(error)}"),)
    return ()


def value_at(keys: Mapping[str, Any], place: str) -> Any:
    """The value at a dotted key; None where there is none. A section of one value alone has that at its main key."""
    value: Any = keys
    section = ""
    for part in new_key(place).split("."):
        if not isinstance(value, Mapping):
            return value if part == _main_key(section, value) else None
        section, value = part, value.get(part)
    return value


def _main_key(section: str, value: Any) -> str:
    """The key of a section that one value alone sets: `optimizer: muon`, `canaries: 8`; empty where none does."""
    if isinstance(value, str):
        return "name"
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return {"canaries": "num", "good_enough": "value"}.get(section, "") if is_number else ""


def with_values(keys: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """The keys with these values at their dotted keys; None takes a value out, and a section that is empty then."""
    changed: dict[str, Any] = deepcopy(dict(keys))
    for place, value in values.items():
        # An unchanged value keeps its spelling, such as `optimizer: muon`.
        if value != value_at(changed, place):
            _set(changed, new_key(place).split("."), value)
    return changed


def write_text(keys: Mapping[str, Any], names: Mapping[str, str]) -> str:
    """The keys as YAML, in the order of recipes.

    Args:
        keys: The keys of a recipe.
        names: Names of files by id, written as comments.
    """
    lines = write_yaml(_in_order(keys, Recipe)).removesuffix("\n").split("\n") if keys else []
    return "".join(f"{_commented(line, names)}\n" for line in lines)


def _set(keys: dict[str, Any], parts: list[str], value: Any) -> None:
    name, *rest = parts
    if not rest:
        if value is None:
            keys.pop(name, None)
        else:
            keys[name] = value
        return
    inner = keys.get(name)
    if not isinstance(inner, dict):
        main = _main_key(name, inner)
        inner = {main: inner} if main and main not in rest else {}
    inner = dict(inner)
    _set(inner, rest, value)
    if inner:
        keys[name] = inner
    else:
        keys.pop(name, None)


def _in_order(keys: Mapping[str, Any], spec: type[BaseModel], prefix: str = "") -> dict[str, Any]:
    """The keys in the order of the spec, those that it does not know behind them. prefix: of their dotted names."""
    fields = {new_key(f"{prefix}{name}").removeprefix(prefix): info for name, info in spec.model_fields.items()}
    order = {name: position for position, name in enumerate(fields)}
    found = {}
    for name, value in sorted(keys.items(), key=lambda item: order.get(item[0], len(order))):
        inner = inner_spec(fields[name].annotation) if name in order else None
        found[name] = (
            _in_order(value, inner, f"{prefix}{name}.") if inner is not None and isinstance(value, Mapping) else value
        )
    return found


def _commented(line: str, names: Mapping[str, str]) -> str:
    found = _FILE_ID.match(line)
    words = names.get(found[1]) if found else None
    return f"{line}  # {' '.join(words.split())}" if words else line
