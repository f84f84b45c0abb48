"""Who may do what: projects, keys, and callers."""

from __future__ import annotations

import shlex
from typing import Final, Literal

from luthier.core.frozen_model import FrozenModel

Scope = Literal["read", "train", "infer", "admin"]
SCOPES: Final[tuple[Scope, ...]] = ("read", "train", "infer", "admin")
"""read: look at what a project has. train: make and change it. infer: ask its models. admin: all of it, and keys."""
DEFAULT_PROJECT: Final = "default"
"""The project of all that is made without a key, by the commands and the Python API."""


def project_option(project: str) -> str:
    """` --project NAME`, for a command that is shown to be typed; empty for the default project.

    Without it the command would look for the name or id in another project, and might find another thing there.
    """
    return "" if project == DEFAULT_PROJECT else f" --project {shlex.quote(project)}"


class Project(FrozenModel):
    """What keys, files, jobs and models belong to; one project never sees those of another.

    Attributes:
        project_id: Its id.
        name: Its name, unique within the home.
        created_at: Seconds since 1970.
        max_file_bytes: The most bytes of its files; None for no limit.
    """

    project_id: str
    name: str
    created_at: float
    max_file_bytes: int | None = None


class ApiKey(FrozenModel):
    """A key, without its text, of which only a digest is stored. Times are seconds since 1970.

    Attributes:
        key_id: Its id, which is no secret.
        project_id: The project that it opens.
        name: What people call it.
        scopes: What it may do.
        requests_per_minute: Its rate limit; None for none.
        tokens_per_day: The tokens that it may use on a day in UTC; None for no limit.
        created_at: When it was made.
        expires_at: When it becomes invalid; None for never.
        revoked_at: When it was revoked; None if it was not.
    """

    key_id: str
    project_id: str
    name: str
    scopes: tuple[Scope, ...]
    requests_per_minute: int | None = None
    tokens_per_day: int | None = None
    created_at: float = 0.0
    expires_at: float | None = None
    revoked_at: float | None = None


class Caller(FrozenModel):
    """Who makes a request: a key, a member of the project, or, with neither, a person at this machine.

    Attributes:
        project_id: The project that is worked in.
        scopes: What the caller may do.
        key_id: The key; None for members and for a person at this machine.
        name: For logs and messages.
        member_id: The member; None for keys and for a person at this machine.
    """

    project_id: str = DEFAULT_PROJECT
    scopes: tuple[Scope, ...] = ("admin",)
    key_id: str | None = None
    name: str = "local"
    member_id: str | None = None

    @property
    def is_local(self) -> bool:
        """Whether it is a person at this machine, who may name paths on it."""
        return self.key_id is None and self.member_id is None

    def may(self, scope: Scope) -> bool:
        """Whether this scope was given; `admin` holds all others."""
        return "admin" in self.scopes or scope in self.scopes
