"""What is told of a job: its turns, the figures of each step, the models that it has made."""

from __future__ import annotations

from typing import Literal

from luthier.core.frozen_model import FrozenModel

Level = Literal["info", "warn", "error"]


class JobEvent(FrozenModel):
    """One thing told. Never changed once it is. `created_at` is seconds since 1970 by the database's clock.

    code: what is told, by a name of its own within the job: what an attempt does over again is told once. data: the
    figures of a step; None for an event that is a message alone.
    """

    event_id: str
    job_id: str
    code: str
    created_at: float
    level: Level = "info"
    message: str
    data: dict[str, float | None] | None = None
