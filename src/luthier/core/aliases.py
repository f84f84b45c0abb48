"""Names that users typed in an earlier version, and the names that took their place.

This is the one table of them. An old name still works. Where a person typed it (a command line, a recipe, an
environment variable), one line on stderr names the new one; what an earlier version stored is read without a warning.
"""

from __future__ import annotations

import sys
from typing import Final

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
