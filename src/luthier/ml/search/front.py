"""Several goals at once: which trials no other beats in all of them, in which order they stand, and which is the knee.

Order: Deb et al., 2002, "A Fast and Elitist Multiobjective Genetic Algorithm: NSGA-II", sections III A and B: by
fronts, and within a front the ones with most room around them first. Trials are gone on with in that order, as
Schmucker et al., 2021, "Multi-objective Asynchronous Successive Halving", arXiv:2106.12639, section 3.3, does.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence

from luthier.core.workflows.study import GoalName, StudySpec, Trial

Point = tuple[float, ...]


def point_of(
    trial: Trial, goals: Sequence[GoalName], *, rung: int | None = None, quality: float | None = None
) -> Point:
    """The figures of a trial, by goal; smaller is better.

    Args:
        quality: in place of its loss on `rung`, None the highest.
    """
    loss = trial.results[-1 if rung is None else rung].loss if quality is None else quality
    return tuple(loss if goal == "quality" else trial.goals.get(goal, math.inf) for goal in goals)


def beats(one: Point, other: Point) -> bool:
    """Whether a point is nowhere worse than another, and somewhere better."""
    return all(a <= b for a, b in zip(one, other, strict=True)) and one != other


def front_numbers(points: Sequence[Point]) -> list[int]:
    """Of each point, on which front it lies: 0 where nothing beats it, 1 where only those do, and so on."""
    found = [-1] * len(points)
    number, left = 0, set(range(len(points)))
    while left:
        front = [i for i in left if not any(beats(points[j], points[i]) for j in left)]
        for i in front:
            found[i] = number
        left -= set(front)
        number += 1
    return found


def room_around(points: Sequence[Point]) -> list[float]:
    """The crowding distance of each point of one front; infinite at its ends."""
    found = [0.0] * len(points)
    for axis in range(len(points[0]) if points else 0):
        order = sorted(range(len(points)), key=lambda i: (points[i][axis], i))
        low, high = points[order[0]][axis], points[order[-1]][axis]
        found[order[0]] = found[order[-1]] = math.inf
        # No spread along this goal, or no finite one: it tells nothing of crowding.
        if not high > low or math.isinf(high):
            continue
        for before, i, after in zip(order, order[1:], order[2:], strict=False):
            found[i] += (points[after][axis] - points[before][axis]) / (high - low)
    return found


def in_order(points: Sequence[Point]) -> list[int]:
    """The indices of points from the best on. With one goal: by its value, ties by index."""
    numbers = front_numbers(points)
    order: list[int] = []
    for number in range(max(numbers, default=-1) + 1):
        front = [i for i, own in enumerate(numbers) if own == number]
        room = room_around([points[i] for i in front])
        # Tuples sort by distance and then by index, so the order is deterministic.
        order += [i for _, i in sorted(zip((-r for r in room), front, strict=True))]
    return order


def knee(points: Mapping[int, Point]) -> int | None:
    """The key of the point after which every goal costs most of the others; None without points.

    The one farthest below the plane through the ends of the front, each goal scaled to [0, 1] over the front (Das,
    1999, "On characterizing the 'knee' of the Pareto curve", Structural Optimization 18); ties go to the smaller first
    goal.
    """
    keys = list(points)
    if not keys:
        return None
    numbers = front_numbers([points[key] for key in keys])
    front = [key for key, number in zip(keys, numbers, strict=True) if number == 0]
    axes = list(zip(*(points[key] for key in front), strict=True))

    def below(key: int) -> tuple[float, float, int]:
        ends = [(min(axis), max(axis)) for axis in axes]
        scaled = [(v - low) / (high - low) for v, (low, high) in zip(points[key], ends, strict=True) if high > low]
        # Scaled to [0, 1], the plane through the ends has a constant sum: the smallest sum lies farthest below it.
        return sum(scaled), points[key][0], key

    return min(front, key=below)


def front_of(
    spec: StudySpec, trials: Sequence[Trial], repeated: Mapping[int, Sequence[float]]
) -> tuple[list[Trial], int | None]:
    """The trials that no other beats in all goals, by quality, and the number of the knee; None where there is none.

    Only whole trainings are on it: losses of others are not their last.

    Args:
        repeated: losses with several seeds, by trial.
    """
    whole = [trial for trial in trials if trial.kind == "search" and trial.state == "done"]
    points: dict[int, Point] = {}
    for trial in whole:
        losses = repeated.get(trial.number)
        points[trial.number] = point_of(trial, spec.goals, quality=statistics.fmean(losses) if losses else trial.loss)
    numbers = front_numbers([points[trial.number] for trial in whole])
    front = [trial for trial, number in zip(whole, numbers, strict=True) if number == 0]
    return sorted(front, key=lambda t: (points[t.number][spec.goals.index("quality")], t.number)), knee(points)
