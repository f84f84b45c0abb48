"""How much of a project's traffic is kept, and how long. Separate from `traffic`: commands start without pydantic."""

from __future__ import annotations

from typing import Final, Literal

LoggingMode = Literal["off", "metadata", "sampled", "full"]
MOST_DAYS_KEPT: Final = 36_500
