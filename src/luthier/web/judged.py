"""The tables and charts of an evaluation, put together for its page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from luthier.core.evaluation import Comparison, Evaluation, Forgetting, Metric, Verdict, VerdictWord
from luthier.evaluate.roles import Roles, metric_names
from luthier.reporting import figures
from luthier.reporting.metric_titles import metric_heading
from luthier.web.charts.spec import Axis, Estimate, Intervals, Role

Tone = Literal["good", "bad", "open", "quiet"]
_TONES: dict[VerdictWord | None, Tone] = {
    "better": "good",
    "worse": "bad",
    "not distinguishable": "open",
    None: "quiet",
}
_OTHERS: tuple[Role, ...] = ("other-1", "other-2", "other-3")


@dataclass(frozen=True, slots=True)
class Cell:
    """A figure with its interval, both empty where the system has none. is_best: surely, not by luck."""

    value: str = ""
    interval: str = ""
    is_best: bool = False


@dataclass(frozen=True, slots=True)
class MetricRow:
    """One metric over all systems."""

    title: str
    unit: str
    higher_is_better: bool
    is_primary: bool
    cells: tuple[Cell, ...]


@dataclass(frozen=True, slots=True)
class DifferenceRow:
    """One system less another in one metric."""

    candidate: str
    baseline: str
    title: str
    unit: str
    difference: str
    interval: str
    p_value: str
    word: VerdictWord
    tone: Tone
    rows_needed: int | None


def tone_of(word: VerdictWord | None) -> Tone:
    """The colour of a verdict; `quiet` where there is none."""
    return _TONES[word]


def main_details(verdict: Verdict) -> tuple[Sequence[str], Sequence[str]]:
    """The figures behind the headline, and what else was found."""
    return verdict.details[: verdict.num_primary_details], verdict.details[verdict.num_primary_details :]


def metric_rows(evaluation: Evaluation) -> list[MetricRow]:
    """The table of systems: one row a metric, one cell a system, in the order of the systems."""
    rows = []
    for name in metric_names(evaluation):
        found = {system.name: system.metrics[name] for system in evaluation.systems if name in system.metrics}
        decimals = figures.common_decimals(list(found.values()))
        best = _best(evaluation.comparisons, name, list(found))
        cells = tuple(_cell(found.get(s.name), decimals, s.name == best) for s in evaluation.systems)
        first = next(iter(found.values()))
        is_primary = evaluation.verdict is not None and evaluation.verdict.metric == name
        rows.append(MetricRow(metric_heading(name), first.unit, first.higher_is_better, is_primary, cells))
    return rows


def difference_rows(comparisons: Sequence[Comparison], metrics: dict[str, Metric], roles: Roles) -> list[DifferenceRow]:
    """Those of the candidate first, in the order of the metrics. metrics: a figure of each, for its unit."""
    order = {name: place for place, name in enumerate(metrics)}
    ordered = sorted(comparisons, key=lambda c: (c.candidate != roles.candidate, order.get(c.metric, len(order))))
    return [_difference(one, metrics) for one in ordered]


def units(evaluation: Evaluation) -> dict[str, Metric]:
    """A figure of each metric, that of the verdict first."""
    found = {name: metric for system in evaluation.systems for name, metric in system.metrics.items()}
    return {name: found[name] for name in metric_names(evaluation)}


def forgetting_rows(found: Forgetting) -> list[tuple[tuple[Cell, ...], DifferenceRow]]:
    """What was forgotten: for each metric the figures of the systems, and tuned less base."""
    rows = []
    for one in found.comparisons:
        metrics = [system.metrics[one.metric] for system in found.systems]
        decimals = figures.common_decimals(metrics)
        cells = tuple(_cell(metric, decimals, is_best=False) for metric in metrics)
        rows.append((cells, _difference(one, {one.metric: metrics[0]})))
    return rows


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


def _best(comparisons: Sequence[Comparison], metric: str, names: Sequence[str]) -> str | None:
    """The system whose interval of the difference to each other one says that it is better."""
    beaten: set[tuple[str, str]] = set()
    for one in comparisons:
        if one.metric == metric and one.verdict == "better":
            beaten.add((one.candidate, one.baseline))
        elif one.metric == metric and one.verdict == "worse":
            beaten.add((one.baseline, one.candidate))
    others = len(names) - 1
    return next((n for n in names if others and sum((n, other) in beaten for other in names) == others), None)


def _cell(metric: Metric | None, decimals: int, is_best: bool) -> Cell:
    if metric is None:
        return Cell()
    interval = "" if metric.low == metric.high else figures.interval(metric.low, metric.high, decimals)
    return Cell(figures.number(metric.value, decimals), interval, is_best)


def _difference(one: Comparison, metrics: dict[str, Metric]) -> DifferenceRow:
    decimals = figures.decimals_for(one.low, one.high)
    unit = metrics[one.metric].unit if one.metric in metrics else ""
    return DifferenceRow(
        candidate=one.candidate,
        baseline=one.baseline,
        title=metric_heading(one.metric),
        unit=unit,
        difference=figures.signed(one.difference, decimals),
        interval=f"[{figures.signed(one.low, decimals)}, {figures.signed(one.high, decimals)}]",
        p_value=figures.p_value(one.p_value),
        word=one.verdict,
        tone=tone_of(one.verdict),
        rows_needed=one.rows_needed,
    )


def _colours(evaluation: Evaluation, roles: Roles) -> dict[str, Role]:
    others = [s.name for s in evaluation.systems if s.name not in (roles.candidate, roles.baseline)]
    colours: dict[str, Role] = {name: _OTHERS[place % len(_OTHERS)] for place, name in enumerate(others)}
    colours[roles.candidate] = "tuned"
    if roles.baseline is not None:
        colours[roles.baseline] = "base"
    return colours
