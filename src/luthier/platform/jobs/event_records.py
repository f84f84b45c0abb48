"""Events of a job: changes of its status, the figures of each step, the models that it has made."""

from __future__ import annotations

from typing import Literal

from luthier.core.frozen_model import FrozenModel

Level = Literal["info", "warn", "error"]


class JobEvent(FrozenModel):
    """One event of a job. It never changes.

    Attributes:
        event_id: Its id, `ftevent-...`.
        job_id: The job that it is about.
        code: Its name within the job. An event of the same code is stored once, however often an attempt repeats it.
        created_at: Seconds since 1970 by the database's clock.
        level: How serious it is, as in OpenAI's API.
        message: One sentence for people.
        data: The figures of a training step; None for an event that is a message alone.
    """

    event_id: str
    job_id: str
    code: str
    created_at: float
    level: Level = "info"
    message: str
    data: dict[str, float | None] | None = None
