"""A figure with its interval: predicted, measured or estimated from a sample."""

from __future__ import annotations

from luthier.core.frozen_model import FrozenModel


class Estimate(FrozenModel):
    """A figure, in the unit that the name of its field says.

    Attributes:
        value: The figure; of a prediction the most likely one.
        low: The lower end of its 95% interval; of a prediction of the range in which it is expected.
        high: The upper end.
    """

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, found: tuple[float, float, float]) -> Estimate:
        """Of a value, the lower and the upper end, in this order."""
        value, low, high = found
        return cls(value=value, low=low, high=high)

    def times(self, factor: float) -> Estimate:
        """The estimate in another unit or for another number; factor is 0 or more."""
        return Estimate(value=self.value * factor, low=self.low * factor, high=self.high * factor)

    def plus(self, other: Estimate) -> Estimate:
        """The sum, its ends added: right where both err in the same direction, wide where they do not."""
        return Estimate(value=self.value + other.value, low=self.low + other.low, high=self.high + other.high)

    def minus(self, part: Estimate) -> Estimate:
        """What is left of a sum without one of its parts, end by end; never below 0."""
        ends = zip((self.value, self.low, self.high), (part.value, part.low, part.high), strict=True)
        value, low, high = (max(0.0, whole - taken) for whole, taken in ends)
        return Estimate(value=value, low=low, high=high)

    def by(self, other: Estimate) -> Estimate:
        """The product, low end by low end and high end by high end: as wide as it can be."""
        return Estimate(value=self.value * other.value, low=self.low * other.low, high=self.high * other.high)
