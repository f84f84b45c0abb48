"""Fewer points that look the same."""

from __future__ import annotations

from collections.abc import Sequence

Point = tuple[float, float]


def thinned(points: Sequence[Point], most: int) -> list[Point]:
    """At most about `most` points: the first, the last, and of each stretch of x the lowest and the highest.

    All stretches are equally wide, so that what was thinned before and went on can be thinned again without its
    beginning becoming coarser than its end.

    Args:
        points: in the order of x.
    """
    if len(points) <= most:
        return list(points)
    first, last = points[0][0], points[-1][0]
    width = (last - first) / max(1, most // 2 - 1) or 1.0
    kept: list[Point] = []
    lowest = highest = points[0]
    place = 0
    for point in points:
        if (its_place := int((point[0] - first) / width)) != place:
            kept += sorted({lowest, highest})
            lowest = highest = point
            place = its_place
        elif point[1] < lowest[1]:
            lowest = point
        elif point[1] > highest[1]:
            highest = point
    kept += sorted({lowest, highest})
    return [*([] if kept[0] == points[0] else points[:1]), *kept, *([] if kept[-1] == points[-1] else points[-1:])]
