"""An alert: a signal of a deployed model that has changed, from when it is told until it is well again."""

from __future__ import annotations

from typing import Literal

from luthier.core.frozen import Frozen
from luthier.core.signal import Signal


class Alert(Frozen):
    """What is told. signal: as it was when it was last looked at. opened_at, closed_at: seconds since 1970."""

    alert_id: str
    project_id: str
    model: str
    signal: Signal
    status: Literal["open", "closed"] = "open"
    opened_at: float = 0.0
    closed_at: float | None = None
