"""`luthier users invite`, `invitations`, `revoke-invitation`: members by links, from the command line."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from luthier.platform.cli.command import (
    DEFAULT_URL,
    Answer,
    HomeOption,
    JsonOption,
    LinksUrlOption,
    caller_of,
    checked_url,
    open_context,
)

if TYPE_CHECKING:
    from rich.console import Console

    from luthier.platform.auth.invitations_store import Invitation

_ProjectOption = Annotated[str, typer.Option("--project", metavar="P", help="The project to join.")]


def invite(
    role: Annotated[
        Literal["viewer", "trainer", "admin"],
        typer.Option("--role", help="viewer: read and use models. trainer: train, too. admin: all, and members."),
    ],
    recipient: Annotated[str, typer.Option("--for", metavar="WHO", help="The recipient; shown in the list.")] = "",
    expires: Annotated[str, typer.Option("--expires", metavar="SPAN", help="How long the link is valid.")] = "7d",
    url: LinksUrlOption = None,
    project: _ProjectOption = "default",
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> Answer:
    """Print a link that makes one member, who chooses name and password."""
    from luthier.platform.auth import invitations as invites
    from luthier.platform.auth.public_address import is_loopback, link_root
    from luthier.platform.home.duration import parse_duration

    seconds = parse_duration(expires, option="--expires")
    given = None if url is None else checked_url(url)
    with open_context(home) as context:
        caller = caller_of(context, project)
        root = given or link_root(context, caller.project_id, DEFAULT_URL)
        made = invites.invite(context, caller, role, recipient=recipient, seconds=seconds)
        document = _document(made.invitation, made.invitation.created_at) | {"url": f"{root}{made.path}"}

    def tell(console: Console) -> None:
        console.print(str(document["url"]), soft_wrap=True)
        console.print(f"makes one {role}, once, until {_when(made.invitation.expires_at)}; shown this once")
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
    return Answer(as_json, [_document(one, now) for one in found], lambda console: _show(console, found, now))


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
        document = _document(found, context.access.now())
    return Answer(as_json, document, lambda console: console.print(f"{invitation} is withdrawn", soft_wrap=True))


def _document(one: Invitation, now: float) -> dict[str, object]:
    values = one.model_dump(mode="json", exclude={"invitation_id"})
    return {"id": one.invitation_id, "status": one.state(now), **values}


def _when(moment: float) -> str:
    return f"{datetime.fromtimestamp(moment, UTC):%Y-%m-%d %H:%M} UTC"


def _show(console: Console, found: Sequence[Invitation], now: float) -> None:
    from luthier.platform.cli.console import make_table, visible

    if not found:
        console.print("no invitations yet: make one with `luthier users invite --role trainer`")
        return
    table = make_table(["for", "role", "status", "by", "expires", "invitation"], num_text_columns=6)
    for one in found:
        state = f"accepted by {one.accepted_by}" if one.accepted_by else one.state(now)
        texts = (one.recipient or "-", one.role, state, one.created_by)
        table.add_row(*map(visible, texts), _when(one.expires_at), one.invitation_id)
    console.print(table)


COMMANDS: dict[str, Callable[..., Answer]] = {
    "invite": invite,
    "invitations": list_invitations,
    "revoke-invitation": revoke,
}
