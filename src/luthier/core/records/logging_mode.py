"""How much of a project's traffic is kept, as one word. Separate from `traffic`: commands start without pydantic."""

from __future__ import annotations

from typing import Literal

Keeping = Literal["off", "metadata", "sampled", "full"]
