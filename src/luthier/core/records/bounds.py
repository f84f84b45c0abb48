"""What a figure can be: its lower and upper end, and the scale on which an interval around it cannot leave them.

An interval "value plus or minus some standard errors" ignores a figure's ends: 100 points of BLEU become
151, a perplexity falls below 1. On the scale of a link function (logit between two ends, logarithm above or below
one, none without ends) every number is possible, and every result computed there is between the ends when it is taken
back. Nothing is cut off: the nearer an end, the shorter that side and the longer the other.

Sources: McCullagh and Nelder, "Generalized Linear Models", 1989, section 2.2 (link functions); Agresti, "Categorical
Data Analysis", 2013, section 1.4 (intervals of a proportion on the logit scale); Edwardes, "A confidence interval for
Pr(X < Y) - Pr(X > Y) estimated from simple cluster samples", 1995 (Fisher's z for a difference between -1 and 1, which
is the logit of its position between the ends).
"""

from __future__ import annotations

import math
from typing import Final, NamedTuple

_LARGEST: Final = 700.0
"""exp() of more is no double."""


_LEAST: Final = 1e-12
"""Of a width: what is nearer to an end is at it, within the accuracy of sums of doubles."""


class Bounds(NamedTuple):
    """The ends of a figure, infinite where it has none.

    Attributes:
        lower: the least possible value; -inf where there is none.
        upper: the greatest possible value; inf where there is none.
    """

    lower: float
    upper: float

    @property
    def width(self) -> float:
        """From end to end; infinite where one is open."""
        return self.upper - self.lower

    @property
    def of_differences(self) -> Bounds:
        """What one such figure less another can be."""
        return Bounds(self.lower - self.upper, self.upper - self.lower)

    def hold(self, value: float) -> bool:
        """Whether a value is between the ends, within the accuracy of sums of doubles."""
        # Relative to the width, or to the value where an end is open: 1e-9 of it is far above rounding of doubles.
        size = self.width if math.isfinite(self.width) else max(1.0, abs(value))
        return self.lower - 1e-9 * size <= value <= self.upper + 1e-9 * size

    def inside(self, value: float, margin: float) -> float:
        """The value, or a point `margin` inside of an end that it is nearer to; the middle where there is no such.

        At the very end the link is infinite; and a figure that is nearer to an end than its own standard error might
        as well be that far from it, so that no link of it is worth a whole scale.
        """
        ends = [abs(end) for end in self if math.isfinite(end)]
        size = self.width if math.isfinite(self.width) else max([1.0, *ends])
        # At most half of the width: from both ends the margin then meets in the middle.
        margin = min(max(margin, _LEAST * size), self.width / 2)
        return min(max(value, self.lower + margin), self.upper - margin)

    def link(self, value: float) -> float:
        """Onto the scale without ends; an end itself is infinite there."""
        above, below = value - self.lower, self.upper - value
        if math.isinf(self.lower) and math.isinf(self.upper):
            return value
        if math.isinf(self.upper):
            return math.log(above) if above > 0 else -math.inf
        if math.isinf(self.lower):
            return -math.log(below) if below > 0 else math.inf
        if above <= 0 or below <= 0:
            return -math.inf if above <= 0 else math.inf
        # The logit of the place between the ends; as a difference of logarithms it needs no division by the width.
        return math.log(above) - math.log(below)

    def unlink(self, linked: float) -> float:
        """Back from the scale without ends."""
        if math.isinf(self.lower) and math.isinf(self.upper):
            return linked
        if math.isinf(self.upper):
            return self.lower + math.exp(min(linked, _LARGEST))
        if math.isinf(self.lower):
            return self.upper - math.exp(min(-linked, _LARGEST))
        # The logistic function, with the exponent capped so that exp cannot overflow.
        share = 1 / (1 + math.exp(min(-linked, _LARGEST)))
        # From the nearer end, so that rounding never steps over the farther one.
        if share < 0.5:
            return self.lower + share * self.width
        return self.upper - self.width / (1 + math.exp(min(linked, _LARGEST)))

    def slope(self, value: float) -> float:
        """Derivative of the link at a value inside the ends: what a standard error is multiplied with."""
        open_below, open_above = math.isinf(self.lower), math.isinf(self.upper)
        if open_below and open_above:
            return 1.0
        if open_above or open_below:
            return 1 / (value - self.lower if open_above else self.upper - value)
        return 1 / (value - self.lower) + 1 / (self.upper - value)

    def curvature(self, value: float) -> float:
        """Second derivative of the link over the first: how it bends an interval, for a correction of skew."""
        near_lower = 0.0 if math.isinf(self.lower) else 1 / (value - self.lower)
        near_upper = 0.0 if math.isinf(self.upper) else 1 / (self.upper - value)
        return near_upper - near_lower

    def around(
        self, value: float, standard_error: float, quantile: float, *, margin: float = 0.0
    ) -> tuple[float, float]:
        """The interval of `quantile` standard errors to both sides on the linked scale (delta method).

        Args:
            value: the estimate.
            standard_error: of the estimate.
            quantile: half the width, in standard errors.
            margin: how near to an end the value may be at the least, besides its standard error.
        """
        if standard_error == 0:
            return value, value
        # The slope is infinite at an end: it is taken at least one standard error inside.
        place = self.inside(value, max(standard_error, margin))
        centre, half = self.link(place), quantile * standard_error * self.slope(place)
        # `place` may differ from `value`: min and max keep the value within its own interval.
        return min(value, self.unlink(centre - half)), max(value, self.unlink(centre + half))


REAL_LINE: Final = Bounds(-math.inf, math.inf)
UNIT: Final = Bounds(0.0, 1.0)
CORRELATION: Final = Bounds(-1.0, 1.0)
