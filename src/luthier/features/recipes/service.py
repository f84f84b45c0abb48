"""Recipes from files: read, overridden, checked, with every wrong place named at once."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from luthier.core.aliases import typed_key, typed_keys, with_stored_keys
from luthier.core.errors import RecipeError
from luthier.core.library_errors import library_reason
from luthier.core.recipe import Recipe
from luthier.features.recipes.file import parse_value, read_recipe_file
from luthier.features.recipes.problems import describe_problems


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe file and override single values of it.

    Args:
        path: YAML or JSON.
        overrides: `training.epochs=3`, `evaluation.metrics=[rouge, bleu]`: values are YAML, nothing after `=` takes the
            value out.

    Relative paths, those of overrides too, count from the recipe's folder and come back absolute.

    Raises:
        NotFoundError: no such file. RecipeError: wrong syntax, unknown keys (the nearest known is named), wrong types
        or values; all of them are listed.
    """
    document = read_recipe_file(path)
    # Overrides are set in a copy; `override_value` copies the inner mappings that it changes.
    keys = dict(document.keys)
    overridden = [override_value(keys, override) for override in overrides]
    keys = typed_keys(keys)  # `--set training={...}` may hold an old key, too
    return with_absolute_paths(_check(str(path), keys, document.lines, overridden), path.absolute().parent)


def recipe_from(document: Mapping[str, Any], *, base_dir: Path) -> Recipe:
    """A recipe from a plain document, such as a dict in a notebook; relative paths count from `base_dir`.

    Raises RecipeError as `load_recipe` does.
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
            f"{recipe} holds something that is no plain value: {library_reason(error)}",
            expected="text, numbers, true, false, lists and mappings",
            do="write the value out",
        ) from error


def override_value(keys: dict[str, Any], override: str) -> str:
    """Set one value in place (`training.epochs=3`) and return its name; copies what it changes of inner mappings.

    Raises RecipeError.
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
    if recipe.objective is not None and recipe.objective.teacher is not None:
        teacher = _absolute_model(recipe.objective.teacher, folder)
        found["objective"] = recipe.objective.model_copy(update={"teacher": teacher})
    return recipe.model_copy(update=found)


def _absolute(path: str, folder: Path) -> str:
    return str(folder / Path(path).expanduser())


def _absolute_model(name: str, folder: Path) -> str:
    """Model names stay; what is meant as a path is resolved like every other path of the recipe."""
    from luthier.ml.inference.models import catalog

    if name.startswith("hub:") or name in catalog.entries():
        return name
    # A bare name is a path only if such a folder is there: otherwise it is a catalogue name with a typo.
    is_path = name.startswith((".", "~", "/")) or name.endswith(".gguf") or (bool(name) and (folder / name).is_dir())
    return _absolute(name, folder) if is_path else name
