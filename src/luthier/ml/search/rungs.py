"""Which trial is worked on next: asynchronous successive halving, with trainings that go on where they had stopped.

A trial is trained to the first rung. Of those that have reached a rung, the best one in `reduction` goes on to the
next; while none is due, a new one begins (Li et al., 2020, "A System for Massively Parallel Hyperparameter Tuning",
arXiv:1810.05934, algorithm 2). Since a training continues from its checkpoint, no step is done twice.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from luthier.core.workflows.study import GoalName, Trial
from luthier.ml.search.front import in_order, point_of

QUALITY: Final[tuple[GoalName, ...]] = ("quality",)
RUNGS: Final = (1 / 9, 1 / 3, 1.0)
REDUCTION: Final = 2
"""One of this many continues. With 3 of a rung the early losses decide too much: docs/tuning.md."""
MIN_STEPS: Final = 3
"""Of the recipe's own training, before its first rung. What one step comes to says who diverges, and no more."""


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
        may_begin: whether there is room for one more; where not, what has begun is brought up: the best of each rung,
            so that one gets to the top.
    """
    searched = [trial for trial in trials if trial.kind == "search"]
    # Interrupted trials first: after a restart the search goes on as if it had not stopped.
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
    """The best trial that belongs to the best ones of a rung and has not gone on from it."""
    there = standing([t for t in trials if len(t.results) > rung], rung, goals)
    best = there[: len(there) // reduction]
    return next((t for t in best if t.rung == rung and t.state == "paused"), None)


def _bring_up(trials: Sequence[Trial], num_rungs: int, goals: Sequence[GoalName]) -> GoOn | None:
    """With nothing more to begin: the best trial of the highest rung goes on, until one has reached the top."""
    if any(trial.rung == num_rungs - 1 for trial in trials):
        return None
    paused = [trial for trial in trials if trial.state == "paused"]
    if not paused:
        return None
    best = ranked(paused, goals)[0]
    return GoOn(best.number, best.rung + 1)


def standing(trials: Sequence[Trial], rung: int, goals: Sequence[GoalName] = QUALITY) -> list[Trial]:
    """Trials that have reached a rung, from the best on, by what they had come to there."""
    if len(goals) == 1:
        return sorted(trials, key=lambda t: (t.results[rung].loss, t.number))
    return [trials[i] for i in in_order([point_of(trial, goals, rung=rung) for trial in trials])]


def ranked(trials: Sequence[Trial], goals: Sequence[GoalName] = QUALITY) -> list[Trial]:
    """Trials of kind `search` from the best on: by how far they got, then by goals; failed ones are left out."""
    usable = [t for t in trials if t.kind == "search" and t.loss is not None and t.state != "failed"]
    rungs = sorted({t.rung for t in usable}, reverse=True)
    return [t for rung in rungs for t in standing([t for t in usable if t.rung == rung], rung, goals)]


def usable(shares: Sequence[float], num_steps: int) -> tuple[float, ...]:
    """Those rungs of which enough steps of the recipe's own training lie; a very short one has the last alone."""
    return tuple(share for share in shares if share == 1 or math.ceil(share * num_steps) >= MIN_STEPS)


def rung_steps(shares: Sequence[float], num_steps: int, tokens_per_step: float, whole_tokens: float) -> list[int]:
    """After which steps of a training each rung lies, by trained tokens; the last one is its last step.

    All are multiples of the first, so that one interval of validations meets them; a training with fewer tokens than a
    rung ends on it.

    Args:
        shares: of `whole_tokens`, the tokens of the recipe's own training.
    """
    first = max(1, math.ceil(shares[0] * whole_tokens / tokens_per_step))
    steps = []
    for share in shares[:-1]:
        # A whole multiple of the first rung, so that its interval of validations meets every rung.
        times = max(1, round(share / shares[0]))
        steps.append(min(num_steps, first * times))
    return [*steps, num_steps]
