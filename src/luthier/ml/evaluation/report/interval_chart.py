"""Systems against each other: a dot for the value, a whisker for its 95% interval, one small chart a metric."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Final

from matplotlib.ticker import MaxNLocator

from luthier.core.evaluation import Evaluation, SystemResult
from luthier.ml.charts.figures import common_decimals, interval, number
from luthier.ml.charts.metric_titles import metric_heading
from luthier.ml.charts.page import Chart
from luthier.ml.charts.svg import BASE, INK, OTHERS, TUNED, canvas, inline_svg
from luthier.ml.evaluation.roles import Roles, metric_names

_WIDTH: Final = 460
_HEIGHT_A_SYSTEM: Final = 34
_HEIGHT_OF_AXIS: Final = 52
_NAME_WIDTH: Final = 22


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


def system_colours(evaluation: Evaluation, roles: Roles) -> dict[str, str]:
    """A colour for each system: the base grey, the tuned one the page's accent, others in turn."""
    colours, others = {}, 0
    for system in evaluation.systems:
        if system.name == roles.candidate:
            colours[system.name] = TUNED
        elif system.name == roles.baseline:
            colours[system.name] = BASE
        else:
            colours[system.name] = OTHERS[others % len(OTHERS)]
            others += 1
    return colours


def interval_chart(all_systems: Sequence[SystemResult], colours: Mapping[str, str], metric: str) -> Chart:
    """One metric over all systems that have it. colours: of each system, by its name."""
    systems = [system for system in all_systems if metric in system.metrics]
    first = systems[0].metrics[metric]
    decimals = common_decimals([system.metrics[metric] for system in systems])
    direction = "higher is better" if first.higher_is_better else "lower is better"
    with canvas(_WIDTH, _HEIGHT_OF_AXIS + _HEIGHT_A_SYSTEM * len(systems)) as (figure, axes):
        for place, system in enumerate(systems):
            found, colour = system.metrics[metric], colours[system.name]
            axes.plot([found.low, found.high], [place, place], color=colour, lw=2.2, solid_capstyle="round")
            axes.plot(found.value, place, "o", color=colour, ms=7)
            axes.annotate(
                number(found.value, decimals),
                (found.value, place),
                xytext=(0, 6),
                textcoords="offset points",
                ha="center",
            )
        axes.set_ylim(len(systems) - 0.5, -0.75)
        axes.set_yticks(range(len(systems)), [short_name(s.name) for s in systems], linespacing=1.05)
        axes.tick_params(axis="y", labelcolor=INK)
        axes.grid(axis="x")
        axes.margins(x=0.08)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=5))
        svg = inline_svg(
            figure,
            name=f"chart-metric-{metric}",
            title=f"{metric_heading(metric)} of each system",
            description=_in_words(systems, metric, direction, decimals),
        )
    return Chart(metric_heading(metric), f"{first.unit}, {direction}", svg)


def short_name(name: str) -> str:
    """A system's name on at most two lines; the table beside the chart has it whole."""
    lines = textwrap.wrap(name, _NAME_WIDTH, max_lines=2, placeholder=" …")
    return "\n".join(lines)


def _in_words(systems: Sequence[SystemResult], metric: str, direction: str, decimals: int) -> str:
    found = [(system.name, system.metrics[metric]) for system in systems]
    parts = [f"{name} {number(m.value, decimals)} {interval(m.low, m.high, decimals)}" for name, m in found]
    return f"{metric_heading(metric)}, {direction}, with 95% intervals: {'; '.join(parts)}."
