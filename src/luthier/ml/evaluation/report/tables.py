"""The table of systems and the table of differences of an evaluation, as rows of ready text."""

from __future__ import annotations

from dataclasses import dataclass

from luthier.core.evaluation import Evaluation
from luthier.ml.charts.judged_rows import DifferenceRow, MetricRow, difference_row, units_of
from luthier.ml.charts.judged_rows import metric_rows as rows_of
from luthier.ml.charts.metric_titles import metric_heading
from luthier.ml.evaluation.roles import Roles, metric_names


@dataclass(frozen=True, slots=True)
class Differences:
    """All differences between two systems.

    Attributes:
        candidate: name of the one.
        baseline: name of the other, which is subtracted.
        rows: one a metric.
    """

    candidate: str
    baseline: str
    rows: tuple[DifferenceRow, ...]


def metric_rows(evaluation: Evaluation) -> list[MetricRow]:
    """The table of systems: one row a metric, one cell a system, in the order of the systems."""
    primary = None if evaluation.verdict is None else evaluation.verdict.metric
    return rows_of(evaluation.systems, evaluation.comparisons, primary, metric_heading)


def differences(evaluation: Evaluation, roles: Roles) -> tuple[list[Differences], list[Differences]]:
    """The differences of the tuned system to each other one, and those among the others."""
    pairs: dict[tuple[str, str], list[DifferenceRow]] = {}
    order = {name: place for place, name in enumerate(metric_names(evaluation))}
    units = units_of(evaluation.systems)
    for comparison in sorted(evaluation.comparisons, key=lambda c: order.get(c.metric, len(order))):
        row = difference_row(comparison, units[comparison.metric], heading=metric_heading)
        pairs.setdefault((comparison.candidate, comparison.baseline), []).append(row)
    every = [Differences(candidate, baseline, tuple(rows)) for (candidate, baseline), rows in pairs.items()]
    mine = [pair for pair in every if pair.candidate == roles.candidate]
    return mine, [pair for pair in every if pair.candidate != roles.candidate]
