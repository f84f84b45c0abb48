"""/settings, /settings/account: who one is here, what one may do, one's password and where one is signed in."""

from __future__ import annotations

import time
from typing import Annotated, Final

from fastapi import APIRouter, Form, Request
from fastapi.concurrency import run_in_threadpool
from starlette.responses import Response

from luthier.core.errors import BusyError, LuthierError, RequestError
from luthier.platform.auth import members
from luthier.platform.auth.members import change_own_password
from luthier.platform.auth.members_store import Session
from luthier.platform.auth.password_hashing import LEAST_PASSWORD_CHARACTERS
from luthier.platform.auth.rate_limiter import TokenBuckets
from luthier.platform.auth.service import digest_of
from luthier.platform.home.context import Context
from luthier.platform.ui.render import Page, entries_for, redirect
from luthier.platform.ui.settings_tabs import show
from luthier.platform.ui.visitor import COOKIE, HomeContext, Visitor, one_state, remember

router = APIRouter()
PAGE = Page("Settings", "/settings", None, order=1000, key="s")
ACCOUNT_TAB = Page("You", "/settings/account", None, order=10, group="settings")

TRIES_PER_MINUTE: Final = 6
# Separate from sign-in: someone at an unlocked browser could guess the current password here.
_tries = TokenBuckets(clock=time.monotonic)
_ADDRESS: Final = "/settings/account"
_Password = Annotated[str, Form(max_length=2000)]


@router.get("/settings")
@one_state
def first(request: Request, context: HomeContext, _caller: Visitor) -> Response:
    """The first tab: shown at once where it is that of the account, since a redirect is another request."""
    session: Session = request.state.session
    address = entries_for(session, "settings")[0].address
    return _page(request, context) if address == _ADDRESS else redirect(request, address)


@router.get(_ADDRESS)
@one_state
def account(request: Request, context: HomeContext, _caller: Visitor) -> Response:
    """The page."""
    return _page(request, context)


@router.post(f"{_ADDRESS}/password")
async def change(
    request: Request,
    context: HomeContext,
    caller: Visitor,
    current: _Password = "",
    password: _Password = "",
    again: _Password = "",
) -> Response:
    """New password for oneself; this browser stays signed in, all others are signed out."""

    def change_and_sign_in() -> str:
        member = change_own_password(context, caller, current, password)
        return members.sign_in_as(context, member)

    try:
        if password != again:
            raise RequestError("the two new passwords differ", expected="the same one twice", do="enter them again")
        # Before hashing, which costs about as much as a sign-in.
        taken = _tries.take(caller.member_id or "", TRIES_PER_MINUTE)
        if not taken.is_allowed:
            raise RequestError(
                "too many attempts to change the password",
                expected=f"at most {TRIES_PER_MINUTE} tries a minute",
                do=f"wait {taken.wait_seconds:.0f} s, then try again",
            )
        secret = await context.password_threads.run(caller.member_id or "", change_and_sign_in)
    # BusyError is a LuthierError; it has its own page with Retry-After.
    except BusyError:
        raise
    except LuthierError as error:
        return await run_in_threadpool(_page, request, context, error)
    answer = redirect(request, _ADDRESS, "Your password is changed; other browsers have to sign in with the new one.")
    # A new session for this browser: the change has ended all sessions of the member, this one too.
    return remember(request, answer, secret)


@router.post(f"{_ADDRESS}/end-others")
def end_others(request: Request, context: HomeContext, caller: Visitor) -> Response:
    """Sign all other browsers out."""
    num_ended = members.end_others(context, caller, request.cookies[COOKIE])
    return redirect(request, _ADDRESS, f"{num_ended} other session{'' if num_ended == 1 else 's'} ended.")


def _page(request: Request, context: Context, error: LuthierError | None = None) -> Response:
    session: Session = request.state.session
    values = {
        "error": error,
        "sessions": members.sessions_of(context, session.caller),
        "this_digest": digest_of(request.cookies[COOKIE]),
        "least": LEAST_PASSWORD_CHARACTERS,
    }
    return show(request, "account", values, status=200 if error is None else 422)
