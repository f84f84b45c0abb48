"""The answer to a case: what it is worth, how sure that is, what it hangs on, and what plainer ways are worth.

Money is in the case's currency. An interval holds 95% of the random draws.
"""

from __future__ import annotations

from typing import Literal

from luthier.core.frozen_model import FrozenModel
from luthier.core.results.roi import Case, MeasuredGains

Answer = Literal["yes", "no", "open"]
Kind = Literal["money", "share", "gain", "number"]


class Spread(FrozenModel):
    """A figure under doubt.

    Attributes:
        typical: every input at its typical value; mean and interval: over the draws.
    """

    typical: float
    mean: float
    low: float
    high: float


class SpreadOrNever(FrozenModel):
    """As a spread, of something that may never happen: None."""

    typical: float | None
    low: float | None
    high: float | None


class Part(FrozenModel):
    """One part of a sum. What costs is negative."""

    name: str
    title: str
    amount: Spread


class Priced(FrozenModel):
    """One way against today's.

    Attributes:
        gain: accuracy less today's.
        serving_per_month: what calls cost that way.
        once: spent before it is in use.
        per_month: what each month then brings, all costs taken off.
        value: over the horizon.
        probability_pays: the share of draws in which value is above 0.
        probability_tuned_is_worth_more: None for the tuned model itself.
    """

    name: str
    title: str
    gain: Spread
    serving_per_month: Spread
    once: Spread
    per_month: Spread
    value: Spread
    payback_months: SpreadOrNever
    probability_pays: float
    probability_tuned_is_worth_more: float | None = None


class NotPriced(FrozenModel):
    """A plain way that the case says too little about."""

    name: str
    title: str
    needs: str


class Bar(FrozenModel):
    """One bar of the tornado: the value over the horizon with this input at its low and at its high, others typical."""

    name: str
    title: str
    kind: Kind
    low: float
    typical: float
    high: float
    value_at_low: float
    value_at_high: float

    @property
    def swing(self) -> float:
        """How far the value moves."""
        return abs(self.value_at_high - self.value_at_low)


class BreakEven(FrozenModel):
    """Where the answer turns, all else typical.

    Attributes:
        needed: None where nothing does.
        against: what it is compared with.
    """

    name: str
    title: str
    kind: Kind
    now: float
    needed: float | None
    at_least: bool
    against: str
    sentence: str


class Month(FrozenModel):
    """What has come together by the end of a month, all that was spent taken off."""

    month: int
    typical: float
    low: float
    high: float


class Histogram(FrozenModel):
    """How often the draws give which value over the horizon; edges are one more than counts."""

    edges: tuple[float, ...]
    counts: tuple[int, ...]


class RoiResult(FrozenModel):
    """The whole answer.

    Attributes:
        reasons: why.
        changes: what would have to change for another answer.
        notes: what was assumed, and where figures are from.
        today_per_month: what calls cost today.
    """

    answer: Answer
    headline: str
    reasons: tuple[str, ...]
    changes: tuple[str, ...]
    notes: tuple[str, ...]
    case: Case
    measured: MeasuredGains | None
    today_per_month: Spread
    tuned: Priced
    probability_within_budget: float | None
    once_parts: tuple[Part, ...]
    monthly_parts: tuple[Part, ...]
    alternatives: tuple[Priced, ...]
    not_priced: tuple[NotPriced, ...]
    break_even_gain: SpreadOrNever
    break_evens: tuple[BreakEven, ...]
    tornado: tuple[Bar, ...]
    months: tuple[Month, ...]
    histogram: Histogram
    num_draws: int
    distribution: str
