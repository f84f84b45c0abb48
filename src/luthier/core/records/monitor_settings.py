"""What an operator says of a model that is watched."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from luthier.core.frozen_model import FrozenModel


class WatchSettings(FrozenModel):
    """Kept for each model of a project.

    Attributes:
        groups: names of groups of people, and the regular expressions (of either case) by which a prompt is known to be
            of them.
        corpus: documents that answers may cite, absolute.
        data: rows like those that it was trained on, absolute; None takes those of its run.
        normal_since: seconds since 1970; what was before is not to be compared with.
        judge: a model that scores samples of its answers, as `luthier eval --judge` names it; None has none judged.
        num_judged: answers of the window, and as many of the time before.
        suite: a suite that judges it again and again, absolute; None has none.
        suite_every_hours: from one beginning to the next.
    """

    groups: dict[str, str] = Field(default_factory=dict)
    corpus: str | None = None
    data: str | None = None
    normal_since: float = 0.0
    judge: str | None = None
    num_judged: Annotated[int, Field(ge=20, le=1000)] = 60
    suite: str | None = None
    suite_every_hours: Annotated[float, Field(ge=1, le=24 * 366)] = 24.0
