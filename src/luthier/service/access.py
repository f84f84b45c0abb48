"""Use cases: make, list and revoke keys, and say who it is that asks."""

from __future__ import annotations

import hashlib
import secrets

from luthier.core.access import SCOPES, ApiKey, Caller, Scope
from luthier.core.errors import RequestError
from luthier.core.ids import new_id
from luthier.service.context import Context

_PREFIX = "sk-luthier-"
_NUM_KEY_BYTES = 32


def create_key(
    context: Context,
    name: str,
    *,
    scopes: tuple[Scope, ...],
    project: str = "default",
    expires_in_seconds: float | None = None,
    requests_per_minute: int | None = None,
    tokens_per_day: int | None = None,
) -> tuple[ApiKey, str]:
    """Make a key for a project; returns what is kept of it and the key itself, which is never to be seen again.

    Raises RequestError for no scope or an unknown one, NotFoundError where there is no such project.
    """
    if not scopes or (unknown := set(scopes) - set(SCOPES)):
        raise RequestError(
            f"the scopes {', '.join(sorted(unknown)) if scopes else 'of a key are empty'}",
            expected=f"one or more of {', '.join(SCOPES)}",
            do="correct --scopes",
        )
    key = _PREFIX + secrets.token_urlsafe(_NUM_KEY_BYTES)
    expires_at = None if expires_in_seconds is None else context.access.now() + expires_in_seconds
    made = ApiKey(
        key_id=new_id("key"),
        project_id=context.access.project(project).project_id,
        name=name,
        scopes=tuple(scope for scope in SCOPES if scope in scopes),
        requests_per_minute=requests_per_minute,
        tokens_per_day=tokens_per_day,
        expires_at=expires_at,
    )
    return context.access.add_key(made, digest_of(key)), key


def first_key(context: Context) -> str | None:
    """The key of who starts a server in a new home: admin, of the default project; None where there is a key."""
    if context.access.keys():
        return None
    return create_key(context, "first", scopes=("admin",))[1]


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
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()
