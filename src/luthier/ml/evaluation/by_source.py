"""The figures of an evaluation for each source of its rows: a gain on all rows may be a loss on those of one source."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Final

import numpy as np

from luthier.core.data_sources import SourcePlan, source_place
from luthier.core.evaluation import NOT_DISTINGUISHABLE, Comparison, Metric, SourceFigures, Verdict
from luthier.ml.charts import figures
from luthier.ml.charts.judged_rows import metric_title
from luthier.ml.evaluation import statistics
from luthier.ml.evaluation.compare import Judged
from luthier.ml.evaluation.metrics.protocol import Array, MetricDefinition
from luthier.ml.evaluation.metrics.registry import as_definitions, bounds_of
from luthier.ml.evaluation.row_groups import MIN_GROUPS

MIN_ROWS: Final = 5
"""With fewer rows an interval says nothing."""


def with_sources(
    words: Verdict | None,
    judged: Judged,
    counted: Sequence[Comparison],
    systems: tuple[str, str],
    sources: Sequence[SourcePlan],
    row_ids: Sequence[str],
    clusters: Sequence[Hashable] | None = None,
) -> tuple[Verdict | None, tuple[SourceFigures, ...]]:
    """The verdict with a detail for each source of the rows, and the figures behind it.

    Args:
        words: the verdict on all rows; None where there is none.
        judged: of all rows.
        counted: the comparisons that the verdict rests on.
        systems: the names of the first system and of the last one, which are compared by the metric of the verdict.
        sources: of the held-out rows; empty where they are of one source.
        row_ids: of what was evaluated; of a search these are queries, each once, and fewer than rows.
        clusters: the group of each of these; None where every row counts by itself.

    Returns:
        `words` unchanged and no figures where the rows are of one source, or where nothing compares the two systems.
    """
    if not sources or words is None or all((one.baseline, one.candidate) != systems for one in counted):
        return words, ()
    names = [sources[source_place(sources, row_id)].name for row_id in row_ids]
    metric = as_definitions([words.metric])[0]
    found = figures_by_source(judged, metric, names, baseline=systems[0], candidate=systems[1], clusters=clusters)
    return words.model_copy(update={"details": (*words.details, *source_details(found))}), found


def figures_by_source(
    judged: Judged,
    metric: MetricDefinition,
    names: Sequence[str],
    *,
    baseline: str,
    candidate: str,
    clusters: Sequence[Hashable] | None = None,
) -> tuple[SourceFigures, ...]:
    """Both systems on the rows of each source, and their paired difference.

    Each source is its own test: p-values are adjusted for their number (Holm, 1979), and a source is better or
    worse only where the adjusted one is below 5%, too.

    Args:
        judged: of all rows.
        metric: that the verdict rests on.
        names: the source of each row.
        baseline: the name of a system.
        candidate: the name of another one.
        clusters: the group of each row; None where every row counts by itself.

    Returns:
        In the order in which the sources occur; figures are None for a source with fewer than `MIN_ROWS` rows, and
        where too few of its rows count for the metric. Empty where the metric has no statistics of both systems.
    """
    both = [judged.statistics.get((system, metric.name)) for system in (baseline, candidate)]
    if both[0] is None or both[1] is None:
        return ()
    sources, found = np.asarray(names), []
    for name in dict.fromkeys(names):
        own = [stats[sources == name] for stats in both if stats is not None]
        groups = [] if clusters is None else [clusters[row] for row in np.flatnonzero(sources == name).tolist()]
        # All rows may be of enough groups, and those of one source of too few.
        counted = groups if len(set(groups)) >= MIN_GROUPS else None
        found.append(_of_source(name, metric, own[0], own[1], (baseline, candidate), counted))
    tested = [one.comparison for one in found if one.comparison is not None]
    adjusted = iter(statistics.holm([one.p_value for one in tested]))
    return tuple(one if one.comparison is None else _adjusted(one, next(adjusted)) for one in found)


def _of_source(
    name: str,
    metric: MetricDefinition,
    before: Array,
    after: Array,
    systems: tuple[str, str],
    clusters: Sequence[Hashable] | None,
) -> SourceFigures:
    if len(before) < MIN_ROWS:
        return SourceFigures(source=name, num_rows=len(before), metric=metric.name)
    bounds = bounds_of(metric)
    with np.errstate(all="ignore"):
        # Seed 0: a repeated evaluation gives the same intervals to the last digit.
        difference = statistics.paired_bootstrap(
            after, before, metric.aggregate, bounds=bounds, seed=0, clusters=clusters
        )
        intervals = [
            statistics.bootstrap_interval(stats, metric.aggregate, bounds=bounds, seed=0, clusters=clusters)
            for stats in (before, after)
        ]
    if not np.isfinite([*difference, *intervals[0], *intervals[1]]).all():
        return SourceFigures(source=name, num_rows=len(before), metric=metric.name)
    baseline, candidate = (
        Metric(
            value=one.value,
            low=one.low,
            high=one.high,
            unit=metric.unit,
            higher_is_better=metric.higher_is_better,
        )
        for one in intervals
    )
    is_settled = statistics.is_settled(difference)
    return SourceFigures(
        source=name,
        num_rows=len(before),
        metric=metric.name,
        baseline=baseline,
        candidate=candidate,
        comparison=Comparison(
            baseline=systems[0],
            candidate=systems[1],
            metric=metric.name,
            difference=difference.difference,
            low=difference.low,
            high=difference.high,
            p_value=difference.p_value,
            verdict=statistics.verdict_word(difference, higher_is_better=metric.higher_is_better),
            rows_needed=None
            if is_settled
            else statistics.rows_needed(difference.difference, difference.standard_error, len(before)),
        ),
    )


def _adjusted(one: SourceFigures, p_value: float) -> SourceFigures:
    assert one.comparison is not None
    word = one.comparison.verdict if p_value < 1 - statistics.LEVEL else NOT_DISTINGUISHABLE
    comparison = one.comparison.model_copy(update={"adjusted_p_value": p_value, "verdict": word})
    return one.model_copy(update={"comparison": comparison})


def source_details(found: Sequence[SourceFigures]) -> tuple[str, ...]:
    """A sentence for each source."""
    texts, num_tested = [], sum(one.comparison is not None for one in found)
    for one in found:
        rows = f"{one.num_rows:,} held-out row{'' if one.num_rows == 1 else 's'}"
        if one.comparison is None or one.baseline is None or one.candidate is None:
            texts.append(f"Rows of {one.source}: {rows}, too few for figures of their own.")
            continue
        difference = one.comparison
        decimals = figures.common_decimals([one.baseline, one.candidate])
        low, high = (figures.signed(value, decimals) for value in (difference.low, difference.high))
        values = [figures.number(metric.value, decimals) for metric in (one.candidate, one.baseline)]
        change = figures.signed(difference.difference, decimals)
        p_value = figures.p_value(difference.adjusted_p_value or 0.0)
        texts.append(
            f"Rows of {one.source}: {difference.verdict}, {metric_title(one.metric)} {values[0]} against {values[1]} "
            f"of {difference.baseline} (difference {change}, 95% interval {low} to {high}, p {p_value} adjusted for "
            f"{num_tested} source{'' if num_tested == 1 else 's'}, {rows})."
        )
    return tuple(texts)
