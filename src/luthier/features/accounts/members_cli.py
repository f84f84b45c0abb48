"""`luthier users`: who signs in to the pages of the server by a name and a password, and invitations by link."""

from __future__ import annotations

import getpass
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from luthier.core.text.printed_commands import in_home
from luthier.platform.cli.command import (
    DEFAULT_URL,
    Answer,
    HomeOption,
    JsonOption,
    LinksUrlOption,
    UrlOption,
    caller_of,
    checked_url,
    open_context,
)
from luthier.platform.cli.figures import utc

if TYPE_CHECKING:
    from rich.console import Console

    from luthier.core.access import Caller
    from luthier.platform.auth.invitations_store import Invitation
    from luthier.platform.auth.members_store import Member
    from luthier.platform.auth.oidc_store import SignInGroup

_ProjectOption = Annotated[str, typer.Option("--project", metavar="P", help="The project to join.")]


def invite(
    role: Annotated[
        Literal["viewer", "trainer", "admin"],
        typer.Option(
            "--role", help="viewer: view and use models. trainer: also train. admin: everything, also manage members."
        ),
    ],
    recipient: Annotated[str, typer.Option("--for", metavar="WHO", help="The recipient; shown in the list.")] = "",
    expires: Annotated[str, typer.Option("--expires", metavar="SPAN", help="How long the link is valid.")] = "7d",
    url: LinksUrlOption = None,
    project: _ProjectOption = "default",
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> Answer:
    """Print an invitation link for one new member, who chooses a name and a password."""
    from luthier.platform.auth import invitations as invites
    from luthier.platform.auth.public_address import is_loopback, link_root
    from luthier.platform.home.duration import parse_duration

    seconds = parse_duration(expires, option="--expires")
    given = None if url is None else checked_url(url)
    with open_context(home) as context:
        caller = caller_of(context, project)
        root = given or link_root(context, caller.project_id, DEFAULT_URL)
        made = invites.invite(context, caller, role, recipient=recipient, seconds=seconds)
        document = _invitation_document(made.invitation, made.invitation.created_at) | {"url": f"{root}{made.path}"}

    def tell(console: Console) -> None:
        console.print(str(document["url"]), soft_wrap=True)
        console.print(f"creates one {role}, once, until {utc(made.invitation.expires_at)} UTC; shown only once")
        if is_loopback(root):
            console.print(f"only this machine reaches {root}: give --url, or set LUTHIER_PUBLIC_URL", soft_wrap=True)

    return Answer(as_json, document, tell)


def list_invitations(
    project: _ProjectOption = "default", as_json: JsonOption = False, home: HomeOption = None
) -> Answer:
    """List invitations, newest first."""
    from luthier.platform.auth import invitations as invites

    with open_context(home) as context:
        found, now = invites.list_invitations(context, caller_of(context, project)), context.access.now()
    return Answer(
        as_json, [_invitation_document(one, now) for one in found], lambda console: _show(console, found, now)
    )


def revoke(
    invitation: Annotated[str, typer.Argument(metavar="ID", help="The id of an invitation.")],
    project: _ProjectOption = "default",
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> Answer:
    """Withdraw an invitation: its link is no longer valid."""
    from luthier.platform.auth import invitations as invites

    with open_context(home) as context:
        found = invites.revoke_invitation(context, caller_of(context, project), invitation)
        document = _invitation_document(found, context.access.now())
    return Answer(as_json, document, lambda console: console.print(f"{invitation} is withdrawn", soft_wrap=True))


def _invitation_document(one: Invitation, now: float) -> dict[str, object]:
    values = one.model_dump(mode="json", exclude={"invitation_id"})
    return {"id": one.invitation_id, "status": one.state(now), **values}


def _show(console: Console, found: Sequence[Invitation], now: float) -> None:
    from luthier.platform.cli.console import make_table, visible

    if not found:
        console.print(in_home("no invitations yet: make one with `luthier users invite --role trainer`"))
        return
    table = make_table(["for", "role", "status", "by", "expires", "invitation"], num_text_columns=6)
    for one in found:
        state = f"accepted by {one.accepted_by}" if one.accepted_by else one.state(now)
        texts = (one.recipient or "-", one.role, state, one.created_by)
        table.add_row(*map(visible, texts), f"{utc(one.expires_at)} UTC", one.invitation_id)
    console.print(table)


_Role = Literal["viewer", "trainer", "admin"]
_NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="The member's sign-in name.")]
_PasswordOption = Annotated[
    bool, typer.Option("--password-stdin", help="Read the password from the first line of stdin; never from an option.")
]


def add(
    name: _NameArgument,
    role: Annotated[
        _Role,
        typer.Option(
            "--role", help="viewer: view and use models. trainer: also train. admin: everything, also manage members."
        ),
    ],
    project: Annotated[str, typer.Option("--project", metavar="P", help="The project to work in.")] = "default",
    password_stdin: _PasswordOption = False,
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> Answer:
    """Create a member; prompts for the password twice."""
    from luthier.platform.auth import members
    from luthier.platform.cli.console import visible

    with open_context(home) as context:
        caller = caller_of(context, project)
        made = members.add_member(context, caller, name, _password(password_stdin), role)
    text = f"created {made.member_id}: {visible(made.name)} signs in with this name and the password"
    return Answer(as_json, _document(made), lambda console: console.print(text, soft_wrap=True))


def list_members(
    project: Annotated[
        str | None, typer.Option("--project", metavar="P", help="Only those of one project.", show_default="all")
    ] = None,
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> Answer:
    """List the members, oldest first."""
    from luthier.core.access import Caller
    from luthier.platform.auth import members
    from luthier.platform.auth import service as access

    with open_context(home) as context:
        known = access.list_projects(context) if project is None else [context.access.project(project)]
        names = {one.project_id: one.name for one in known}
        found = [one for place in names for one in members.list_members(context, Caller(project_id=place))]
    return Answer(as_json, [_document(one) for one in found], lambda console: _show_all(console, found, names))


def role(
    name: _NameArgument,
    new_role: Annotated[_Role, typer.Argument(metavar="ROLE", help="viewer, trainer or admin.")],
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> Answer:
    """Change the role of a member, from their next request on."""
    from luthier.platform.auth import members
    from luthier.platform.cli.console import visible

    with open_context(home) as context:
        member = members.find_member(context, name)
        changed = members.change_role(context, _local(member), member.member_id, new_role)
    text = f"{visible(changed.name)} is {changed.role} now"
    return Answer(as_json, _document(changed), lambda console: console.print(text, soft_wrap=True))


def password(
    name: _NameArgument,
    password_stdin: _PasswordOption = False,
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> Answer:
    """Set a new password for a member; prompts for it twice. Their sessions end, and their passkeys are removed."""
    from luthier.platform.auth import members
    from luthier.platform.cli.console import visible

    with open_context(home) as context:
        member = members.find_member(context, name)
        changed = members.change_password(context, _local(member), member.member_id, _password(password_stdin))
    text = f"{visible(changed.name)} has another password, and has to sign in again"
    return Answer(as_json, _document(changed), lambda console: console.print(text, soft_wrap=True))


def remove(name: _NameArgument, as_json: JsonOption = False, home: HomeOption = None) -> Answer:
    """Remove a member, who is signed out immediately; keys that they created stay."""
    from luthier.platform.auth import members
    from luthier.platform.cli.console import visible

    with open_context(home) as context:
        member = members.find_member(context, name)
        members.remove_member(context, _local(member), member.member_id)
    text = f"removed {visible(member.name)}"
    return Answer(as_json, _document(member), lambda console: console.print(text, soft_wrap=True))


def link(
    url: UrlOption = DEFAULT_URL,
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> Answer:
    """Print a link that signs you in to the pages as an admin; it works once, within 15 minutes."""
    from luthier.platform.auth.members import LINK_SECONDS, make_link

    root = checked_url(url)
    with open_context(home) as context:
        path = f"/welcome/{make_link(context)}"
    document = {"url": f"{root}{path}", "path": path, "expires_in_seconds": LINK_SECONDS}

    def tell(console: Console) -> None:
        console.print(document["url"], soft_wrap=True)
        console.print(f"works once, for {LINK_SECONDS / 60:.0f} minutes, where the server of this home runs")

    return Answer(as_json, document, tell)


_GroupArgument = Annotated[str, typer.Argument(metavar="GROUP", help="The group's name at the identity provider.")]


def list_groups(as_json: JsonOption = False, home: HomeOption = None) -> Answer:
    """List the groups of the identity provider with the projects that they are mapped to."""
    from luthier.core.access import Caller
    from luthier.platform.auth import oidc_members
    from luthier.platform.auth import service as access

    with open_context(home) as context:
        found = oidc_members.list_groups(context, Caller())
        names = {one.project_id: one.name for one in access.list_projects(context)}
    rows = [_group_document(one) for one in found]

    def tell(console: Console) -> None:
        from luthier.platform.cli.console import make_table, visible

        if not rows:
            console.print(in_home("no groups yet: add one with `luthier users map GROUP --project P --role trainer`"))
            return
        table = make_table(["group", "project", "role"], num_text_columns=3)
        for row in rows:
            table.add_row(visible(row["group"]), visible(names.get(row["project_id"], row["project_id"])), row["role"])
        console.print(table)

    return Answer(as_json, rows, tell)


def map_group(
    group: _GroupArgument,
    role: Annotated[_Role, typer.Option("--role", help="viewer, trainer or admin.")],
    project: _ProjectOption = "default",
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> Answer:
    """Map a group of the identity provider to a project, from the next sign-in of its members on."""
    from luthier.core.access import Caller
    from luthier.platform.auth import oidc_members
    from luthier.platform.cli.console import visible

    with open_context(home) as context:
        made = oidc_members.map_group(context, Caller(), group, project, role)
    text = f"who is in {visible(made.name)} is a {made.role} of {visible(project)}, from the next sign-in on"
    return Answer(as_json, _group_document(made), lambda console: console.print(text, soft_wrap=True))


def unmap_group(
    group: _GroupArgument, project: _ProjectOption = "default", as_json: JsonOption = False, home: HomeOption = None
) -> Answer:
    """Remove the mapping of a group to a project; its members lose access with their next sign-in."""
    from luthier.core.access import Caller
    from luthier.platform.auth import oidc_members
    from luthier.platform.cli.console import visible

    with open_context(home) as context:
        oidc_members.unmap_group(context, Caller(), group, project)
    text = f"{visible(group)} is no longer mapped to {visible(project)}"
    return Answer(as_json, {"group": group, "project": project}, lambda console: console.print(text, soft_wrap=True))


def _group_document(group: SignInGroup) -> dict[str, str]:
    return {"group": group.name, "project_id": group.project_id, "role": group.role}


def _password(is_from_stdin: bool) -> str:
    """A password as a person or a program gives it. Raises RequestError without a terminal."""
    from luthier.core.errors import RequestError
    from luthier.core.text.utf8 import utf8_lines

    if is_from_stdin:
        # Only the line end is removed: blanks may belong to a password.
        return next(utf8_lines(sys.stdin, "what is on stdin"), "").rstrip("\r\n")
    # getpass would fall back to echoing the password where there is no terminal.
    if not sys.stdin.isatty():
        raise RequestError(
            "there is no terminal to ask for the password on",
            expected="a person, or the password on stdin",
            do="run it in a terminal, or give --password-stdin and pipe the password in",
        )
    try:
        first, second = getpass.getpass("password: "), getpass.getpass("the same again: ")
    except EOFError:  # Ctrl-D
        raise KeyboardInterrupt from None
    if second != first:
        raise RequestError("the two passwords differ", expected="the same one twice", do="try again")
    return first


def _local(member: Member) -> Caller:
    from luthier.core.access import Caller

    # The person at the machine acts in the member's project, whichever that is.
    return Caller(project_id=member.project_id)


def _document(member: Member) -> dict[str, object]:
    return {"id": member.member_id, **member.model_dump(mode="json", exclude={"member_id"})}


def _show_all(console: Console, found: Sequence[Member], projects: dict[str, str]) -> None:
    from luthier.platform.cli.console import make_table, visible

    if not found:
        console.print(in_home("no members yet: make one with `luthier users add NAME --role trainer`"))
        return
    table = make_table(["name", "role", "project", "since (UTC)", "member"], num_text_columns=5)
    for member in found:
        since = utc(member.created_at)
        project = projects.get(member.project_id, member.project_id)
        table.add_row(visible(member.name), member.role, visible(project), since, member.member_id)
    console.print(table)


COMMANDS: dict[str, Callable[..., Answer]] = {
    "add": add,
    "list": list_members,
    "role": role,
    "password": password,
    "remove": remove,
    "link": link,
    "invite": invite,
    "invitations": list_invitations,
    "revoke-invitation": revoke,
    "groups": list_groups,
    "map": map_group,
    "unmap": unmap_group,
}
