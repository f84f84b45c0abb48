"""The language of a request: the one that this browser has chosen, else what it prefers, else English."""

from __future__ import annotations

from typing import Final

from fastapi import Request

LANGUAGES: Final = {"en": "English", "de": "Deutsch"}
"""Languages by code, each by its own name. The first is that of the source, and of whoever asks for none of these."""
ENGLISH: Final = "en"
COOKIE: Final = "luthier_language"
_MAX_HEADER_CHARACTERS: Final = 500
VARY: Final = "Accept-Language, Cookie"


def language_of(request: Request) -> str:
    """The language that a visitor wants; a choice wins over the preferences of the browser."""
    chosen = request.cookies.get(COOKIE, "")
    return chosen if chosen in LANGUAGES else negotiated(request.headers.get("accept-language", ""))


def negotiated(header: str) -> str:
    """The first of our languages in the order of an `Accept-Language`; English where it has none of them."""
    wanted = []
    for place, part in enumerate(header[:_MAX_HEADER_CHARACTERS].split(",")):
        name, _, parameter = part.strip().partition(";")
        wanted.append((-_quality(parameter), place, name.strip().lower().partition("-")[0]))
    return next((name for quality, _, name in sorted(wanted) if quality < 0 and name in LANGUAGES), ENGLISH)


def _quality(parameter: str) -> float:
    name, _, value = parameter.strip().partition("=")
    if name.strip() != "q":
        return 1.0
    try:
        found = float(value)
    except ValueError:
        return 0.0
    return found if 0 <= found <= 1 else 0.0
