"""Web pages: the main text without menus and footers, by trafilatura (Barbaresi, 2021, ACL demo track)."""

from __future__ import annotations

import codecs
import re
from pathlib import Path
from typing import Final

import trafilatura
from trafilatura.utils import detect_encoding

from luthier.core.errors import DataError
from luthier.ml.data.readers.document import Document
from luthier.ml.data.readers.markdown import sections_of
from luthier.ml.data.readers.text import decode

_WHOLE_SHARE = 0.99
_HEAD_BYTES: Final = 4096
_STATED: Final = re.compile(
    rb"<meta\s[^>]{0,300}?\bcharset\s{0,9}=\s{0,9}[\"']?\s{0,9}([\w:.-]{1,40})"
    rb"|<\?xml\s[^>]{0,100}?\bencoding=[\"']([\w:.-]{1,40})",
    re.IGNORECASE,
)
_MARKS: Final = (codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_ASCII: Final = bytes(range(32, 127))
_ESCAPED: Final = re.compile("[\udc80-\udcff]")
"""Bytes that are not UTF-8, as the error handler `surrogateescape` leaves them."""
# What browsers read under these names (WHATWG Encoding): supersets, which pages are written in.
_READ_AS: Final = {
    "ascii": "cp1252",
    "iso8859-1": "cp1252",
    "iso8859-9": "cp1254",
    "gb2312": "gb18030",
    "gbk": "gb18030",
    "big5": "big5hkscs",
    "shift_jis": "cp932",
    "euc_kr": "cp949",
    "tis-620": "cp874",
}


def read(path: Path) -> Document:
    """A section a heading, of the main text of a page. A warning says how much of all its text is left out.

    Where trafilatura finds no main text, all text of the page is taken, with a warning.

    Raises:
        DataError: a page without text.
    """
    page, warnings = _text(path.read_bytes())
    found = trafilatura.extract(
        page,
        output_format="markdown",
        include_comments=False,
        include_tables=True,
        include_formatting=True,
        include_links=False,
        favor_recall=True,
    )
    everything = trafilatura.html2txt(page).strip()
    if found and found.strip():
        # Without white space, since Markdown and plain text differ in it.
        share = len("".join(found.split())) / max(len("".join(everything.split())), 1)
        left_out = f"{1 - share:.0%} of the page's text was left out as menus, footers and the like"
        return Document(tuple(sections_of(found)), (*warnings, *([left_out] if share < _WHOLE_SHARE else [])))
    if everything:
        no_main = "no main text was found: all text of the page was taken"
        return Document(tuple(sections_of(everything)), (*warnings, no_main))
    raise DataError(
        "no text in the page",
        expected="HTML with text in it",
        do="a page that is filled by a script must be saved from the browser",
    )


def _text(data: bytes) -> tuple[str | bytes, tuple[str, ...]]:
    """A page in the character set that it states, and warnings; bytes where trafilatura has to find out all of it.

    trafilatura itself guesses wherever a page is not UTF-8, and says nothing of it.
    """
    if data.startswith(_MARKS):
        return decode(data)
    stated = _stated(data)
    if not data.isascii():
        try:
            # More often a page in UTF-8 states something else than bytes of something else are UTF-8 by accident.
            return data.decode("utf-8"), ()
        except UnicodeDecodeError:
            pass
    if stated == "utf-8" and not data.isascii():
        return _mixed(data)
    if stated is not None:
        text = data.decode(stated, "replace")
        num_unknown = text.count("\ufffd")
        lost = f"{num_unknown:,} bytes that are not characters in {stated} became U+FFFD"
        return text, (lost,) if num_unknown else ()
    if data.isascii():
        return data, ()
    guessed = next((name for name in detect_encoding(data) if _is_read(data, name)), None)
    if guessed is None:
        return data, ("its character set is not stated, and could not be guessed: characters are lost",)
    return data.decode(guessed), (f"its character set is not stated: read as {guessed}, which is a guess",)


def _mixed(data: bytes) -> tuple[str, tuple[str, ...]]:
    """A page that states UTF-8 and is not all of it: byte by byte, since a page may be a single line."""
    escaped = data.decode("utf-8", "surrogateescape")
    text, num = _ESCAPED.subn(lambda found: bytes([ord(found[0]) - 0xDC00]).decode("cp1252", "replace"), escaped)
    return text, (f"{num:,} bytes are not UTF-8, which the page states, and were read as Windows-1252",)


def _stated(data: bytes) -> str | None:
    """The codec of the character set that a page states; None where it states none that a page can be in."""
    found = _STATED.search(data[:_HEAD_BYTES])
    if found is None:
        return None
    try:
        name = codecs.lookup((found[1] or found[2]).decode("ascii")).name
        # Not UTF-16, in which the statement itself could not be read, nor codecs of Python that are none of texts.
        is_of_pages = _ASCII.decode(name) == _ASCII.decode("ascii")
    except (LookupError, ValueError):
        return None
    return _READ_AS.get(name, name) if is_of_pages else None


def _is_read(data: bytes, name: str) -> bool:
    try:
        data.decode(name)
    except (LookupError, UnicodeDecodeError):
        return False
    return True
