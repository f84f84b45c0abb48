"""What one could use instead of the judged model: which is the best, and is the model better than all of them?

"Better than the best" is an intersection-union test (Berger, "Multiparameter hypothesis testing and acceptance
sampling", 1982): the model has to be better than each alternative at the 5% level, which claims too much in at most 5%
of studies without any correction, whichever alternative is the best in truth. "Worse" is said of one alternative picked
among several by its figure, so its p-value is multiplied by their number (Bonferroni).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from luthier.core.evaluation import Alternative, AlternativeKind, AlternativeWord, Bar, Comparison, SystemResult
from luthier.ml.charts.metric_titles import metric_title
from luthier.ml.evaluation.details import primary_details
from luthier.ml.evaluation.names import listed, system_title
from luthier.ml.evaluation.statistics.intervals import LEVEL


def alternatives_of(
    judged: SystemResult, found: Sequence[Comparison], results: Sequence[SystemResult]
) -> tuple[Alternative, ...]:
    """The alternatives among the systems that the judged one is compared with.

    Args:
        judged: the system that the verdict is about.
        found: its comparisons by the verdict's metric.
        results: all systems.
    """
    by_name = {result.name: result for result in results}
    alternatives = []
    for comparison in found:
        system = by_name[comparison.baseline]
        kind = _kind(system)
        if kind is None or comparison.candidate != judged.name:
            continue
        figure = system.metrics[comparison.metric]
        alternatives.append(
            Alternative(
                name=system.name,
                kind=kind,
                metric=comparison.metric,
                value=figure.value,
                low=figure.low,
                high=figure.high,
                seconds=system.seconds,
            )
        )
    return tuple(alternatives)


def _kind(system: SystemResult) -> AlternativeKind | None:
    if system.kind != "model":
        return system.kind
    return "few_shot" if system.num_few_shot else None


def best_of(alternatives: Sequence[Alternative], higher_is_better: bool) -> str | None:
    """The name of the one with the best figure; of equal ones the first. None where there are none."""
    if not alternatives:
        return None
    best = max if higher_is_better else min
    return best(alternatives, key=lambda one: one.value).name


def against_all(found: Sequence[Comparison], higher_is_better: bool) -> AlternativeWord:
    """Whether the judged system is better than all, or worse than the best, of those that it is compared with.

    Args:
        found: one comparison for each, by the same metric; not empty.
        higher_is_better: the metric's direction.
    """
    if all(comparison.verdict == "better" for comparison in found):
        return "better"
    nearest = _hardest(found, higher_is_better)
    if nearest.verdict == "worse" and nearest.p_value * len(found) < 1 - LEVEL:
        return "worse"
    return "not_distinguishable"


def _hardest(found: Sequence[Comparison], higher_is_better: bool) -> Comparison:
    """The comparison with the best of the baselines: the difference that speaks least for the judged system."""
    return (min if higher_is_better else max)(found, key=lambda one: one.difference)


def simple_details(
    judged: SystemResult, simple: Sequence[Comparison], results: Sequence[SystemResult]
) -> tuple[str, ...]:
    """The best baseline without a language model with its difference, and the figures of the others in one sentence."""
    if not simple:
        return ()
    by_name = {result.name: result for result in results}
    metric = simple[0].metric
    best = _hardest(simple, judged.metrics[metric].higher_is_better)
    others = [by_name[one.baseline] for one in simple if one is not best]
    details = primary_details(judged, [best], results)
    if not others:
        return details
    figures = listed([f"{one.name} {one.metrics[metric].value:.3g}" for one in others])
    return (*details, f"Other baselines without a language model: {figures} ({metric_title(metric)}).")


def simple_sentence(
    judged: SystemResult,
    models: Sequence[Comparison],
    simple: Sequence[Comparison],
    results: Sequence[SystemResult],
) -> str:
    """What the baselines without a language model mean for the verdict, in a sentence; empty where there are none.

    Args:
        judged: the system that the verdict is about.
        models: its comparisons with other models.
        simple: its comparisons with these baselines.
        results: all systems.
    """
    if not simple:
        return ""
    by_name = {result.name: result for result in results}
    higher = judged.metrics[simple[0].metric].higher_is_better
    system = by_name[_hardest(simple, higher).baseline]
    name, took = system_title(system, results), _duration(system.seconds)
    word = against_all(simple, higher)
    is_best = f"the best of {len(simple)} baselines" if len(simple) > 1 else "the one baseline"
    if word == "better":
        also = "also " if models else ""
        return f"It is {also}better than {is_best} without a language model: {name}."
    opening = "But it" if all(one.verdict == "better" for one in models) and models else "It"
    relation = "worse than" if word == "worse" else "not shown to be better than"
    return f"{opening} is {relation} {name}, which takes {took}: use that instead."


def _duration(seconds: float) -> str:
    return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def held_against(bar: Bar | None, judged: SystemResult) -> tuple[Literal["yes", "no", "not_asked"], str]:
    """Whether the judged system is good enough, and the sentence that says so.

    "yes" needs the whole 95% interval to reach the bar: a figure above it that could as well lie below is no proof.
    """
    if bar is None:
        return "not_asked", ""
    figure, title = judged.metrics.get(bar.metric), metric_title(bar.metric)
    if figure is None:
        return "no", f"It was not judged by {title}, so the {bar.value:g} asked for is not shown."
    shown = f"{title} {figure.value:.3g} [{figure.low:.3g}, {figure.high:.3g}]"
    least, most = (figure.low, figure.high) if figure.higher_is_better else (-figure.high, -figure.low)
    asked = bar.value if figure.higher_is_better else -bar.value
    if least >= asked:
        return "yes", f"It reaches the {bar.value:g} asked for: {shown}."
    if most < asked:
        return "no", f"It misses the {bar.value:g} asked for: {shown}."
    return "no", f"It is not shown to reach the {bar.value:g} asked for: {shown}."
