"""Names for things that are made: short, sortable by time, safe in paths and URLs."""

from __future__ import annotations

import re
import secrets
from datetime import UTC, datetime

_ID = re.compile(r"[a-z]+-[0-9]{8}-[0-9]{6}-[0-9a-f]{6}")


def new_id(kind: str) -> str:
    """A new id such as `run-20261125-093000-1f2e3d`: kind, UTC time to the second, 24 random bits."""
    # 24 bits tell apart what one second makes; stores that must be sure check for a duplicate besides.
    return f"{kind}-{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(3)}"


def is_id(text: str, kind: str) -> bool:
    """Whether `text` has the form of an id of this kind. Anything else must never become part of a path."""
    return text.startswith(f"{kind}-") and _ID.fullmatch(text) is not None
