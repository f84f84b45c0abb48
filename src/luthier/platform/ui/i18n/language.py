"""The language of a request: the one that this browser has chosen, else what it prefers, else English."""

from __future__ import annotations

from typing import Annotated, Final

from fastapi import APIRouter, Form, Request
from starlette.responses import RedirectResponse, Response

from luthier.core.errors import RequestError
from luthier.platform.ui.visitor import own_address

LANGUAGES: Final = {"en": "English", "de": "Deutsch"}
"""Languages by code, each by its own name. The first is that of the source, and of whoever asks for none of these."""
ENGLISH: Final = "en"
COOKIE: Final = "luthier_language"
_COOKIE_SECONDS: Final = 400 * 24 * 3600
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


router = APIRouter(prefix="/language")


@router.post("")
def choose(request: Request, language: Annotated[str, Form()], back: Annotated[str, Form()] = "/") -> Response:
    """Keep a language for this browser, and lead back to the page."""
    if language not in LANGUAGES:
        raise RequestError(
            f"language {language[:40]!r}", expected=f"one of {', '.join(LANGUAGES)}", do="choose one on the page"
        )
    answer = RedirectResponse(own_address(back), status_code=303)
    is_https = request.url.scheme == "https"
    answer.set_cookie(COOKIE, language, max_age=_COOKIE_SECONDS, httponly=True, samesite="lax", secure=is_https)
    return answer
