"""Use cases: members of a project, and sign-in to the pages with a key, a password or a link.

A browser holds a secret of 256 random bits in a cookie; the database holds its digest (and so reveals no session),
its owner, and when it ends. What a key or member may do is looked up with each request: a revoked key and a removed
member lose access immediately.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from functools import lru_cache
from typing import Final

from luthier.core.access import DEFAULT_PROJECT, Caller
from luthier.core.errors import ConflictError, NotFoundError, RequestError
from luthier.core.ids import new_id
from luthier.platform.audit_log.service import record
from luthier.platform.auth.members_store import (
    ROLES,
    SCOPES_OF,
    KnownSession,
    Member,
    OpenSession,
    Role,
    Session,
    SignInWay,
)
from luthier.platform.auth.password_hashing import fits, hashed, normal
from luthier.platform.auth.service import caller_of, digest_of
from luthier.platform.home.context import Context

_MOST_NAME_CHARACTERS: Final = 100


def add_member(context: Context, caller: Caller, name: str, password: str, role: Role) -> Member:
    """Make a member of the caller's project.

    Raises:
        RequestError: The name, the password or the role is not allowed.
        ConflictError: The name is taken, in any project.
    """
    member = new_member(caller.project_id, name, role)
    # Before the transaction: to hash takes long, on purpose.
    stored = hashed(password)
    with context.database.transaction():
        made = context.members.add(member, stored)
        record(context, caller, "member.created", member.member_id, {"name": member.name, "role": role})
    return made


def new_member(project_id: str, name: str, role: Role) -> Member:
    """A member who is not kept yet.

    Raises:
        RequestError: The name or the role is not allowed.
    """
    # One Unicode form: two names that look the same must not be two members.
    name = normal(name).strip()
    if not name or len(name) > _MOST_NAME_CHARACTERS or not name.isprintable():
        raise RequestError(
            f"the name {name[: _MOST_NAME_CHARACTERS + 1]!r} for a member",
            expected=f"1 to {_MOST_NAME_CHARACTERS} printable characters",
            do="choose such a name",
        )
    check_role(role)
    return Member(member_id=new_id("member"), project_id=project_id, name=name, role=role)


def list_members(context: Context, caller: Caller) -> Sequence[Member]:
    """The members of the caller's project, oldest first."""
    return context.members.list(caller.project_id)


def find_member(context: Context, name: str) -> Member:
    """A member by name, of any project: for a person at the machine.

    Raises:
        NotFoundError: There is no such member.
    """
    found = _found(context, name)
    if found is None:
        raise NotFoundError(
            f"no member {name[:_MOST_NAME_CHARACTERS]!r}",
            expected="the name of a member",
            do="see them: luthier users list",
        )
    return found[0]


def change_role(context: Context, caller: Caller, member_id: str, role: Role) -> Member:
    """Give a member another role, from their next request on.

    Raises:
        NotFoundError: The project has no such member.
        RequestError: There is no such role.
        ConflictError: The member is the caller, or signs in by the identity provider.
    """
    check_role(role)
    _refuse_oneself(caller, member_id, "another role")
    _refuse_external(context, member_id, "the role")
    with context.database.transaction():
        changed = context.members.change(caller.project_id, member_id, role=role)
        record(context, caller, "member.role_changed", member_id, {"role": role})
    return changed


def change_password(context: Context, caller: Caller, member_id: str, password: str) -> Member:
    """Give a member another password, and end their sessions.

    An admin who gives it also removes their passkeys: whoever had access loses it. With one's own passkeys stay.

    Raises:
        NotFoundError: The project has no such member.
        RequestError: The password is too short or too long.
        BusyError: The machine has no memory for a hash.
        ConflictError: The member signs in by the identity provider.
    """
    _refuse_external(context, member_id, "the sign-in")
    stored = hashed(password)
    with context.database.transaction():
        changed = context.members.change(caller.project_id, member_id, password=stored)
        num_removed = 0 if caller.member_id == member_id else context.passkeys.remove_all(member_id)
        facts = {"num_passkeys_removed": num_removed} if num_removed else {}
        record(context, caller, "member.password_changed", member_id, facts)
    return changed


def change_own_password(context: Context, caller: Caller, current: str, password: str) -> Member:
    """Give oneself another password; all of one's sessions end, this one too.

    Args:
        context: The home.
        caller: The member.
        current: The password until now.
        password: The new one.

    Raises:
        RequestError: `current` is wrong, the new password is too short or too long, or the caller is not a member.
        NotFoundError: The member was removed meanwhile.
        BusyError: The machine has no memory for a hash.
    """
    if caller.member_id is None:
        raise RequestError(
            f"{caller.name!r} has no password",
            expected="a member, who signs in by name and password",
            do="make a new key instead, and revoke this one",
        )
    member = context.members.get(caller.project_id, caller.member_id)
    if member_by_password(context, member.name, current) is None:
        raise RequestError(
            "the current password is not this one", expected="the password that you signed in with", do="enter it again"
        )
    return change_password(context, caller, member.member_id, password)


def remove_member(context: Context, caller: Caller, member_id: str) -> Member:
    """Remove a member, whose sessions end immediately.

    Returns:
        The removed member.

    Raises:
        NotFoundError: The project has no such member.
        ConflictError: The member is the caller.
    """
    _refuse_oneself(caller, member_id, "an end")
    member = context.members.get(caller.project_id, member_id)
    with context.database.transaction():
        context.members.remove(caller.project_id, member_id)
        record(context, caller, "member.removed", member_id, {"name": member.name})
    return member


def member_by_password(context: Context, name: str, password: str) -> Member | None:
    """The member whom name and password name together; None for a wrong pair, which takes as long to find out."""
    found = _found(context, name)
    # A hash is computed for an unknown name, too: otherwise the time of the answer would reveal which names exist.
    is_right = fits(password, found[1] if found else nobodys_hash())
    # Decided only after the hash, so that both wrong names and wrong passwords take this path.
    return found[0] if found is not None and is_right else None


def _found(context: Context, name: str) -> tuple[Member, str] | None:
    """With the hash of the password. A name that no member can have is not looked up: databases refuse some."""
    name = normal(name).strip()
    return context.members.with_password(name) if name.isprintable() else None


@lru_cache(maxsize=1)
def nobodys_hash() -> str:
    """The hash of a password that nobody knows."""
    return hashed(secrets.token_urlsafe(32))


def check_role(role: str) -> None:
    """Refuse a role that there is not.

    Raises:
        RequestError: There is no such role.
    """
    if role not in ROLES:
        raise RequestError(f"the role {role!r}", expected=f"one of {', '.join(ROLES)}", do="choose one of them")


def _refuse_external(context: Context, member_id: str, what: str) -> None:
    """Raise ConflictError for a member whom the identity provider decides on."""
    if context.oidc.has_identity(member_id):
        raise ConflictError(
            f"this member signs in by the identity provider, which decides on {what}",
            expected="a member with a password of this server",
            do="change the person's groups at the provider, or the mapping of groups under Settings, Sign-in",
        )


def _refuse_oneself(caller: Caller, member_id: str, what: str) -> None:
    if caller.member_id == member_id:
        raise ConflictError(
            f"{caller.name!r} may not give themselves {what}",
            expected="another admin to do that, so that a project is never left without one by mistake",
            do="sign in as another admin, or with an admin key",
        )


SESSION_SECONDS: Final = 14 * 24 * 3600.0
"""How long a browser stays signed in without being seen."""
LINK_SECONDS: Final = 15 * 60.0
_EXTENDED_AFTER_SECONDS: Final = 3600.0
_NUM_SECRET_BYTES: Final = 32


def sign_in_with_key(context: Context, key: str) -> str | None:
    """A new session for the owner of a key; returns its secret, None for an invalid key."""
    caller = caller_of(context, key)
    return None if caller is None else begin_session(context, caller, how="key")


def sign_in_with_link(context: Context, token: str) -> str | None:
    """A new session for the person at the machine; returns its secret, None for a link that was used or is too old."""
    return (
        begin_session(context, Caller(), how="link")
        if context.members.use_link(digest_of(token), LINK_SECONDS)
        else None
    )


def sign_in_as(context: Context, member: Member) -> str:
    """A new session for a member whose password was right; returns its secret."""
    return begin_session(context, caller_for(member), how="password")


def make_link(context: Context) -> str:
    """What `sign_in_with_link` takes, once, within a quarter of an hour."""
    token = secrets.token_urlsafe(_NUM_SECRET_BYTES)
    context.members.add_link(digest_of(token), LINK_SECONDS)
    return token


def session_of(context: Context, secret: str) -> Session | None:
    """The session that a browser holds the secret of; None where there is none, or its owner has lost access.

    A session that is used lasts longer by that; not one of the identity provider, which is asked by a sign-in alone.
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
        left = ends - known.now if known.is_external else SESSION_SECONDS
        context.members.extend(digest, left)
        ends = known.now + left
    if known.key is not None and known.key.expires_at is not None:
        # A session never outlives the key that it was begun with.
        ends = min(ends, known.key.expires_at)
    how: SignInWay = "key" if known.key else "password" if known.member else "link"
    if known.is_external:
        how = "oidc"
    elif known.passkey_id is not None:
        how = "passkey"
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
    with context.database.transaction():
        num_ended = context.members.end_others(
            digest_of(secret), caller.project_id, member_id=caller.member_id, key_id=caller.key_id
        )
        if num_ended:
            record(context, caller, "session.others_ended", caller.key_id or caller.member_id or "local")
    return num_ended


def sign_out(context: Context, secret: str) -> None:
    """End a session."""
    context.members.end_session(digest_of(secret))


def caller_for(member: Member) -> Caller:
    """A member as a caller."""
    return Caller(
        project_id=member.project_id, scopes=SCOPES_OF[member.role], name=member.name, member_id=member.member_id
    )


def begin_session(context: Context, caller: Caller, *, how: str, passkey_id: str | None = None) -> str:
    """A new session for a caller whose identity was proved; returns its secret.

    Args:
        context: The home.
        caller: The member.
        how: By what, for the audit log.
        passkey_id: The passkey that has proved it; the session ends with it.
    """
    # A new secret with each sign-in: one that was planted in the browser before is worth nothing afterwards.
    secret = secrets.token_urlsafe(_NUM_SECRET_BYTES)
    with context.database.transaction():
        context.members.add_session(
            digest_of(secret),
            caller.project_id or DEFAULT_PROJECT,
            seconds=SESSION_SECONDS,
            member_id=caller.member_id,
            key_id=caller.key_id,
            passkey_id=passkey_id,
        )
        facts = {"how": how} if passkey_id is None else {"how": how, "passkey": passkey_id}
        record(context, caller, "session.begun", caller.key_id or caller.member_id or "local", facts)
    return secret


def _caller(known: KnownSession) -> Caller | None:
    if known.member is not None:
        return caller_for(known.member)
    if (key := known.key) is None:
        return Caller(project_id=known.project_id)
    if key.revoked_at is not None or (key.expires_at is not None and key.expires_at <= known.now):
        return None
    return Caller(project_id=key.project_id, scopes=key.scopes, key_id=key.key_id, name=key.name)
