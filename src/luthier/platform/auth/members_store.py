"""Members, browser sessions and one-time sign-in links: records and store. Of secrets only digests are kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

from sqlalchemy import ColumnElement, bindparam, delete, insert, select, update

from luthier.core.access import ApiKey, Caller, Scope
from luthier.core.errors import ConflictError
from luthier.core.frozen_model import FrozenModel
from luthier.core.system.clock_jump import SLACK_SECONDS
from luthier.platform.auth.store import KEYS
from luthier.platform.db.database import Database
from luthier.platform.db.store import Missing, RecordTable, Store
from luthier.platform.db.tables import member_identities, members, projects, sign_in_links, watches, web_sessions

Role = Literal["viewer", "trainer", "admin"]
ROLES: Final[tuple[Role, ...]] = get_args(Role)
SignInWay = Literal["key", "password", "link", "oidc", "passkey"]
"""How a session was begun; oidc: by the identity provider."""
SCOPES_OF: Final[dict[Role, tuple[Scope, ...]]] = {
    "viewer": ("read", "infer"),
    "trainer": ("read", "train", "infer"),
    "admin": ("admin",),
}
"""viewer: look at all of the project, and ask its models. trainer: make and change it. admin: members and keys, too."""


class Member(FrozenModel):
    """A person with a name and a password, in one project.

    Attributes:
        member_id: Its id.
        project_id: The project that it belongs to.
        name: The name to sign in with, unique among all projects.
        role: What it may do; see `SCOPES_OF`.
        created_at: Seconds since 1970.
    """

    member_id: str
    project_id: str
    name: str
    role: Role
    created_at: float = 0.0


class Session(FrozenModel):
    """A browser that has signed in, and whom it acts for. Times are seconds since 1970.

    Attributes:
        caller: Whom it acts for. `key_id` is that of the key it signed in with, None for members and for a person at
            the machine.
        project_name: The name of the caller's project, to be shown.
        how: What it signed in with.
        created_at: When it began.
        expires_at: When it ends unless it is used before.
    """

    caller: Caller
    project_name: str
    how: SignInWay
    created_at: float
    expires_at: float


@dataclass(frozen=True, slots=True)
class OpenSession:
    """One of the sessions of a member, a key or a person at the machine. Times are seconds since 1970.

    Attributes:
        digest: SHA-256 of its secret.
        created_at: When it began.
        seen_at: When it was last used, to the hour.
        expires_at: When it ends unless it is used before.
    """

    digest: str
    created_at: float
    seen_at: float
    expires_at: float


@dataclass(frozen=True, slots=True)
class KnownSession:
    """A stored session, and whom it acts for. Times are seconds since 1970 by the database's clock.

    Attributes:
        project_id: Its project.
        project_name: The name of that project.
        member: The member who signed in; None for a key or a person at the machine.
        key: The key that signed in; None for a member or a person at the machine.
        created_at: When it began.
        seen_at: When it was last used, to the hour.
        expires_at: When it ends unless it is used before.
        now: The time of this read.
        is_external: Whether the member signs in by the identity provider.
        passkey_id: The passkey that it was begun with; None for all other ways.
    """

    project_id: str
    project_name: str
    member: Member | None
    key: ApiKey | None
    created_at: float
    seen_at: float
    expires_at: float
    now: float
    is_external: bool = False
    passkey_id: str | None = None


MEMBERS: Final = RecordTable(
    members,
    Member,
    key="member_id",
    clock="created_at",
    missing=Missing("no member {key!r}", "the id of a member of this project", "see the list of members"),
)
_SESSIONS: Final = RecordTable(web_sessions, OpenSession)


class MemberStore(Store):
    """Who signs in to the pages."""

    def __init__(self, database: Database) -> None:
        super().__init__(database)
        # Built once: every page asks for its session.
        self._session = (
            select(
                web_sessions,
                projects.c.name.label("project_name"),
                member_identities.c.subject.label("subject"),
                database.now.label("now"),
            )
            .join(projects, projects.c.project_id == web_sessions.c.project_id)
            .outerjoin(member_identities, member_identities.c.member_id == web_sessions.c.member_id)
            .where(web_sessions.c.digest == bindparam("its_digest"))
        )

    def add(self, member: Member, password: str) -> Member:
        """Store a member.

        Args:
            member: The member, whose time of creation is set here.
            password: The hash of the password.

        Raises:
            ConflictError: The name is taken.
        """
        conflict = ConflictError(
            f"a member {member.name!r} exists already", expected="a new name", do="choose another name"
        )
        with self._write(conflict) as connection:
            return MEMBERS.insert(connection, member, self._database.clock(connection), password=password)

    def list(self, project_id: str) -> Sequence[Member]:
        """The members of a project, oldest first."""
        return self._list(MEMBERS, order=[members.c.number], project_id=project_id)

    def get(self, project_id: str, member_id: str) -> Member:
        """One member.

        Raises:
            NotFoundError: The project has no such member.
        """
        return self._get(MEMBERS, member_id, project_id=project_id)

    def with_password(self, name: str) -> tuple[Member, str] | None:
        """A member by name, of any project, with the hash of the password; None where there is none."""
        found = self._rows(select(members).where(members.c.name == name))
        return (MEMBERS.of_row(found[0]), str(found[0]["password"])) if found else None

    def change(
        self,
        project_id: str,
        member_id: str,
        *,
        role: Role | None = None,
        password: str | None = None,
    ) -> Member:
        """Change a member.

        Args:
            project_id: The project.
            member_id: The member.
            role: The new role; None leaves it.
            password: The hash of the new password, which also ends the member's sessions; None leaves it.

        Raises:
            NotFoundError: The project has no such member.
        """
        given = {"role": role, "password": password}
        values = {name: value for name, value in given.items() if value is not None}
        with self._write() as connection:
            if values:
                MEMBERS.change(connection, member_id, values, project_id=project_id)
            if password is not None:
                # In the same transaction: sessions with the old password end with the change itself.
                connection.execute(delete(web_sessions).where(web_sessions.c.member_id == member_id))
            return MEMBERS.get(connection, member_id, project_id=project_id)

    def remove(self, project_id: str, member_id: str) -> None:
        """Remove a member with its sessions and its mail address.

        Raises:
            NotFoundError: The project has no such member.
        """
        with self._write() as connection:
            MEMBERS.remove(connection, member_id, project_id=project_id)
            # What is stored by the id of the member, such as the address for messages of the inbox.
            its = (watches.c.project_id == project_id) & (watches.c.name == member_id)
            connection.execute(delete(watches).where(its))

    def add_session(
        self,
        digest: str,
        project_id: str,
        *,
        seconds: float,
        member_id: str | None = None,
        key_id: str | None = None,
        passkey_id: str | None = None,
    ) -> None:
        """Store a session.

        Args:
            digest: SHA-256 of its secret.
            project_id: The project that it works in.
            seconds: How long it lasts without being used.
            member_id: The member who signed in; None for a key or a person at the machine.
            key_id: The key that signed in; None for a member or a person at the machine.
            passkey_id: The passkey that the member signed in with; None for all other ways.
        """
        values: dict[str, Any] = {"project_id": project_id, "member_id": member_id, "key_id": key_id}
        values["passkey_id"] = passkey_id
        with self._write() as connection:
            now = self._database.clock(connection)
            _SESSIONS.insert(connection, OpenSession(digest, now, now, now + seconds), **values)
            # Each new session sweeps out the expired ones, so that no job has to.
            connection.execute(delete(web_sessions).where(web_sessions.c.expires_at <= now))

    def session(self, digest: str) -> KnownSession | None:
        """A session that has not expired; None where there is none."""
        with self._database.read() as connection:
            row = connection.execute(self._session, {"its_digest": digest}).mappings().first()
            # By the database's clock, which wrote the end: the clocks of several servers may differ.
            if row is None or row["expires_at"] <= row["now"]:
                return None
            member_id, key_id = row["member_id"], row["key_id"]
            member = None if member_id is None else MEMBERS.get(connection, member_id)
            key = None if key_id is None else KEYS.get(connection, key_id)
        same = ("project_id", "project_name", "created_at", "seen_at", "expires_at", "passkey_id")
        values = {name: row[name] for name in same}
        is_external = row["subject"] is not None
        return KnownSession(member=member, key=key, now=float(row["now"]), is_external=is_external, **values)

    def sessions(self, project_id: str, *, member_id: str | None, key_id: str | None) -> Sequence[OpenSession]:
        """Sessions that have not ended, newest first.

        With neither a member nor a key they are those of the person at the machine.

        Args:
            project_id: The project.
            member_id: The member that has signed in.
            key_id: The key that was signed in with.
        """
        columns = web_sessions.c
        where = (_is_of(project_id, member_id, key_id), columns.expires_at > self._database.now)
        return self._list(_SESSIONS, *where, order=[columns.created_at.desc()])

    def end_others(
        self,
        digest: str,
        project_id: str,
        *,
        member_id: str | None,
        key_id: str | None,
    ) -> int:
        """End all sessions of a member, or of a key, but this one.

        Args:
            digest: SHA-256 of the session that stays.
            project_id: The project.
            member_id: The member whose sessions end; None for sessions of a key.
            key_id: The key whose sessions end; None for sessions of a member.

        Returns:
            The number of sessions that have ended.
        """
        others = _is_of(project_id, member_id, key_id) & (web_sessions.c.digest != digest)
        with self._write() as connection:
            return connection.execute(delete(web_sessions).where(others)).rowcount

    def extend(self, digest: str, seconds: float) -> None:
        """Let a session last longer, and note that it was used.

        Args:
            digest: SHA-256 of the session.
            seconds: How long it lasts from now on.
        """
        with self._write() as connection:
            now = self._database.clock(connection)
            values = {"seen_at": now, "expires_at": now + seconds}
            connection.execute(update(web_sessions).where(web_sessions.c.digest == digest).values(**values))

    def end_session(self, digest: str) -> None:
        """Forget a session; where there is none, nothing happens."""
        with self._write() as connection:
            connection.execute(delete(web_sessions).where(web_sessions.c.digest == digest))

    def add_link(self, digest: str, seconds: float) -> None:
        """Store a link that signs in once.

        Args:
            digest: SHA-256 of the link.
            seconds: How long it works.
        """
        with self._write() as connection:
            now = self._database.clock(connection)
            # Unused links are deleted when the next one is made.
            connection.execute(delete(sign_in_links).where(sign_in_links.c.expires_at <= now))
            connection.execute(insert(sign_in_links).values(digest=digest, expires_at=now + seconds))

    def use_link(self, digest: str, seconds: float) -> bool:
        """Use up a link that signs in; whether it was still valid.

        One that would be good for longer than it was made for is not: the clock was set back since.

        Args:
            digest: SHA-256 of the link.
            seconds: How long it was made for.
        """
        columns, now = sign_in_links.c, self._database.now
        is_good = (columns.expires_at > now) & (columns.expires_at <= now + seconds + SLACK_SECONDS)
        with self._write() as connection:
            # Deleting is the check: of two requests with the same link only one removes the row.
            used = delete(sign_in_links).where((columns.digest == digest) & is_good)
            return connection.execute(used).rowcount > 0


def _is_of(project_id: str, member_id: str | None, key_id: str | None) -> ColumnElement[bool]:
    """Whose sessions: a comparison with None means NULL."""
    columns = web_sessions.c
    found: ColumnElement[bool] = (
        (columns.project_id == project_id) & (columns.member_id == member_id) & (columns.key_id == key_id)
    )
    return found
