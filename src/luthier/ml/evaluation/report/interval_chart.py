"""Systems against each other: a dot for the value, a whisker for its 95% interval, one small chart a metric."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from luthier.core.evaluation import Evaluation, SystemResult
from luthier.ml.charts.figures import common_decimals, interval, number
from luthier.ml.charts.metric_titles import metric_heading
from luthier.ml.charts.page import Chart
from luthier.ml.charts.spec import OTHERS, Axis, Estimate, Intervals, Role
from luthier.ml.charts.svg import report_chart
from luthier.ml.evaluation.roles import Roles, metric_names

_WIDTH: Final = 460


def interval_charts(evaluation: Evaluation, roles: Roles) -> list[Chart]:
    """One chart for each metric in which there is something to see, in the order of the metrics."""
    nothing = without_chart(evaluation)
    colours = system_colours(evaluation, roles)
    names = [name for name in metric_names(evaluation) if name not in nothing]
    return [interval_chart(evaluation.systems, colours, name) for name in names]


def without_chart(evaluation: Evaluation) -> list[str]:
    """Metrics whose chart would show nothing: every system has the same value and interval."""
    found = []
    for name in metric_names(evaluation):
        metrics = [system.metrics[name] for system in evaluation.systems if name in system.metrics]
        figures = {(metric.value, metric.low, metric.high) for metric in metrics}
        if len(figures) == 1 and (len(metrics) > 1 or metrics[0].low == metrics[0].high):
            found.append(name)
    return found


def system_colours(evaluation: Evaluation, roles: Roles) -> dict[str, Role]:
    """A colour for each system: the base grey, the tuned one the page's accent, others in turn."""
    colours: dict[str, Role] = {}
    num_others = 0
    for system in evaluation.systems:
        if system.name == roles.candidate:
            colours[system.name] = "tuned"
        elif system.name == roles.baseline:
            colours[system.name] = "base"
        else:
            colours[system.name] = OTHERS[num_others % len(OTHERS)]
            num_others += 1
    return colours


def interval_chart(all_systems: Sequence[SystemResult], colours: Mapping[str, Role], metric: str) -> Chart:
    """One metric over all systems that have it. colours: of each system, by its name."""
    systems = [system for system in all_systems if metric in system.metrics]
    first = systems[0].metrics[metric]
    decimals = common_decimals([system.metrics[metric] for system in systems])
    direction = "higher is better" if first.higher_is_better else "lower is better"
    rows = [
        Estimate(one.name, found.value, found.low, found.high, colours[one.name], number(found.value, decimals))
        for one, found in ((system, system.metrics[metric]) for system in systems)
    ]
    chart = Intervals(
        f"chart-metric-{metric}",
        f"{metric_heading(metric)} of each system",
        Axis(""),
        rows,
        description=_in_words(systems, metric, direction, decimals),
        width_pixels=_WIDTH,
    )
    return report_chart(chart, heading=metric_heading(metric), caption=f"{first.unit}, {direction}")


def _in_words(systems: Sequence[SystemResult], metric: str, direction: str, decimals: int) -> str:
    found = [(system.name, system.metrics[metric]) for system in systems]
    parts = [f"{name} {number(m.value, decimals)} {interval(m.low, m.high, decimals)}" for name, m in found]
    return f"{metric_heading(metric)}, {direction}, with 95% intervals: {'; '.join(parts)}."
