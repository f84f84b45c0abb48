"""The pictures of several goals: quality against each other goal, the front drawn as a line, the knee marked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from luthier.core.study import GoalName, Study, Trial
from luthier.reporting.page import Chart
from luthier.reporting.svg import INK, MUTED, TUNED, canvas, inline_svg
from luthier.tune.front import UNITS, front_of, point_of

_WIDTH: Final = 480


def front_charts(study: Study, trials: Sequence[Trial]) -> list[Chart]:
    """One picture for each goal beside quality; none where quality is all, or nothing was trained to its end."""
    front, knee = front_of(study.spec, trials, {})
    return [_against(goal, trials, front, knee) for goal in study.spec.goals if goal != "quality" and front]


def _against(goal: GoalName, trials: Sequence[Trial], front: Sequence[Trial], knee: int | None) -> Chart:
    goals: tuple[GoalName, GoalName] = (goal, "quality")
    whole = [trial for trial in trials if trial.kind == "search" and trial.state == "done"]
    ends = sorted(point_of(trial, goals) for trial in front)
    with canvas(_WIDTH, 280) as (figure, axes):
        for trial in whole:
            axes.plot(*point_of(trial, goals), "o", ms=5, color=MUTED, alpha=0.6)
        axes.plot([x for x, _ in ends], [y for _, y in ends], "o-", ms=6, lw=1.4, color=TUNED)
        if (named := next((trial for trial in front if trial.number == knee), None)) is not None:
            at = point_of(named, goals)
            axes.plot(*at, "o", ms=12, mfc="none", mec=INK, mew=1.6)
            axes.annotate(f"knee: trial {knee}", at, xytext=(8, 8), textcoords="offset points", color=INK, fontsize=8)
        axes.set_xlabel(UNITS[goal])
        axes.set_ylabel(UNITS["quality"])
        axes.grid(axis="y")
        words = f"{len(front)} of {len(whole)} whole trainings are on the front; the knee is trial {knee}."
        svg = inline_svg(figure, name=f"study-front-{goal}", title=f"Quality against {goal}", description=words)
    caption = "Each dot is a whole training; no other beats those on the line in all goals of the study."
    return Chart(f"Quality against {goal}", caption, svg)
