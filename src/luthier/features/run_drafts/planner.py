"""The planner of drafts of one server: it has a child process, so there is one of it."""

from __future__ import annotations

import threading
from typing import Final

from starlette.datastructures import State

from luthier.features.planning.drafts import DraftPlanner
from luthier.platform.home.context import Context

_making: Final = threading.Lock()


def draft_planner(state: State, context: Context) -> DraftPlanner:
    """The planner of an app, made when the first recipe is drafted."""
    # Two concurrent requests must not make two planners: each has its own process.
    with _making:
        if getattr(state, "draft_planner", None) is None:
            state.draft_planner = DraftPlanner(context)
        planner: DraftPlanner = state.draft_planner
    return planner
