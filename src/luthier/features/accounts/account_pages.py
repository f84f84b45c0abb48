"""/settings, /settings/account: who one is here, what one may do, one's password and where one is signed in."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Annotated, Any, Final

from fastapi import APIRouter, Form, Request
from fastapi.concurrency import run_in_threadpool
from starlette.responses import Response

from luthier.core.access import Caller
from luthier.core.errors import BusyError, LuthierError, RequestError
from luthier.platform.auth import members, passkeys
from luthier.platform.auth.members import change_own_password
from luthier.platform.auth.members_store import Session
from luthier.platform.auth.password_hashing import LEAST_PASSWORD_CHARACTERS
from luthier.platform.auth.public_address import public_address
from luthier.platform.auth.rate_limiter import TokenBuckets
from luthier.platform.auth.service import digest_of
from luthier.platform.home.context import Context
from luthier.platform.ui.forms import shown_once
from luthier.platform.ui.render import Page, entries_for, redirect
from luthier.platform.ui.settings_tabs import show
from luthier.platform.ui.visitor import COOKIE, HomeContext, Visitor, host_of, one_state, remember, root_of

router = APIRouter()
PAGE = Page("Settings", "/settings", None, order=1000, key="s")
ACCOUNT_TAB = Page("You", "/settings/account", None, order=10, group="settings")

TRIES_PER_MINUTE: Final = 6
# Separate from sign-in: someone at an unlocked browser could guess the current password here.
_tries = TokenBuckets(clock=time.monotonic)
ADDRESS: Final = "/settings/account"
_Password = Annotated[str, Form(max_length=2000)]


@router.get("/settings")
@one_state
def first(request: Request, context: HomeContext, _caller: Visitor) -> Response:
    """The first tab: shown at once where it is that of the account, since a redirect is another request."""
    session: Session = request.state.session
    address = entries_for(session, "settings")[0].address
    return account_page(request, context, {}) if address == ADDRESS else redirect(request, address)


@router.get(ADDRESS)
@one_state
def account(request: Request, context: HomeContext, _caller: Visitor) -> Response:
    """The page; just after the form for a passkey also what the browser asks the authenticator for."""
    return account_page(request, context, shown_once(request).take(request))


@router.post(f"{ADDRESS}/password")
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
        take_password_try(caller)
        secret = await context.password_threads.run(caller.member_id or "", change_and_sign_in)
    # BusyError is a LuthierError; it has its own page with Retry-After.
    except BusyError:
        raise
    except LuthierError as error:
        return await run_in_threadpool(account_page, request, context, {"error": error}, status=422)
    answer = redirect(request, ADDRESS, "Your password is changed; other browsers have to sign in with the new one.")
    # A new session for this browser: the change has ended all sessions of the member, this one too.
    return remember(request, answer, secret)


@router.post(f"{ADDRESS}/end-others")
def end_others(request: Request, context: HomeContext, caller: Visitor) -> Response:
    """Sign all other browsers out."""
    num_ended = members.end_others(context, caller, request.cookies[COOKIE])
    return redirect(request, ADDRESS, f"{num_ended} other session{'' if num_ended == 1 else 's'} ended.")


def take_password_try(caller: Caller) -> None:
    """Count an attempt with one's current password, before it is hashed, which costs about as much as a sign-in.

    Raises:
        RequestError: There were too many attempts in the last minute.
    """
    taken = _tries.take(caller.member_id or "", TRIES_PER_MINUTE)
    if not taken.is_allowed:
        raise RequestError(
            "too many attempts with the current password",
            expected=f"at most {TRIES_PER_MINUTE} tries a minute",
            do=f"wait {taken.wait_seconds:.0f} s, then try again",
        )


def account_page(request: Request, context: Context, values: Mapping[str, Any], *, status: int = 200) -> Response:
    """The page.

    Args:
        request: The request that it answers.
        context: The home.
        values: Why a form was refused and what it held, or what is shown once.
        status: Of the response.
    """
    session: Session = request.state.session
    common: dict[str, Any] = {
        "sessions": members.sessions_of(context, session.caller),
        "this_digest": digest_of(request.cookies[COOKIE]),
        "least": LEAST_PASSWORD_CHARACTERS,
        "passkey_ceremony": None,
    }
    if session.caller.member_id is not None and session.how != "oidc":
        common |= _passkey_values(request, context, session.caller)
    return show(request, "account", common | dict(values), status=status)


def _passkey_values(request: Request, context: Context, caller: Caller) -> dict[str, Any]:
    """What the page shows of passkeys; nothing where there are none, and only an admin could change that."""
    known = context.passkeys.list(caller.member_id or "")
    if not (known or passkeys.is_installed() or caller.may("admin")):
        return {}
    return {
        "passkeys": known,
        "passkey_host": host_of(request),
        "passkey_problem": passkeys.registration_problem(context, caller, root_of(request)),
        "passkey_form": {"name": "", "public_url": root_of(request)},
        "links": public_address(context, caller.project_id),
    }
