"""A passage that stands many times in a row: how a language model fails when it gets stuck (Holtzman et al.,
The Curious Case of Neural Text Degeneration, 2020, section 1).
"""

from __future__ import annotations

from typing import Final

LONGEST_PERIOD_CHARACTERS: Final = 200
FEWEST_TIMES: Final = 4
SHORTEST_LOOP_CHARACTERS: Final = 80
_PROBE_CHARACTERS: Final = 12
_FEWEST_LETTERS: Final = 2
_STRIDE: Final = SHORTEST_LOOP_CHARACTERS // 2


def loop_in(text: str) -> tuple[int, int] | None:
    """Where the first loop begins and how long one turn of it is, in characters; None where there is none.

    A loop is a passage of at most 200 characters with letters, four times or more in a row, at least 80 characters in
    all. Linear in the length of the text: it is probed every 40 characters, which no loop is too short for.
    """
    last = len(text) - SHORTEST_LOOP_CHARACTERS // 2
    for place in range(0, max(last, 0) + 1, _STRIDE):
        probe = text[place : place + _PROBE_CHARACTERS]
        # Inside a loop a probe occurs again after exactly one period.
        again = text.find(probe, place + 1, place + LONGEST_PERIOD_CHARACTERS + _PROBE_CHARACTERS)
        if again < 0:
            continue
        period = again - place
        if sum(map(str.isalpha, text[place:again])) < min(_FEWEST_LETTERS, period):
            continue
        start, end = _extent(text, place, period)
        if end - start >= max(SHORTEST_LOOP_CHARACTERS, FEWEST_TIMES * period):
            return start, period
    return None


def _extent(text: str, place: int, period: int) -> tuple[int, int]:
    """How far the text around a place repeats itself after `period` characters; at most five turns to each side."""
    reach = (FEWEST_TIMES + 1) * period + SHORTEST_LOOP_CHARACTERS
    start = end = place
    # Bounded, so that the whole search stays linear where a text is one long loop.
    while start > max(0, place - reach) and text[start - 1] == text[start - 1 + period]:
        start -= 1
    most = min(len(text) - period, place + reach)
    while end < most and text[end] == text[end + period]:
        end += 1
    return start, end + period
