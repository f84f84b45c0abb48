"""The pictures of several goals: quality against each other goal, the front drawn as a line, the knee marked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from luthier.core.workflows.study import GoalName, Study, Trial
from luthier.ml.charts.page import Chart
from luthier.ml.charts.svg import INK, MUTED, TUNED, canvas, inline_svg
from luthier.ml.search.front import front_of, point_of

_WIDTH: Final = 480
_AXES: Final[Mapping[GoalName, tuple[str, float]]] = {
    "latency": ("weights read for a token, times the base", 1.0),
    "size": ("MB of what is trained", 1e6),
    "cost": ("hours of a whole training, predicted", 1.0),
}
"""Of each goal: what its axis is called, and how much one on it is."""


def front_charts(study: Study, trials: Sequence[Trial]) -> list[Chart]:
    """One picture for each goal beside quality; none where quality is all, or nothing was trained to its end."""
    front, knee = front_of(study.spec, trials, {})
    return [_against(goal, trials, front, knee) for goal in study.spec.goals if goal != "quality" and front]


def _against(goal: GoalName, trials: Sequence[Trial], front: Sequence[Trial], knee: int | None) -> Chart:
    label, one = _AXES[goal]

    def at_of(trial: Trial) -> tuple[float, float]:
        amount, loss = point_of(trial, (goal, "quality"))
        return amount / one, loss

    whole = [trial for trial in trials if trial.kind == "search" and trial.state == "done"]
    ends = sorted(at_of(trial) for trial in front)
    with canvas(_WIDTH, 280) as (figure, axes):
        for trial in whole:
            axes.plot(*at_of(trial), "o", ms=5, color=MUTED, alpha=0.6)
        axes.plot([x for x, _ in ends], [y for _, y in ends], "o-", ms=6, lw=1.4, color=TUNED)
        if (named := next((trial for trial in front if trial.number == knee), None)) is not None:
            at = at_of(named)
            axes.plot(*at, "o", ms=12, mfc="none", mec=INK, mew=1.6)
            axes.annotate(f"knee: trial {knee}", at, xytext=(8, 8), textcoords="offset points", color=INK, fontsize=8)
        axes.set_xlabel(label)
        axes.set_ylabel("validation loss")
        axes.grid(axis="y")
        words = f"{len(front)} of {len(whole)} whole trainings are on the front; the knee is trial {knee}."
        svg = inline_svg(figure, name=f"study-front-{goal}", title=f"Quality against {goal}", description=words)
    caption = "Each dot is a whole training; no other beats those on the line in all goals of the study."
    return Chart(f"Quality against {goal}", caption, svg)
