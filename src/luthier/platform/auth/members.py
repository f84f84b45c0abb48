"""Use cases: the members of a project: make, list, change and remove them, and let them in by their password."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from functools import lru_cache
from typing import Final

from luthier.core.access import Caller
from luthier.core.errors import ConflictError, NotFoundError, RequestError
from luthier.core.ids import new_id
from luthier.platform.audit_log.service import make_audit_event
from luthier.platform.auth.member_records import ROLES, Member, Role
from luthier.platform.auth.password_hashing import fits, hashed, normal
from luthier.platform.home.context import Context

_MOST_NAME_CHARACTERS: Final = 100


def add_member(context: Context, caller: Caller, name: str, password: str, role: Role) -> Member:
    """Make a member of the caller's project.

    Raises:
        RequestError: The name, the password or the role is not allowed.
        ConflictError: The name is taken, in whatever project.
    """
    # One Unicode form: two names that look the same must not be two members.
    name = normal(name).strip()
    if not name or len(name) > _MOST_NAME_CHARACTERS or not name.isprintable():
        raise RequestError(
            f"the name {name[: _MOST_NAME_CHARACTERS + 1]!r} for a member",
            expected=f"1 to {_MOST_NAME_CHARACTERS} printable characters",
            do="choose such a name",
        )
    _check_role(role)
    member = Member(member_id=new_id("member"), project_id=caller.project_id, name=name, role=role)
    # Handed to the store, which writes it in the transaction of the change: neither is there without the other.
    audit_event = make_audit_event(caller, "member.created", member.member_id, {"name": name, "role": role})
    return context.members.add(member, hashed(password), audit_event)


def list_members(context: Context, caller: Caller) -> Sequence[Member]:
    """The members of the caller's project, oldest first."""
    return context.members.list(caller.project_id)


def find_member(context: Context, name: str) -> Member:
    """A member by name, of whatever project: for a person at the machine.

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
        ConflictError: The member is the caller.
    """
    _check_role(role)
    _refuse_oneself(caller, member_id, "another role")
    audit_event = make_audit_event(caller, "member.role_changed", member_id, {"role": role})
    return context.members.change(caller.project_id, member_id, role=role, audit_event=audit_event)


def change_password(context: Context, caller: Caller, member_id: str, password: str) -> Member:
    """Give a member another password, and end their sessions.

    Raises:
        NotFoundError: The project has no such member.
        RequestError: The password is too short or too long.
        BusyError: The machine has no memory for a hash.
    """
    audit_event = make_audit_event(caller, "member.password_changed", member_id)
    return context.members.change(caller.project_id, member_id, password=hashed(password), audit_event=audit_event)


def change_own_password(context: Context, caller: Caller, current: str, password: str) -> Member:
    """Give oneself another password; all of one's sessions end, this one too.

    Args:
        context: The home.
        caller: The member.
        current: The password until now.
        password: The new one.

    Raises:
        RequestError: `current` is wrong, the new password is too short or too long, or the caller is no member.
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
            "the current password is not this one", expected="the password that you signed in with", do="type it again"
        )
    return change_password(context, caller, member.member_id, password)


def remove_member(context: Context, caller: Caller, member_id: str) -> Member:
    """Remove a member, whose sessions end at once.

    Returns:
        The member as it was.

    Raises:
        NotFoundError: The project has no such member.
        ConflictError: The member is the caller.
    """
    _refuse_oneself(caller, member_id, "an end")
    member = context.members.get(caller.project_id, member_id)
    audit_event = make_audit_event(caller, "member.removed", member_id, {"name": member.name})
    context.members.remove(caller.project_id, member_id, audit_event)
    return member


def member_by_password(context: Context, name: str, password: str) -> Member | None:
    """The member whom name and password name together; None for a wrong pair, which takes as long to find out."""
    found = _found(context, name)
    # A hash is computed for an unknown name, too: otherwise the time of the answer would tell which names exist.
    is_right = fits(password, found[1] if found else _nobodys_hash())
    return found[0] if found is not None and is_right else None


def _found(context: Context, name: str) -> tuple[Member, str] | None:
    """With the hash of the password. A name that no member can have is not looked up: databases refuse some."""
    name = normal(name).strip()
    return context.members.with_password(name) if name.isprintable() else None


@lru_cache(maxsize=1)
def _nobodys_hash() -> str:
    return hashed(secrets.token_urlsafe(32))


def _check_role(role: str) -> None:
    if role not in ROLES:
        raise RequestError(f"the role {role!r}", expected=f"one of {', '.join(ROLES)}", do="choose one of them")


def _refuse_oneself(caller: Caller, member_id: str, what: str) -> None:
    if caller.member_id == member_id:
        raise ConflictError(
            f"{caller.name!r} would give themselves {what}",
            expected="another admin to do that, so that a project is never left without one by mistake",
            do="sign in as another admin, or with an admin key",
        )
