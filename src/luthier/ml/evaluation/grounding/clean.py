"""Text in one writing, before citations are looked for: signs that look alike, line breaks within numbers, blanks."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

_BLOCK_CHARACTERS: Final = 20_000
_ALIKE: Final = {
    **dict.fromkeys("\u00a0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u202f\u205f", " "),
    **dict.fromkeys("\u2010\u2011\u2012\u2013\u2014\u2015\u2212\ufe58\ufe63\uff0d", "-"),
    **dict.fromkeys("\u2018\u2019\u201b", "'"),
    **dict.fromkeys("\u201c\u201d", '"'),
    **dict.fromkeys("\u2028\u2029\x0b\x0c\r", "\n"),
    # no width at all: soft hyphen, zero-width space and joiners, byte-order mark
    **dict.fromkeys("\u00ad\u200b\u200c\u200d\u2060\ufeff", ""),
}
_TABLE: Final = str.maketrans(_ALIKE)
_BLANKS: Final = re.compile(r"[ \t]{2,}|\t")
_LINE_ENDS: Final = re.compile(r" ?\n ?")
_GAPS: Final = re.compile(r"\n{3,}")
_BROKEN_NUMBER: Final = re.compile(r"(?<=\d-)\n(?=\d)")


def clean(text: str) -> str:
    """The text with one sign of each sort, no invisible ones, and single blanks; paragraphs stay.

    Places of citations count in what this gives.
    """
    text = _LINE_ENDS.sub("\n", _BLANKS.sub(" ", text.translate(_TABLE)))
    return _BROKEN_NUMBER.sub("", _GAPS.sub("\n\n", text))


def blocks(text: str) -> Iterator[tuple[int, str]]:
    """(offset, part) of at most 20,000 characters, so that no search ever sees a longer text.

    Cut at a blank line, else at a line end, else at a blank: what spans a cut is not found.
    """
    start = 0
    while len(text) - start > _BLOCK_CHARACTERS:
        most = start + _BLOCK_CHARACTERS
        # In the second half only, so that no block is tiny.
        places = (text.rfind(mark, start + _BLOCK_CHARACTERS // 2, most) for mark in ("\n\n", "\n", " "))
        end = next((place for place in places if place > start), most)
        yield start, text[start:end]
        start = end
    yield start, text[start:]


def squash(text: str) -> str:
    """Letters and digits alone, in small letters: `O.C.G.A.` and `OCGA` are the same."""
    return "".join(character for character in text.casefold() if character.isalnum())


def words(text: str) -> frozenset[str]:
    """A table of words, written as one text."""
    return frozenset(text.split())
