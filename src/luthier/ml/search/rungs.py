"""Which trial is trained next: asynchronous successive halving, with several goals and extrapolated learning curves.

A trial is trained to the first rung. Of those that have reached a rung, the best one in `reduction` continues to the
next; while none is due, a new one begins (Li et al., 2020, "A System for Massively Parallel Hyperparameter Tuning",
arXiv:1810.05934, algorithm 2). Since a training continues from its checkpoint, no step is done twice.

With several goals trials are ordered by fronts, and within a front the ones with most room around them first (Deb et
al., 2002, "A Fast and Elitist Multiobjective Genetic Algorithm: NSGA-II", sections III A and B). Trials are continued
in that order, as Schmucker et al., 2021, "Multi-objective Asynchronous Successive Halving", arXiv:2106.12639, section
3.3, do.

Whether a training can still become the best is predicted by extending its curve (`end_of`). The line is a power
law, loss = c + a share^-b with a >= 0, as Domhan, Springenberg, Hutter, 2015 ("Speeding up Automatic Hyperparameter
Optimization of Deep Neural Networks by Extrapolation of Learning Curves", IJCAI, section 3) draw it, with one family in
place of their eleven. It does not consider a schedule that brings the rate down at the end, after which losses fall
below it. So no width is taken from the fit: the same line is drawn for every training of the study that was finished,
from as early, and the most that one of them ended below its line is allowed for. If a training behaves like the `n`
that were finished, it ends below that bound with a probability of at most 1 / (n + 1) (split conformal prediction, Lei
et al., 2018, JASA 113, section 2.2).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from luthier.core.workflows.study import GoalName, StudySpec, Trial

Point = tuple[float, ...]


def point_of(
    trial: Trial, goals: Sequence[GoalName], *, rung: int | None = None, quality: float | None = None
) -> Point:
    """The figures of a trial, by goal; smaller is better.

    Args:
        trial: the trial.
        goals: what is sought.
        rung: the rung whose loss counts; None for the highest.
        quality: in place of its loss on `rung`, None the highest.
    """
    loss = trial.results[-1 if rung is None else rung].loss if quality is None else quality
    return tuple(loss if goal == "quality" else trial.goals.get(goal, math.inf) for goal in goals)


def beats(one: Point, other: Point) -> bool:
    """Whether a point is nowhere worse than another, and somewhere better."""
    return all(a <= b for a, b in zip(one, other, strict=True)) and one != other


def front_numbers(points: Sequence[Point]) -> list[int]:
    """The front of each point: 0 where nothing beats it, 1 where only those do, and so on."""
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
        # No spread along this goal, or no finite one: it says nothing about crowding.
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


def knee(points: Mapping[int, Point], among: Collection[int] = ()) -> int | None:
    """The key of the point after which every goal costs most of the others; None without points.

    The one farthest below the plane through the ends of the front, each goal scaled to [0, 1] over the front (Das,
    1999, "On characterizing the 'knee' of the Pareto curve", Structural Optimization 18); ties go to the smaller first
    goal.

    Args:
        points: by key.
        among: keys that may be chosen, those on the front first; empty for all that are on it.
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
        # Scaled to [0, 1], the plane through the ends has a constant sum: the smallest sum is farthest below it.
        return sum(scaled), points[key][0], key

    chosen = [key for key in keys if key in among]
    return min([key for key in front if key in chosen] or chosen or front, key=below)


def front_of(
    spec: StudySpec, trials: Sequence[Trial], repeated: Mapping[int, Sequence[float]]
) -> tuple[list[Trial], int | None]:
    """The trials that no other beats in all goals, by quality, and the number of the knee; None where there is none.

    Only whole trainings are on it: losses of others are not their last. Where some were repeated, the knee is one of
    these: one that was not may look better by the luck of its only seed.

    Args:
        spec: of the study.
        trials: all of its trials.
        repeated: losses with several seeds, by trial.
    """
    whole = [trial for trial in trials if trial.kind == "search" and trial.state == "done"]
    points: dict[int, Point] = {}
    for trial in whole:
        losses = repeated.get(trial.number)
        points[trial.number] = point_of(trial, spec.goals, quality=statistics.fmean(losses) if losses else trial.loss)
    numbers = front_numbers([points[trial.number] for trial in whole])
    front = [trial for trial, number in zip(whole, numbers, strict=True) if number == 0]
    named = knee(points, [number for number in repeated if number in points])
    return sorted(front, key=lambda t: (points[t.number][spec.goals.index("quality")], t.number)), named


QUALITY: Final[tuple[GoalName, ...]] = ("quality",)
RUNGS: Final = (1 / 9, 1 / 3, 1.0)
REDUCTION: Final = 2
"""One of this many continues. With 3 of a rung the early losses decide too much: docs/tuning.md."""
MIN_STEPS: Final = 3
"""Of the recipe's own training, before its first rung. The loss after one step shows divergence, and no more."""


@dataclass(frozen=True, slots=True)
class Begin:
    """Begin a new trial."""


@dataclass(frozen=True, slots=True)
class GoOn:
    """Train this trial up to this rung."""

    number: int
    rung: int


def next_step(
    trials: Sequence[Trial],
    *,
    num_rungs: int,
    reduction: int,
    most_trials: int,
    may_begin: bool = True,
    goals: Sequence[GoalName] = QUALITY,
) -> Begin | GoOn | None:
    """What to do next; None where nothing is left but to wait for others, or to end.

    Args:
        trials: those of kind `search`, in the order of their numbers.
        num_rungs: of the study.
        reduction: one of so many trials continues to the next rung.
        most_trials: how many trials may begin.
        may_begin: whether there is room for one more; where not, what has begun is brought up: the best of each rung,
            so that one gets to the top.
        goals: what is sought.
    """
    searched = [trial for trial in trials if trial.kind == "search"]
    # Interrupted trials first: after a restart the search continues as if it had not stopped.
    if (left := next((t for t in searched if t.state == "waiting"), None)) is not None:
        return GoOn(left.number, left.rung + 1)
    # From the top: a promotion to a higher rung is worth more than one below (ASHA, algorithm 2).
    for rung in reversed(range(num_rungs - 1)):
        if (due := _due(searched, rung, reduction, goals)) is not None:
            return GoOn(due.number, rung + 1)
    if may_begin and len(searched) < most_trials:
        return Begin()
    if any(trial.state == "running" for trial in searched):
        return None
    return _bring_up(searched, num_rungs, goals)


def _due(trials: Sequence[Trial], rung: int, reduction: int, goals: Sequence[GoalName]) -> Trial | None:
    """The best trial that belongs to the best ones of a rung and has not continued from it."""
    there = standing([t for t in trials if len(t.results) > rung], rung, goals)
    best = there[: len(there) // reduction]
    return next((t for t in best if t.rung == rung and t.state == "paused"), None)


def _bring_up(trials: Sequence[Trial], num_rungs: int, goals: Sequence[GoalName]) -> GoOn | None:
    """With nothing more to begin: the best trial of the highest rung continues, until one has reached the top."""
    if any(trial.rung == num_rungs - 1 for trial in trials):
        return None
    paused = [trial for trial in trials if trial.state == "paused"]
    if not paused:
        return None
    best = ranked(paused, goals)[0]
    return GoOn(best.number, best.rung + 1)


def standing(trials: Sequence[Trial], rung: int, goals: Sequence[GoalName] = QUALITY) -> list[Trial]:
    """Trials that have reached a rung, from the best on, by their values there."""
    if len(goals) == 1:
        return sorted(trials, key=lambda t: (t.results[rung].loss, t.number))
    return [trials[i] for i in in_order([point_of(trial, goals, rung=rung) for trial in trials])]


def ranked(trials: Sequence[Trial], goals: Sequence[GoalName] = QUALITY) -> list[Trial]:
    """Trials of kind `search` from the best on: by how far they got, then by goals; failed ones are left out."""
    usable = [t for t in trials if t.kind == "search" and t.loss is not None and t.state != "failed"]
    rungs = sorted({t.rung for t in usable}, reverse=True)
    return [t for rung in rungs for t in standing([t for t in usable if t.rung == rung], rung, goals)]


def usable(shares: Sequence[float], num_steps: int) -> tuple[float, ...]:
    """The rungs with enough steps of the recipe's training before them; a very short one has only the last."""
    return tuple(share for share in shares if share == 1 or math.ceil(share * num_steps) >= MIN_STEPS)


def rung_steps(shares: Sequence[float], num_steps: int, tokens_per_step: float, whole_tokens: float) -> list[int]:
    """The step of each rung in a training, by trained tokens; the last one is its last step.

    All are multiples of the first, so that one interval of validations meets them; a training with fewer tokens than a
    rung ends on it.

    Args:
        shares: of `whole_tokens`, the tokens of the recipe's own training.
        num_steps: of the training.
        tokens_per_step: that are trained.
        whole_tokens: of the recipe's own training.
    """
    first = max(1, math.ceil(shares[0] * whole_tokens / tokens_per_step))
    steps = []
    for share in shares[:-1]:
        # A whole multiple of the first rung, so that its interval of validations meets every rung.
        times = max(1, round(share / shares[0]))
        steps.append(min(num_steps, first * times))
    return [*steps, num_steps]


Curve = Sequence[tuple[float, float]]
"""(share of all steps, validation loss), shares rising."""

MIN_FINISHED: Final = 4
"""Finished trainings without which there is no answer: the chance to be wrong is at most one in five then."""
MIN_POINTS: Final = 3
_POWERS: Final = (0.1, 0.2, 0.35, 0.5, 0.75, 1.0, 1.5, 2.0)


@dataclass(frozen=True, slots=True)
class Finished:
    """The trainings of a study that are complete, to hold others against."""

    curves: tuple[tuple[tuple[float, float], ...], ...]

    def why_hopeless(self, curve: Curve) -> str:
        """Why a training with this curve cannot become the best, as text; empty where it can, or this is not known."""
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
