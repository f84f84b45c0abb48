"""/sign-in, /sign-out, /welcome/TOKEN: a browser comes in by a key, a password, or the link that a start prints."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal

from fastapi import APIRouter, Form, Request
from fastapi.concurrency import run_in_threadpool
from starlette.responses import Response

from luthier.core.errors import BusyError, LuthierError, RequestError
from luthier.platform.auth import members, passkeys
from luthier.platform.auth.members import member_by_password
from luthier.platform.auth.oidc import OidcClient
from luthier.platform.auth.password_hashing import SignInQueue
from luthier.platform.auth.rate_limiter import TokenBuckets
from luthier.platform.ui import form_drafts
from luthier.platform.ui.errors import status_of, with_retry_after
from luthier.platform.ui.render import redirect, render
from luthier.platform.ui.visitor import COOKIE, HomeContext, MaybeVisitor, address_of, host_of, own_address, remember

router = APIRouter()

FAILURES_PER_MINUTE: Final = 10
"""From one address, by key, password or link; who fails more often waits."""
STARTS_PER_MINUTE: Final = 30
"""Sign-ins in two steps that one address may begin; each is a row in the database for ten minutes."""
_STARTED_SECONDS: Final = 600
_Text = Annotated[str, Form(max_length=2000)]


@router.get("/sign-in")
def show(request: Request, session: MaybeVisitor, next: str = "/", signed_out: str = "") -> Response:
    """The form; who is signed in already is led on.

    signed_out: not empty after a sign-out of somebody whom the identity provider has signed in.
    """
    if session is not None:
        # `own_address` refuses other hosts: `?next=//evil.example` would make this an open redirect.
        return redirect(request, own_address(next))
    client: OidcClient | None = request.app.state.oidc
    there = client.sign_out_address(server_address(request, "/sign-in")) if signed_out and client else ""
    return sign_in_form(request, own_address(next), None, sign_out_address=there)


@router.post("/sign-in")
async def sign_in(
    request: Request,
    context: HomeContext,
    key: _Text = "",
    name: _Text = "",
    password: _Text = "",
    next: _Text = "/",
) -> Response:
    """Begin a session, or report invalid credentials. Blocks none of the threads that answer other requests."""

    def begin() -> str | None:
        if key:
            return members.sign_in_with_key(context, key.strip())
        member = member_by_password(context, name, password)
        return None if member is None else members.sign_in_as(context, member)

    queue: SignInQueue = request.app.state.sign_ins
    try:
        # Password hashing is slow on purpose: the queue bounds how many run in parallel, and counts failures by
        # address.
        secret = await queue.attempt(address_of(request), begin)
    except BusyError as error:
        return await run_in_threadpool(sign_in_form, request, own_address(next), error, name=name)
    if secret is None:
        refused = RequestError(
            # One answer for a wrong name and a wrong password: it does not reveal which names exist.
            "this key is not valid" if key else "this name and password are not valid",
            expected="a key or a password that is valid on this server",
            do="correct it; `luthier keys create` makes a new key",
        )
        return await run_in_threadpool(sign_in_form, request, own_address(next), refused, name=name)
    return let_in(request, secret, own_address(next))


@router.get("/welcome/{token}")
def welcome(request: Request, context: HomeContext, token: str) -> Response:
    """Sign the person at the machine in by the link that `luthier up` has printed; it works once."""
    queue: SignInQueue = request.app.state.sign_ins
    try:
        # The same limit as sign-in by password: links and passwords cannot be guessed in turn.
        with queue.limit.attempt(address_of(request)) as attempt:
            secret = members.sign_in_with_link(context, token)
            attempt.failed = secret is None
    except BusyError as error:
        return sign_in_form(request, "/", error)
    if secret is None:
        refused = RequestError(
            "this link was already used, or is older than 15 minutes",
            expected="a link that was printed in the last 15 minutes",
            do="sign in with a key, or print a new link: luthier users link",
        )
        return sign_in_form(request, "/", refused)
    return let_in(request, secret, "/")


@router.post("/sign-out")
def sign_out(request: Request, context: HomeContext, session: MaybeVisitor) -> Response:
    """End the session of this browser."""
    if secret := request.cookies.get(COOKIE):
        members.sign_out(context, secret)
    by_provider = session is not None and session.how == "oidc"
    answer = redirect(request, "/sign-in?signed_out=1" if by_provider else "/sign-in")
    answer.delete_cookie(COOKIE)
    # What a person has typed is not for the next one at this browser.
    answer.delete_cookie(form_drafts.COOKIE)
    return answer


def sign_in_form(
    request: Request,
    next_address: str,
    error: LuthierError | None,
    *,
    sign_out_address: str = "",
    name: str = "",
) -> Response:
    """The page with all ways to sign in.

    Args:
        request: The request that it answers.
        next_address: The page that follows the sign-in.
        error: Why the last attempt has failed; None before the first. It decides the status of the response.
        sign_out_address: The address that signs out of the identity provider, too; empty for none.
        name: What was given as the name of a member, which the form keeps.
    """
    client: OidcClient | None = request.app.state.oidc
    values: dict[str, Any] = {
        "next_address": next_address,
        "error": error,
        "sign_out_address": sign_out_address,
        "name": name,
    }
    values |= {"provider": None if client is None else client.provider.name}
    values |= {"has_passkeys": passkeys.is_offered_at(request.app.state.context, host_of(request))}
    if error is None:
        return render(request, "accounts/sign_in.html", values)
    return with_retry_after(render(request, "accounts/sign_in.html", values, status=status_of(error)), error)


def server_address(request: Request, path: str) -> str:
    """A path of this server as an address, by the host that the browser uses."""
    return f"{str(request.base_url).rstrip('/')}{path}"


def let_in(request: Request, secret: str, address: str) -> Response:
    """Redirect a browser that has signed in, with its session in a cookie.

    Args:
        request: The request that it answers.
        secret: Of the session; the cookie's value.
        address: The page that follows.
    """
    return remember(request, redirect(request, address), secret)


@dataclass(frozen=True, slots=True)
class StartCookie:
    """Ties the second step of a sign-in to the browser of the first one.

    Attributes:
        name: Of the cookie.
        path: The pages that it is sent to.
        samesite: `lax` where another site leads the browser back, so that the cookie comes along.
    """

    name: str
    path: str
    samesite: Literal["lax", "strict"]

    def secret_of(self, request: Request) -> str:
        """One secret for all sign-ins of a browser, so that two tabs can sign in at the same time."""
        return request.cookies.get(self.name) or secrets.token_urlsafe(32)

    def put(self, request: Request, answer: Response, secret: str) -> None:
        """Have the browser keep the secret for the second step."""
        answer.set_cookie(
            self.name,
            secret,
            max_age=_STARTED_SECONDS,
            path=self.path,
            httponly=True,
            samesite=self.samesite,
            secure=request.url.scheme == "https",
        )


def check_may_start(request: Request, starts: TokenBuckets) -> None:
    """Count the start of a sign-in in two steps.

    Raises:
        BusyError: Too many were begun from this address.
    """
    taken = starts.take(address_of(request), STARTS_PER_MINUTE)
    if not taken.is_allowed:
        raise BusyError(
            "too many sign-ins were started from this address",
            expected=f"at most {STARTS_PER_MINUTE} a minute",
            do="try again in a minute",
            retry_seconds=taken.wait_seconds,
        )
