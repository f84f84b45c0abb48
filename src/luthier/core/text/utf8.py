"""Text from files and from stdin as UTF-8, and text that a database takes.

Other bytes in a file are a wrong request: people save files in all encodings.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from luthier.core.errors import RequestError

_HALF: Final = re.compile("[\ud800-\udfff]")


def read_utf8(path: Path, what: str) -> str:
    """The text of a file, without the byte order mark that editors of Windows put before it.

    Args:
        path: The file.
        what: What the file is, for the error.

    Raises:
        RequestError: It is not UTF-8 text.
    """
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _no_utf8(f"{what} {path}", error) from error


def utf8_lines(stream: Iterable[str], what: str) -> Iterator[str]:
    """The lines of an open text.

    Args:
        stream: Such as `sys.stdin`, which decodes while it is read.
        what: What it is, for the error.

    Raises:
        RequestError: It is not text in the encoding of the stream.
    """
    try:
        yield from stream
    except UnicodeDecodeError as error:
        raise _no_utf8(what, error) from error


def storable(text: str) -> str:
    """The text without what databases refuse: halves of surrogate pairs, and NUL, which PostgreSQL has not in text."""
    return text.replace("\0", "\ufffd").encode("utf-8", "replace").decode()


def whole_characters(text: str) -> str:
    """The text with both halves of a surrogate pair as their character, and a half alone as U+FFFD."""
    if _HALF.search(text) is None:
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


class CharacterHalves:
    """Puts characters together whose halves come in two pieces of a text."""

    def __init__(self) -> None:
        self._open = ""

    def add(self, text: str) -> str:
        """The whole characters so far; the first half of one waits for the next piece."""
        text = self._open + text
        self._open = text[-1:] if "\ud800" <= text[-1:] <= "\udbff" else ""
        return whole_characters(text.removesuffix(self._open))

    def end(self) -> str:
        """What was held back, at the end of the text."""
        left, self._open = self._open, ""
        return whole_characters(left)


def _no_utf8(what: str, error: UnicodeDecodeError) -> RequestError:
    # Of a stream the offset counts from the last piece that was read, so it is not shown.
    return RequestError(
        f"{what} has byte 0x{error.object[error.start]:02x}, and is not {error.encoding.upper()}",
        expected="UTF-8 text",
        do="save it as UTF-8, or convert it: iconv -f WINDOWS-1252 -t UTF-8",
    )
