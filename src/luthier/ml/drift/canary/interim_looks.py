"""When a canary is looked at, and what each look may spend of the error that is allowed over its whole life.

The looks are fixed by how many exchanges there were, of canary and rest together: that number does not depend on who
was drawn into the canary, so each look is a test at a set place, whenever somebody comes by. Look k is at `first *
1.5^(k - 1)` exchanges and spends 4 / ((k + 3) (k + 4)) of the error: a fifth of it at first, and over any number of
looks less than 1 together (a union bound; the spending of Lan and DeMets, 1983, "Discrete sequential boundaries for
clinical trials", with this sequence in place of a function of time).
"""

from __future__ import annotations

import math
from typing import Final

GROWTH: Final = 1.5
_SLOWNESS: Final = 4
"""The larger, the more evenly the error is spread over the looks."""


def first_look(fraction: float, least_requests: int) -> int:
    """Exchanges of both until the canary is expected to have its least."""
    return math.ceil(least_requests / fraction)


def look_at(num_exchanges: int, first: int) -> tuple[int, int]:
    """(k, exchanges that it is about) of the newest look that this many exchanges reach; (0, 0) before the first."""
    number, reached = 0, 0
    # Places grow geometrically, so this takes a logarithmic number of turns.
    while (place := place_of(number + 1, first)) <= num_exchanges:
        number, reached = number + 1, place
    return number, reached


def place_of(number: int, first: int) -> int:
    """How many exchanges look k is at, k from 1 on."""
    return math.ceil(first * GROWTH ** (number - 1))


def level_of(number: int, error: float, num_signals: int) -> float:
    """What a p-value of one of the signals has to reach in look k."""
    return error / num_signals * _SLOWNESS / ((number + _SLOWNESS - 1) * (number + _SLOWNESS))
