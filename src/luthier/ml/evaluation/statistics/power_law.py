"""A power law through a few points: L(n) = floor + scale * n ** -exponent.

Given the exponent the law is linear in floor and scale, so the exponent is searched on a grid, and the other two follow
by least squares. The law never rises with n, and a floor is never below 0. With an exponent below 0 there is no floor
and the law bends the other way, as curves do that have only begun to fall; at -1 it is a straight line.

Sources: Hestness et al., 2017, "Deep Learning Scaling is Predictable, Empirically", arXiv:1712.00409 (losses and error
rates over rows of training data follow a power law). Viering and Loog, 2022, "The Shape of Learning Curves: a Review",
arXiv:2103.10948, sections 4 and 6 (so do most curves of classifiers, after a beginning that bends otherwise).
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
FALLING: Final = np.geomspace(0.02, 2.0, 120)
"""Exponents of laws that fall towards a floor."""


def fit_power_laws(sizes: Floats, losses: Floats, exponents: Floats = FALLING) -> tuple[Floats, Floats, Floats]:
    """The best law through each row of losses.

    Args:
        sizes: [points], in rows.
        losses: [draws, points], at least 0.
        exponents: that are tried, none of them 0.

    Returns:
        Floors, scales and exponents, each [draws].
    """
    mean_loss = losses.mean(axis=1, keepdims=True)
    best = np.full(len(losses), np.inf)
    found = [np.zeros(len(losses)) for _ in range(3)]
    unit = sizes / sizes.min()  # powers near 1, so that nothing is lost to rounding
    for exponent in exponents:
        powers = unit**-exponent
        # With the exponent fixed the law is linear: ordinary least squares of losses on powers, all draws at once.
        centred = powers - powers.mean()
        scale = (losses - mean_loss) @ centred / (centred @ centred)
        # The law may not rise: its scale has the sign of the exponent.
        scale = np.maximum(scale, 0.0) if exponent > 0 else np.minimum(scale, 0.0)
        floor = mean_loss[:, 0] - scale * powers.mean()
        # A loss has no negative floor: where the fit has one, it is fitted again through zero.
        below = (floor < 0) & (exponent > 0)
        scale = np.where(below, losses @ powers / (powers @ powers), scale)
        floor = np.maximum(floor, 0.0) if exponent > 0 else floor
        error = np.sum((losses - floor[:, None] - scale[:, None] * powers[None]) ** 2, axis=1)
        better = error < best
        best = np.where(better, error, best)
        # Sizes were divided by the smallest: the scale goes back to rows.
        for kept, new in zip(
            found, (floor, scale * sizes.min() ** exponent, np.full(len(losses), exponent)), strict=True
        ):
            kept[better] = new[better]
    return found[0], found[1], found[2]
