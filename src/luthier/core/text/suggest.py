"""Suggest known ids for one that does not exist."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import SequenceMatcher


def suggest_ids(asked: str, known: Sequence[str], num_shown: int = 3) -> str:
    """A phrase with the known ids most similar to `asked`, or with the first `num_shown` if none is similar."""
    if not known:
        return "there are none yet"
    # 0.6 is difflib's own cutoff: a typing mistake or two in an id.
    scored = sorted(((_likeness(asked, one), -place, one) for place, one in enumerate(known)), reverse=True)
    close = [one for score, _, one in scored if score >= 0.6][:num_shown]
    return f"nearest: {', '.join(close)}" if close else f"there are: {', '.join(known[:num_shown])}"


def _likeness(asked: str, known: str) -> float:
    """From 0 to 1; the beginning of a longer name counts as much as the whole: `smolm2` is near `smollm2-135m`."""
    asked, known = asked.casefold(), known.casefold()
    beginnings = {known, known[: len(asked) + 1]} if len(asked) > 3 else {known}
    return max(SequenceMatcher(None, asked, one).ratio() for one in beginnings)
