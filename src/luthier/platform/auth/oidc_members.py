"""Use cases: groups of the identity provider, and the members that sign in by it.

A group leads to a project with a role; a person with several groups of one project has the highest of their roles. With
each sign-in a person's members are brought in line with their groups: made, given another role, or removed. A person
is known by the provider's subject alone: a name or an address that another member has gives access to nothing.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from typing import Any, Final

from luthier.core.access import Caller
from luthier.core.errors import RequestError
from luthier.core.ids import new_id
from luthier.platform.audit_log.service import record
from luthier.platform.auth.members import begin_session, caller_for, nobodys_hash
from luthier.platform.auth.members_store import ROLES, Member, Role
from luthier.platform.auth.oidc import Identity, Provider, SignInRefusedError
from luthier.platform.auth.oidc_store import SignInGroup
from luthier.platform.auth.password_hashing import normal
from luthier.platform.auth.service import digest_of, may_open_projects
from luthier.platform.home.context import Context

_MAX_GROUP_CHARACTERS: Final = 255
_MAX_NAME_CHARACTERS: Final = 100
_MAX_SHOWN: Final = 10
_ACTOR: Final = "identity provider"


def list_groups(context: Context, caller: Caller) -> Sequence[SignInGroup]:
    """The groups that lead to projects: all for admins of the project `default`, for others those of their own."""
    found = context.oidc.groups()
    return found if may_open_projects(caller) else [one for one in found if one.project_id == caller.project_id]


def map_group(context: Context, caller: Caller, name: str, project: str, role: str) -> SignInGroup:
    """Have a group lead to a project with a role; a group that does already gets the role.

    Args:
        context: The home.
        caller: An admin of the project `default`.
        name: Of the group, as the provider writes it.
        project: Name or id of the project.
        role: One of `ROLES`.

    Raises:
        RequestError: The caller may not do that, or name or role is not allowed.
        NotFoundError: There is no such project.
    """
    _check_may(caller)
    name = name.strip()
    if not name or len(name) > _MAX_GROUP_CHARACTERS or not name.isprintable():
        raise RequestError(
            f"the group {name[:100]!r}",
            expected=f"1 to {_MAX_GROUP_CHARACTERS} printable characters, as the provider writes it",
            do="correct the name",
        )
    found = next((one for one in ROLES if one == role), None)
    if found is None:
        raise RequestError(f"the role {role[:40]!r}", expected=f"one of {', '.join(ROLES)}", do="choose one of them")
    group = SignInGroup(name, context.access.project(project).project_id, found)
    with context.database.transaction():
        context.oidc.put_group(group)
        record(context, caller, "group.mapped", name, {"project": group.project_id, "role": found})
    return group


def unmap_group(context: Context, caller: Caller, name: str, project: str) -> None:
    """Have a group lead to a project no more; its members lose access with their next sign-in.

    Raises:
        RequestError: The caller may not do that.
        NotFoundError: There is no such project, or the group does not lead to it.
    """
    _check_may(caller)
    project_id = context.access.project(project).project_id
    with context.database.transaction():
        context.oidc.remove_group(name, project_id)
        record(context, caller, "group.unmapped", name, {"project": project_id})


def members_for(context: Context, provider: Provider, identity: Identity) -> list[Member]:
    """The members that a person is, one for each project that their groups lead to; brought in line with these.

    Raises:
        SignInRefusedError: No group leads anywhere. What the person was a member of before is removed.
    """
    wanted = _roles(context.oidc.groups(), identity.groups)
    # Before the transaction: to hash takes long, on purpose. Nobody knows the password.
    password = nobodys_hash()
    with context.database.transaction():
        for member in context.oidc.members_of(identity.issuer, identity.subject):
            role = wanted.get(member.project_id)
            if role is None:
                context.members.remove(member.project_id, member.member_id)
                record(
                    context,
                    _by_provider(member),
                    "member.removed",
                    member.member_id,
                    {"name": member.name, "reason": "no group leads here"},
                )
            elif role != member.role:
                context.members.change(member.project_id, member.member_id, role=role)
                record(context, _by_provider(member), "member.role_changed", member.member_id, {"role": role})
        known = {one.project_id for one in context.oidc.members_of(identity.issuer, identity.subject)}
        for project_id in wanted:
            if project_id not in known:
                name = _free_name(context, provider, identity.name)
                member = Member(member_id=new_id("member"), project_id=project_id, name=name, role=wanted[project_id])
                made = context.members.add(member, password)
                facts = {"name": name, "role": made.role, "subject": identity.subject}
                context.oidc.add_identity(made.member_id, identity.issuer, identity.subject)
                record(context, _by_provider(made), "member.created", made.member_id, facts)
        found = list(context.oidc.members_of(identity.issuer, identity.subject))
    if not found:
        named = ", ".join(one[:60] for one in identity.groups[:_MAX_SHOWN]) or "no group"
        raise SignInRefusedError(
            f"{identity.name[:_MAX_NAME_CHARACTERS]} has signed in at {provider.name} and may not use this server; the "
            f"claim {provider.groups_claim!r} names {named}",
            expected="a group that is mapped to a project here",
            do="ask an admin to add you to such a group, or to map one of yours under Settings, Sign-in",
        )
    return found


def sign_in_by_provider(context: Context, member: Member) -> str:
    """A new session for a member whom the provider has named; returns its secret."""
    return begin_session(context, caller_for(member), how="oidc")


def begin_flow(context: Context, browser: str, state: str, document: Mapping[str, Any]) -> None:
    """Remember a sign-in that a browser has begun.

    Args:
        context: The home.
        browser: The secret in its cookie.
        state: The random value that the provider returns.
        document: What the answer is checked against.
    """
    context.oidc.put_flow(digest_of(state), digest_of(browser), document)


def take_flow(context: Context, browser: str, state: str) -> dict[str, Any]:
    """What was remembered of a sign-in, once.

    Raises:
        SignInRefusedError: This browser has begun no such sign-in, it is older than ten minutes, or it was used.
    """
    found = context.oidc.take_flow(digest_of(state), digest_of(browser)) if browser and state else None
    if found is None:
        raise SignInRefusedError(
            "this answer does not belong to a sign-in of this browser in the last ten minutes, or was already used",
            expected="one answer of the provider to one sign-in, in the same browser",
            do="begin the sign-in again on the sign-in page",
        )
    return found


def offer_choice(context: Context, browser: str, members: Sequence[Member], next_address: str) -> str:
    """Have a person choose among their projects; returns what names the choice."""
    token = secrets.token_urlsafe(32)
    ids = [[one.project_id, one.member_id] for one in members]
    begin_flow(context, browser, token, {"members": ids, "next": next_address})
    return token


def _roles(groups: Sequence[SignInGroup], named: Sequence[str]) -> dict[str, Role]:
    """The highest role in each project."""
    found: dict[str, Role] = {}
    for group in groups:
        if group.name in named:
            before = found.get(group.project_id)
            # ROLES begins with the one that may do least.
            found[group.project_id] = group.role if before is None else max(before, group.role, key=ROLES.index)
    return found


def _free_name(context: Context, provider: Provider, name: str) -> str:
    """A name that no member has: names are unique among all projects, and never decide who somebody is."""
    wanted = "".join(one for one in normal(name) if one.isprintable()).strip()[: _MAX_NAME_CHARACTERS - 40] or "member"
    candidates = [wanted, f"{wanted} ({provider.name[:20]})"]
    candidates += [f"{wanted} ({provider.name[:20]} {number})" for number in range(2, 1000)]
    return next(one for one in candidates if context.members.with_password(one) is None)


def _by_provider(member: Member) -> Caller:
    """Who has decided it: the provider, and no member of this server."""
    return Caller(project_id=member.project_id, name=_ACTOR)


def _check_may(caller: Caller) -> None:
    if not may_open_projects(caller):
        raise RequestError(
            f"{caller.name!r} may not change which groups may sign in",
            expected="an admin of the project 'default', in which the server is set up",
            do="ask one of them, or do it on the server: luthier users map GROUP",
        )
