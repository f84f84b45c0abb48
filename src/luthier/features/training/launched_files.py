"""The files of this machine that a job file names: what SkyPilot copies to the nodes."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.core.data_sources import is_pattern
from luthier.core.errors import NotFoundError, RequestError
from luthier.core.system.files import expanded

if TYPE_CHECKING:
    from luthier.core.recipe import Recipe
    from luthier.features.training.job_files import Launch


def local_files(recipe: Recipe, written: Mapping[str, Any], launch: Launch) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What a recipe names outside its folder: files here for the nodes, and a note for each that is not here.

    Args:
        recipe: With absolute paths.
        written: The keys of its file; a path that is relative there is inside the folder on the nodes, too.
        launch: What is launched.

    Raises:
        RequestError: A relative path leads out of the recipe's folder, which is elsewhere on the nodes.
    """
    folder, found, notes = launch.recipe.parent, list[str](), list[str]()
    as_written = {str(expanded(text)): text for text in _texts(written)}
    named = {f"data.{key}": file for key, file in recipe.data.files().items()} | _model_folders(recipe)
    staged = [expanded(path) for path, _ in launch.data]
    for key, name in named.items():
        path = expanded(name)
        if "://" in name or name.startswith("hub:") or any(path.is_relative_to(one) for one in staged):
            continue
        text = as_written.get(str(path))
        if text is None:
            if not Path(os.path.normpath(path)).is_relative_to(folder):
                raise RequestError(
                    f"{key}: {name} is outside the folder of the recipe, {folder}",
                    expected="a path inside it, which is copied to every node, or an absolute one",
                    do="move the file, write its absolute path, or take it from a store with --data",
                )
            continue
        matching = [str(path)] if path.exists() else _matching(path) if is_pattern(name) else []
        if matching:
            found += [_on_nodes(one, text) for one in matching]
        else:
            notes.append(f"{key}: {name} is not on this machine: it must be on the nodes, or be given with --data")
    return tuple(dict.fromkeys(found)), tuple(notes)


def _model_folders(recipe: Recipe) -> dict[str, str]:
    """The models that a recipe names by their folders, by key."""
    search = recipe.evaluation.optimised_prompt if recipe.evaluation else None
    named = {
        "base_model": recipe.base_model,
        "objective.teacher": recipe.objective.teacher if recipe.objective else None,
        "evaluation.optimised_prompt.reflection_model": search.reflection_model if search else None,
    }
    for number, reward in enumerate((recipe.objective.rewards if recipe.objective else None) or ()):
        named |= {f"objective.rewards[{number}].grader.model": name for name in reward.judges}
    return {key: name for key, name in named.items() if name is not None and name.startswith((".", "/", "~"))}


def _on_nodes(path: str, text: str) -> str:
    """Where a file of this machine is on the nodes, whose home folder may be another one: as the recipe names it."""
    home = expanded("~")
    is_in_home = text.startswith("~/") and Path(path).is_relative_to(home)
    return f"~/{Path(path).relative_to(home).as_posix()}" if is_in_home else path


def _matching(path: Path) -> list[str]:
    """The files of this machine that match a pattern; none where none does."""
    from luthier.ml.data.files.patterns import matching_files

    with suppress(NotFoundError):
        return [str(file) for file, _ in matching_files(path)]
    return []


def _texts(value: Any) -> Iterator[str]:
    """All texts in a document."""
    if isinstance(value, str):
        yield value
    for inner in value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ():
        yield from _texts(inner)
