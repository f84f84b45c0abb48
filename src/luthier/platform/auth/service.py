"""Use cases: keys and projects: create, list and revoke keys, identify callers, list and create projects.

Each project is isolated from all others. Only the admins of the project `default`, in which the server is set up, know
of others, by name, and create new ones; they cannot see what is in those.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from typing import Any

from luthier.core.access import DEFAULT_PROJECT, SCOPES, ApiKey, Caller, Project, Scope
from luthier.core.errors import NotAllowedError, NotFoundError, RequestError
from luthier.core.ids import new_id
from luthier.platform.audit_log.service import record
from luthier.platform.auth.store import Use
from luthier.platform.home.context import Context

_PREFIX = "sk-luthier-"
_NUM_KEY_BYTES = 32
_MOST_NAME_CHARACTERS = 100
_MOST_QUOTA_BYTES = 1 << 60
_MIN_GIVEN_CHARACTERS = 32
_GIVEN_KEY = re.compile(r"[A-Za-z0-9._~+/=-]+")


def create_key(
    context: Context,
    name: str,
    *,
    scopes: tuple[Scope, ...],
    project: str = DEFAULT_PROJECT,
    expires_in_seconds: float | None = None,
    requests_per_minute: int | None = None,
    tokens_per_day: int | None = None,
    by: Caller | None = None,
) -> tuple[ApiKey, str]:
    """Make a key for a project.

    Args:
        context: The home.
        name: What people call it.
        scopes: What it may do.
        project: The name or id of its project.
        expires_in_seconds: How long it is valid; None forever.
        requests_per_minute: Its rate limit; None for none.
        tokens_per_day: The tokens that it may use on a day in UTC; None for no limit.
        by: Who makes it, for the audit log; None for a person at this machine.

    Returns:
        What is stored of it, and the key itself, which cannot be shown again.

    Raises:
        RequestError: No scope or an unknown one, or a name or a limit that is not allowed.
        NotFoundError: There is no such project.
    """
    _check_name("a key", name)
    for option, limit in (("--requests-per-minute", requests_per_minute), ("--tokens-per-day", tokens_per_day)):
        # Above zero, and within an INTEGER column of PostgreSQL.
        if limit is not None and not 0 < limit < 2**31:
            raise RequestError(
                f"{option} {limit}",
                expected=f"a whole number from 1 to {2**31 - 1:,}",
                do="give such a number, or none",
            )
    if not scopes or (unknown := set(scopes) - set(SCOPES)):
        raise RequestError(
            f"the scopes {', '.join(sorted(unknown)) if scopes else 'of a key are empty'}",
            expected=f"one or more of {', '.join(SCOPES)}",
            do="correct --scopes",
        )
    expires_at = None if expires_in_seconds is None else context.access.now() + expires_in_seconds
    # The prefix lets scanners for leaked secrets recognise a key.
    key = _PREFIX + secrets.token_urlsafe(_NUM_KEY_BYTES)
    made = ApiKey(
        key_id=new_id("key"),
        project_id=context.access.project(project).project_id,
        name=name,
        # In the order of SCOPES and without repetitions, so that equal sets of scopes compare equal.
        scopes=tuple(scope for scope in SCOPES if scope in scopes),
        requests_per_minute=requests_per_minute,
        tokens_per_day=tokens_per_day,
        expires_at=expires_at,
    )
    with context.database.transaction():
        stored = context.access.add_key(made, digest_of(key))
        record(context, by or Caller(), "key.created", made.key_id, _facts_of(made))
    return stored, key


def first_key(context: Context, given: str | None = None) -> str | None:
    """Make a key with all scopes where there is no key at all, and return it: that is the only time it can be seen.

    None where there is a key, even a revoked one, and where another process has just made the first one.

    Args:
        context: The home.
        given: The key itself, chosen elsewhere, as from a secret of a cluster; None makes a random one.

    Raises:
        RequestError: The given key is short, or no token that a header can carry.
    """
    if given is not None and (len(given) < _MIN_GIVEN_CHARACTERS or not _GIVEN_KEY.fullmatch(given)):
        raise RequestError(
            f"a first key of {len(given)} characters",  # not the key itself: errors are logged
            expected=f"at least {_MIN_GIVEN_CHARACTERS} random letters, digits and any of . _ ~ + / = -",
            do="make one, for example with: openssl rand -hex 32",
        )
    key = given or _PREFIX + secrets.token_urlsafe(_NUM_KEY_BYTES)
    made = ApiKey(key_id=new_id("key"), project_id=DEFAULT_PROJECT, name="first", scopes=("admin",))
    with context.database.transaction():
        if context.access.add_first_key(made, digest_of(key)) is None:
            return None
        record(context, Caller(), "key.created", made.key_id, _facts_of(made))
    return key


def list_keys(context: Context, *, project_id: str | None = None) -> list[ApiKey]:
    """The keys, newest first: all, or those of one project."""
    return context.access.keys(project_id)


def revoke_key(context: Context, key_id: str, *, project_id: str | None = None, by: Caller | None = None) -> ApiKey:
    """Revoke a key: immediately here, and within a few seconds in running servers.

    Args:
        context: The home.
        key_id: The key.
        project_id: Only a key of this project; None for any.
        by: Who revokes it, for the audit log; None for a person at this machine.

    Raises:
        NotFoundError: There is no such key.
    """
    with context.database.transaction():
        revoked, is_new = context.access.revoke(key_id, project_id)
        if is_new:
            record(context, by or Caller(), "key.revoked", key_id)
    return revoked


def create_project(context: Context, name: str, *, by: Caller | None = None) -> Project:
    """Make a project.

    Raises:
        RequestError: The name is not allowed, or looks like an id.
        ConflictError: The name is taken.
    """
    _check_name("a project", name)
    if _looks_like_id(name):
        raise _name_of_id(name)
    project_id = new_id("proj")
    with context.database.transaction():
        made = context.access.add_project(project_id, name)
        record(context, by or Caller(), "project.created", project_id, {"name": name})
    return made


def rename_project(context: Context, caller: Caller, project: str, name: str) -> Project:
    """Give a project another name; its id, which keys and files belong to, stays.

    Args:
        context: The home.
        caller: An admin of the project, or of the project `default`.
        project: Its name or id.
        name: The new name.

    Raises:
        RequestError: The name is not allowed, the project is `default`, or the caller may not do that.
        NotFoundError: There is no such project.
        ConflictError: Another project has the name.
    """
    _check_name("a project", name.strip())
    found = context.access.project(project if may_open_projects(caller) else caller.project_id)
    if project not in (found.project_id, found.name):
        # Without a look at others, whose names the error would list: they are none of the caller's business.
        raise NotFoundError(f"no project {project[:100]!r}", expected="your own project", do="rename your own project")
    if found.project_id == DEFAULT_PROJECT:
        raise RequestError(
            f"the project {DEFAULT_PROJECT!r} cannot be renamed",
            expected="another project: commands use this one by default",
            do="create a project with the name that you want",
        )
    if name.strip() == DEFAULT_PROJECT or _looks_like_id(name):
        raise _name_of_id(name)
    with context.database.transaction():
        changed = context.access.rename_project(found.project_id, name.strip())
        record(context, caller, "project.renamed", found.project_id, {"before": found.name, "name": changed.name})
    return changed


def set_file_quota(context: Context, caller: Caller, project: str, max_file_bytes: int | None) -> Project:
    """Set how many bytes the files of a project may take. What it has stays, also where that is more.

    Args:
        context: The home.
        caller: An admin of the project `default`.
        project: Its name or id.
        max_file_bytes: The most bytes; None for no limit.

    Raises:
        NotAllowedError: The caller administers another project.
        NotFoundError: There is no such project.
        RequestError: A limit below 0, or one that no disk has.
    """
    own = context.access.project(caller.project_id)
    if not may_open_projects(caller):
        if project not in (own.project_id, own.name):
            # Names of others are none of the caller's business.
            raise NotFoundError(f"no project {project[:100]!r}", expected="your own project", do="name another project")
        raise NotAllowedError(
            f"the file quota of {own.name!r} cannot be changed by its own administrator",
            expected=f"an administrator of the project {DEFAULT_PROJECT!r}, in which the server is set up",
            do="ask the operator of this server",
        )
    if max_file_bytes is not None and not 0 <= max_file_bytes <= _MOST_QUOTA_BYTES:
        raise RequestError(
            f"a file quota of {max_file_bytes} bytes",
            expected=f"a number of bytes from 0 to {_MOST_QUOTA_BYTES:,}, or none for no limit",
            do="correct it",
        )
    found = context.access.project(project)
    with context.database.transaction():
        changed = context.access.set_file_quota(found.project_id, max_file_bytes)
        facts = {"before": found.max_file_bytes, "max_file_bytes": max_file_bytes}
        record(context, caller, "project.file_quota_set", found.project_id, facts)
    return changed


def list_projects(context: Context) -> list[Project]:
    """The projects, oldest first."""
    return context.access.projects()


def charge_tokens(
    context: Context, caller: Caller, num_tokens: int, *, may_refuse: bool = True, use: Use | None = None
) -> int | None:
    """Count tokens towards the daily limit (UTC) of the caller's key.

    A request that begins within the limit may exceed it by its own size; the next one is refused.

    Args:
        context: The home.
        caller: Who pays.
        num_tokens: The tokens.
        may_refuse: False for work that is done already, such as an answer that was given. It is counted later if the
            database does not answer.
        use: What the tokens were for; counted for callers without a key too.

    Returns:
        The tokens that are left today; None for no limit.

    Raises:
        QuotaError: No tokens were left, and none were counted.
    """
    key_id = caller.key_id

    def charge() -> int | None:
        if key_id is not None:
            return context.access.charge(key_id, num_tokens, may_refuse=may_refuse, use=use)
        if use is not None:
            context.usage.add(use)
        return None

    # A charge that may refuse must know now. One for work that is done may wait until the database answers.
    return charge() if may_refuse else context.late_charges.count(charge)


def caller_of(context: Context, key: str) -> Caller | None:
    """Who this key lets in; None where it is unknown, revoked or expired."""
    found = context.access.key_of(digest_of(key))
    if found is None or found.revoked_at is not None:
        return None
    if found.expires_at is not None and found.expires_at <= context.access.now():
        return None
    return Caller(project_id=found.project_id, scopes=found.scopes, key_id=found.key_id, name=found.name)


def digest_of(key: str) -> str:
    """What is kept of a key: the SHA-256 of its text, in hexadecimal digits."""
    # No salt and no slow hash: a key has 256 random bits, which cannot be guessed from its digest.
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()


def _facts_of(key: ApiKey) -> dict[str, Any]:
    """What the audit log has of a new key."""
    limits = {"requests_per_minute": key.requests_per_minute, "tokens_per_day": key.tokens_per_day}
    document = {"name": key.name, "scopes": list(key.scopes), "project": key.project_id, "expires_at": key.expires_at}
    return document | limits


def _check_name(what: str, name: str) -> None:
    if not name.strip() or len(name) > _MOST_NAME_CHARACTERS or not name.isprintable():
        raise RequestError(
            f"the name {name[: _MOST_NAME_CHARACTERS + 1]!r} for {what}",
            expected=f"1 to {_MOST_NAME_CHARACTERS} printable characters",
            do="choose such a name",
        )


def _looks_like_id(name: str) -> bool:
    # Commands find projects by name or id: a name that looks like an id would hide another project.
    return name.strip().startswith("proj-")


def _name_of_id(name: str) -> RequestError:
    return RequestError(f"the name {name!r}", expected="a name that is not an id", do="choose another name")


def may_open_projects(caller: Caller) -> bool:
    """Whether the caller is an admin of the project that the server is set up in."""
    return caller.project_id == DEFAULT_PROJECT and caller.may("admin")


def known_projects(context: Context, caller: Caller) -> list[Project]:
    """All projects, oldest first, for who may open new ones; for all others their own."""
    found = list_projects(context)
    return found if may_open_projects(caller) else [one for one in found if one.project_id == caller.project_id]


def open_project(context: Context, caller: Caller, name: str) -> tuple[Project, ApiKey, str]:
    """Make a project, and an admin key for its operator.

    Returns:
        The project, what is stored of the key, and the key itself, which cannot be shown again.

    Raises:
        RequestError: The caller may not open projects, or the name is not allowed.
        ConflictError: The name is taken.
    """
    if not may_open_projects(caller):
        raise RequestError(
            f"{caller.name!r} may not create a project",
            expected=f"an admin of the project {DEFAULT_PROJECT!r}, in which the server is set up",
            do="ask one of them, or create it on the server: luthier projects create NAME",
        )
    made = create_project(context, name.strip(), by=caller)
    kept, key = create_key(context, "first", scopes=("admin",), project=made.project_id, by=caller)
    return made, kept, key
