"""Names that users typed in an earlier version, and the names that took their place.

This is the one table of them. An old name still works. Where a person typed it (a command line, a recipe, an
environment variable), one line on stderr names the new one; what an earlier version stored is read without a warning.
"""

from __future__ import annotations

import sys
from collections.abc import MutableMapping
from typing import Final

from luthier.core.errors import RequestError

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

_warned: set[tuple[str, str]] = set()


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
        environment[new] = environment.pop(old)
