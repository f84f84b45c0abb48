"""Commands in printed text: about the home of the command line, where that was named by an option.

Without the option they would be about the usual home. What is stored or sent to others keeps them without it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

Insert = Callable[[str], str]
_inserts: list[Insert] = []
"""Of the command line that this process carries out; empty for none."""


def in_home(text: str) -> str:
    """A text whose commands name the home, where the command line that is being carried out does."""
    return _inserts[-1](text) if _inserts else text


@contextmanager
def naming_home(insert: Insert) -> Iterator[None]:
    """Have `in_home` do this while the block runs.

    Args:
        insert: Returns a text with the home in each command.
    """
    _inserts.append(insert)
    try:
        yield
    finally:
        _inserts.remove(insert)
