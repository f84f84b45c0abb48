"""Members, sessions of browsers, and links that sign in once. Of secrets only digests are kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, RowMapping, delete, insert, select, update
from sqlalchemy.exc import IntegrityError

from luthier.core.access import ApiKey
from luthier.core.errors import ConflictError, NotFoundError
from luthier.core.system.clock_jump import SLACK_SECONDS
from luthier.platform.audit_log.records import AuditEvent
from luthier.platform.audit_log.store import append_audit_event
from luthier.platform.auth.member_records import Member, Role
from luthier.platform.auth.store import key_from
from luthier.platform.db.database import Database
from luthier.platform.db.tables import api_keys, members, projects, sign_in_links, web_sessions


@dataclass(frozen=True, slots=True)
class OpenSession:
    """One of the sessions of somebody. digest: of its secret. seen_at: to the hour."""

    digest: str
    created_at: float
    seen_at: float
    expires_at: float


@dataclass(frozen=True, slots=True)
class KnownSession:
    """A session as it is kept, and whom it stands for; both None for a person at the machine. now: the clock's time."""

    project_id: str
    project_name: str
    member: Member | None
    key: ApiKey | None
    created_at: float
    seen_at: float
    expires_at: float
    now: float


class MemberStore:
    """Who signs in to the pages. Every method is one short transaction, which writes the audit events too."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, member: Member, password: str, audit_event: AuditEvent | None = None) -> Member:
        """Keep a member with the hash of a password. Raises ConflictError where the name is taken."""
        try:
            with self._database.write() as connection:
                made = member.model_copy(update={"created_at": self._database.clock(connection)})
                connection.execute(insert(members).values(**made.model_dump(), password=password))
                self._log(connection, audit_event)
                return made
        except IntegrityError as error:
            raise ConflictError(
                f"a member {member.name!r} exists already", expected="a new name", do="choose another name"
            ) from error

    def list(self, project_id: str) -> Sequence[Member]:
        """The members of a project, oldest first."""
        query = select(members).where(members.c.project_id == project_id).order_by(members.c.number)
        with self._database.read() as connection:
            return [_member(row) for row in connection.execute(query).mappings()]

    def get(self, project_id: str, member_id: str) -> Member:
        """One member. Raises NotFoundError, also for another project's."""
        is_it = (members.c.project_id == project_id) & (members.c.member_id == member_id)
        with self._database.read() as connection:
            row = connection.execute(select(members).where(is_it)).mappings().first()
        if row is None:
            raise _no_such_member(member_id)
        return _member(row)

    def with_password(self, name: str) -> tuple[Member, str] | None:
        """A member by name, of whatever project, with the hash of the password; None where there is none."""
        with self._database.read() as connection:
            row = connection.execute(select(members).where(members.c.name == name)).mappings().first()
        return None if row is None else (_member(row), str(row["password"]))

    def change(
        self,
        project_id: str,
        member_id: str,
        *,
        role: Role | None = None,
        password: str | None = None,
        audit_event: AuditEvent | None = None,
    ) -> Member:
        """Change the role, or the hash of the password, which also ends the member's sessions. Raises NotFoundError."""
        is_it = (members.c.project_id == project_id) & (members.c.member_id == member_id)
        values: dict[str, Any] = {} if role is None else {"role": role}
        values |= {} if password is None else {"password": password}
        with self._database.write() as connection:
            if values:
                connection.execute(update(members).where(is_it).values(**values))
            row = connection.execute(select(members).where(is_it)).mappings().first()
            if row is None:
                raise _no_such_member(member_id)
            if password is not None:
                connection.execute(delete(web_sessions).where(web_sessions.c.member_id == member_id))
            self._log(connection, audit_event)
        return _member(row)

    def remove(self, project_id: str, member_id: str, audit_event: AuditEvent | None = None) -> None:
        """Forget a member; the sessions end with that. Raises NotFoundError."""
        is_it = (members.c.project_id == project_id) & (members.c.member_id == member_id)
        with self._database.write() as connection:
            if connection.execute(delete(members).where(is_it)).rowcount == 0:
                raise _no_such_member(member_id)
            self._log(connection, audit_event)

    def add_session(
        self,
        digest: str,
        project_id: str,
        *,
        seconds: float,
        member_id: str | None = None,
        key_id: str | None = None,
        audit_event: AuditEvent | None = None,
    ) -> None:
        """Keep a session by the digest of its secret, for so many seconds."""
        with self._database.write() as connection:
            now = self._database.clock(connection)
            connection.execute(
                insert(web_sessions).values(
                    digest=digest,
                    project_id=project_id,
                    member_id=member_id,
                    key_id=key_id,
                    created_at=now,
                    seen_at=now,
                    expires_at=now + seconds,
                )
            )
            connection.execute(delete(web_sessions).where(web_sessions.c.expires_at <= now))
            self._log(connection, audit_event)

    def session(self, digest: str) -> KnownSession | None:
        """A session that has not expired; None where there is none."""
        query = (
            select(
                web_sessions,
                projects.c.name.label("project_name"),
                self._database.now.label("now"),
            )
            .join(projects, projects.c.project_id == web_sessions.c.project_id)
            .where(web_sessions.c.digest == digest)
        )
        with self._database.read() as connection:
            row = connection.execute(query).mappings().first()
            if row is None or row["expires_at"] <= row["now"]:
                return None
            member = key = None
            if row["member_id"] is not None:
                is_it = members.c.member_id == row["member_id"]
                member = _member(connection.execute(select(members).where(is_it)).mappings().one())
            if row["key_id"] is not None:
                its = api_keys.c.key_id == row["key_id"]
                key = key_from(connection.execute(select(api_keys).where(its)).mappings().one())
        return KnownSession(
            project_id=row["project_id"],
            project_name=row["project_name"],
            member=member,
            key=key,
            created_at=row["created_at"],
            seen_at=row["seen_at"],
            expires_at=row["expires_at"],
            now=float(row["now"]),
        )

    def sessions(self, project_id: str, *, member_id: str | None, key_id: str | None) -> Sequence[OpenSession]:
        """The sessions of a member, of who holds a key, or, with neither, of who is at the machine; newest first."""
        query = (
            select(web_sessions.c.digest, web_sessions.c.created_at, web_sessions.c.seen_at, web_sessions.c.expires_at)
            .where(_is_of(project_id, member_id, key_id), web_sessions.c.expires_at > self._database.now)
            .order_by(web_sessions.c.created_at.desc())
        )
        with self._database.read() as connection:
            return [OpenSession(**row) for row in connection.execute(query).mappings()]

    def end_others(
        self,
        digest: str,
        project_id: str,
        *,
        member_id: str | None,
        key_id: str | None,
        audit_event: AuditEvent | None = None,
    ) -> int:
        """Forget all of those sessions but this one; returns how many."""
        others = _is_of(project_id, member_id, key_id) & (web_sessions.c.digest != digest)
        with self._database.write() as connection:
            num_ended = connection.execute(delete(web_sessions).where(others)).rowcount
            if num_ended:
                self._log(connection, audit_event)
            return num_ended

    def extend(self, digest: str, seconds: float) -> None:
        """Let a session last for so many seconds from now on."""
        with self._database.write() as connection:
            now = self._database.clock(connection)
            values = {"seen_at": now, "expires_at": now + seconds}
            connection.execute(update(web_sessions).where(web_sessions.c.digest == digest).values(**values))

    def end_session(self, digest: str) -> None:
        """Forget a session; where there is none, nothing happens."""
        with self._database.write() as connection:
            connection.execute(delete(web_sessions).where(web_sessions.c.digest == digest))

    def add_link(self, digest: str, seconds: float) -> None:
        """Keep a link that signs in once, for so many seconds."""
        with self._database.write() as connection:
            now = self._database.clock(connection)
            connection.execute(delete(sign_in_links).where(sign_in_links.c.expires_at <= now))
            connection.execute(insert(sign_in_links).values(digest=digest, expires_at=now + seconds))

    def use_link(self, digest: str, seconds: float) -> bool:
        """Whether this link, made for so many seconds, was still good; it is not from now on.

        One that would be good for longer than it was made for is not: the clock was set back since.
        """
        columns, now = sign_in_links.c, self._database.now
        is_good = (columns.expires_at > now) & (columns.expires_at <= now + seconds + SLACK_SECONDS)
        with self._database.write() as connection:
            used = delete(sign_in_links).where((columns.digest == digest) & is_good)
            return connection.execute(used).rowcount > 0

    def _log(self, connection: Connection, audit_event: AuditEvent | None) -> None:
        if audit_event is not None:
            append_audit_event(connection, self._database.now, audit_event)


def _is_of(project_id: str, member_id: str | None, key_id: str | None) -> ColumnElement[bool]:
    """Whose sessions: a comparison with None asks for NULL."""
    columns = web_sessions.c
    found: ColumnElement[bool] = (
        (columns.project_id == project_id) & (columns.member_id == member_id) & (columns.key_id == key_id)
    )
    return found


def _member(row: RowMapping) -> Member:
    return Member(**{name: value for name, value in row.items() if name not in ("number", "password")})


def _no_such_member(member_id: str) -> NotFoundError:
    return NotFoundError(
        f"no member {member_id!r}", expected="the id of a member of this project", do="see the list of members"
    )
