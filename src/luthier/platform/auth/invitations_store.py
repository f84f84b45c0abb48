"""Invitations: links that make a member of a project, once: record and store. Of links only digests are kept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal

from sqlalchemy import update

from luthier.core.errors import ConflictError, NotFoundError
from luthier.core.frozen_model import FrozenModel
from luthier.core.system.clock_jump import SLACK_SECONDS
from luthier.platform.auth.members_store import Role
from luthier.platform.db.store import Missing, RecordTable, Store
from luthier.platform.db.tables import invitations

InvitationState = Literal["open", "accepted", "expired", "revoked"]


class Invitation(FrozenModel):
    """An invitation, without its link. Times are seconds since 1970 by the database's clock.

    Attributes:
        invitation_id: Its id, which is no secret.
        project_id: The project that it makes a member of.
        role: What the member may do; see `SCOPES_OF`.
        recipient: For whom it was made, in the words of its author; empty where nothing was given.
        created_by: Who made it.
        created_at: When it was made.
        expires_at: When it ends.
        accepted_at: When it was accepted; None before.
        accepted_by: The name of the member that it made; None before.
        revoked_at: When it was withdrawn; None if it was not.
    """

    invitation_id: str
    project_id: str
    role: Role
    recipient: str = ""
    created_by: str = ""
    created_at: float = 0.0
    expires_at: float = 0.0
    accepted_at: float | None = None
    accepted_by: str | None = None
    revoked_at: float | None = None

    def state(self, now: float) -> InvitationState:
        """Whether it can be accepted at a time, in seconds since 1970; if not, why."""
        if self.accepted_at is not None:
            return "accepted"
        if self.revoked_at is not None:
            return "revoked"
        # One that lasts longer than it was made for is over, too: the clock was set back since.
        is_over = self.expires_at <= now or now + SLACK_SECONDS < self.created_at
        return "expired" if is_over else "open"


_INVITATIONS: Final = RecordTable(
    invitations,
    Invitation,
    key="invitation_id",
    missing=Missing(
        "no invitation {key!r}", "the id of an invitation of this project", "see the list: luthier users invitations"
    ),
)


class InvitationStore(Store):
    """The invitations of all projects."""

    def add(self, invitation: Invitation, digest: str, *, seconds: float) -> Invitation:
        """Store an invitation; its times are set here, by the database's clock.

        Args:
            invitation: Without times.
            digest: SHA-256 of its link; the link itself is not stored.
            seconds: How long the link works.
        """
        with self._write() as connection:
            now = self._database.clock(connection)
            made = invitation.model_copy(update={"created_at": now, "expires_at": now + seconds})
            return _INVITATIONS.insert(connection, made, digest=digest)

    def list(self, project_id: str, *, limit: int | None = None) -> Sequence[Invitation]:
        """The invitations of a project, newest first."""
        return self._list(_INVITATIONS, project_id=project_id, limit=limit)

    def of_link(self, digest: str) -> Invitation | None:
        """The invitation of a link, whatever its state; None where there is none."""
        return self._find(_INVITATIONS, invitations.c.digest == digest)

    def revoke(self, project_id: str, invitation_id: str) -> Invitation:
        """Withdraw an invitation; a second time changes nothing.

        Raises:
            NotFoundError: The project has no such invitation.
            ConflictError: It was accepted.
        """
        with self._write() as connection:
            found = _INVITATIONS.get(connection, invitation_id, is_locked=True, project_id=project_id)
            if found.accepted_at is not None:
                raise ConflictError(
                    f"the invitation {invitation_id} was accepted by {found.accepted_by}",
                    expected="an invitation that is open",
                    do="remove the member instead: luthier users remove NAME",
                )
            if found.revoked_at is not None:
                return found
            now = self._database.clock(connection)
            _INVITATIONS.change(connection, invitation_id, {"revoked_at": now})
            return found.model_copy(update={"revoked_at": now})

    def accept(self, digest: str, name: str) -> Invitation:
        """Mark an invitation as accepted.

        Args:
            digest: SHA-256 of its link.
            name: Of the member that is made of it in the same transaction.

        Raises:
            NotFoundError: No such link.
            ConflictError: It was accepted, was withdrawn, or has expired.
        """
        with self._write() as connection:
            now = self._database.clock(connection)
            columns = invitations.c
            is_open = columns.accepted_at.is_(None) & columns.revoked_at.is_(None) & (columns.expires_at > now)
            # The update is the check: of two requests with the same link only one changes the row.
            taken = update(invitations).where((columns.digest == digest) & is_open)
            changed = connection.execute(taken.values(accepted_at=now, accepted_by=name))
            found = _INVITATIONS.first(connection, columns.digest == digest)
            if found is None:
                raise no_such_invitation()
            if changed.rowcount == 0 or found.created_at > now + SLACK_SECONDS:
                raise not_open(found, now)
            return found


def no_such_invitation() -> NotFoundError:
    """The error for a link that is none."""
    return NotFoundError(
        "this invitation is not valid",
        expected="the whole link, as it was sent to you",
        do="copy it again, or ask its sender for a new one",
    )


def not_open(found: Invitation, now: float) -> ConflictError:
    """The error for an invitation that cannot be accepted any more."""
    came = {
        "accepted": f"this invitation was accepted already: it made the member {found.accepted_by!r}",
        "revoked": "this invitation was withdrawn",
        "expired": "this invitation has expired",
        "open": "this invitation could not be accepted",
    }[found.state(now)]
    do = (
        "sign in with your name and password; if you did not accept it yourself, tell an admin of the project"
        if found.accepted_at is not None
        else "ask its sender for a new one"
    )
    return ConflictError(came, expected="an invitation that is open; each can be used once", do=do)
