"""How long the actions of a run take: measured as it goes, so that the next one can be predicted.

Steps differ in tokens, so what is followed is seconds a token: a mean over recent steps in which each weighs by its
tokens, and older ones fade, since the machine's load changes.
"""

from __future__ import annotations

import math
from typing import Final, Literal

from pydantic import Field

from luthier.core.cost import Estimate
from luthier.core.frozen_model import FrozenModel

Action = Literal[
    "preparing", "teacher", "loading", "reference", "step", "validation", "checkpoint", "saving", "judging", "reporting"
]

_DECAY: Final = 0.97
"""Share of its weight that a step keeps with each later one: about the last 30 count."""
_NEWEST: Final = 0.5
"""Weight of the newest among actions of one kind that are not steps."""
_MIN_SPREAD: Final = 0.02
"""Relative; machines are never steadier than that over hours."""


class Throughput(FrozenModel):
    """What actions have taken so far. tokens, seconds, squares (seconds^2 / tokens), weights: fading sums over steps.

    Attributes:
        num_steps: steps measured; the first one warms up and is forgotten once there is a second.
        others: seconds of each other kind of action, the newest weighing half; of judging, which may be cut short, the
            most.
    """

    num_steps: int = 0
    weight: float = 0.0
    weight_squared: float = 0.0
    tokens: float = 0.0
    seconds: float = 0.0
    squares: float = 0.0
    others: dict[Action, float] = Field(default_factory=dict)

    def after_step(self, tokens: int, seconds: float) -> Throughput:
        """The pace with one more step of that many tokens."""
        # The first step compiled, allocated and filled caches: it says little about the others.
        kept = 0.0 if self.num_steps == 1 else _DECAY
        return self.model_copy(
            update={
                "num_steps": self.num_steps + 1,
                "weight": self.weight * kept + 1.0,
                "weight_squared": self.weight_squared * kept**2 + 1.0,
                "tokens": self.tokens * kept + tokens,
                "seconds": self.seconds * kept + seconds,
                # tokens * (seconds / tokens)^2: the second moment of seconds a token, weighted by tokens
                "squares": self.squares * kept + seconds**2 / tokens,
            }
        )

    def after(self, action: Action, seconds: float) -> Throughput:
        """The pace with one more action that is not a step."""
        before = self.others.get(action, seconds)
        mixed = max(before, seconds) if action == "judging" else _NEWEST * seconds + (1 - _NEWEST) * before
        return self.model_copy(update={"others": {**self.others, action: mixed}})

    @property
    def spread(self) -> float:
        """Standard deviation of a step's seconds a token, relative to their mean; 0 before two steps are measured."""
        if self.num_steps < 2:
            return 0.0
        mean = self.seconds / self.tokens
        # Rounding can make the variance of equal steps slightly negative.
        return math.sqrt(max(0.0, self.squares / self.tokens - mean**2)) / mean

    def seconds_for(self, tokens: float, num_steps: int) -> Estimate:
        """Seconds of that many steps with that many tokens together, at least one step being measured.

        The interval is one of 95%: of the mean so far and of what is to come, steps taken as independent.
        """
        value = tokens * self.seconds / self.tokens
        if self.num_steps < 3 or num_steps < 1:
            return Estimate(value=value, low=value / 1.5, high=value * 1.5)
        measured = self.weight**2 / self.weight_squared  # effective number of equally weighted steps (Kish, 1965)
        half = _student(measured - 1.0) * self.spread * math.sqrt(1.0 / measured + 1.0 / num_steps)
        half = max(half, _MIN_SPREAD)
        return Estimate(value=value, low=value / (1.0 + half), high=value * (1.0 + half))


def _student(freedom: float) -> float:
    """Student's t at 97.5%, to 4% from one degree of freedom on: scipy would be a heavy load for one quantile."""
    freedom = max(freedom, 1.0)
    return 1.96 + 2.4 / freedom + 8.0 / freedom**3
