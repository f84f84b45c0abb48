"""Suggest known ids for one that does not exist."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches


def suggest_ids(asked: str, known: Sequence[str], num_shown: int = 3) -> str:
    """A phrase with the known ids most similar to `asked`, or with the first `num_shown` if none is similar."""
    if not known:
        return "there are none yet"
    # 0.6 is difflib's own cutoff: a typing mistake or two in an id.
    close = get_close_matches(asked, known, n=num_shown, cutoff=0.6)
    return f"nearest: {', '.join(close)}" if close else f"there are: {', '.join(known[:num_shown])}"
