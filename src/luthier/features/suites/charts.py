"""Charts of the results of tasks, for their pages."""

from __future__ import annotations

from luthier.ml.charts.judged_rows import metric_heading
from luthier.ml.charts.spec import OTHERS, Axis, Chart, Estimate, Intervals, Plot, Role, Series
from luthier.ml.evaluation.result_views import Roles, Summary, SummaryRow, TaskView

_MAX_POINTS = 500


def gains(found: Summary) -> Intervals | None:
    """What the candidate gains in each task's own metric, turned so that right is better; fractions only."""
    rows = found.gains
    if not rows:
        return None
    made = [_gain(row, *gain) for row, gain in rows]
    caption = "Each task's own metric with its 95% interval; right of zero is better, over zero tells nothing."
    low = 0.0 if min(one.low for one in made) > 0 else None
    high = 0.0 if max(one.high for one in made) < 0 else None
    axis = Axis("gain", "fraction", low=low, high=high)
    title = f"Gain of {found.candidate} over {found.baseline}"
    return Intervals("gains", title, axis, made, zero=True, caption=caption)


def charts_of(view: TaskView) -> list[Chart]:
    """What there is to draw of a task; confusions are tables."""
    made: list[Chart] = []
    name = view.task.name
    wins = [(system.name, system.metrics["win_rate"]) for system in view.task.systems if "win_rate" in system.metrics]
    if wins:
        rows = [Estimate(system, one.value, one.low, one.high, role_of(view.who, view, system)) for system, one in wins]
        caption = "Won comparisons, ties as half, with 95% intervals; at 0.5 neither is better."
        axis = Axis("win rate", low=min(0.4, *(row.low for row in rows)), high=max(0.6, *(row.high for row in rows)))
        made.append(Intervals(f"wins-{name}", "Win rates", axis, rows, caption=caption))
    if view.reliability:
        lines = [Series("as sure as right", ((0.0, 0.0), (1.0, 1.0)), role="quiet")]
        for system, bins in view.reliability:
            points = [(one.confidence, one.accuracy) for one in bins if one.num_rows]
            labels = [f"{one.num_rows:,} rows" for one in bins if one.num_rows]
            lines.append(Series(system, points, role=role_of(view.who, view, system), labels=labels))
        caption = "How often it was right where it was so sure; on the grey line it knows what it knows."
        x, y = Axis("confidence", low=0.0, high=1.0), Axis("fraction right", low=0.0, high=1.0)
        made.append(Plot(f"reliability-{name}", "Reliability", x, y, lines, caption=caption))
    if view.points:
        heading = metric_heading(view.scored)
        dots = [
            Series(system, points[:_MAX_POINTS], role=role_of(view.who, view, system), shape="dots")
            for system, points in view.points
        ]
        caption = f"Each dot is an answer. Dots that rise to the right: {heading} goes with length."
        x, y = Axis("tokens of the answer"), Axis(heading)
        made.append(Plot(f"lengths-{name}", "Length against score", x, y, dots, caption=caption))
    return made


def role_of(who: Roles, view: TaskView, system: str) -> Role:
    """The colour of a system in a task."""
    if system in (who.candidate, who.baseline):
        return "tuned" if system == who.candidate else "base"
    others = [one.name for one in view.task.systems if one.name not in (who.candidate, who.baseline)]
    return OTHERS[others.index(system) % len(OTHERS)]


def _gain(row: SummaryRow, value: float, low: float, high: float) -> Estimate:
    role: Role = "good" if low > 0 else "bad" if high < 0 else "quiet"
    return Estimate(f"{row.task.name}: {row.metric.title}", value, low, high, role)
