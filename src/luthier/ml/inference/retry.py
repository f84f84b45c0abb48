"""When to try a request again, and how long to wait before: exponential back-off with jitter, or what a server asks."""

from __future__ import annotations

from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Final

MAX_PAUSE_SECONDS: Final = 60.0
MAX_RETRY_AFTER_SECONDS: Final = 300.0


def is_passing(status: int) -> bool:
    """Whether an HTTP status may be another at the next try: time-outs, conflicts, too many requests, server faults."""
    return status in (408, 409, 429) or status >= 500


def pause_seconds(attempt: int, retry_after: str | None, first: float, draw: float) -> float | None:
    """Seconds to wait before the next try.

    Args:
        attempt: number of the try that failed, from 1.
        retry_after: the header of that name, seconds or a date (RFC 9110, 10.2.3); one that cannot be read counts as
            none. Without it the pause is first * 2^(attempt - 1), at most 60 seconds.
        first: seconds before the second try.
        draw: random number from 0 to 1, which takes away up to a half.

    Returns:
        None where the server asks for more than five minutes.
    """
    if (asked := _asked_seconds(retry_after)) is not None:
        return asked if asked <= MAX_RETRY_AFTER_SECONDS else None
    # Jitter only shortens: the cap holds, and clients that failed together do not come back together.
    return min(first * 2.0 ** (attempt - 1), MAX_PAUSE_SECONDS) * (1 - draw / 2)


def _asked_seconds(header: str | None) -> float | None:
    if header is None:
        return None
    text = header.strip()
    # `isdigit` alone takes other scripts' digits and superscripts, which `float` may not.
    if text.isascii() and text.replace(".", "", 1).isdigit():
        return float(text)
    try:
        when = parsedate_to_datetime(text)
    except (ValueError, OverflowError):
        return None
    if when.tzinfo is None:
        # A date without a zone ("-0000" gives none): HTTP dates are in UTC.
        when = when.replace(tzinfo=UTC)
    return max(0.0, (when - datetime.now(UTC)).total_seconds())
