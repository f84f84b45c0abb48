"""What went wrong, as a page: what came, what was expected, what to do."""

from __future__ import annotations

import logging
import math
from dataclasses import replace
from typing import Final

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import RedirectResponse, Response

from luthier.core.errors import (
    BusyError,
    ConflictError,
    FileQuotaError,
    LuthierError,
    NotAllowedError,
    NotFoundError,
    QuotaError,
    RequestError,
    StorageFullError,
    UnreachableError,
    validation_reason,
)
from luthier.platform.ui.form_drafts import FormDraft, keep_draft, put_draft, remember_draft, sent_form, with_name
from luthier.platform.ui.render import is_fragment_request, render
from luthier.platform.ui.visitor import ForbiddenError, SignInNeededError, own_address, page_above, visiting

log = logging.getLogger("luthier.web")

ERROR_HEADER: Final = "luthier-error"
_UNREACHABLE_RETRY_SECONDS: Final = 5.0


def add_error_pages(app: FastAPI) -> None:
    """Make the app answer every error with a page."""
    app.add_exception_handler(SignInNeededError, _sign_in)
    app.add_exception_handler(ForbiddenError, _forbidden)
    app.add_exception_handler(LuthierError, _luthier_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _bug)


def status_of(error: LuthierError) -> int:
    """The HTTP status of one of our errors."""
    if isinstance(error, NotFoundError):
        return 404
    if isinstance(error, NotAllowedError):
        return 403
    # Subclasses come before their base: NotFoundError and ConflictError are RequestErrors, too.
    if isinstance(error, ConflictError):
        return 409
    if isinstance(error, FileQuotaError):
        return 413
    if isinstance(error, QuotaError | BusyError):
        return 429
    if isinstance(error, StorageFullError):
        return 507
    return 422 if isinstance(error, RequestError) else 503


def error_page(
    request: Request, status: int, error: LuthierError, *, back: str = "", has_draft: bool = False
) -> Response:
    """The page of an error; for HTMX only its message, to be put in the place of the answer.

    Args:
        request: The request that it answers.
        status: The HTTP status.
        error: What went wrong.
        back: The page that the request came from; empty for none but the home page.
        has_draft: Whether that page has the form again with what was entered.
    """
    values = {"error": error, "error_status": status, "back": back, "has_draft": has_draft}
    template = "error_message.html" if is_fragment_request(request) else "error.html"
    answer = render(request, template, values, status=status)
    if is_fragment_request(request):
        # For `app.js`: this is an error alone, and must not take the place of the form that it is about.
        answer.headers[ERROR_HEADER] = "alone"
    return with_retry_after(answer, error)


async def refused_page(request: Request, status: int, error: LuthierError) -> Response:
    """The page of an error that a handler has not shown on its own page, with the way back.

    A form that was sent is on the page that it leads to, with what was entered: nothing has to be typed again.
    """
    await look_up_session(request)
    form = None
    if not is_fragment_request(request) and request.state.session is not None:
        form = await sent_form(request)
    back = _page_of(request, form)
    if form is None or not back:
        return error_page(request, status, error, back=back)
    name, secret = put_draft(request, replace(form, is_refused=True))
    answer = error_page(request, status, error, back=with_name(back, name), has_draft=True)
    remember_draft(answer, secret)
    return answer


async def look_up_session(request: Request) -> None:
    """Know who is signed in, also where no handler has asked for it: at an unknown address, or before any handler."""
    try:
        await visiting(request)
    except Exception:
        # The page says what went wrong in the first place, and must not fail by the same database.
        log.exception("who is signed in could not be looked up for the page of an error")
        request.state.session = None


def _page_of(request: Request, form: FormDraft | None) -> str:
    """The page that a request came from, as its handler, its form or its address says; empty for the home page."""
    if back := getattr(request.state, "back", ""):
        return str(back)
    named = () if form is None else form.values.get("back", ())
    address = own_address(named[-1]) if named else page_above(request)
    is_itself = request.method == "GET" and address == request.url.path
    return "" if address == "/" or is_itself else address


def with_retry_after(answer: Response, error: LuthierError) -> Response:
    """An answer that says when to try again, where waiting is what helps."""
    if isinstance(error, BusyError | UnreachableError):
        seconds = error.retry_seconds if isinstance(error, BusyError) else _UNREACHABLE_RETRY_SECONDS
        answer.headers["Retry-After"] = str(max(1, math.ceil(seconds)))
    return answer


async def _sign_in(request: Request, error: Exception) -> Response:
    assert isinstance(error, SignInNeededError)
    # fetch() would follow a redirect and take the sign-in page for its answer; HTMX goes where HX-Redirect says.
    is_script = request.headers.get("sec-fetch-mode", "navigate") != "navigate"
    # What a person has typed is not lost with the session: the page that they come back to holds it again.
    kept = await keep_draft(request)
    if kept is not None:
        error = SignInNeededError(with_name(error.next_address, kept[0]))
    answer: Response = RedirectResponse(error.address, status_code=303)
    if is_script or is_fragment_request(request) or "application/json" in request.headers.get("accept", ""):
        answer = Response(status_code=401, headers={"HX-Redirect": error.address})
    if kept is not None:
        remember_draft(answer, kept[1])
    return answer


async def _forbidden(request: Request, error: Exception) -> Response:
    assert isinstance(error, ForbiddenError)
    shown = RequestError(
        f"{error.caller.name!r} may {', '.join(error.caller.scopes)} here",
        expected=f"someone who may {' or '.join(error.scopes)}",
        do="ask an admin of the project for that, or sign in as somebody else",
    )
    return error_page(request, 403, shown, back=_page_of(request, None))


async def _luthier_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, LuthierError)
    return await refused_page(request, status_of(error), error)


async def _validation_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    # One field at a time: a form sent by this page can hardly have a second fault.
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"][1:])
    shown = RequestError(
        f"{place or 'the form'}: {validation_reason(first)}", expected="a form as this page sends it", do="correct it"
    )
    return await refused_page(request, 422, shown)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    await look_up_session(request)
    if error.status_code == 404:
        shown: LuthierError = NotFoundError(
            f"no page {request.url.path}", expected="an address of a page", do="start from the home page"
        )
    else:
        shown = RequestError(str(error.detail), expected="a request as a page sends it", do="go back and try again")
    return error_page(request, error.status_code, shown, back=_page_of(request, None))


async def _bug(request: Request, error: Exception) -> Response:
    # The trace goes to the log alone: it may hold values of other projects.
    log.error("unexpected error in %s %s", request.method, request.url.path, exc_info=error)
    await look_up_session(request)
    shown = LuthierError(
        "internal server error", expected="no bug in Luthier", do="see the server's log, and report it"
    )
    return error_page(request, 500, shown, back=_page_of(request, None))
