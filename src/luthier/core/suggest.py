"""Name what a person may have meant."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches


def suggest_ids(asked: str, known: Sequence[str], num_shown: int = 3) -> str:
    """The known ids most like the one asked for, in words; the first few where none is like it."""
    if not known:
        return "there are none yet"
    close = get_close_matches(asked, known, n=num_shown, cutoff=0.6)
    return f"nearest: {', '.join(close)}" if close else f"there are: {', '.join(known[:num_shown])}"
