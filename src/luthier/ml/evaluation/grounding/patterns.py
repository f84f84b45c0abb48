"""URLs, and anything that a team has a pattern for: product ids, case numbers, standards."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Final
from urllib.parse import urlsplit

from luthier.core.errors import RequestError
from luthier.core.system.bounded_regex import BoundedPattern
from luthier.ml.evaluation.grounding.citation import Citation

_URL: Final = re.compile(r"(?<![\w@])(?:https?://|www\.)[^\s<>\"`{}|\\^]{1,2000}", re.IGNORECASE)
_ENDS: Final = ".,;:!?'*_"
_PAIRS: Final = {")": "(", "]": "["}


def compiled(patterns: Mapping[str, str]) -> dict[str, BoundedPattern]:
    """A user's patterns.

    Raises:
        RequestError: one that is no regular expression, or that fits an empty text.
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
    """Citations by a user's patterns. Case and blanks make no difference; a group `id` is what counts of a match.

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
    """URLs, without the mark or bracket of the sentence that they end."""
    for match in _URL.finditer(text):
        url = _without_end(match[0])
        if (normal := _normal(url)) is not None:
            yield Citation(url, "url", normal, match.start(), match.start() + len(url))


def _without_end(url: str) -> str:
    """Marks at the end go, and a closing bracket that was opened before the URL, with all that follows it."""
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
    except ValueError:  # an IPv6 address that is none, a port out of range
        return None
    if "." not in host and host != "localhost":
        return None
    where = host if port in (None, 80, 443) else f"{host}:{port}"
    return f"{where}{parts.path.rstrip('/')}" + (f"?{parts.query}" if parts.query else "")
