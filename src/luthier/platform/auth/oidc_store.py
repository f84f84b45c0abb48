"""Store of sign-in by an identity provider: groups, identities of members, and sign-ins in progress."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import delete, insert, select

from luthier.core.errors import NotFoundError
from luthier.core.system.clock_jump import SLACK_SECONDS
from luthier.platform.auth.members_store import MEMBERS, Member, Role
from luthier.platform.db.store import Store
from luthier.platform.db.tables import member_identities, members, sign_in_flows, sign_in_groups

FLOW_SECONDS: Final = 600.0
"""How long a person may take at the provider."""


@dataclass(frozen=True, slots=True)
class SignInGroup:
    """A group of the provider: who is in it is a member of the project, with the role."""

    name: str
    project_id: str
    role: Role


class OidcStore(Store):
    """Every method is one short transaction."""

    def groups(self) -> Sequence[SignInGroup]:
        """All groups with their projects, by name."""
        columns = sign_in_groups.c
        query = select(columns.name, columns.project_id, columns.role).order_by(columns.name, columns.project_id)
        return [SignInGroup(row["name"], row["project_id"], row["role"]) for row in self._rows(query)]

    def put_group(self, group: SignInGroup) -> None:
        """Add a group to a project, or change its role there."""
        columns = sign_in_groups.c
        is_it = (columns.name == group.name) & (columns.project_id == group.project_id)
        with self._write() as connection:
            now = self._database.clock(connection)
            # Delete and insert: there is no upsert for both databases, and writers take turns.
            connection.execute(delete(sign_in_groups).where(is_it))
            values = {"name": group.name, "project_id": group.project_id, "role": group.role, "created_at": now}
            connection.execute(insert(sign_in_groups).values(**values))

    def remove_group(self, name: str, project_id: str) -> None:
        """Remove a group from a project.

        Raises:
            NotFoundError: The group does not lead to this project.
        """
        columns = sign_in_groups.c
        with self._write() as connection:
            gone = connection.execute(
                delete(sign_in_groups).where((columns.name == name) & (columns.project_id == project_id))
            )
            if gone.rowcount == 0:
                raise NotFoundError(
                    f"the group {name[:100]!r} is not mapped to such a project",
                    expected="a group and a project of the list",
                    do="see the list of groups",
                )

    def members_of(self, issuer: str, subject: str) -> Sequence[Member]:
        """The members that a person of the provider is, one a project; oldest first.

        Args:
            issuer: The provider's URL, as its tokens name it (`iss`).
            subject: The person's id at the provider (`sub`).
        """
        columns = member_identities.c
        query = (
            MEMBERS.select.join(member_identities, columns.member_id == members.c.member_id)
            .where(columns.issuer == issuer, columns.subject == subject)
            .order_by(members.c.number)
        )
        return self._records(MEMBERS, query)

    def add_identity(self, member_id: str, issuer: str, subject: str) -> None:
        """Store the identity under which a provider knows a member.

        Args:
            member_id: The member.
            issuer: The provider's URL, as its tokens name it (`iss`).
            subject: The member's id at the provider (`sub`).
        """
        values = {"member_id": member_id, "issuer": issuer, "subject": subject}
        with self._write() as connection:
            connection.execute(insert(member_identities).values(**values))

    def has_identity(self, member_id: str) -> bool:
        """Whether a member signs in by a provider."""
        query = select(member_identities.c.member_id).where(member_identities.c.member_id == member_id)
        return self._scalar(query) is not None

    def put_flow(self, digest: str, browser_digest: str, document: Mapping[str, Any]) -> None:
        """Store a sign-in that has begun, for ten minutes, and delete those that are older.

        Args:
            digest: SHA-256 of the `state` that the provider sends back.
            browser_digest: SHA-256 of the cookie of the browser that began it.
            document: What the end of the sign-in needs, as JSON values.
        """
        columns = sign_in_flows.c
        with self._write() as connection:
            now = self._database.clock(connection)
            # Removed here, since sign-ins that are given up are never fetched: no other task cleans the table.
            connection.execute(delete(sign_in_flows).where(columns.expires_at <= now))
            values = {"digest": digest, "browser_digest": browser_digest, "document": json.dumps(dict(document))}
            connection.execute(insert(sign_in_flows).values(**values, expires_at=now + FLOW_SECONDS))

    def take_flow(self, digest: str, browser_digest: str) -> dict[str, Any] | None:
        """What was stored of a sign-in that this browser has begun, once; None for another one or an expired one.

        Args:
            digest: SHA-256 of the `state` that the provider has sent back.
            browser_digest: SHA-256 of the cookie of the browser.
        """
        columns, now = sign_in_flows.c, self._database.now
        # One that lasts longer than it was made for was written before the clock was set back.
        is_good = (columns.expires_at > now) & (columns.expires_at <= now + FLOW_SECONDS + SLACK_SECONDS)
        is_it = (columns.digest == digest) & (columns.browser_digest == browser_digest)
        with self._write() as connection:
            document = connection.execute(select(columns.document).where(is_it, is_good)).scalar()
            # Deleting is the check: of two requests with the same state only one removes the row.
            used = connection.execute(delete(sign_in_flows).where(is_it))
        if document is None or used.rowcount == 0:
            return None
        found: dict[str, Any] = json.loads(document)
        return found
