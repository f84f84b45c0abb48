"""The citation type, text normalisation before the search, and citations by pattern.

Text is normalised before the search: similar-looking characters, line breaks within numbers, blanks. URLs and custom
patterns (product ids, case numbers, standards) are found by regular expressions.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final, Literal
from urllib.parse import urlsplit

from luthier.core.errors import RequestError
from luthier.core.system.bounded_regex import BoundedPattern

Status = Literal["known", "misnamed", "unknown"]
"""In the corpus; in the corpus, but with other parties; not in the corpus."""


@dataclass(frozen=True, slots=True)
class Citation:
    """One citation as written in a text.

    Attributes:
        text: as written, in one line.
        kind: a form of `core.suite.CitationForm`, or the name of a user's pattern.
        normal: the normal form, equal for all spellings of the same citation.
        pin: the page, or the subsection, within what is cited; it is not checked.
        names: plaintiff and defendant, if given.
        parallel: the same decision in other reporters, as normal forms.
        sentence: the sentence that contains it.
        start: first character in the text as `clean` returns it.
        end: offset after its last character.
    """

    text: str
    kind: str
    normal: str
    start: int
    end: int
    pin: str = ""
    names: tuple[str, str] | None = None
    parallel: tuple[str, ...] = ()
    sentence: str = ""


@dataclass(frozen=True, slots=True)
class CitationFinding:
    """A citation of an answer, looked up in the corpus.

    Attributes:
        citation: the citation.
        status: whether the corpus has it.
        documents: some documents that contain it.
        named_there: the parties in the corpus, if they differ from the answer's.
    """

    citation: Citation
    status: Status
    documents: tuple[str, ...] = ()
    named_there: str | None = None


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
    """The text with normalised characters, no invisible ones, and single blanks; paragraphs are kept.

    Offsets of citations refer to this text.
    """
    text = _LINE_ENDS.sub("\n", _BLANKS.sub(" ", text.translate(_TABLE)))
    return _BROKEN_NUMBER.sub("", _GAPS.sub("\n\n", text))


def blocks(text: str) -> Iterator[tuple[int, str]]:
    """(offset, part) of at most 20,000 characters, to limit the text of each search.

    Split at a blank line, otherwise at a line end, otherwise at a blank; citations across a split are not found.
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
    """Only letters and digits, in lower case: `O.C.G.A.` and `OCGA` are the same."""
    return "".join(character for character in text.casefold() if character.isalnum())


def words(text: str) -> frozenset[str]:
    """A set of words from one text."""
    return frozenset(text.split())


_URL: Final = re.compile(r"(?<![\w@])(?:https?://|www\.)[^\s<>\"`{}|\\^]{1,2000}", re.IGNORECASE)
_ENDS: Final = ".,;:!?'*_"
_PAIRS: Final = {")": "(", "]": "["}


def compiled(patterns: Mapping[str, str]) -> dict[str, BoundedPattern]:
    """A user's patterns.

    Raises:
        RequestError: a pattern is not a regular expression, or matches an empty text.
    """
    found = {}
    for name, pattern in patterns.items():
        found[name] = BoundedPattern(f"pattern {name}", pattern)
        if found[name].fits_nothing:
            raise RequestError(
                f"pattern {name}: {pattern!r} fits an empty text",
                expected="one that needs at least a character",
                do="take a * or ? out of it",
            )
    return found


def find_patterns(text: str, patterns: Mapping[str, BoundedPattern]) -> Iterator[Citation]:
    """Citations by custom patterns. Case and blanks are ignored; a group `id` selects the relevant part of a match.

    Raises:
        RequestError: a pattern that takes too long on the text.
    """
    for name, pattern in patterns.items():
        for match in pattern.finditer(text):
            if not match[0].strip():
                continue
            counted = match["id"] if "id" in pattern.groups and match["id"] else match[0]
            shown = " ".join(match[0].split())
            yield Citation(shown, name, f"{name} {''.join(counted.split()).casefold()}", *match.span())


def find_urls(text: str) -> Iterator[Citation]:
    """URLs, without the punctuation or bracket of the sentence."""
    for match in _URL.finditer(text):
        url = _without_end(match[0])
        if (normal := _normal(url)) is not None:
            yield Citation(url, "url", normal, match.start(), match.start() + len(url))


def _without_end(url: str) -> str:
    """Strip trailing punctuation, and a closing bracket that was opened before the URL with everything after it."""
    depth = dict.fromkeys(_PAIRS, 0)
    for place, character in enumerate(url):
        for closing, opening in _PAIRS.items():
            depth[closing] += (character == opening) - (character == closing)
            # "(see https://a.org/b)": the bracket was opened before the URL, so it is not part of it.
            if depth[closing] < 0:
                return url[:place].rstrip(_ENDS)
    return url.rstrip(_ENDS)


def _normal(url: str) -> str | None:
    """Host, path and query; scheme, `www.`, a usual port, the fragment and a last slash make no difference."""
    try:
        parts = urlsplit(url if "://" in url else f"https://{url}")
        host, port = (parts.hostname or "").removeprefix("www."), parts.port
    except ValueError:  # an invalid IPv6 address or a port out of range
        return None
    if "." not in host and host != "localhost":
        return None
    where = host if port in (None, 80, 443) else f"{host}:{port}"
    return f"{where}{parts.path.rstrip('/')}" + (f"?{parts.query}" if parts.query else "")
