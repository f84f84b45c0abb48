"""Evidence of a change in a stream of values: conformal ranks, a sequential test on them, and the PSI.

Ranks: the rank of a value among all that came before, with ties broken by lot, is a conformal p-value. For any
distribution of the values, these are independent and uniform on (0, 1) while the order of the values says nothing
(exchangeability): a fact of counting, without an assumption about the values. Values are ranked within slots only
(here: hours of the day, weekend or not), so that a daily or weekly rhythm changes nothing.

Evidence: of each possible change (from this hour on, a share `moved` of all ranks falls into this range) the likelihood
ratio against "evenly spread" is a fair bet: while nothing changes, its mean is 1. The sum over all hours at which the
change may have begun, averaged over all changes looked for, is the Shiryaev-Roberts statistic: while nothing changes,
its mean grows by 1 an hour, and the chance that it ever reaches c within T hours is at most T / c (Doob's inequality).
No correction for the number of looks is needed: the bound is for all of them.

Population stability index: the sum over bins of (now - before) * ln(now / before), both Kullback-Leibler divergences
together. By custom below 0.1 is little, above 0.25 much. Half an observation is added to each bin, so that an empty one
stays finite, and what chance alone gives, (bins - 1) * (1 / before + 1 / now), is taken off.

Sources: Vovk, Gammerman, Shafer, "Algorithmic Learning in a Random World", 2nd ed., 2022, sections 2.2.6 (smoothed
p-values, theorem 11.1: their independence) and 4.6 (Mondrian: ranks within categories); Shin, Ramdas, Rinaldo,
"E-detectors: a nonparametric framework for sequential change detection", 2023 (definition 2.2, theorem 2.4); Vovk,
Petej, Nouretdinov, Ahlberg, Gammerman, "Retrain or not retrain: conformal test martingales for change-point detection",
2021 (section 3: Shiryaev-Roberts on conformal p-values); Roberts, "A comparison of some control chart procedures",
1966; Siddiqi, "Credit Risk Scorecards", 2006 (0.1 and 0.25); Yurdakul, "Statistical Properties of Population Stability
Index", 2018, section 3 (its mean under no change); the spread of the PSI is by the delta method.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from luthier.core.records.bounds import Bounds
from luthier.ml.drift.thresholds import FALSE_ALARMS_A_MONTH, LOOK_BACK_DAYS, RENEWED_DAYS

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
        slots: the slot of each hour, such as its hour of the week.
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


MUCH: Final = 0.25
_NUM_BINS: Final = 10
_INDEX: Final = Bounds(0.0, math.inf)


class Apart(NamedTuple):
    """The index and its standard error."""

    value: float
    error: float

    def ends(self, tail: float) -> tuple[float, float]:
        """The interval that leaves out `tail` at each side, on the scale of logarithms: no index is below 0."""
        return _INDEX.around(self.value, self.error, -float(ndtri(tail)))


def psi(before: Floats, now: Floats) -> Apart:
    """The index of counts in the same bins, both [bins] with at least one observation each."""
    num_before, num_now = before.sum(), now.sum()
    p, q = (before + 0.5) / (num_before + len(before) / 2), (now + 0.5) / (num_now + len(now) / 2)
    log = np.log(q / p)
    value = float(((q - p) * log).sum()) - (len(before) - 1) * (1 / num_before + 1 / num_now)
    # Delta method: derivatives of the index by each share of now and of before, then multinomial variances.
    by_now, by_before = log + 1 - p / q, -log + 1 - q / p
    variance = _spread(q, by_now) / num_now + _spread(p, by_before) / num_before
    # What chance gives is subtracted, so the estimate can fall below 0, which no index is.
    return Apart(max(0.0, value), float(np.sqrt(max(variance, 0.0))))


def binned(before: Floats, now: Floats) -> tuple[Floats, Floats]:
    """Counts of numbers in bins that hold a tenth each of `before`; equal values stay in one bin."""
    # Many equal values give equal quantiles; unique merges them into fewer bins.
    edges = np.unique(np.quantile(before, np.linspace(0, 1, _NUM_BINS + 1)[1:-1]))
    places = (np.searchsorted(edges, values, "left").astype(np.int64) for values in (before, now))
    found = [_counts(one, len(edges) + 1) for one in places]
    return found[0], found[1]


def matched(before: Floats, now: Floats, num_kinds: int) -> tuple[Floats, Floats]:
    """Counts of kinds, which are whole numbers from 0; what is in neither is left out.

    Args:
        before: [exchanges], kinds of earlier traffic.
        now: [exchanges], kinds of the window.
        num_kinds: kinds in all, from 0 to num_kinds - 1.
    """
    found = _counts(before.astype(np.int64), num_kinds), _counts(now.astype(np.int64), num_kinds)
    is_there = found[0] + found[1] > 0
    return found[0][is_there], found[1][is_there]


def _counts(places: Ints, num: int) -> Floats:
    return np.bincount(places, minlength=num).astype(np.float64)


def _spread(weights: Floats, values: Floats) -> float:
    return float((weights * values**2).sum() - (weights * values).sum() ** 2)


_LEVELS: Final = 5
_TAIL_LEVELS: Final = 10
_MOVED: Final = (0.02, 0.08, 0.25, 0.6)
# Every 14 days a new period of 28 begins: 30 / 14 of them a month, each of which may fail in 28 x 24 hours.
_HOURS_A_MONTH: Final = 30 / RENEWED_DAYS * LOOK_BACK_DAYS * 24


def _ranges() -> Floats:
    """[ranges, 2]: halves, quarters, ... 32nds of (0, 1), and ever narrower ones at both ends."""
    found = [(place / 2**level, (place + 1) / 2**level) for level in range(1, _LEVELS + 1) for place in range(2**level)]
    for level in range(_LEVELS + 1, _TAIL_LEVELS + 1):
        found += [(0.0, 0.5**level), (1 - 0.5**level, 1.0)]
    return np.array(found)


RANGES: Final = _ranges()
_EDGES: Final = np.unique(RANGES)
_PLACES: Final = np.searchsorted(_EDGES, RANGES)


@dataclass(frozen=True, slots=True)
class Evidence:
    """What the ranks say at the end.

    Attributes:
        log_strength: natural logarithm of the Shiryaev-Roberts statistic after each hour that has values, [hours].
        hours: which those are.
        began: the likeliest first hour of the change.
        low, high, moved: the change that explains most: a share `moved` more of the ranks is between low and high.
        dropped: by how much the evidence of the strongest change has fallen from its peak, in the same logarithms: the
            evidence that it has ended.
    """

    hours: Ints
    log_strength: Floats
    began: int
    low: float
    high: float
    moved: float
    dropped: float


def evidence(ranks: Floats, hours: Ints) -> Evidence | None:
    """The evidence after each hour.

    Args:
        ranks: [n] in (0, 1).
        hours: [n], never falling.

    Returns:
        The evidence; None where there are no ranks.
    """
    if not len(ranks):
        return None
    at, place = np.unique(hours, return_inverse=True)
    bins = np.clip(np.searchsorted(_EDGES, ranks, "right") - 1, 0, len(_EDGES) - 2)
    counts = np.zeros((len(at), len(_EDGES)))
    np.add.at(counts, (place, bins + 1), 1)
    # A range is a run of elementary bins: its count is one difference of cumulative counts. [hours, edges]
    below = counts.cumsum(axis=1)
    inside = below[:, _PLACES[:, 1]] - below[:, _PLACES[:, 0]]
    gains = _gains(inside, below[:, -1:])
    strengths = np.empty_like(gains)
    before = np.full(gains.shape[1], -np.inf)
    # R_t = (1 + R_(t-1)) L_t in logarithms; the 1 is a change that begins in this very hour. [ranges * moved]
    for hour, gain in enumerate(gains):
        before = np.logaddexp(0.0, before) + gain
        strengths[hour] = before
    # The mean over all changes looked for: it grows by 1 an hour on steady traffic, as each of them does.
    found = np.logaddexp.reduce(strengths, axis=1) - np.log(strengths.shape[1])
    best = int(strengths[-1].argmax())
    # Log-gains summed from each hour to the end: the largest sum gives the likeliest first hour.
    began = int(np.cumsum(gains[::-1, best])[::-1].argmax())
    low, high = RANGES[best // len(_MOVED)]
    peak = int(found.argmax())
    strongest = int(strengths[peak].argmax())
    dropped = float(strengths[peak, strongest] - strengths[-1, strongest])
    return Evidence(at, found, int(at[began]), float(low), float(high), _MOVED[best % len(_MOVED)], dropped)


def false_alarms_a_month(log_strength: float, num_signals: int) -> float:
    """How many alarms of this strength or more all signals of a model give a month on steady traffic, at most.

    The bound of one stretch times those that begin in 30 days, times the signals; 1 represents 1 and more.
    """
    return float(min(1.0, np.exp(np.log(_HOURS_A_MONTH * num_signals) - log_strength)))


def has_ended(dropped: float, num_signals: int) -> bool:
    """Whether a change is over: the evidence against it that has come since is as strong as one for it must be."""
    return dropped >= needed_strength(num_signals)


def needed_strength(num_signals: int) -> float:
    """The logarithm of the strength from which on a change is reported."""
    return float(np.log(_HOURS_A_MONTH * num_signals / FALSE_ALARMS_A_MONTH))


def _gains(inside: Floats, total: Floats) -> Floats:
    """Logarithm of the likelihood ratio of each hour for each change: [hours, ranges * moved]."""
    width = (RANGES[:, 1] - RANGES[:, 0])[None, :, None]
    moved = np.array(_MOVED)[None, None, :]
    # Density of a rank after the change: 1 - moved everywhere, and moved / width more inside of the range.
    found = inside[..., None] * np.log(1 - moved + moved / width) + (total - inside)[..., None] * np.log(1 - moved)
    gains: Floats = found.reshape(len(inside), -1)
    return gains
