"""/settings/members: who signs in by name and password: list, add, change, remove; and invitations."""

from __future__ import annotations

from typing import Annotated, Any, Final

from fastapi import APIRouter, Form, Request
from fastapi.concurrency import run_in_threadpool
from starlette.responses import Response

from luthier.core.access import Caller, project_option
from luthier.core.errors import BusyError, LuthierError
from luthier.platform.auth import members as people
from luthier.platform.auth.invitations import list_invitations
from luthier.platform.auth.members_store import ROLES, Role
from luthier.platform.auth.password_hashing import LEAST_PASSWORD_CHARACTERS
from luthier.platform.auth.public_address import public_address
from luthier.platform.home.context import Context
from luthier.platform.ui.errors import status_of
from luthier.platform.ui.forms import shown_once
from luthier.platform.ui.render import Advised, Page, redirect
from luthier.platform.ui.settings_tabs import Id, show
from luthier.platform.ui.visitor import Admin, HomeContext, root_of

router = APIRouter()
PAGE = Page(
    "Members", "/settings/members", "admin", order=30, group="settings", advised=(Advised(commands=("users",)),)
)

ADDRESS: Final = "/settings/members"
SPANS: Final = {"1d": "in a day", "7d": "in 7 days", "30d": "in 30 days", "90d": "in 90 days"}
_MAX_ENDED: Final = 50
_Text = Annotated[str, Form(max_length=2000)]


@router.get(ADDRESS)
def members(request: Request, context: HomeContext, caller: Admin) -> Response:
    """The members of the project, and a form for another one."""
    return members_page(request, context, caller, shown_once(request).take(request))


@router.post(ADDRESS)
async def add(
    request: Request,
    context: HomeContext,
    caller: Admin,
    role: Annotated[Role, Form()],
    name: _Text = "",
    password: _Text = "",
) -> Response:
    """Make a member of the visitor's project."""
    try:
        # Hashing takes a large part of a second of CPU; the event loop and the request threads stay free for others.
        made = await context.password_threads.run(
            _name_of(caller), lambda: people.add_member(context, caller, name, password, role)
        )
    # A LuthierError, too, but it has its own page with Retry-After.
    except BusyError:
        raise
    except LuthierError as error:
        values = {"error": error, "form": {"name": name, "role": role}}
        return await run_in_threadpool(members_page, request, context, caller, values, status=422)
    return redirect(request, ADDRESS, f"{made.name} can now sign in with this name and password.")


@router.post(f"{ADDRESS}/{{member_id}}/role")
def change_role(
    request: Request, context: HomeContext, caller: Admin, member_id: Id, role: Annotated[Role, Form()]
) -> Response:
    """Another role, from the member's next request on."""
    try:
        changed = people.change_role(context, caller, member_id, role)
    except LuthierError as error:
        return _refused(request, context, caller, error)
    return redirect(request, ADDRESS, f"{changed.name} is {changed.role} now.")


@router.post(f"{ADDRESS}/{{member_id}}/password")
async def change_password(
    request: Request, context: HomeContext, caller: Admin, member_id: Id, password: _Text = ""
) -> Response:
    """New password for somebody who has lost theirs."""
    try:
        changed = await context.password_threads.run(
            _name_of(caller), lambda: people.change_password(context, caller, member_id, password)
        )
    except BusyError:
        raise
    except LuthierError as error:
        return await run_in_threadpool(_refused, request, context, caller, error)
    return redirect(request, ADDRESS, f"{changed.name} has a new password and has to sign in again.")


@router.post(f"{ADDRESS}/{{member_id}}/remove")
def remove(request: Request, context: HomeContext, caller: Admin, member_id: Id) -> Response:
    """Remove a member, who is signed out immediately."""
    try:
        removed = people.remove_member(context, caller, member_id)
    except LuthierError as error:
        return _refused(request, context, caller, error)
    return redirect(request, ADDRESS, f"{removed.name} is removed, and signed out everywhere.")


def _name_of(caller: Caller) -> str:
    """Whose place in the line of the threads that hash."""
    # One place in the queue a person: an admin who adds many members does not delay others.
    return caller.member_id or caller.key_id or "local"


def _refused(request: Request, context: Context, caller: Caller, error: LuthierError) -> Response:
    return members_page(request, context, caller, {"error": error}, status=status_of(error))


def members_page(
    request: Request, context: Context, caller: Caller, values: dict[str, Any], *, status: int = 200
) -> Response:
    """The tab of members and invitations.

    Args:
        request: The request that it answers.
        context: The home.
        caller: Whose project it is.
        values: What a form held and why it was refused, or what is shown once.
        status: Of the response.
    """
    now = context.access.now()
    invited = [(one, one.state(now)) for one in list_invitations(context, caller)]
    ended = [pair for pair in invited if pair[1] != "open"]
    common = {
        "members": people.list_members(context, caller),
        "roles": ROLES,
        "least": LEAST_PASSWORD_CHARACTERS,
        "form": {"name": "", "role": "trainer"},
        "invitations": [one for one, state in invited if state == "open"],
        "ended_invitations": ended[:_MAX_ENDED],
        "num_ended_invitations": len(ended),
        "invitation_form": {"role": "viewer", "recipient": "", "expires": "7d", "public_url": root_of(request)},
        "invitation_made": None,
        "spans": SPANS,
        "links": public_address(context, caller.project_id),
        "address_given": "",
        "project_words": project_option(caller.project_id),
    }
    return show(request, "members", common | values, status=status)
