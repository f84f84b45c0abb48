"""Use cases: append to the audit log, search it, and verify that nobody has changed it."""

from __future__ import annotations

import json
import re
from typing import Any, Final

from luthier.core.access import Caller
from luthier.core.digest import canonical_json, sha256_bytes
from luthier.core.errors import RequestError
from luthier.platform.audit_log.records import GENESIS_HASH, AuditEntry, AuditEvent, AuditVerdict
from luthier.platform.home.context import Context
from luthier.platform.home.log_secrets import masked

_BATCH = 1_000
_MOST_DOCUMENT_BYTES: Final = 16 << 10
_HEAD = re.compile(r"([0-9]{1,18}):([0-9a-f]{64})", re.ASCII)


def record(
    context: Context, caller: Caller, action: str, subject: str, document: dict[str, Any] | None = None
) -> AuditEntry:
    """Log an action, in a transaction of its own.

    Args:
        context: The home.
        caller: Who did it.
        action: What was done, such as `file.deleted` or `job.created`.
        subject: The id of the object.
        document: Details as JSON. Secrets in it are masked; of more than 16 KiB only size and digest are kept.
    """
    return context.audit_log.append(make_audit_event(caller, action, subject, document))


def make_audit_event(caller: Caller, action: str, subject: str, document: dict[str, Any] | None = None) -> AuditEvent:
    """An event for stores that append it in the same transaction as the change that it records."""
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
    """Entries of a project, newest first, and whether there are more. The rest is as `AuditLogStore.newest` has it."""
    found = context.audit_log.newest(
        limit=limit + 1, project_id=project_id, before=before, actor=_storable(actor), action=_storable(action)
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
            it nobody can tell that the end was cut off, or that the whole chain was written again.

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
        return _verdict(number, head, broken=1, problem=f"before the first entry stands {GENESIS_HASH}")
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
        return _storable(masked(value))
    if isinstance(value, dict):
        return {_storable(str(key)): _all_masked(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_all_masked(item) for item in value]
    # Anything else, such as a path or a date, becomes its text.
    return value if value is None or isinstance(value, bool | int | float) else json.loads(json.dumps(str(value)))


def _storable(text: str) -> str:
    """Without what PostgreSQL's text cannot hold: NUL and halves of surrogate pairs."""
    return text.replace("\0", "\ufffd").encode("utf-8", "replace").decode()


def _fit(text: str, num_characters: int) -> str:
    shown = _storable(masked(text))
    return shown if len(shown) <= num_characters else shown[: num_characters - 1] + "…"
