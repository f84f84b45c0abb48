"""Round numbers for an axis, and how they are written."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from luthier.ml.charts.figures import MINUS


def linear_ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten in the range, at most `most`; `low` alone where it has no width."""
    if not high > low:
        return [low]
    rough = (high - low) / max(1, most - 1)
    power = 10.0 ** math.floor(math.log10(rough))
    # The tolerance keeps a step that equals `rough` but for rounding.
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    # Multiplied, not added up: sums would drift by rounding, and 0.30000000000000004 would be written.
    return [0.0 if n == 0 else n * step for n in range(first, last + 1)]


def log_ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Powers of ten within the range; the range's ends where there are none."""
    first, last = math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9)
    every = max(1, math.ceil((last - first + 1) / most))
    return [10.0**n for n in range(first, last + 1, every)] or [low, high]


def words(ticks: Sequence[float]) -> list[str]:
    """Each tick with the decimals that all of them need; large and tiny ones with an exponent."""
    if not ticks:
        return []
    largest = max(abs(tick) for tick in ticks)
    smallest = min((abs(tick) for tick in ticks if tick), default=1.0)
    gap = min((abs(b - a) for a, b in itertools.pairwise(ticks) if a != b), default=smallest)
    last = math.floor(math.log10(gap) + 1e-9)  # the decimal place in which neighbours differ
    if largest >= 1e6 or smallest < 1e-4:
        digits = max(3, math.floor(math.log10(largest)) - last + 1) if largest else 3
        return [_plain(f"{tick:.{digits}g}") for tick in ticks]
    decimals = max(0, -last)
    return [_plain(f"{tick:,.{decimals}f}") for tick in ticks]


def _plain(text: str) -> str:
    return text.replace("-", MINUS)
