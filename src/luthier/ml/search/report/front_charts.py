"""The pictures of several goals: quality against each other goal, the front drawn as a line, the knee marked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from luthier.core.workflows.study import GoalName, Study, Trial
from luthier.ml.charts.page import Chart
from luthier.ml.charts.spec import Axis, Note, Plot, Series
from luthier.ml.charts.svg import report_chart
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
    series = [
        Series("", [at_of(trial) for trial in whole], "muted", "dots", is_faint=True, radius_pixels=4.0),
        Series("", ends, "tuned", radius_pixels=4.0),
        Series("", ends, "tuned", "dots", radius_pixels=4.0),
    ]
    notes = [Note(*at_of(trial), f"knee: trial {knee}", is_ringed=True) for trial in front if trial.number == knee]
    chart = Plot(
        f"study-front-{goal}",
        f"Quality against {goal}",
        Axis(label),
        Axis("validation loss"),
        series,
        notes=notes,
        caption="Each dot is a whole training; no other beats those on the line in all goals of the study.",
        description=f"{len(front)} of {len(whole)} whole trainings are on the front; the knee is trial {knee}.",
        width_pixels=_WIDTH,
        height_pixels=280,
    )
    return report_chart(chart)
