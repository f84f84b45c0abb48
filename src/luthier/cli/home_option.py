"""The option `--home` of a command line, for the commands that its answer or its error names."""

from __future__ import annotations

import inspect
import re
import shlex
from collections.abc import Sequence
from functools import cache
from typing import Any, Final

from luthier.cli.commands import COMMANDS, Command
from luthier.core.import_string import import_string

_COMMAND: Final = re.compile(r"\bluthier ([a-z][a-z-]*)(?: ([a-z][a-z-]*))?(?![\w./:])")
_HOME: Final = "--home"


def home_in(arguments: Sequence[str]) -> str | None:
    """The home that a command line names; None for none.

    Args:
        arguments: Without the name of the program.
    """
    words = list(arguments)
    if "--" in words:
        # Behind `--` it is the name of a thing.
        words = words[: words.index("--")]
    # `luthier launch --home` is about the nodes of a job.
    if not words or words[0] not in COMMANDS or words[0] == "launch":
        return None
    found = None
    for place, word in enumerate(words):
        if word == _HOME:
            found = words[place + 1] if place + 1 < len(words) else None
        elif word.startswith(f"{_HOME}="):
            found = word.partition("=")[2]
    return found or None


def with_home(text: str, home: str) -> str:
    """A text in which each command that takes a home names this one.

    Args:
        text: For people. One that names a home already stays.
        home: As the command line names it.
    """
    if f"{_HOME} " in text:
        return text

    def insert(found: re.Match[str]) -> str:
        whole = found[0]
        if (last := _last_word(found)) is None:
            return whole
        cut = found.end(last) - found.start()
        return f"{whole[:cut]} {_HOME} {shlex.quote(home)}{whole[cut:]}"

    return _COMMAND.sub(insert, text)


def _last_word(found: re.Match[str]) -> int | None:
    """Which group of the match ends the name of a command that takes a home; None where it names no such command."""
    first, second = found[1], found[2]
    # `export benchmark` and `monitor check` are commands of two words.
    if second is not None and isinstance(entry := COMMANDS.get(f"{first} {second}"), Command):
        return 2 if _takes_home(entry.target) else None
    entry = COMMANDS.get(first)
    if entry is None:
        return None
    if isinstance(entry, Command):
        return 1 if _takes_home(entry.target) else None
    verbs = {verb: one for table in entry.verbs for verb, one in import_string(table).items()}
    return 2 if second in verbs and _has_home(verbs[second]) else None


@cache
def _takes_home(target: str) -> bool:
    return _has_home(import_string(target))


def _has_home(command: Any) -> bool:
    return "home" in inspect.signature(command).parameters
