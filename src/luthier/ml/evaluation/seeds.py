"""Several trainings of one recipe as one system: figures are means over seeds, intervals hold for other seeds too."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from luthier.core.evaluation import Comparison, Metric, SystemResult
from luthier.ml.evaluation import statistics
from luthier.ml.evaluation.compare import Judged
from luthier.ml.evaluation.metrics.protocol import MetricDefinition
from luthier.ml.evaluation.metrics.registry import bounds_of


def as_one_system(
    judged: Judged,
    trainings: Sequence[str],
    metrics: Sequence[MetricDefinition],
    *,
    seed: int,
    clusters: Sequence[Hashable] | None = None,
) -> Judged:
    """What was judged, with all trainings under the name of the first; its samples are those that are shown.

    Args:
        judged: results of all trainings as systems of their own.
        trainings: at least two names of judged systems, none of them a baseline of another comparison that is kept.
        metrics: those that were judged by.
        seed: of the resampling.
        clusters: the source of each row; None where every row is its own.

    Raises:
        RequestError: fewer than two trainings, or different rows.
    """
    first, others = trainings[0], set(trainings[1:])
    by_name = {metric.name: metric for metric in metrics}
    systems = []
    for system in judged.systems:
        if system.name == first:
            systems.append(_mean(system, judged, trainings, by_name, seed, clusters))
        elif system.name not in others:
            systems.append(system)
    comparisons = []
    for one in judged.comparisons:
        # The other trainings are no systems of their own any more.
        if {one.candidate, one.baseline} & others:
            continue
        if one.candidate == first:
            one = _against(one, judged, trainings, by_name[one.metric], seed, clusters)
        comparisons.append(one)
    return Judged(tuple(systems), tuple(comparisons), judged.observed, judged.statistics)


def _mean(
    system: SystemResult,
    judged: Judged,
    trainings: Sequence[str],
    metrics: dict[str, MetricDefinition],
    seed: int,
    clusters: Sequence[Hashable] | None,
) -> SystemResult:
    found: dict[str, Metric] = {}
    for name, figure in system.metrics.items():
        arrays = [judged.statistics[training, name] for training in trainings]
        interval = statistics.over_seeds(
            arrays, metrics[name].aggregate, bounds=bounds_of(metrics[name]), seed=seed, clusters=clusters
        )
        found[name] = figure.model_copy(update=dict(zip(("value", "low", "high"), interval, strict=True)))
    every = [one for one in judged.systems if one.name in trainings]
    return system.model_copy(update={"metrics": found, "seconds": sum(one.seconds for one in every)})


def _against(
    one: Comparison,
    judged: Judged,
    trainings: Sequence[str],
    metric: MetricDefinition,
    seed: int,
    clusters: Sequence[Hashable] | None,
) -> Comparison:
    found = statistics.difference_over_seeds(
        [judged.statistics[training, metric.name] for training in trainings],
        [judged.statistics[one.baseline, metric.name]],
        metric.aggregate,
        bounds=bounds_of(metric),
        seed=seed,
        clusters=clusters,
    )
    # More rows alone may not settle what seeds leave open, so nothing is said of how many it would take.
    return one.model_copy(
        update={
            "difference": found.difference,
            "low": found.low,
            "high": found.high,
            "p_value": found.p_value,
            "verdict": statistics.verdict_word(found, higher_is_better=metric.higher_is_better),
            "rows_needed": None,
            "test": "seeds",
        }
    )
