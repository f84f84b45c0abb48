"""Names that users typed in an earlier version, and the names that took their place.

This is the one table of them. An old name still works. Where a person typed it (a command line, a recipe, an
environment variable), one line on stderr names the new one; what an earlier version stored is read without a warning.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, MutableMapping
from functools import lru_cache
from typing import Any, Final

from luthier.core.errors import RecipeError, RequestError

COMMANDS: Final = {
    "alerts look": "monitor check",
    "auto": "automl",
    "distil": "distill",
    "forget-row": "data forget",
    "formats": "export benchmark",
    "members": "users",
    "rate": "human-eval",
    "showdown": "compare-models",
}
"""Old command -> new command, without `luthier`. What follows a command (its verbs and options) is the same."""

VARIABLES: Final = {
    "LUTHIER_PEER_TIMEOUT_SECONDS": "LUTHIER_COLLECTIVE_TIMEOUT_SECONDS",
    "LUTHIER_SERVING_MODELS": "LUTHIER_MAX_LOADED_MODELS",
    "LUTHIER_SERVING_NEW_TOKENS": "LUTHIER_DEFAULT_MAX_TOKENS",
}
"""Old environment variable -> new one."""

RECIPE_KEYS: Final = {
    "data.map": "data.columns",
    "data.part": "data.subset",
    "data.replay.map": "data.replay.columns",
    "objective.divide_by_spread": "objective.normalize_advantages",
    "objective.kl_weight": "objective.kl_coef",
    "objective.num_samples": "objective.num_generations",
    "training.clip_gradient_norm": "training.max_grad_norm",
    "training.order": "training.batch_order",
    "training.overlong": "training.on_overlong",
    "training.schedule": "training.lr_schedule",
}
"""Old key of a recipe -> new key.

People type and read the new ones. Recipes are stored, hashed and printed as JSON by the old ones (the fields of
`core/recipe.py`), so that what an earlier version stored keeps its digest, and programs find the fields they know.
"""

_STORED_KEYS: Final = {new: old for old, new in RECIPE_KEYS.items()}
_MAX_PLACES: Final = 4096
"""Of the names that are kept: a form asks for hundreds of them, again with each change."""
_warned: set[tuple[str, str]] = set()


def command_of(kind: str) -> str:
    """The command of a stored kind of pipeline, which keeps the name that the command once had."""
    return COMMANDS.get(kind, kind)


def warn_renamed(kind: str, old: str, new: str) -> None:
    """Print one line on stderr about an old name; once in a process for each name.

    Args:
        kind: What is named, such as "command".
        old: The name that was given.
        new: The name to use.
    """
    if (kind, old) not in _warned:
        _warned.add((kind, old))
        sys.stderr.write(f"warning: the {kind} {old!r} is now called {new!r}; the old name still works\n")


def rename_variables(environment: MutableMapping[str, str]) -> None:
    """Give variables with an old name their new one, in place, with one line of warning for each.

    In place, because child processes inherit the environment: they find new names alone, and warn of nothing again.

    Args:
        environment: Such as `os.environ`. A variable set to nothing counts as unset.

    Raises:
        RequestError: Both the old and the new name of a variable are set.
    """
    for old, new in VARIABLES.items():
        if not environment.get(old):
            continue
        if environment.get(new):
            raise RequestError(
                f"the environment variables {old} and {new} are both set, and they are one setting",
                expected=f"{new} alone: {old} is its name of an earlier version",
                do=f"unset {old}",
            )
        warn_renamed("environment variable", old, new)
        # Removed, so that a child does not warn of it again.
        environment[new] = environment.pop(old)


@lru_cache(_MAX_PLACES)
def new_key(place: str) -> str:
    """The name that people type for a place in a recipe: `data.map.prompt` is `data.columns.prompt` now."""
    return _key(place, RECIPE_KEYS)


@lru_cache(_MAX_PLACES)
def stored_key(place: str) -> str:
    """The name that a stored recipe has for a place: the inverse of `new_key`."""
    return _key(place, _STORED_KEYS)


def with_new_keys(document: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe as a plain document with new keys in the place of old ones; what it holds is not changed.

    Raises:
        RecipeError: Both the old and the new name of a key are there.
    """
    return _renamed(document, RECIPE_KEYS)


def with_stored_keys(document: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe as a plain document with the keys of `core/recipe.py`, whichever keys it was given with.

    Raises:
        RecipeError: Both the old and the new name of a key are there.
    """
    return _renamed(with_new_keys(document), _STORED_KEYS)


def typed_keys(document: Mapping[str, Any]) -> dict[str, Any]:
    """`with_new_keys` for what a person wrote: warns of each old key.

    Raises:
        RecipeError: Both the old and the new name of a key are there.
    """
    for old, new in RECIPE_KEYS.items():
        if _holds(document, old):
            warn_renamed("recipe key", old, new)
    return with_new_keys(document)


def typed_key(place: str) -> str:
    """`new_key` for what a person typed: warns where the key is an old one."""
    for old, new in RECIPE_KEYS.items():
        if place == old or place.startswith(f"{old}."):
            warn_renamed("recipe key", old, new)
    return new_key(place)


def _key(place: str, names: Mapping[str, str]) -> str:
    for known, name in names.items():
        if place == known or place.startswith((f"{known}.", f"{known}[")):
            return name + place[len(known) :]
    return place


def _holds(document: Mapping[str, Any], place: str) -> bool:
    level: Any = document
    for part in place.split("."):
        if not isinstance(level, Mapping) or part not in level:
            return False
        level = level[part]
    return True


def _renamed(document: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    changed = dict(document)
    for known, name in names.items():
        if not _holds(changed, known):
            continue
        if _holds(changed, name):
            raise RecipeError(
                f"the recipe has both {known} and {name}, and they are one key",
                expected=f"{new_key(known)} alone: the other is its name of an earlier version",
                do=f"remove {stored_key(known)}",
            )
        level, (*sections, old) = changed, known.split(".")
        for section in sections:
            # Copy on write: the caller's document is not changed.
            level[section] = level = dict(level[section])
        new = name.rpartition(".")[2]
        items = [(new if key == old else key, value) for key, value in level.items()]  # in its place in the order
        level.clear()
        level.update(items)
    return changed
