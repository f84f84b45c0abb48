"""Open the home for a command, with progress on stderr, and say on whose behalf it asks."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from luthier.core.access import Caller
    from luthier.platform.home.context import Context


def open_context(home: Path | None) -> Context:
    """The context that a command works in; use it in a `with` block.

    Raises:
        RequestError: The home cannot be used.
    """
    from luthier.platform.cli.progress import make_progress
    from luthier.platform.home.context import Context

    return Context.open(home, progress=make_progress())


def caller_of(context: Context, project: str) -> Caller:
    """The person at this machine as the caller, in a project by its name or id.

    Raises:
        NotFoundError: There is no such project.
    """
    from luthier.core.access import Caller

    return Caller(project_id=context.access.project(project).project_id)
