"""The table of systems and the table of differences, as rows of ready text."""

from __future__ import annotations

from dataclasses import dataclass

from luthier.core.evaluation import Comparison, Evaluation, Forgetting, Metric
from luthier.evaluate.names import metric_heading
from luthier.evaluate.roles import Roles, metric_names
from luthier.reporting import figures


@dataclass(frozen=True, slots=True)
class Cell:
    """A value and its interval; both empty where the system has no such metric."""

    value: str = ""
    interval: str = ""


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
    """Candidate minus baseline in one metric."""

    title: str
    difference: str
    interval: str
    p_value: str
    verdict: str
    rows_needed: str


@dataclass(frozen=True, slots=True)
class Differences:
    """All differences between two systems."""

    candidate: str
    baseline: str
    rows: tuple[DifferenceRow, ...]


def metric_rows(evaluation: Evaluation) -> list[MetricRow]:
    """The table of systems: one row a metric, one cell a system, in the order of the systems."""
    rows = []
    for name in metric_names(evaluation):
        found = [system.metrics.get(name) for system in evaluation.systems]
        first = next(metric for metric in found if metric is not None)
        decimals = figures.common_decimals([metric for metric in found if metric is not None])
        cells = [_cell(metric, decimals) for metric in found]
        primary = evaluation.verdict is not None and evaluation.verdict.metric == name
        rows.append(MetricRow(metric_heading(name), first.unit, first.higher_is_better, primary, tuple(cells)))
    return rows


def _cell(metric: Metric | None, decimals: int) -> Cell:
    if metric is None:
        return Cell()
    return Cell(figures.number(metric.value, decimals), figures.interval(metric.low, metric.high, decimals))


def differences(evaluation: Evaluation, roles: Roles) -> tuple[list[Differences], list[Differences]]:
    """The differences of the tuned system to each other one, and those among the others."""
    pairs: dict[tuple[str, str], list[DifferenceRow]] = {}
    order = {name: place for place, name in enumerate(metric_names(evaluation))}
    for comparison in sorted(evaluation.comparisons, key=lambda c: order.get(c.metric, len(order))):
        pairs.setdefault((comparison.candidate, comparison.baseline), []).append(_difference(comparison))
    every = [Differences(candidate, baseline, tuple(rows)) for (candidate, baseline), rows in pairs.items()]
    mine = [pair for pair in every if pair.candidate == roles.candidate]
    return mine, [pair for pair in every if pair.candidate != roles.candidate]


def forgetting_rows(found: Forgetting) -> list[tuple[tuple[Cell, ...], DifferenceRow]]:
    """The table of what was forgotten: for each metric the cells of the systems, and tuned minus base."""
    rows = []
    for comparison in found.comparisons:
        metrics = [system.metrics[comparison.metric] for system in found.systems]
        decimals = figures.common_decimals(metrics)
        rows.append((tuple(_cell(metric, decimals) for metric in metrics), _difference(comparison)))
    return rows


def _difference(comparison: Comparison) -> DifferenceRow:
    decimals = figures.decimals_for(comparison.low, comparison.high)
    low, high = figures.signed(comparison.low, decimals), figures.signed(comparison.high, decimals)
    return DifferenceRow(
        title=metric_heading(comparison.metric),
        difference=figures.signed(comparison.difference, decimals),
        interval=f"[{low}, {high}]",
        p_value=figures.p_value(comparison.p_value),
        verdict=comparison.verdict,
        rows_needed="" if comparison.rows_needed is None else f"about {comparison.rows_needed:,} rows would settle it",
    )
