"""A person who works in the pages of the server, and the session that a browser is let in by."""

from __future__ import annotations

from typing import Final, Literal, get_args

from luthier.core.access import Caller, Scope
from luthier.core.frozen_model import FrozenModel

Role = Literal["viewer", "trainer", "admin"]
ROLES: Final[tuple[Role, ...]] = get_args(Role)
SCOPES_OF: Final[dict[Role, tuple[Scope, ...]]] = {
    "viewer": ("read", "infer"),
    "trainer": ("read", "train", "infer"),
    "admin": ("admin",),
}
"""viewer: look at all of the project, and ask its models. trainer: make and change it. admin: members and keys, too."""


class Member(FrozenModel):
    """A person with a name and a password, in one project.

    Attributes:
        member_id: Its id.
        project_id: The project that it belongs to.
        name: The name to sign in with, unique among all projects.
        role: What it may do; see `SCOPES_OF`.
        created_at: Seconds since 1970.
    """

    member_id: str
    project_id: str
    name: str
    role: Role
    created_at: float = 0.0


class Session(FrozenModel):
    """A browser that has signed in, and whom it acts for. Times are seconds since 1970.

    Attributes:
        caller: Whom it acts for. `key_id` is that of the key it signed in with, None for members and for a person at
            the machine.
        project_name: The name of the caller's project, to be shown.
        how: What it signed in with.
        created_at: When it began.
        expires_at: When it ends unless it is used before.
    """

    caller: Caller
    project_name: str
    how: Literal["key", "password", "link"]
    created_at: float
    expires_at: float
