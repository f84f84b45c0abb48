"""/sign-in, /sign-out, /welcome/TOKEN: a browser comes in by a key, a password, or the link that a start prints."""

from __future__ import annotations

import time
from typing import Annotated, Final

from fastapi import APIRouter, Form, Request
from starlette.responses import Response

from luthier.core.errors import RequestError
from luthier.service import sessions
from luthier.service.members import member_by_password
from luthier.service.rate_limits import TokenBuckets
from luthier.web.render import redirect, render
from luthier.web.visitor import COOKIE, HomeContext, MaybeVisitor, own_address, remember

router = APIRouter()

FAILURES_PER_MINUTE: Final = 10
"""From one address; who comes with a wrong key or password more often waits."""
_failures = TokenBuckets(clock=time.monotonic)
_Text = Annotated[str, Form(max_length=2000)]


@router.get("/sign-in")
def show(request: Request, session: MaybeVisitor, next: str = "/") -> Response:
    """The form; who is signed in already is led on."""
    if session is not None:
        return redirect(request, own_address(next))
    return _form(request, own_address(next), None)


@router.post("/sign-in")
def sign_in(
    request: Request,
    context: HomeContext,
    key: _Text = "",
    name: _Text = "",
    password: _Text = "",
    next: _Text = "/",
) -> Response:
    """Begin a session, or say that nobody is let in by this."""
    address = request.client.host if request.client else ""
    taken = _failures.take(address, FAILURES_PER_MINUTE, cost=0)
    if not taken.is_allowed:
        error = RequestError(
            "too many wrong keys or passwords came from your address",
            expected=f"at most {FAILURES_PER_MINUTE} a minute",
            do=f"wait {taken.wait_seconds:.0f} s, then try again",
        )
        return _form(request, own_address(next), error, status=429)
    if key:
        secret = sessions.sign_in_with_key(context, key.strip())
    else:
        member = member_by_password(context, name, password)
        secret = None if member is None else sessions.sign_in_as(context, member)
    if secret is None:
        _failures.take(address, FAILURES_PER_MINUTE)
        error = RequestError(
            "this key lets nobody in" if key else "this name and password let nobody in",
            expected="a key or a password of this server that is right and still good",
            do="correct it; `luthier keys create` makes a new key",
        )
        return _form(request, own_address(next), error, status=422)
    return _let_in(request, secret, own_address(next))


@router.get("/welcome/{token}")
def welcome(request: Request, context: HomeContext, token: str) -> Response:
    """Sign the person at the machine in by the link that `luthier up` has printed; it works once."""
    secret = sessions.sign_in_with_link(context, token)
    if secret is None:
        error = RequestError(
            "this link was used already, or is older than a quarter of an hour",
            expected="a link that was printed just now",
            do="sign in with a key, or make a new link: luthier members link",
        )
        return _form(request, "/", error, status=422)
    return _let_in(request, secret, "/")


@router.post("/sign-out")
def sign_out(request: Request, context: HomeContext) -> Response:
    """End the session of this browser."""
    if secret := request.cookies.get(COOKIE):
        sessions.sign_out(context, secret)
    answer = redirect(request, "/sign-in")
    answer.delete_cookie(COOKIE)
    return answer


def _form(request: Request, next_address: str, error: RequestError | None, *, status: int = 200) -> Response:
    return render(request, "sign_in.html", {"next_address": next_address, "error": error}, status=status)


def _let_in(request: Request, secret: str, address: str) -> Response:
    return remember(request, redirect(request, address), secret)
