"""Whether a training can still become the best: its curve drawn on to the end, and by how much such a line errs.

The line is a power law, loss = c + a share^-b with a >= 0, as Domhan, Springenberg, Hutter, 2015 ("Speeding up
Automatic Hyperparameter Optimization of Deep Neural Networks by Extrapolation of Learning Curves", IJCAI, section 3)
draw it, with one family in place of their eleven. It knows nothing of a schedule that brings the rate down at the end,
after which losses fall below it. So no width is taken from the fit: the same line is drawn for every training of the
study that was finished, from as early, and the most that one of them ended below its line is allowed for. If a training
behaves like the `n` that were finished, it ends below that bound with a probability of at most 1 / (n + 1) (split
conformal prediction, Lei et al., 2018, JASA 113, section 2.2).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

Curve = Sequence[tuple[float, float]]
"""(share of all steps, validation loss), shares rising."""

MIN_FINISHED: Final = 4
"""Finished trainings without which nothing is said: the chance to be wrong is at most one in five then."""
MIN_POINTS: Final = 3
_POWERS: Final = (0.1, 0.2, 0.35, 0.5, 0.75, 1.0, 1.5, 2.0)


@dataclass(frozen=True, slots=True)
class Finished:
    """The trainings of a study that came to their end, to hold others against."""

    curves: tuple[tuple[tuple[float, float], ...], ...]

    def why_hopeless(self, curve: Curve) -> str:
        """Why a training with this curve cannot become the best, as text; empty where it can, or nobody knows."""
        if len(self.curves) < MIN_FINISHED or len(curve) < MIN_POINTS or curve[-1][0] >= 1:
            return ""
        expected, misses = end_of(curve), []
        for whole in self.curves:
            # Shares are quotients of steps: the same share may differ in its last bit.
            before = [point for point in whole if point[0] <= curve[-1][0] + 1e-9]
            if len(before) >= MIN_POINTS:
                misses.append(end_of(before) - min(loss for _, loss in whole))
        if len(misses) < MIN_FINISHED:
            return ""
        best = min(loss for whole in self.curves for _, loss in whole)
        # The largest miss of n exchangeable ones covers the next with probability n / (n + 1).
        bound = expected - max(0.0, *misses)
        if bound <= best:
            return ""
        return (
            f"after {curve[-1][0]:.0%} of its steps it should end at {expected:.4f}, at best at {bound:.4f}, and "
            f"another has {best:.4f}"
        )


def end_of(curve: Curve) -> float:
    """The lowest loss up to the end of a training, as its curve so far makes one expect.

    Args:
        curve: at least one point.
    """
    lowest = min(loss for _, loss in curve)
    if len(curve) < MIN_POINTS:
        return lowest
    fits = [_fit(curve, power) for power in _POWERS]
    _, end = min(fits)
    return min(lowest, end)


def _fit(curve: Curve, power: float) -> tuple[float, float]:
    """The squared error of the line with this power, and where it ends."""
    # With the power fixed the law is linear in share**-power, so least squares has a closed form.
    xs, ys = [share**-power for share, _ in curve], [loss for _, loss in curve]
    mean_x, mean_y = sum(xs) / len(xs), sum(ys) / len(ys)
    spread = sum((x - mean_x) ** 2 for x in xs)
    slope = sum((x - mean_x) * (y - mean_y) for x, y in zip(xs, ys, strict=True)) / spread if spread else 0.0
    slope = max(0.0, slope)
    level = mean_y - slope * mean_x
    # At the end the share is 1, and 1**-power = 1: the line ends at level + slope.
    return sum((level + slope * x - y) ** 2 for x, y in zip(xs, ys, strict=True)), level + slope
