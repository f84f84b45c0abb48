"""Use cases: sign in to the pages with a key, a password or a link, and say whom a browser acts for.

A browser holds a secret of 256 random bits in a cookie; the database holds its digest (and so gives no session away),
whom it stands for, and when it ends. What a key or member may do is looked up with each request: a key that is revoked
and a member who is removed are out at once.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Final, Literal

from luthier.core.access import DEFAULT_PROJECT, Caller
from luthier.platform.audit_log.records import AuditEvent
from luthier.platform.audit_log.service import make_audit_event
from luthier.platform.auth.member_records import SCOPES_OF, Member, Session
from luthier.platform.auth.members_store import KnownSession, OpenSession
from luthier.platform.auth.service import caller_of, digest_of
from luthier.platform.home.context import Context

SESSION_SECONDS: Final = 14 * 24 * 3600.0
"""How long a browser stays signed in without being seen."""
LINK_SECONDS: Final = 15 * 60.0
_EXTENDED_AFTER_SECONDS: Final = 3600.0
_NUM_SECRET_BYTES: Final = 32


def sign_in_with_key(context: Context, key: str) -> str | None:
    """A new session for whom the key lets in; returns its secret, None for a key that lets nobody in."""
    caller = caller_of(context, key)
    return None if caller is None else _begin(context, caller, how="key")


def sign_in_with_link(context: Context, token: str) -> str | None:
    """A new session for the person at the machine; returns its secret, None for a link that was used or is too old."""
    return _begin(context, Caller(), how="link") if context.members.use_link(digest_of(token), LINK_SECONDS) else None


def sign_in_as(context: Context, member: Member) -> str:
    """A new session for a member whose password was right; returns its secret."""
    return _begin(context, caller_for(member), how="password")


def make_link(context: Context) -> str:
    """What `sign_in_with_link` takes, once, within a quarter of an hour."""
    token = secrets.token_urlsafe(_NUM_SECRET_BYTES)
    context.members.add_link(digest_of(token), LINK_SECONDS)
    return token


def session_of(context: Context, secret: str) -> Session | None:
    """The session that a browser holds the secret of; None where there is none, or whom it stood for is let in no more.

    A session that is used lasts longer by that.
    """
    digest = digest_of(secret)
    known = context.members.session(digest)
    if known is None:
        return None
    caller = _caller(known)
    if caller is None:
        return None
    ends = known.expires_at
    # At most one write an hour: otherwise each page view would be a transaction that writes.
    if known.now - known.seen_at > _EXTENDED_AFTER_SECONDS:
        context.members.extend(digest, SESSION_SECONDS)
        ends = known.now + SESSION_SECONDS
    if known.key is not None and known.key.expires_at is not None:
        # A session never outlives the key that it was begun with.
        ends = min(ends, known.key.expires_at)
    how: Literal["key", "password", "link"] = "key" if known.key else "password" if known.member else "link"
    return Session(
        caller=caller,
        project_name=known.project_name,
        how=how,
        created_at=known.created_at,
        expires_at=ends,
    )


def sessions_of(context: Context, caller: Caller) -> Sequence[OpenSession]:
    """All sessions of the caller, newest first."""
    return context.members.sessions(caller.project_id, member_id=caller.member_id, key_id=caller.key_id)


def end_others(context: Context, caller: Caller, secret: str) -> int:
    """End all sessions of the caller but the one with this secret; returns how many."""
    audit_event = make_audit_event(caller, "session.others_ended", caller.key_id or caller.member_id or "local")
    return context.members.end_others(
        digest_of(secret), caller.project_id, member_id=caller.member_id, key_id=caller.key_id, audit_event=audit_event
    )


def sign_out(context: Context, secret: str) -> None:
    """End a session."""
    context.members.end_session(digest_of(secret))


def caller_for(member: Member) -> Caller:
    """A member as a caller."""
    return Caller(
        project_id=member.project_id, scopes=SCOPES_OF[member.role], name=member.name, member_id=member.member_id
    )


def _begin(context: Context, caller: Caller, *, how: str) -> str:
    # A new secret with each sign-in: one that was planted in the browser before is worth nothing afterwards.
    secret = secrets.token_urlsafe(_NUM_SECRET_BYTES)
    audit_event: AuditEvent = make_audit_event(
        caller, "session.begun", caller.key_id or caller.member_id or "local", {"how": how}
    )
    context.members.add_session(
        digest_of(secret),
        caller.project_id or DEFAULT_PROJECT,
        seconds=SESSION_SECONDS,
        member_id=caller.member_id,
        key_id=caller.key_id,
        audit_event=audit_event,
    )
    return secret


def _caller(known: KnownSession) -> Caller | None:
    if known.member is not None:
        return caller_for(known.member)
    if (key := known.key) is None:
        return Caller(project_id=known.project_id)
    if key.revoked_at is not None or (key.expires_at is not None and key.expires_at <= known.now):
        return None
    return Caller(project_id=key.project_id, scopes=key.scopes, key_id=key.key_id, name=key.name)
