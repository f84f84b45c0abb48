"""Spans of time as people write them: `30d`, `12h`."""

from __future__ import annotations

import re
from typing import Final

from luthier.core.errors import RequestError

_SECONDS: Final = {"s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 604_800}
_DURATION = re.compile(r"([0-9]{1,9})([smhdw])", re.ASCII)
LONGEST_SECONDS: Final = 100 * 366 * 86_400


def parse_duration(text: str, *, option: str) -> float:
    """`30d` -> 2592000.0 seconds: a whole number and one of s, m (minutes), h, d, w; a century at most.

    Args:
        text: What was typed.
        option: The option that it was typed for, for the message.

    Raises:
        RequestError: The text has another format, or the duration is 0 or too long.
    """
    found = _DURATION.fullmatch(text.strip().lower())
    seconds = int(found[1]) * _SECONDS[found[2]] if found else 0
    if not 0 < seconds <= LONGEST_SECONDS:
        raise RequestError(
            f"{option} {text!r} is not a duration" + (" in the allowed range" if found else ""),
            expected="a whole number above 0 and a unit: s, m (minutes), h, d or w; at most 100 years",
            do=f"write for example {option} 30d or {option} 12h",
        )
    return float(seconds)
