"""How fast two engines answer with one model, and which is the faster one at a load."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal

from luthier.core.frozen_model import FrozenModel

NUM_CROWD: Final = 8
"""Answers at once by which a crowd is timed."""
NUM_MANY: Final = 16
"""Answers at once by which a large crowd is timed: the order of two engines at eight may be another one at sixteen."""


class EngineSpeed(FrozenModel):
    """New tokens a second of an engine on this machine, of all answers together.

    Attributes:
        alone: one answer at a time.
        crowd: `num_crowd` at once, with the adapters in turn.
        num_crowd: answers at once of `crowd`.
        many: `NUM_MANY` at once; None where it was not timed.
        num_bytes: what the engine then took for weights, adapters and its cache; 0 where it was not measured.
    """

    alone: float
    crowd: float
    num_crowd: int = NUM_CROWD
    many: float | None = None
    num_bytes: int = 0

    @property
    def max_answers(self) -> int:
        """The most answers at once that were timed."""
        return self.num_crowd if self.many is None else max(self.num_crowd, NUM_MANY)

    def at(self, num_answers: int) -> float:
        """The rate with that many answers at once: on lines between those that were timed, level beyond them."""
        if self.many is not None and num_answers > self.num_crowd:
            share = min(1.0, (num_answers - self.num_crowd) / max(1, NUM_MANY - self.num_crowd))
            return self.crowd + share * (self.many - self.crowd)
        share = min(1.0, max(0.0, (num_answers - 1) / max(1, self.num_crowd - 1)))
        return self.alone + share * (self.crowd - self.alone)

    def is_faster_than(self, other: EngineSpeed) -> bool:
        """By the product of both rates, so that neither use decides alone."""
        return self.alone * self.crowd > other.alone * other.crowd


class EngineRates(FrozenModel):
    """The speeds of a model's two engines, timed with the same requests.

    Attributes:
        num_variants: how many models requests took in turn: the base, or adapters over it.
        engine: the engine of the proved copy (`Served.engine`).
        fallback: the engine of the model's own files (`Served.fallback`).
    """

    num_variants: int = 1
    engine: EngineSpeed
    fallback: EngineSpeed

    @property
    def winner(self) -> str | None:
        """`engine` or `fallback`: the one that is no slower at any load; None where the load decides."""
        loads = (1, self.engine.num_crowd, self.fallback.num_crowd, self._max_answers)
        rates = [(self.engine.at(num), self.fallback.at(num)) for num in loads]
        if all(engine >= fallback for engine, fallback in rates):
            return "engine"
        return "fallback" if all(engine <= fallback for engine, fallback in rates) else None

    @property
    def _max_answers(self) -> int:
        return max(self.engine.max_answers, self.fallback.max_answers)

    def takes_fallback(self, num_answers: int) -> bool:
        """Whether the fallback is the faster one with that many answers at once."""
        return self.fallback.at(num_answers) > self.engine.at(num_answers)

    @property
    def switch_at(self) -> int | None:
        """The fewest answers at once with which the other engine than that of a single answer is faster."""
        alone = self.takes_fallback(1)
        return next((num for num in range(2, self._max_answers + 1) if self.takes_fallback(num) != alone), None)


def speeds_at(rates: Sequence[EngineRates], num_answers: int, num_variants: int) -> tuple[float, float] | None:
    """The speeds of both engines with so many answers at once, of so many models: the base, or adapters over it.

    A timing with n models knows the speed with min(n, answers) of them at once. Between two timings, seconds a token
    are on a line: an engine that answers adapters in turn takes as much longer with each of them.

    Args:
        rates: Timings with different numbers of models.
        num_answers: At once.
        num_variants: Models that these answers come from.

    Returns:
        New tokens/s of `engine` and of `fallback`; None without timings.
    """
    timed = {min(one.num_variants, num_answers): one for one in sorted(rates, key=lambda one: -one.num_variants)}
    if not timed:
        return None
    below = max((num for num in timed if num <= num_variants), default=min(timed))
    above = min((num for num in timed if num >= num_variants), default=max(timed))
    share = 0.0 if above == below else (num_variants - below) / (above - below)

    def speed(side: Literal["engine", "fallback"]) -> float:
        less, more = (getattr(timed[num], side).at(num_answers) for num in (below, above))
        return 1 / ((1 - share) / less + share / more) if less > 0 and more > 0 else 0.0

    return speed("engine"), speed("fallback")


def rates_for(rates: tuple[EngineRates, ...], num_variants: int) -> EngineRates | None:
    """The rates timed with the most variants that are no more than these; else those with the fewest; None for none."""
    ordered = sorted(rates, key=lambda one: one.num_variants)
    below = [one for one in ordered if one.num_variants <= num_variants]
    return below[-1] if below else ordered[0] if ordered else None
