"""Several systems on the same held-out rows: every figure with its interval, every pair with its test.

All systems answer and are scored first. Then the statistics of all metrics and systems are put side by side in one
matrix, and one set of resamples of its rows (or of the sources that rows share) gives every interval and every paired
difference. Several trainings of one recipe can be compared as one system: figures are means over seeds, and intervals
hold for other seeds too. How long systems thought, and how many thoughts were cut off, is reported with the figures.
"""

from __future__ import annotations

import math
import time
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from typing import Any, NamedTuple

import numpy as np

from luthier.core.errors import DivergedError, RequestError
from luthier.core.evaluation import Comparison, Metric, Sample, SystemResult
from luthier.core.evaluation_plan import ThinkingFigures
from luthier.core.ports import Generation, Progress, Score
from luthier.ml.evaluation import statistics
from luthier.ml.evaluation.metrics.likelihood import margins
from luthier.ml.evaluation.metrics.protocol import Array, MetricDefinition, Observations
from luthier.ml.evaluation.metrics.ranking import Ranked
from luthier.ml.evaluation.metrics.registry import as_definitions, bounds_of
from luthier.ml.evaluation.statistics.resampling import is_share
from luthier.ml.evaluation.systems import SystemUnderTest, Titled, check_systems
from luthier.ml.evaluation.verdict import primary_metric, verdict

__all__ = ["Judged", "SystemUnderTest", "judge", "judge_in_full", "primary_metric", "verdict"]


def thinking_figures(generations: Sequence[Generation]) -> ThinkingFigures | None:
    """The figures of one system's answers; None where none of them has a thought."""
    thoughts = [one for one in generations if one.reasoning is not None or one.ends_in_thought]
    if not thoughts:
        return None
    counts = [one.num_thinking_tokens for one in thoughts if one.num_thinking_tokens is not None]
    # A mean over the answers that report a count would favour short thoughts, so it is all or none.
    are_told = len(counts) == len(thoughts)
    return ThinkingFigures(
        num_thoughts=len(thoughts),
        num_cut_off=sum(one.ends_in_thought for one in thoughts),
        mean_tokens=sum(counts) / len(counts) if are_told else None,
        least_tokens=min(counts) if are_told else None,
        most_tokens=max(counts) if are_told else None,
    )


class _Outcome(NamedTuple):
    """What one system did, with the statistics [rows, k] of each metric by name."""

    system: SystemUnderTest
    generations: list[Generation]
    observed: Observations
    statistics: dict[str, Array]
    seconds: float


class _Resamples(NamedTuple):
    """All statistics side by side.

    Attributes:
        total: [all columns], sums over all rows.
        columns: the index of each (system, metric).
        sums: [resamples, all columns].
        rows: what was drawn, [rows or sources, all columns].
    """

    total: Array
    sums: Array
    columns: dict[tuple[str, str], slice]
    rows: Array


@dataclass(frozen=True, slots=True)
class Judged:
    """Results of judging.

    Attributes:
        systems: the figures of each system, in the order given.
        comparisons: of each system with every earlier one, by every metric that both can be compared by.
        observed: what each system did, by name.
        statistics: [rows, k], by system and metric.
    """

    systems: tuple[SystemResult, ...]
    comparisons: tuple[Comparison, ...]
    observed: dict[str, Observations]
    statistics: dict[tuple[str, str], Array]


def judge(
    systems: Sequence[SystemUnderTest],
    *,
    metrics: Sequence[str | MetricDefinition],
    seed: int,
    progress: Progress,
    clusters: Sequence[Hashable] | None = None,
    compares_prompts: bool = False,
) -> tuple[tuple[SystemResult, ...], tuple[Comparison, ...]]:
    """The figures and comparisons of `judge_in_full`.

    Args:
        systems: at least one; the first model is the baseline of the others.
        metrics: names, or metrics that were made with what they need.
        seed: of the resampling.
        progress: shows generation, scoring and resampling.
        clusters: as for `judge_in_full`.
        compares_prompts: as for `judge_in_full`.

    Raises:
        RequestError: no systems, two of one name, different rows, or a metric that needs what the rows do not have.
        DivergedError: a figure is not a number, because the model's likelihoods are not.
    """
    judged = judge_in_full(
        systems,
        metrics=metrics,
        seed=seed,
        progress=progress,
        clusters=clusters,
        compares_prompts=compares_prompts,
    )
    return judged.systems, judged.comparisons


def judge_in_full(
    systems: Sequence[SystemUnderTest],
    *,
    metrics: Sequence[str | MetricDefinition],
    seed: int,
    progress: Progress,
    items: Sequence[Mapping[str, Any]] = (),
    clusters: Sequence[Hashable] | None = None,
    compares_prompts: bool = False,
) -> Judged:
    """Evaluate every system by every metric, and compare each with every earlier one.

    Perplexities are not compared between systems that cut the rows into different numbers of learned tokens.

    Args:
        systems: at least one; a baseline without a language model is compared with the models after it.
        metrics: names, or metrics that were made with what they need.
        seed: of the resampling.
        progress: shows generation, scoring and resampling.
        items: the fields of the rows, for metrics that read them.
        clusters: the source of each row, where rows of one source count together.
        compares_prompts: compare ways to prompt one model, too.

    Raises:
        RequestError: no systems, two of one name, different rows, or a metric that needs what the rows do not have.
        DivergedError: a figure is not a number, because the model's likelihoods are not.
    """
    wanted = as_definitions(metrics)
    check_systems(systems, wanted)
    for what, values in (("items", items), ("clusters", clusters or ())):
        if values and len(values) != len(systems[0].row_ids):
            raise RequestError(
                f"{len(values)} {what} for {len(systems[0].row_ids)} rows", expected="one a row, or none", do="pass all"
            )
    # One system after the other: each engine may need the whole memory of the device.
    outcomes: list[_Outcome] = []
    for system in systems:
        own = [metric for metric in wanted if system.takes(metric)]
        # Baselines without a language model may be before it: only a model's margins and answers can be its measure.
        first = next((outcome for outcome in outcomes if outcome.system.kind in ("model", "head")), None)
        outcomes.append(_run(system, own, items, progress, first=first))
    with progress.task("Resampling", 1, "steps") as task:
        resamples = _resample(outcomes, seed, clusters)
        results = tuple(
            _result(outcome, [metric for metric in wanted if outcome.system.takes(metric)], resamples)
            for outcome in outcomes
        )
        comparisons = tuple(
            _compare(earlier, later, metric, resamples)
            for place, later in enumerate(outcomes)
            for earlier in outcomes[:place]
            for metric in wanted
            if _are_compared(earlier.system, later.system, compares_prompts)
            and later.system.takes(metric)
            and earlier.system.takes(metric)
            # Perplexity is per token: other tokens are another unit.
            and (metric.name != "perplexity" or _same_tokens(earlier.system, later.system))
        )
        task.advance()
    return Judged(
        results,
        comparisons,
        {outcome.system.name: outcome.observed for outcome in outcomes},
        {(outcome.system.name, name): stats for outcome in outcomes for name, stats in outcome.statistics.items()},
    )


def _are_compared(earlier: SystemUnderTest, later: SystemUnderTest, compares_prompts: bool) -> bool:
    """Whether two systems are compared with each other.

    Baselines are what models are compared with; they are not compared with one another. Nor, in an evaluation,
    are ways to prompt one model: each is compared with the plain prompt and the evaluated system.
    """
    are_prompts = earlier.prompting is not None and later.prompting is not None and earlier.model == later.model
    return later.kind in ("model", "head") and (compares_prompts or not are_prompts)


def _run(
    system: SystemUnderTest,
    metrics: Sequence[MetricDefinition],
    items: Sequence[Mapping[str, Any]],
    progress: Progress,
    first: _Outcome | None,
) -> _Outcome:
    """first: the outcome of the first model; None for that one itself, and for baselines before it."""
    needs = {metric.needs for metric in metrics}
    titled = Titled(progress, system.name)
    start = time.perf_counter()
    # Only what some metric needs: generating is by far the most expensive part.
    generations = system.engine.generate(system.prompts, titled) if "text" in needs else []
    scores = system.scores(titled) if needs & {"likelihood", "pairs"} else []
    rejected = system.engine.score(system.rejected, titled) if "pairs" in needs else []
    options = _option_scores(system, titled) if "options" in needs else []
    rankings = system.rank(titled) if system.rank is not None and "ranking" in needs else []
    if rankings:
        # What a search answers is the document that it puts first.
        generations = [_first_document(ranked) for ranked in rankings]
    outputs = system.compared([generation.text for generation in generations])
    calls = [generation.tool_calls for generation in generations]
    references = system.compared(system.references)
    observed = Observations(
        outputs=outputs,
        references=references,
        scores=scores,
        rejected_scores=rejected,
        num_bytes=system.num_bytes,
        items=items,
        prompts=system.prompt_texts,
        # The first system is compared with itself.
        first_outputs=outputs if first is None else first.observed.outputs,
        option_scores=options,
        option_bytes=[[len(text.encode()) for text in texts] for texts in system.option_texts],
        rankings=rankings,
        tool_calls=calls,
        first_tool_calls=calls if first is None else first.observed.tool_calls,
    )
    own = margins(observed) if rejected else []
    observed = replace(observed, first_margins=own if first is None else first.observed.first_margins)
    found = {metric.name: metric.statistics(observed) for metric in metrics}
    return _Outcome(system, generations, observed, found, time.perf_counter() - start)


def _first_document(ranked: Ranked) -> Generation:
    return Generation(text=str(ranked.order[0]), num_prompt_tokens=0, num_new_tokens=0, finish_reason="stop")


def _option_scores(system: SystemUnderTest, progress: Progress) -> list[list[Score]]:
    """The options of all rows are scored in one go, so that they share batches."""
    scores = iter(system.engine.score(list(chain.from_iterable(system.options)), progress))
    return [list(islice(scores, len(options))) for options in system.options]


def _resample(outcomes: Sequence[_Outcome], seed: int, clusters: Sequence[Hashable] | None) -> _Resamples:
    columns: dict[tuple[str, str], slice] = {}
    parts: list[Array] = []
    start = 0
    for outcome in outcomes:
        for name, stats in outcome.statistics.items():
            columns[outcome.system.name, name] = slice(start, start + stats.shape[1])
            start += stats.shape[1]
            # [rows, k]: the sums from which the metric is computed, not its values.
            parts.append(stats)
    # One matrix for all systems: the same rows are drawn for each, which makes every difference a paired one.
    together = np.concatenate(parts, axis=1)
    # Clusters are summed once here, so the draws below are over sources and need no clusters.
    rows = statistics.cluster_sums(together, clusters)
    return _Resamples(together.sum(axis=0), statistics.resampled_sums(rows, seed=seed), columns, rows)


def _result(outcome: _Outcome, metrics: Sequence[MetricDefinition], resamples: _Resamples) -> SystemResult:
    system = outcome.system
    found = {}
    for metric in metrics:
        columns, bounds = resamples.columns[system.name, metric.name], bounds_of(metric)
        # Overflow is reported below as DivergedError, which names the system and the metric.
        with np.errstate(over="ignore", invalid="ignore"):
            interval = statistics.interval_of(
                resamples.total[columns],
                resamples.sums[:, columns],
                metric.aggregate,
                bounds=bounds,
                rows=resamples.rows[:, columns],
            )
        if not np.isfinite(interval).all():
            raise DivergedError(
                f"{metric.name} of {system.name} is {interval.value}",
                expected="a finite figure",
                do="the weights contain NaN or infinity, or nothing fits this text: check the run's loss curve",
            )
        if not bounds.hold(interval.value):
            raise RequestError(
                f"{metric.name} of {system.name} is {interval.value:g}, and the metric says {bounds.lower:g} to "
                f"{bounds.upper:g}",
                expected="a figure inside of what its metric declares",
                do=f"correct lower and upper of {type(metric).__name__}, or its formula",
            )
        found[metric.name] = Metric(
            value=interval.value,
            low=interval.low,
            high=interval.high,
            unit=metric.unit,
            higher_is_better=metric.higher_is_better,
        )
    return SystemResult(
        name=system.name,
        kind=system.kind,
        model=system.model,
        adapter=system.adapter,
        num_few_shot=system.num_few_shot,
        num_samples=len(system.row_ids),
        metrics=found,
        samples=_samples(outcome, metrics),
        seconds=system.seconds_before + outcome.seconds,
        num_empty=sum(not one.text.strip() and not one.tool_calls for one in outcome.generations),
        num_cut_off=sum(generation.finish_reason == "length" for generation in outcome.generations),
        thinking=thinking_figures(outcome.generations),
        prompting=system.prompting,
    )


def _samples(outcome: _Outcome, metrics: Sequence[MetricDefinition]) -> tuple[Sample, ...]:
    """What the system wrote or chose, row by row, with the figures that mean something for one row and are finite.

    Of answers to choose from, the output is the likeliest as a whole.
    """
    own = {}
    with np.errstate(all="ignore"):
        for metric in metrics:
            if metric.has_sample_values:
                own[metric.name] = metric.aggregate(outcome.statistics[metric.name])
    system = outcome.system
    return tuple(
        Sample(
            row_id=system.row_ids[row],
            prompt=system.prompt_texts[row],
            reference=system.references[row],
            output=written.text,
            num_new_tokens=written.num_new_tokens,
            finish_reason=written.finish_reason,
            scores={name: float(values[row]) for name, values in own.items() if np.isfinite(values[row])},
            reasoning=written.reasoning,
            num_thinking_tokens=written.num_thinking_tokens,
            tool_calls=written.tool_calls,
        )
        for row, written in enumerate(outcome.generations or _choices(outcome))
    )


def _choices(outcome: _Outcome) -> list[Generation]:
    """The likeliest option of each row in the form of an answer; none where there were no options."""
    found = []
    # Not strict: without options both are empty, or the scores are.
    for texts, scores in zip(outcome.system.option_texts, outcome.observed.option_scores, strict=False):
        losses = [score.nll_nats for score in scores]
        # The first of equal options, as in the order of the row.
        text = texts[losses.index(min(losses))]
        found.append(Generation(text=text, num_prompt_tokens=0, num_new_tokens=0, finish_reason="stop"))
    return found


def _compare(earlier: _Outcome, later: _Outcome, metric: MetricDefinition, resamples: _Resamples) -> Comparison:
    num_rows = len(resamples.rows)
    own, other = (resamples.columns[one.system.name, metric.name] for one in (later, earlier))
    found = statistics.difference_of(
        resamples.total,
        resamples.sums,
        own,
        other,
        metric.aggregate,
        num_rows,
        bounds=bounds_of(metric),
        rows=resamples.rows,
    )
    are_shares = all(is_share(resamples.rows[:, one], metric.aggregate) for one in (own, other))
    settled = statistics.is_settled(found)
    return Comparison(
        baseline=earlier.system.name,
        candidate=later.system.name,
        metric=metric.name,
        difference=found.difference,
        low=found.low,
        high=found.high,
        p_value=found.p_value,
        verdict=statistics.verdict_word(found, higher_is_better=metric.higher_is_better),
        rows_needed=None if settled else _rows_needed(found, num_rows, len(later.system.row_ids)),
        test="mcnemar" if are_shares else "bootstrap",
    )


def _rows_needed(found: statistics.Difference, num_sources: int, num_rows: int) -> int | None:
    """In rows, of which a source has as many as here on average; without sources each row is one."""
    # Extrapolated by the standard error, which falls with the root of the number of sources.
    needed = statistics.rows_needed(found.difference, found.standard_error, num_sources)
    return None if needed is None else math.ceil(needed * num_rows / num_sources)


def _same_tokens(one: SystemUnderTest, other: SystemUnderTest) -> bool:
    pairs = zip(one.tokenised, other.tokenised, strict=True)
    return all(a.num_trained_tokens == b.num_trained_tokens for a, b in pairs)
