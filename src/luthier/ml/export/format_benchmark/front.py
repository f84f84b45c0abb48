"""The Pareto front: formats that no other beats in both things at once."""

from __future__ import annotations

from collections.abc import Sequence


def pareto_front(costs: Sequence[float], qualities: Sequence[float]) -> list[bool]:
    """For each item whether no other is at least as cheap and as good, and better in one of the two.

    Of equals all are on the front.

    Args:
        costs: smaller is better.
        qualities: larger is better, one for each cost.
    """
    points = list(zip(costs, qualities, strict=True))
    return [
        # `other != point` leaves equals on the front; with `<=` and `>=` it means better in one thing at least.
        not any(other != point and other[0] <= point[0] and other[1] >= point[1] for other in points)
        for point in points
    ]
