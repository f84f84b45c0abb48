"""Plug-ins by group: those of installed packages, and those that this process has registered itself."""

from __future__ import annotations

from functools import cache
from importlib import metadata
from importlib.metadata import EntryPoint
from typing import Final

from luthier.core.errors import RequestError

_REGISTERED: Final[dict[tuple[str, str], EntryPoint]] = {}
"""What `register` was given in this process, by group and name."""


def entry_points(group: str) -> list[EntryPoint]:
    """The plug-ins of a group; one that this process has registered hides an installed one of its name.

    Args:
        group: an entry point group, such as `luthier.metrics`.
    """
    # Registered after the installed ones: in a notebook the class that is being written has to win.
    own = {name: entry for (of, name), entry in _REGISTERED.items() if of == group}
    return [*(entry for entry in _installed(group) if entry.name not in own), *own.values()]


@cache
def _installed(group: str) -> tuple[EntryPoint, ...]:
    # reads the metadata of every installed package: tens of milliseconds, and metrics are looked up at every turn
    return tuple(metadata.entry_points(group=group))


def register(group: str, plug_in: type) -> None:
    """Make a class known under its `name` until this process ends, as an installed package does by an entry point.

    Args:
        group: an entry point group, such as `luthier.metrics`.
        plug_in: a class on the top level of a module, with its name in an attribute `name`. The same name again
            replaces what was registered, as when a cell of a notebook runs twice.

    Raises:
        RequestError: it has no name, or does not lie on the top level of a module, from where it is loaded.
    """
    name = getattr(plug_in, "name", None)
    place = f"{plug_in.__module__}:{plug_in.__qualname__}"
    if not isinstance(name, str) or not name.isidentifier():
        raise RequestError(
            f"{place} has name {name!r}",
            expected="an attribute `name`: letters, digits and underscores, such as recipes use",
            do=f"add one to the class, such as name = {plug_in.__name__.lower()!r}",
        )
    if "." in plug_in.__qualname__:
        raise RequestError(
            f"{place} is defined inside a function or another class",
            expected="a class on the top level of a module, from where it is loaded by its name",
            do="move it there",
        )
    _REGISTERED[group, name] = EntryPoint(name, place, group)
