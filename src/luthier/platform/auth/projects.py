"""Use cases: the projects as who is signed in may see and make them.

A project is as if all others were not there. Only the admins of the project `default`, in which the server is set up,
know of others, by name, and open new ones; what is in those they cannot see either.
"""

from __future__ import annotations

from luthier.core.access import DEFAULT_PROJECT, ApiKey, Caller, Project
from luthier.core.errors import RequestError
from luthier.platform.auth.service import create_key, create_project, list_projects
from luthier.platform.home.context import Context


def may_open_projects(caller: Caller) -> bool:
    """Whether the caller is an admin of the project that the server is set up in."""
    return caller.project_id == DEFAULT_PROJECT and caller.may("admin")


def known_projects(context: Context, caller: Caller) -> list[Project]:
    """All projects, oldest first, for who may open new ones; for all others their own."""
    found = list_projects(context)
    return found if may_open_projects(caller) else [one for one in found if one.project_id == caller.project_id]


def open_project(context: Context, caller: Caller, name: str) -> tuple[Project, ApiKey, str]:
    """Make a project, and an admin key for whoever runs it.

    Returns:
        The project, what is stored of the key, and the key itself, which cannot be shown again.

    Raises:
        RequestError: The caller may not open projects, or the name is not allowed.
        ConflictError: The name is taken.
    """
    if not may_open_projects(caller):
        raise RequestError(
            f"{caller.name!r} would open a project",
            expected=f"an admin of the project {DEFAULT_PROJECT!r}, in which the server is set up",
            do="ask one of them, or make it on the server: luthier projects create NAME",
        )
    made = create_project(context, name.strip(), by=caller)
    kept, key = create_key(context, "first", scopes=("admin",), project=made.project_id, by=caller)
    return made, kept, key
