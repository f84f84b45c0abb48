"""Evidence of a change in a stream of ranks, looked at as often as one likes.

Of each possible change (from this hour on, a share `moved` of all ranks falls into this range) the likelihood ratio
against "evenly spread" is a fair bet: while nothing changes, its mean is 1. The sum over all hours at which the change
may have begun, averaged over all changes looked for, is the Shiryaev-Roberts statistic: while nothing changes, its mean
grows by 1 an hour, and the chance that it ever reaches c within T hours is at most T / c (Doob's inequality). No
correction for the number of looks is needed: the bound is for all of them.

Sources: Shin, Ramdas, Rinaldo, "E-detectors: a nonparametric framework for sequential change detection", 2023
(definition 2.2, theorem 2.4); Vovk, Petej, Nouretdinov, Ahlberg, Gammerman, "Retrain or not retrain: conformal test
martingales for change-point detection", 2021 (section 3: Shiryaev-Roberts on conformal p-values); Roberts, "A
comparison of some control chart procedures", 1966.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from luthier.ml.drift.drift.ranks import Floats, Ints

LOOK_BACK_DAYS: Final = 28
RENEWED_DAYS: Final = 14
FALSE_ALARMS_A_MONTH: Final = 0.05
"""Of all signals of a model together, at most, on steady traffic."""
_LEVELS: Final = 5
_TAIL_LEVELS: Final = 10
_MOVED: Final = (0.02, 0.08, 0.25, 0.6)
# Every 14 days a new stretch of 28 begins: 30 / 14 of them a month, each of which may fail in 28 x 24 hours.
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
        low, high, moved: the change that explains most: a share `moved` more of the ranks lies between low and high.
        dropped: by how much the evidence of the strongest change has fallen from its peak, in the same logarithms: as
            sure as it was that this began, so sure is it that it ended.
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
    # Log-gains summed from each hour to the end: the largest sum marks the likeliest first hour.
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
