"""/sign-in/oidc: sign-in by the identity provider. /settings/sign-in: the provider, and what its groups lead to."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import Annotated, Any, Final

from fastapi import APIRouter, Form, Request
from starlette.responses import RedirectResponse, Response

from luthier.core.access import Caller
from luthier.core.errors import BusyError, LuthierError, NotFoundError
from luthier.features.accounts.sign_in_pages import StartCookie, check_may_start, let_in, server_address, sign_in_form
from luthier.platform.auth import oidc_members
from luthier.platform.auth import service as access
from luthier.platform.auth.members_store import ROLES, Member
from luthier.platform.auth.oidc import Flow, OidcClient, SignInRefusedError
from luthier.platform.auth.password_hashing import SignInQueue
from luthier.platform.auth.rate_limiter import TokenBuckets
from luthier.platform.home.context import Context
from luthier.platform.ui.errors import status_of
from luthier.platform.ui.page_work import Led, page_work
from luthier.platform.ui.render import Page, redirect, render
from luthier.platform.ui.settings_tabs import show
from luthier.platform.ui.visitor import Admin, HomeContext, address_of, own_address

log = logging.getLogger("luthier.web")

router = APIRouter()
PAGE = Page("Sign-in", "/settings/sign-in", "admin", order=35, group="settings")

_starts = TokenBuckets(clock=time.monotonic)
_PATH: Final = "/sign-in/oidc"
_COOKIE: Final = StartCookie("luthier_sign_in", _PATH, samesite="lax")
_CALLBACK: Final = f"{_PATH}/callback"
_ADDRESS: Final = "/settings/sign-in"
_Text = Annotated[str, Form(max_length=2000)]


@router.get(_PATH)
def begin(request: Request, context: HomeContext, next: str = "/") -> Response:
    """Send the browser to the provider, with what proves later that the answer is to this very sign-in."""
    client, address = _client(request), own_address(next)
    try:
        # Before the provider is asked: otherwise anybody could make this server send requests to it.
        check_may_start(request, _starts)
        where, flow = client.begin(client.provider.redirect_url or server_address(request, _CALLBACK))
    except LuthierError as error:
        return sign_in_form(request, address, error)
    browser = _COOKIE.secret_of(request)
    document = {"nonce": flow.nonce, "verifier": flow.verifier, "redirect_url": flow.redirect_url, "next": address}
    oidc_members.begin_flow(context, browser, flow.state, document)
    answer = RedirectResponse(where, status_code=303)
    _COOKIE.put(request, answer, browser)
    return answer


@router.get(_CALLBACK)
def callback(request: Request, context: HomeContext) -> Response:
    """The provider's answer: sign in the member that the person is, or have them choose among their projects."""
    client, answer = _client(request), dict(request.query_params)
    browser = request.cookies.get(_COOKIE.name, "")
    queue: SignInQueue = request.app.state.sign_ins
    try:
        with queue.limit.attempt(address_of(request)) as attempt:
            found, address, error = _identified(context, client, browser, answer)
            attempt.failed = error is not None
    except BusyError as busy:
        return sign_in_form(request, "/", busy)
    if error is not None:
        log.info("refused a sign-in by the identity provider from %s: %s", address_of(request), error.came)
        return sign_in_form(request, address, error)
    if len(found) == 1:
        return _signed_in(request, context, found[0], address)
    choice = oidc_members.offer_choice(context, browser, found, address)
    names = {one.project_id: one.name for one in access.list_projects(context)}
    return render(request, "accounts/choose_project.html", {"members": found, "projects": names, "choice": choice})


def _identified(
    context: Context, client: OidcClient, browser: str, answer: Mapping[str, str]
) -> tuple[list[Member], str, LuthierError | None]:
    """The members that the person is, the page that they wanted, and why they are nobody."""
    address = "/"
    try:
        known = oidc_members.take_flow(context, browser, answer.get("state", ""))
        if "nonce" not in known:
            # The name of a choice among projects, which is kept in the same place.
            raise SignInRefusedError(
                "this answer names a choice of a project, and no sign-in",
                expected="the answer of the provider",
                do="begin the sign-in again on the sign-in page",
            )
        # Stored with the sign-in and not taken from the answer: a provider's answer must not redirect elsewhere.
        address = own_address(str(known.get("next", "/")))
        flow = Flow(answer["state"], str(known["nonce"]), str(known["verifier"]), str(known["redirect_url"]))
        identity = client.finish(flow, answer)
        return oidc_members.members_for(context, client.provider, identity), address, None
    except LuthierError as error:
        return [], address, error


@router.post(f"{_PATH}/choose")
def choose(request: Request, context: HomeContext, choice: _Text = "", project: _Text = "") -> Response:
    """Sign in to one of the projects that were offered; an offer is good once, in the browser that it was made to."""
    _client(request)
    try:
        known = oidc_members.take_flow(context, request.cookies.get(_COOKIE.name, ""), choice)
        offered = dict(known.get("members", ()))
        # Only what was offered in this sign-in: the form could name any project.
        if project not in offered:
            raise SignInRefusedError(
                f"the project {project[:64]!r}",
                expected="one of the offered ones",
                do="begin the sign-in again on the sign-in page",
            )
        member = context.members.get(project, offered[project])
    except LuthierError as error:
        return sign_in_form(request, "/", error)
    return _signed_in(request, context, member, own_address(str(known.get("next", "/"))))


def _signed_in(request: Request, context: Context, member: Member, address: str) -> Response:
    answer = let_in(request, oidc_members.sign_in_by_provider(context, member), address)
    # It has done its work; a new sign-in gets a new secret.
    answer.delete_cookie(_COOKIE.name, path=_PATH)
    return answer


def _client(request: Request) -> OidcClient:
    client: OidcClient | None = request.app.state.oidc
    if client is None:
        raise NotFoundError(
            "no identity provider is configured",
            expected="the setting LUTHIER_OIDC_ISSUER",
            do="sign in with a key or a password",
        )
    return client


@router.get(_ADDRESS)
def settings(request: Request, context: HomeContext, caller: Admin) -> Response:
    """The provider, and which groups lead to which projects."""
    return _page(request, context, caller, {})


@router.post(f"{_ADDRESS}/groups")
def map_group(
    request: Request, context: HomeContext, caller: Admin, name: _Text = "", project: _Text = "", role: _Text = ""
) -> Response:
    """Map a group to a project."""
    try:
        made = oidc_members.map_group(context, caller, name, project, role)
    except LuthierError as error:
        given = {"name": name, "project": project, "role": role}
        return _page(request, context, caller, {"error": error, "given": given}, status=status_of(error))
    return redirect(
        request, _ADDRESS, f"Members of {made.name} are signed in as {made.role} from their next sign-in on."
    )


@router.post(f"{_ADDRESS}/groups/remove")
def unmap_group(
    request: Request, context: HomeContext, caller: Admin, name: _Text = "", project: _Text = ""
) -> Response:
    """Remove the mapping of a group to a project."""
    try:
        oidc_members.unmap_group(context, caller, name, project)
    except LuthierError as error:
        return _page(request, context, caller, {"error": error}, status=status_of(error))
    return redirect(
        request, _ADDRESS, f"{name} no longer gives access to it; its members lose access with their next sign-in."
    )


@router.post(f"{_ADDRESS}/check")
def check(request: Request, context: HomeContext, _caller: Admin) -> Response:
    """Ask the provider for its discovery document and its keys."""
    client = _client(request)

    def work() -> Led:
        found = client.check(context.progress)
        return Led(_ADDRESS, f"The provider answers: {found['issuer']} signs in at {found['authorization_endpoint']}.")

    return page_work(request).answer(request, "Checking the connection to the provider", work, back=_ADDRESS)


def _page(request: Request, context: Context, caller: Caller, values: dict[str, Any], *, status: int = 200) -> Response:
    client: OidcClient | None = request.app.state.oidc
    provider = None if client is None else client.provider
    projects = access.known_projects(context, caller)
    common = {
        "provider": provider,
        "redirect_url": (provider and provider.redirect_url) or server_address(request, _CALLBACK),
        "groups": oidc_members.list_groups(context, caller),
        "projects": projects,
        "names": {one.project_id: one.name for one in projects},
        "roles": ROLES,
        "may_change": access.may_open_projects(caller),
        "given": {"name": "", "project": caller.project_id, "role": "trainer"},
    }
    return show(request, "sign_in", common | values, status=status)
