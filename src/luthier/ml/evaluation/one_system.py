"""Several evaluated systems as one: trainings of one recipe with several seeds, or draws of few-shot examples.

Seeds and rows are two sources of chance, joined by `statistics.seeds`. Draws are reported by their mean, likewise;
to be better than them is to be better than the strongest of them.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Literal

from luthier.core.evaluation import NOT_DISTINGUISHABLE, Comparison, Metric, SystemResult
from luthier.core.evaluation_plan import SHARES_OF_CORRECT
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
    test: Literal["seeds", "draws"] = "seeds",
) -> Judged:
    """What was evaluated, with all trainings under the name of the first; its samples are those that are shown.

    Args:
        judged: results of all trainings as separate systems.
        trainings: at least two names of evaluated systems: trainings of one recipe, or one model with several draws of
            few-shot examples.
        metrics: those of the evaluation.
        seed: of the resampling.
        clusters: the source of each row; None where every row is its own.
        test: the unit that its comparisons are reported to use.

    Raises:
        RequestError: fewer than two trainings, or different rows.
    """
    first, others = trainings[0], set(trainings[1:])
    by_name = {metric.name: metric for metric in metrics}
    systems = []
    for system in judged.systems:
        if system.name == first:
            mean = _mean(system, judged, trainings, by_name, seed, clusters)
            systems.append(_with_best_examples(mean, judged, trainings, metrics) if test == "draws" else mean)
        elif system.name not in others:
            systems.append(system)
    comparisons = []
    for one in judged.comparisons:
        # The other trainings are no longer separate systems.
        if {one.candidate, one.baseline} & others:
            continue
        if first in (one.candidate, one.baseline):
            metric = by_name[one.metric]
            joint = _against(one, judged, trainings, metric, seed, clusters, test)
            one = _of_draws(joint, judged, trainings, metric) if test == "draws" and one.baseline == first else joint
        comparisons.append(one)
    return Judged(tuple(systems), tuple(comparisons), judged.observed, judged.statistics)


def _of_draws(joint: Comparison, judged: Judged, draws: Sequence[str], metric: MetricDefinition) -> Comparison:
    """The comparison with draws of examples: better than them is better than each, on its own.

    Whoever can write a prompt can choose among those that were tried, so the strongest draw has to be beaten, and not
    their mean. Each of the tests is at the full level (an intersection-union test: Berger, "Multiparameter hypothesis
    testing and acceptance sampling", 1982), since only all of them together say "better".

    Args:
        joint: with the mean of the draws, how much they differ included; it decides all other words.
        judged: the results of all draws as separate systems.
        draws: their names.
        metric: of the comparison.
    """
    each = [
        one
        for one in judged.comparisons
        if one.baseline in draws and one.candidate == joint.candidate and one.metric == joint.metric
    ]
    # A draw that is not beaten decides, wherever the intervals of others begin: an interval may be above 0 where its
    # test is open.
    if metric.higher_is_better:
        strongest = min(each, key=lambda one: (one.verdict == "better", one.low, one.difference))
    else:
        strongest = min(each, key=lambda one: (one.verdict == "better", -one.high, -one.difference))
    if "better" not in (joint.verdict, strongest.verdict):
        return joint
    # Worse than one draw is not worse than what the draws are: that is a question of their mean.
    word = "better" if strongest.verdict == "better" else NOT_DISTINGUISHABLE
    return strongest.model_copy(update={"baseline": joint.baseline, "verdict": word, "test": "strongest_draw"})


def _with_best_examples(
    mean: SystemResult, judged: Judged, draws: Sequence[str], metrics: Sequence[MetricDefinition]
) -> SystemResult:
    """With the examples of the draw that answers best: those that one would use, and that has to be beaten."""
    each = [one for one in judged.systems if one.name in draws]
    # Shares of correct answers first: where there are some, the verdict is about one.
    ordered = sorted(metrics, key=lambda one: one.name not in SHARES_OF_CORRECT)
    metric = next((one for one in ordered if all(one.name in draw.metrics for draw in each)), None)
    if metric is None or mean.prompting is None:
        return mean
    name, sign = metric.name, 1 if metric.higher_is_better else -1
    best = max(each, key=lambda one: sign * one.metrics[name].value)
    if best.prompting is None:
        return mean
    return mean.model_copy(update={"prompting": mean.prompting.model_copy(update={"turns": best.prompting.turns})})


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
    test: Literal["seeds", "draws"],
) -> Comparison:
    candidates, baselines = (trainings if name == trainings[0] else (name,) for name in (one.candidate, one.baseline))
    found = statistics.difference_over_seeds(
        [judged.statistics[name, metric.name] for name in candidates],
        [judged.statistics[name, metric.name] for name in baselines],
        metric.aggregate,
        bounds=bounds_of(metric),
        seed=seed,
        clusters=clusters,
    )
    # More rows alone may not settle what seeds leave open, so no number of rows is reported.
    return one.model_copy(
        update={
            "difference": found.difference,
            "low": found.low,
            "high": found.high,
            "p_value": found.p_value,
            "verdict": statistics.verdict_word(found, higher_is_better=metric.higher_is_better),
            "rows_needed": None,
            "test": test,
        }
    )
