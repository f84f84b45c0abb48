"""The tables and charts of an evaluation, put together for its page."""

from __future__ import annotations

from collections.abc import Sequence

from luthier.core.evaluation import Comparison, Evaluation, Metric, Verdict
from luthier.ml.charts.judged_rows import DifferenceRow, MetricRow, difference_row
from luthier.ml.charts.judged_rows import metric_rows as rows_of
from luthier.ml.charts.metric_titles import metric_heading
from luthier.ml.charts.spec import Axis, Estimate, Intervals, Role
from luthier.ml.evaluation.roles import Roles, metric_names

_OTHERS: tuple[Role, ...] = ("other-1", "other-2", "other-3")


def main_details(verdict: Verdict) -> tuple[Sequence[str], Sequence[str]]:
    """The figures behind the headline, and what else was found."""
    return verdict.details[: verdict.num_primary_details], verdict.details[verdict.num_primary_details :]


def metric_rows(evaluation: Evaluation) -> list[MetricRow]:
    """The table of systems: one row a metric, one cell a system, in the order of the systems."""
    primary = None if evaluation.verdict is None else evaluation.verdict.metric
    return rows_of(evaluation.systems, evaluation.comparisons, primary)


def difference_rows(comparisons: Sequence[Comparison], metrics: dict[str, Metric], roles: Roles) -> list[DifferenceRow]:
    """Those of the candidate first, in the order of the metrics. metrics: a figure of each, for its unit."""
    order = {name: place for place, name in enumerate(metrics)}
    ordered = sorted(comparisons, key=lambda c: (c.candidate != roles.candidate, order.get(c.metric, len(order))))
    return [difference_row(one, metrics[one.metric].unit if one.metric in metrics else "") for one in ordered]


def units(evaluation: Evaluation) -> dict[str, Metric]:
    """A figure of each metric, that of the verdict first."""
    found = {name: metric for system in evaluation.systems for name, metric in system.metrics.items()}
    return {name: found[name] for name in metric_names(evaluation)}


def charts(evaluation: Evaluation, roles: Roles) -> list[Intervals]:
    """First the differences in the metric of the verdict, then each metric over all systems.

    A metric in which all systems are equal has no chart: there would be nothing to see.
    """
    made = []
    colours, found = _colours(evaluation, roles), units(evaluation)
    name = "" if evaluation.verdict is None else evaluation.verdict.metric
    mine = [c for c in evaluation.comparisons if c.metric == name and c.candidate == roles.candidate]
    if mine and name in found:
        rows = [Estimate(f"less {c.baseline}", c.difference, c.low, c.high, colours[c.baseline]) for c in mine]
        title = f"{metric_heading(name)}: {roles.candidate} less each other"
        ends = [end for c in mine for end in (c.low, c.high)]
        # The axis always includes zero: whether an interval crosses it is what the chart is read for.
        low, high = (0.0 if min(ends) > 0 else None), (0.0 if max(ends) < 0 else None)
        axis = Axis("difference", found[name].unit, low=low, high=high)
        side = "right" if found[name].higher_is_better else "left"
        caption = f"Better lies to the {side} of zero; an interval over zero tells nothing."
        made.append(Intervals("differences", title, axis, rows, zero=True, caption=caption))
    for metric, first in found.items():
        systems = [(system.name, system.metrics[metric]) for system in evaluation.systems if metric in system.metrics]
        if len({(m.value, m.low, m.high) for _, m in systems}) == 1 and len(systems) > 1:
            continue
        rows = [Estimate(system, m.value, m.low, m.high, colours[system]) for system, m in systems]
        direction = "higher" if first.higher_is_better else "lower"
        axis = Axis(metric_heading(metric), first.unit)
        title = f"{metric_heading(metric)} of each system"
        made.append(Intervals(f"metric-{metric}", title, axis, rows, caption=f"{direction} is better"))
    return made


def _colours(evaluation: Evaluation, roles: Roles) -> dict[str, Role]:
    others = [s.name for s in evaluation.systems if s.name not in (roles.candidate, roles.baseline)]
    colours: dict[str, Role] = {name: _OTHERS[place % len(_OTHERS)] for place, name in enumerate(others)}
    colours[roles.candidate] = "tuned"
    if roles.baseline is not None:
        colours[roles.baseline] = "base"
    return colours
