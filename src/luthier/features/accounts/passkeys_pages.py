"""/settings/account/passkeys: add and remove passkeys of one's own. /sign-in/passkey: sign in with one."""

from __future__ import annotations

import logging
import time
from typing import Annotated, Final

from fastapi import APIRouter, Form, Request
from fastapi.concurrency import run_in_threadpool
from starlette.responses import Response

from luthier.core.errors import BusyError, LuthierError, RequestError
from luthier.features.accounts.account_pages import ADDRESS, account_page, take_password_try
from luthier.features.accounts.sign_in_pages import StartCookie, check_may_start, let_in, sign_in_form
from luthier.platform.auth import passkeys
from luthier.platform.auth.password_hashing import SignInQueue
from luthier.platform.auth.rate_limiter import TokenBuckets
from luthier.platform.ui.errors import status_of
from luthier.platform.ui.forms import shown_once
from luthier.platform.ui.render import redirect, render
from luthier.platform.ui.settings_tabs import Id
from luthier.platform.ui.visitor import COOKIE, HomeContext, Visitor, address_of, host_of, own_address

log = logging.getLogger("luthier.web")

router = APIRouter()

_starts = TokenBuckets(clock=time.monotonic)
_PATH: Final = "/sign-in/passkey"
_COOKIE: Final = StartCookie("luthier_passkey", _PATH, samesite="strict")
_LIST: Final = f"{ADDRESS}/passkeys"
_Text = Annotated[str, Form(max_length=2000)]
_Credential = Annotated[str, Form(max_length=100_000)]
"""What an authenticator answers, as JSON: some keys and certificates have kilobytes."""


@router.post(f"{_LIST}/begin")
async def begin(
    request: Request,
    context: HomeContext,
    caller: Visitor,
    name: _Text = "",
    current: _Text = "",
    public_url: _Text = "",
) -> Response:
    """Check the password, and lead to the page in which the browser asks the authenticator for a passkey."""

    def work() -> passkeys.Ceremony:
        return passkeys.begin_registration(
            context, caller, name=name, password=current, browser=request.cookies[COOKIE], public_url=public_url
        )

    try:
        take_password_try(caller)
        made = await context.password_threads.run(caller.member_id or "", work)
    # It has its own page with Retry-After.
    except BusyError:
        raise
    except LuthierError as error:
        values = {"error": error, "passkey_form": {"name": name, "public_url": public_url}}
        return await run_in_threadpool(account_page, request, context, values, status=status_of(error))
    address = shown_once(request).put(request, ADDRESS, {"passkey_ceremony": made})
    return redirect(request, f"{address}#passkeys")


@router.post(_LIST)
def add(
    request: Request, context: HomeContext, caller: Visitor, challenge: _Text = "", credential: _Credential = ""
) -> Response:
    """Keep the passkey that the authenticator has made."""
    browser = request.cookies[COOKIE]
    try:
        made = passkeys.finish_registration(
            context, caller, challenge=challenge, credential=credential, browser=browser
        )
    except LuthierError as error:
        return account_page(request, context, {"error": error}, status=status_of(error))
    return redirect(request, ADDRESS, f"You can now sign in with the passkey {made.name}.")


@router.post(f"{_LIST}/{{passkey_id}}/remove")
def remove(request: Request, context: HomeContext, caller: Visitor, passkey_id: Id) -> Response:
    """Remove a passkey; browsers that have signed in with it are signed out."""
    try:
        removed = passkeys.remove_passkey(context, caller, passkey_id)
    except LuthierError as error:
        return account_page(request, context, {"error": error}, status=status_of(error))
    return redirect(request, ADDRESS, f"The passkey {removed.name} is removed, and signs in no more.")


@router.get(_PATH)
def begin_sign_in(request: Request, context: HomeContext, next: str = "/") -> Response:
    """The page in which the browser asks the person for a passkey."""
    address = own_address(next)
    browser = _COOKIE.secret_of(request)
    try:
        check_may_start(request, _starts)
        made = passkeys.begin_sign_in(context, host=host_of(request), browser=browser)
    except LuthierError as error:
        return sign_in_form(request, address, error)
    answer = render(request, "accounts/passkey.html", {"ceremony": made, "next_address": address})
    _COOKIE.put(request, answer, browser)
    return answer


@router.post(_PATH)
def finish_sign_in(
    request: Request,
    context: HomeContext,
    challenge: _Text = "",
    credential: _Credential = "",
    next: _Text = "/",
) -> Response:
    """Sign in the member whose passkey has answered."""
    browser, address = request.cookies.get(_COOKIE.name, ""), own_address(next)
    queue: SignInQueue = request.app.state.sign_ins
    secret, refused = "", None
    try:
        # The same limit as sign-in by password.
        with queue.limit.attempt(address_of(request)) as attempt:
            try:
                secret = passkeys.finish_sign_in(context, challenge=challenge, credential=credential, browser=browser)
            except RequestError as error:
                # Kept until the end of the block: an attempt that an error ends counts for nothing.
                refused, attempt.failed = error, True
    except BusyError as busy:
        return sign_in_form(request, address, busy)
    if refused is not None:
        log.info("refused a sign-in with a passkey from %s: %s", address_of(request), refused.came)
        return sign_in_form(request, address, refused)
    answer = let_in(request, secret, address)
    # It has done its work; a new sign-in gets a new secret.
    answer.delete_cookie(_COOKIE.name, path=_PATH)
    return answer
