"""The rank of each value among those before it, as numbers that are evenly spread for as long as nothing changes.

The rank of a value among all that came before, with ties broken by lot, is a conformal p-value. Whatever the values
are distributed like, these are independent and uniform on (0, 1) while the order of the values says nothing
(exchangeability): a fact of counting, without an assumption on the values. Values are ranked within slots only (here:
hours of the day, weekend or not), so that a rhythm that comes back each day or week changes nothing.

Sources: Vovk, Gammerman, Shafer, "Algorithmic Learning in a Random World", 2nd ed., 2022, sections 2.2.6 (smoothed
p-values, theorem 11.1: their independence) and 4.6 (Mondrian: ranks within categories).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Flags = NDArray[np.bool_]
Slots = Callable[[Ints], Ints]

_SECONDS_AN_HOUR = 3_600
_HOURS_A_DAY = 24
_HOURS_A_SLOT = 6
_FIRST_DAY = 3  # 1970-01-01 was a Thursday


def hours_of(at: Floats) -> Ints:
    """The hour of each time: whole hours since 1970."""
    return np.floor_divide(at, _SECONDS_AN_HOUR).astype(np.int64)


def slots_of(hours: Ints) -> Ints:
    """The slot of each hour, 0 to 7: a quarter of the day (UTC), on a working day or at the weekend."""
    days = hours // _HOURS_A_DAY
    is_weekend = (days + _FIRST_DAY) % 7 >= 5
    slots: Ints = (hours % _HOURS_A_DAY) // _HOURS_A_SLOT + is_weekend * (_HOURS_A_DAY // _HOURS_A_SLOT)
    return slots


def no_slots(hours: Ints) -> Ints:
    """One slot for all hours: where there are too few values to compare hours of a kind alone."""
    return np.zeros_like(hours)


def lots(ids: Sequence[str], salt: str) -> Floats:
    """A number in (0, 1) for each id: looks random, and is the same at every look."""
    from hashlib import blake2b

    key = salt.encode()[:64]
    digests = b"".join(blake2b(one.encode("utf-8", "replace"), digest_size=8, key=key).digest() for one in ids)
    # 53 bits are what a double holds exactly; the half keeps the number off both 0 and 1.
    numbers = np.frombuffer(digests, dtype=np.uint64) >> np.uint64(11)
    found: Floats = (numbers.astype(np.float64) + 0.5) / (1 << 53)
    return found


def conformal_ranks(values: Floats, hours: Ints, draws: Floats, slots: Slots = slots_of) -> Floats:
    """The rank of each value among those before it in its slot, in (0, 1): high for a high value. All arrays: [n].

    Args:
        values: in the order of time, no NaN.
        hours: never falling.
        draws: in (0, 1), one a value, to break ties.
    """
    ranks = np.empty(len(values))
    of_hour = slots(hours)
    for slot in np.unique(of_hour):
        at = np.flatnonzero(of_hour == slot)
        # Where a new hour begins. Within an hour values are compared pairwise, so memory grows with its square only.
        bounds = np.flatnonzero(np.diff(hours[at], prepend=-1))
        pool = np.empty(0)
        for part in np.split(at, bounds[1:]):
            now = values[part]
            low = np.searchsorted(pool, now, "left") + _earlier(now, np.less)
            equal = np.searchsorted(pool, now, "right") - np.searchsorted(pool, now, "left") + _earlier(now, np.equal)
            num_before = len(pool) + np.arange(len(now))
            # A smoothed p-value: the value counts among its equals, and the draw places it among them.
            ranks[part] = (low + draws[part] * (equal + 1)) / (num_before + 1)
            pool = np.sort(np.concatenate((pool, now)), kind="stable")
    return ranks


def _earlier(values: Floats, compare: np.ufunc) -> Ints:
    """How many of those before it within the same hour each value finds less, or equal: [n]."""
    # [n, n]: row i compares value i with all; below the diagonal are those that came before it.
    found: Ints = np.tril(compare(values[None, :], values[:, None]), k=-1).sum(axis=1)
    return found
