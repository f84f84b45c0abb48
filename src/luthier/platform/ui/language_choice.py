"""The choice of a language: kept by the browser, for pages with and without a session."""

from __future__ import annotations

from typing import Annotated, Final

from fastapi import APIRouter, Form, Request
from starlette.responses import RedirectResponse, Response

from luthier.core.errors import RequestError
from luthier.platform.ui.i18n.language import COOKIE, LANGUAGES
from luthier.platform.ui.visitor import own_address

_COOKIE_SECONDS: Final = 400 * 24 * 3600
"""As long as browsers keep one."""

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
