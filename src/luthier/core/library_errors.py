"""What is said of an error of a library: its own words on this machine, its kind to callers over the network.

The words of a library may quote what it was working on (SQLite a value of another table, polars a row, the system a
path), so that an error could carry data out to whoever caused it. Commands on this machine show them: the files are the
user's own.
"""

from __future__ import annotations

import contextlib
import errno
import json
import re
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Final

from luthier.core.json_limits import JsonLimitError

_hides_words: Final[ContextVar[bool]] = ContextVar("hides_library_words", default=False)


@contextlib.contextmanager
def library_words_hidden() -> Iterator[None]:
    """Within the block, and in what is called from it, `library_reason` gives the kind of an error alone."""
    # A ContextVar follows async tasks and threads that copy the context; a global would mix requests up.
    before = _hides_words.set(True)
    try:
        yield
    finally:
        _hides_words.reset(before)


def are_library_words_hidden() -> bool:
    """Whether what is said now goes to a caller over the network."""
    return _hides_words.get()


def first_line(said: object, empty: str | None = None) -> str:
    """The first line of what an error (or a text) says.

    Args:
        said: The error, or its text.
        empty: What is returned where it says nothing; None for the kind of the error.
    """
    lines = str(said).strip().splitlines()
    return lines[0] if lines else type(said).__name__ if empty is None else empty


def library_reason(error: BaseException) -> str:
    """The reason that a library gives, fit for whoever reads it.

    Returns:
        Its own words; for callers over the network the kind of the error, with the place in the text where it has one.
    """
    if not _hides_words.get() or isinstance(error, JsonLimitError):  # whose words are ours
        return str(error) or type(error).__name__
    if isinstance(error, json.JSONDecodeError):
        return f"no JSON at line {error.lineno}, column {error.colno}"
    if isinstance(error, re.error):
        return "a mistake" if error.pos is None else f"a mistake at character {error.pos + 1}"
    if isinstance(error, UnicodeDecodeError):
        return f"no {error.encoding} text from byte {error.start:,} on"
    if isinstance(error, OSError) and error.errno is not None:
        return f"the system refuses it ({errno.errorcode.get(error.errno, 'unknown')})"
    return type(error).__name__
