"""The audit log: who did what to what, in a chain of hashes; append, search and verify.

Each entry's hash covers that of the one before it, so that a change anywhere shows in all that follows. Triggers of the
database also refuse updates and deletions.

Sources: Haber & Stornetta, 1991, "How to time-stamp a digital document", doi:10.1007/BF00196791.
"""

from __future__ import annotations

import json
import re
from typing import Any, Final

from sqlalchemy import ColumnElement, Connection, select

from luthier.core.access import Caller
from luthier.core.errors import RequestError
from luthier.core.frozen_model import FrozenModel
from luthier.core.ids import canonical_json, sha256_bytes, sha256_document
from luthier.core.text.utf8 import storable
from luthier.platform.db.store import RecordTable, Store
from luthier.platform.db.tables import audit_log
from luthier.platform.home.context import Context
from luthier.platform.home.logs import masked

GENESIS_HASH: Final = "0" * 64
"""The previous hash of the first entry."""


class AuditEvent(FrozenModel):
    """An action to be logged.

    Attributes:
        actor: Who did it.
        action: What was done, such as `file.deleted`.
        subject: The id of the object.
        project_id: The project it belongs to; None for the whole home.
        document: Details as JSON text, without secrets.
    """

    actor: str
    action: str
    subject: str
    project_id: str | None
    document: str = "{}"


class AuditEntry(FrozenModel):
    """One entry of the log.

    Attributes:
        number: 1, 2, 3 ... without a gap.
        created_at: Seconds since 1970 by the database's clock, to the millisecond.
        actor: Who did it.
        action: What was done, such as `file.deleted`.
        subject: The id of the object.
        project_id: The project it belongs to; None for the whole home.
        document: Details as JSON text, without secrets.
        previous_hash: The hash of the entry before.
        hash: SHA-256 over all other fields, in hexadecimal digits.
    """

    number: int
    created_at: float
    actor: str
    action: str
    subject: str
    project_id: str | None
    document: str
    previous_hash: str
    hash: str = ""

    def hash_of_it(self) -> str:
        """The hash of an entry with this content: SHA-256 over its canonical JSON, which holds the hash before it."""
        # previous_hash is part of it: that is what links the chain.
        return sha256_document(self.model_dump(exclude={"hash"}))


class AuditVerdict(FrozenModel):
    """The result of verifying the chain.

    Attributes:
        is_whole: Whether every entry is unchanged.
        num_entries: How many entries are whole, from the first one on.
        head_number: The number of the last of these; 0 in an empty log.
        head_hash: Its hash; `GENESIS_HASH` in an empty log. Keep both outside of the database: a chain alone cannot
            show that its end was cut off.
        broken_number: The first changed entry; None if there is none.
        problem: What is wrong with that entry.
    """

    is_whole: bool
    num_entries: int
    head_number: int
    head_hash: str
    broken_number: int | None = None
    problem: str | None = None


_ENTRIES: Final = RecordTable(audit_log, AuditEntry)


class AuditLogStore(Store):
    """The log of one database."""

    def append(self, audit_event: AuditEvent) -> AuditEntry:
        """Add an entry."""
        with self._write() as connection:
            return append_audit_event(connection, self._database.now, audit_event)

    def after(self, number: int, *, limit: int) -> list[AuditEntry]:
        """At most `limit` entries behind this number, oldest first."""
        return self._list(_ENTRIES, audit_log.c.number > number, order=[audit_log.c.number], limit=limit)

    def newest(
        self,
        *,
        limit: int,
        project_id: str | None = None,
        before: int | None = None,
        actor: str = "",
        action: str = "",
    ) -> list[AuditEntry]:
        """The newest entries, newest first.

        Args:
            limit: The most entries.
            project_id: Only entries of this project.
            before: Only entries with a smaller number.
            actor: A part of the actor, regardless of capitals; empty for any.
            action: The whole action; empty for any.
        """
        where = [] if before is None else [audit_log.c.number < before]
        if actor:
            where.append(audit_log.c.actor.icontains(actor, autoescape=True))
        return self._list(_ENTRIES, *where, project_id=project_id, action=action or None, limit=limit)

    def actions(self, project_id: str) -> list[str]:
        """What was done in a project, each action once, in the order of the alphabet."""
        return sorted(self._scalars(select(audit_log.c.action).where(audit_log.c.project_id == project_id).distinct()))

    def about(self, project_id: str, subject: str, *, limit: int) -> list[AuditEntry]:
        """At most `limit` entries of a project about one thing, newest first."""
        return self._list(_ENTRIES, project_id=project_id, subject=subject, limit=limit)


def append_audit_event(connection: Connection, now: ColumnElement[float], audit_event: AuditEvent) -> AuditEntry:
    """Append an entry in an open write transaction, so that it is committed together with the change that it records.

    Write transactions are serialised, so no other entry can be appended between the last one and this.
    """
    newest_first = select(audit_log.c.number, audit_log.c.hash).order_by(audit_log.c.number.desc())
    last = connection.execute(newest_first.limit(1)).first()
    # Numbered here: a sequence of PostgreSQL leaves a gap after a rollback, and here a gap means a removed entry.
    number, previous_hash = (0, GENESIS_HASH) if last is None else (last.number, last.hash)
    entry = AuditEntry(
        number=number + 1,
        # To the millisecond: what is hashed must come back from the database as it went in.
        created_at=round(float(connection.execute(select(now)).scalar_one()), 3),
        previous_hash=previous_hash,
        **audit_event.model_dump(),
    )
    return _ENTRIES.insert(connection, entry.model_copy(update={"hash": entry.hash_of_it()}))


_BATCH = 1_000
_MOST_DOCUMENT_BYTES: Final = 16 << 10
_HEAD = re.compile(r"([0-9]{1,18}):([0-9a-f]{64})", re.ASCII)


def record(
    context: Context, caller: Caller, action: str, subject: str, document: dict[str, Any] | None = None
) -> AuditEntry:
    """Log an action, in the transaction of the change: `with context.database.transaction():` around both.

    A kill between a change and its entry would lose the entry, and a log that misses one proves nothing.

    Args:
        context: The home.
        caller: Who did it.
        action: What was done, such as `file.deleted` or `job.created`.
        subject: The id of the object.
        document: Details as JSON. Secrets in it are masked; of more than 16 KiB only size and digest are kept.
    """
    assert context.database.is_in_transaction, f"{action} is logged outside of the transaction of its change"
    return context.audit_log.append(make_audit_event(caller, action, subject, document))


def make_audit_event(caller: Caller, action: str, subject: str, document: dict[str, Any] | None = None) -> AuditEvent:
    """An action as logged: with its author, without secrets, and of bounded size."""
    identity = caller.key_id or caller.member_id
    actor = caller.name if identity is None else f"{identity} {caller.name}"
    text = canonical_json(_all_masked(document or {}))
    if len(data := text.encode("utf-8", "backslashreplace")) > _MOST_DOCUMENT_BYTES:
        # The digest still proves later what the document was.
        text = canonical_json({"num_bytes": len(data), "sha256": sha256_bytes(data)})
    return AuditEvent(
        actor=_fit(actor, 200),
        action=_fit(action, 100),
        subject=_fit(subject, 255),
        project_id=caller.project_id,
        document=text,
    )


def newest_entries(context: Context, *, limit: int, project_id: str | None = None) -> list[AuditEntry]:
    """The newest entries, newest first."""
    return context.audit_log.newest(limit=limit, project_id=project_id)


def search_entries(
    context: Context, project_id: str, *, limit: int, before: int | None = None, actor: str = "", action: str = ""
) -> tuple[list[AuditEntry], bool]:
    """Entries of a project, newest first, and whether there are more.

    Args:
        context: The home.
        project_id: The project.
        limit: The most entries.
        before: Only entries before this number; None begins at the newest.
        actor: A part of the actor, regardless of capitals; empty for any.
        action: The whole action; empty for any.
    """
    found = context.audit_log.newest(
        limit=limit + 1, project_id=project_id, before=before, actor=storable(actor), action=storable(action)
    )
    return found[:limit], len(found) > limit


def known_actions(context: Context, project_id: str) -> list[str]:
    """What was done in a project, each action once."""
    return context.audit_log.actions(project_id)


def verify_log(context: Context, *, expect: str | None = None) -> AuditVerdict:
    """Verify the chain, and find the first entry that was tampered with.

    Args:
        context: The home.
        expect: `NUMBER:HASH` of an earlier verdict (`head_number`, `head_hash`), kept outside of the database. Without
            it no one can detect that the end was cut off, or that the whole chain was rewritten.

    Raises:
        RequestError: `expect` has another format.
    """
    wanted = _parse_head(expect) if expect is not None else None
    number, head = 0, GENESIS_HASH
    while batch := context.audit_log.after(number, limit=_BATCH):
        for entry in batch:
            # Content, links and numbers are checked separately, so that the message says what was done.
            problem = _problem(entry, number, head)
            if problem is None and wanted is not None and wanted[0] == entry.number and wanted[1] != entry.hash:
                problem = f"it has the hash {entry.hash}, not the one that was expected: the log was written again"
            if problem is not None:
                return _verdict(number, head, broken=number + 1, problem=problem)
            number, head = entry.number, entry.hash
    # A log whose end was cut off is a valid chain: only the head from outside shows it.
    if wanted is not None and wanted[0] > number:
        problem = f"it is missing: the log ends at {number}, expected was {wanted[0]}; its end was cut off"
        return _verdict(number, head, broken=number + 1, problem=problem)
    if wanted is not None and wanted[0] == 0 and wanted[1] != GENESIS_HASH:
        return _verdict(number, head, broken=1, problem=f"the first entry follows {GENESIS_HASH}")
    return _verdict(number, head)


def _problem(entry: AuditEntry, number: int, head: str) -> str | None:
    if entry.number != number + 1:
        return f"it is missing: {number} is followed by {entry.number}"
    if entry.hash != entry.hash_of_it():
        return "it was changed: its hash is not that of its content"
    if entry.previous_hash != head:
        return "it was reordered or put in later: it does not follow on the entry before it"
    return None


def _verdict(number: int, head: str, *, broken: int | None = None, problem: str | None = None) -> AuditVerdict:
    return AuditVerdict(
        is_whole=problem is None,
        num_entries=number,
        head_number=number,
        head_hash=head,
        broken_number=broken,
        problem=problem,
    )


def _parse_head(text: str) -> tuple[int, str]:
    found = _HEAD.fullmatch(text.strip())
    if found is None:
        raise RequestError(
            f"--expect {text!r}",
            expected="NUMBER:HASH, a number and 64 hexadecimal digits",
            do="give the head as `luthier audit-log verify` printed it before",
        )
    return int(found[1]), found[2]


def _all_masked(value: Any) -> Any:
    if isinstance(value, str):
        return storable(masked(value))
    if isinstance(value, dict):
        return {storable(str(key)): _all_masked(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_all_masked(item) for item in value]
    # Anything else, such as a path or a date, becomes its text.
    return value if value is None or isinstance(value, bool | int | float) else json.loads(json.dumps(str(value)))


def _fit(text: str, num_characters: int) -> str:
    shown = storable(masked(text))
    return shown if len(shown) <= num_characters else shown[: num_characters - 1] + "…"
