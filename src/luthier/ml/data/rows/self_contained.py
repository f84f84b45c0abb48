"""Whether a question can be understood without the passage that it was written from."""

from __future__ import annotations

import re
from typing import Final

_SOURCES: Final = (
    "passage|text|article|document|excerpt|extract|paragraph|section|snippet|context|chapter|page|author|writer|"
    "table|figure|story|report"
)
_QUALIFIERS: Final = "given|above|following|provided|preceding|same|present|whole|entire|short|input|source"
_PATTERN = re.compile(
    rf"\b(?:(?:the|this|that|these|those|your|my)\s+(?:(?:{_QUALIFIERS})\s+)*(?:{_SOURCES})s?\b(?!\s+(?:of|in|on|for|"
    r"called|named|from\s+\d)\b)"
    rf"|(?:given|above|following|provided)\s+(?:{_SOURCES})s?\b"
    r"|(?:mentioned|described|stated|discussed|given|shown|listed|quoted)\s+(?:above|below|here)\b"
    r"|as\s+(?:mentioned|described|stated)\b"
    r"|according\s+to\s+(?:the|this)\s+(?:information|source|description|statement)\b)",
    re.IGNORECASE,
)


def leans_on_passage(text: str) -> str | None:
    """The words by which a question or an answer speaks of its passage ("the text"), or None.

    English only. "The text of the treaty" names what it is about, and is no such case.
    """
    found = _PATTERN.search(text)
    return " ".join(found[0].split()) if found else None
