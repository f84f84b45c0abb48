"""Use cases: invite people to a project by a link, withdraw an invitation, and accept one.

A link holds 256 random bits, of which only the digest is stored. It makes one member, with the role that the invitation
names, before it expires.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from luthier.core.access import Caller
from luthier.core.errors import RequestError
from luthier.core.ids import new_id
from luthier.platform.audit_log.service import record
from luthier.platform.auth.invitations_store import Invitation, no_such_invitation, not_open
from luthier.platform.auth.members import check_role, new_member
from luthier.platform.auth.members_store import Member, Role
from luthier.platform.auth.password_hashing import hashed
from luthier.platform.auth.service import digest_of
from luthier.platform.home.context import Context

USUAL_SECONDS: Final = 7 * 24 * 3600.0
LONGEST_SECONDS: Final = 90 * 24 * 3600.0
_LEAST_SECONDS: Final = 60.0
_MAX_RECIPIENT_CHARACTERS: Final = 100
_MAX_OPEN: Final = 200
_NUM_TOKEN_BYTES: Final = 32


@dataclass(frozen=True, slots=True)
class InvitationLink:
    """An invitation with its secret, which is shown only once.

    Attributes:
        invitation: The invitation.
        token: 256 random bits, URL-safe.
    """

    invitation: Invitation
    token: str

    @property
    def path(self) -> str:
        """The address of the page, without the server's."""
        return f"/invite/{self.token}"


def invite(
    context: Context, caller: Caller, role: Role, *, recipient: str = "", seconds: float = USUAL_SECONDS
) -> InvitationLink:
    """Make an invitation to the caller's project.

    Args:
        context: The home.
        caller: An admin of the project.
        role: What the member may do.
        recipient: For whom it is; shown in the list.
        seconds: How long it can be accepted.

    Raises:
        RequestError: A role, a recipient or a time that is not allowed.
    """
    check_role(role)
    recipient = " ".join(recipient.split())
    if len(recipient) > _MAX_RECIPIENT_CHARACTERS or not (recipient.isprintable() or not recipient):
        raise RequestError(
            f"a recipient of {len(recipient)} characters",
            expected=f"at most {_MAX_RECIPIENT_CHARACTERS} printable characters, or nothing",
            do="shorten it",
        )
    if not _LEAST_SECONDS <= seconds <= LONGEST_SECONDS:
        raise RequestError(
            f"an invitation for {seconds:,.0f} s",
            expected="from one minute to 90 days",
            do="choose a time in between, such as 7d",
        )
    now = context.access.now()
    known = context.invitations.list(caller.project_id)
    # Expired ones do not count: they bind nothing, and stay in the list for the record.
    if sum(one.state(now) == "open" for one in known) >= _MAX_OPEN:
        raise RequestError(
            f"{_MAX_OPEN} invitations of this project are open",
            expected="fewer than that",
            do="withdraw invitations that are no longer needed",
        )
    # Only the digest is stored: who reads the database cannot accept an invitation.
    token = secrets.token_urlsafe(_NUM_TOKEN_BYTES)
    asked = Invitation(
        invitation_id=new_id("invitation"),
        project_id=caller.project_id,
        role=role,
        recipient=recipient,
        created_by=caller.name,
    )
    with context.database.transaction():
        made = context.invitations.add(asked, digest_of(token), seconds=seconds)
        facts = {"role": role, "recipient": recipient, "seconds": seconds}
        record(context, caller, "invitation.created", made.invitation_id, facts)
    return InvitationLink(made, token)


def list_invitations(context: Context, caller: Caller) -> Sequence[Invitation]:
    """The invitations of the caller's project, newest first."""
    return context.invitations.list(caller.project_id)


def revoke_invitation(context: Context, caller: Caller, invitation_id: str) -> Invitation:
    """Withdraw an invitation; a second time changes nothing.

    Raises:
        NotFoundError: The project has no such invitation.
        ConflictError: It was accepted.
    """
    with context.database.transaction():
        found = context.invitations.revoke(caller.project_id, invitation_id)
        record(context, caller, "invitation.revoked", invitation_id)
    return found


def open_invitation(context: Context, token: str) -> Invitation:
    """The invitation of a link that can be accepted.

    Raises:
        NotFoundError: No such link.
        ConflictError: It was accepted or withdrawn, or has expired.
    """
    found = context.invitations.of_link(digest_of(token))
    if found is None:
        raise no_such_invitation()
    now = context.access.now()
    if found.state(now) != "open":
        raise not_open(found, now)
    return found


def accept_invitation(context: Context, token: str, name: str, password: str) -> Member:
    """Make a member of an invitation. Slow on purpose, since it hashes the password.

    Raises:
        NotFoundError: No such link.
        ConflictError: It was accepted or withdrawn, or has expired; or the name is taken. The invitation then stays
            open for another name.
        RequestError: The name or the password is not allowed.
        BusyError: The machine has no memory for a hash.
    """
    # Checked before the password is hashed, and again inside the transaction: hashing takes long.
    invitation = open_invitation(context, token)
    member = new_member(invitation.project_id, name, invitation.role)
    stored = hashed(password)
    caller = Caller(project_id=invitation.project_id, scopes=(), name=member.name, member_id=member.member_id)
    # One transaction: a name that is taken leaves the invitation open, and a used invitation makes no second member.
    with context.database.transaction():
        context.invitations.accept(digest_of(token), member.name)
        made = context.members.add(member, stored)
        facts = {"name": made.name, "role": made.role, "invited_by": invitation.created_by}
        record(context, caller, "invitation.accepted", invitation.invitation_id, facts)
        record(context, caller, "member.created", made.member_id, {"name": made.name, "role": made.role})
    return made
