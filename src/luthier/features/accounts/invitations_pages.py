"""/settings/members/invitations and /invite/TOKEN: invite somebody by a link, withdraw it, accept it."""

from __future__ import annotations

from typing import Annotated, Any, Final

from fastapi import APIRouter, Form, Request
from fastapi.concurrency import run_in_threadpool
from starlette.responses import Response

from luthier.core.errors import BusyError, ConflictError, LuthierError, NotFoundError, RequestError
from luthier.features.accounts.members_pages import ADDRESS, members_page
from luthier.platform.auth import invitations as invites
from luthier.platform.auth import members as people
from luthier.platform.auth.invitations_store import Invitation
from luthier.platform.auth.members_store import Role, Session
from luthier.platform.auth.password_hashing import LEAST_PASSWORD_CHARACTERS
from luthier.platform.auth.public_address import learn_public_address, link_root, set_public_address
from luthier.platform.auth.rate_limiter import FailureLimit
from luthier.platform.home.context import Context
from luthier.platform.home.duration import parse_duration
from luthier.platform.ui.errors import status_of, with_retry_after
from luthier.platform.ui.forms import shown_once
from luthier.platform.ui.render import redirect, render
from luthier.platform.ui.settings_tabs import Id
from luthier.platform.ui.visitor import COOKIE, Admin, HomeContext, MaybeVisitor, address_of, remember, root_of

router = APIRouter()

_LIST: Final = f"{ADDRESS}/invitations"
ROLE_WORDS: Final[dict[Role, str]] = {
    "viewer": "see all of the project and ask its models",
    "trainer": "add data, train and deploy, too",
    "admin": "all of that, and manage members and keys",
}
_Text = Annotated[str, Form(max_length=2000)]


@router.post(_LIST)
def create(
    request: Request,
    context: HomeContext,
    caller: Admin,
    role: Annotated[Role, Form()],
    recipient: _Text = "",
    expires: _Text = "7d",
    public_url: _Text = "",
) -> Response:
    """Make an invitation, and lead to the page that shows its link once."""
    form = {"role": role, "recipient": recipient, "expires": expires, "public_url": public_url}
    try:
        seconds = parse_duration(expires, option="the time until it expires")
        learn_public_address(context, caller, public_url)
        made = invites.invite(context, caller, role, recipient=recipient, seconds=seconds)
    except LuthierError as error:
        values = {"error": error, "invitation_form": form}
        return members_page(request, context, caller, values, status=status_of(error))
    link = f"{link_root(context, caller.project_id, root_of(request))}{made.path}"
    shown = {"invitation_made": made.invitation, "invitation_link": link}
    return redirect(request, shown_once(request).put(request, ADDRESS, shown))


@router.post(f"{_LIST}/{{invitation_id}}/revoke")
def revoke(request: Request, context: HomeContext, caller: Admin, invitation_id: Id) -> Response:
    """Withdraw an invitation."""
    try:
        invites.revoke_invitation(context, caller, invitation_id)
    except ConflictError as error:
        return members_page(request, context, caller, {"error": error}, status=status_of(error))
    return redirect(request, ADDRESS, "The invitation is withdrawn: its link is no longer valid.")


@router.post(f"{ADDRESS}/address")
def change_address(request: Request, context: HomeContext, caller: Admin, public_url: _Text = "") -> Response:
    """Another address for links."""
    try:
        kept = set_public_address(context, caller, public_url)
    except RequestError as error:
        return members_page(request, context, caller, {"error": error, "address_given": public_url}, status=422)
    return redirect(request, ADDRESS, f"Links begin with {kept.url} from now on.")


@router.get("/invite/{token}")
def look(request: Request, context: HomeContext, session: MaybeVisitor, token: str) -> Response:
    """The form of who was invited; or the reason why the link cannot be used."""
    try:
        found = _found(request, context, token)
    except LuthierError as error:
        return _refused(request, error)
    return _form(request, context, token, found, session)


@router.post("/invite/{token}")
async def accept(
    request: Request,
    context: HomeContext,
    session: MaybeVisitor,
    token: str,
    name: _Text = "",
    password: _Text = "",
    again: _Text = "",
) -> Response:
    """Make the member, and sign them in."""
    try:
        found = await run_in_threadpool(_found, request, context, token)
    except LuthierError as error:
        return _refused(request, error)
    if session is not None:
        return _form(request, context, token, found, session)
    try:
        if password != again:
            raise RequestError("the two passwords differ", expected="the same one twice", do="type both again")
        # By the address of the client: one place in the queue of those who hash, whatever they type.
        made = await context.password_threads.run(
            address_of(request), lambda: invites.accept_invitation(context, token, name, password)
        )
        secret = await run_in_threadpool(people.sign_in_as, context, made)
    except BusyError:
        raise
    except LuthierError as error:
        return await run_in_threadpool(_again, request, context, token, name, error)
    notice = f"You are a member now, {made.name}. From now on sign in with this name and your password."
    return remember(request, redirect(request, "/", notice), secret)


@router.post("/invite/{token}/sign-out")
def sign_out(request: Request, context: HomeContext, token: str) -> Response:
    """End the session of this browser, so that the invitation can be accepted in it."""
    if secret := request.cookies.get(COOKIE):
        people.sign_out(context, secret)
    answer = redirect(request, f"/invite/{token}")
    answer.delete_cookie(COOKIE)
    return answer


def _found(request: Request, context: Context, token: str) -> Invitation:
    failures: FailureLimit = request.app.state.rating_failures
    missing: NotFoundError | None = None
    # Links cannot be guessed at 256 bits; the limit keeps one address from making the database look up at will.
    with failures.attempt(address_of(request)) as attempt:
        try:
            return invites.open_invitation(context, token)
        except NotFoundError as error:
            # Raised behind the block: one that an error ends counts as no attempt.
            attempt.failed, missing = True, error
    raise missing


def _again(request: Request, context: Context, token: str, name: str, error: LuthierError) -> Response:
    """The form with what was wrong; without the form where the invitation was used up meanwhile."""
    try:
        found = invites.open_invitation(context, token)
    except LuthierError as gone:
        return _refused(request, gone)
    return _form(request, context, token, found, None, name=name, error=error)


def _form(
    request: Request,
    context: Context,
    token: str,
    found: Invitation,
    session: Session | None,
    *,
    name: str | None = None,
    error: LuthierError | None = None,
) -> Response:
    values: dict[str, Any] = {
        "invitation": found,
        "project": context.access.project(found.project_id).name,
        "may_words": ROLE_WORDS[found.role],
        "address": f"/invite/{token}",
        "least": LEAST_PASSWORD_CHARACTERS,
        "name": found.recipient if name is None else name,
        "signed_in": session,
        "error": error,
    }
    # 409: the link is good, and this browser belongs to somebody who is a member already.
    status = 409 if session is not None else 200 if error is None else status_of(error)
    return render(request, "accounts/invitation.html", values, status=status)


def _refused(request: Request, error: LuthierError) -> Response:
    values = {"error": error, "invitation": None}
    return with_retry_after(render(request, "accounts/invitation.html", values, status=status_of(error)), error)
