"""Several systems on the same held-out rows: every figure with its interval, every pair with its test.

All systems answer and are scored first. Then the statistics of all metrics and systems stand side by side in one
matrix, and one set of resamples of its rows gives every interval and every paired difference.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from luthier.core.dataset import TokenisedExample
from luthier.core.errors import DivergedError, RequestError
from luthier.core.evaluation import Comparison, Metric, Sample, SystemResult, VerdictWord
from luthier.core.ports import Engine, Generation, Progress, ProgressTask, Prompt, Score
from luthier.core.recipe import MetricName
from luthier.evaluate import statistics
from luthier.evaluate.metrics.preference import margins
from luthier.evaluate.metrics.protocol import Array, MetricDefinition, Observations
from luthier.evaluate.metrics.registry import load_metrics
from luthier.evaluate.verdict import primary_metric, verdict

__all__ = ["SystemUnderTest", "judge", "primary_metric", "verdict"]


@dataclass(frozen=True, slots=True)
class SystemUnderTest:
    """One system and the held-out rows as it sees them; all sequences have one item a row, in the same order.

    prompts, references and prompt_texts are empty for plain text, which is only scored. prompt_texts: the question as
    a person reads it, without few-shot examples. tokenised: prompt and answer with this system's own tokenizer; of
    preference pairs the chosen side, and `rejected` holds the other one. num_bytes: UTF-8 bytes of the learned text.
    """

    name: str
    model: str
    adapter: str | None
    num_few_shot: int
    engine: Engine
    prompts: tuple[Prompt, ...]
    references: tuple[str, ...]
    row_ids: tuple[str, ...]
    prompt_texts: tuple[str, ...]
    tokenised: tuple[TokenisedExample, ...]
    num_bytes: tuple[int, ...]
    rejected: tuple[TokenisedExample, ...] = ()


class _Outcome(NamedTuple):
    """What one system did, with the statistics [rows, k] of each metric by name."""

    system: SystemUnderTest
    generations: list[Generation]
    scores: list[Score]
    margins: list[float]
    statistics: dict[str, Array]
    seconds: float


class _Resamples(NamedTuple):
    """All statistics side by side. columns: where each (system, metric) stands; sums: [resamples, all columns]."""

    total: Array
    sums: Array
    columns: dict[tuple[str, str], slice]


def judge(
    systems: Sequence[SystemUnderTest], *, metrics: Sequence[MetricName], seed: int, progress: Progress
) -> tuple[tuple[SystemResult, ...], tuple[Comparison, ...]]:
    """Judge every system by every metric, and hold each against every earlier one.

    Perplexities are not compared between systems that cut the rows into different numbers of learned tokens.

    Raises:
        RequestError: no systems, two of one name, different rows, or a metric that needs what the rows do not have.
        DivergedError: a figure is not a number, because the model's likelihoods are not.
    """
    wanted = load_metrics(metrics)
    _check(systems, wanted)
    outcomes: list[_Outcome] = []
    for system in systems:
        outcomes.append(_run(system, wanted, progress, first=outcomes[0] if outcomes else None))
    with progress.task("Resampling", 1, "steps") as task:
        resamples = _resample(outcomes, seed)
        results = tuple(_result(outcome, wanted, resamples) for outcome in outcomes)
        comparisons = tuple(
            _compare(earlier, later, metric, resamples)
            for place, later in enumerate(outcomes)
            for earlier in outcomes[:place]
            for metric in wanted
            if metric.name != "perplexity" or _same_tokens(earlier.system, later.system)
        )
        task.advance()
    return results, comparisons


def _check(systems: Sequence[SystemUnderTest], metrics: Sequence[MetricDefinition]) -> None:
    names = [system.name for system in systems]
    if not systems or not metrics or len(set(names)) < len(names):
        raise RequestError(
            f"systems {names}, {len(metrics)} metrics",
            expected="at least one system and one metric, and a name of its own for each system",
            do="name each system once, and ask for at least one metric",
        )
    first = systems[0]
    if not first.row_ids or len(set(first.row_ids)) < len(first.row_ids):
        raise RequestError(
            f"{len(first.row_ids)} rows with {len(set(first.row_ids))} different ids",
            expected="at least one row, and an id of its own for each",
            do="check the held-out file",
        )
    for system in systems:
        if system.row_ids != first.row_ids:
            raise RequestError(
                f"{system.name} was given other rows than {first.name}, or another order ({len(system.row_ids)} and "
                f"{len(first.row_ids)} rows)",
                expected="the same held-out rows in the same order for every system",
                do="build all systems from the same rows",
            )
        _check_rows(system, metrics)


def _check_rows(system: SystemUnderTest, metrics: Sequence[MetricDefinition]) -> None:
    num_rows = len(system.row_ids)
    texts = (system.prompts, system.references, system.prompt_texts)
    tokens = (system.tokenised, system.num_bytes)
    for columns in (texts, tokens, (system.rejected,)):
        lengths = [len(column) for column in columns]
        if set(lengths) not in ({0}, {num_rows}):
            raise RequestError(
                f"{system.name} has {lengths} values for {num_rows} rows",
                expected="one prompt, reference and text a row, or none; one tokenised example and size a row, or none",
                do="build the system from all rows",
            )
    for metric in metrics:
        there = {"text": system.prompts, "likelihood": system.tokenised, "pairs": system.rejected}[metric.needs]
        missing = {"text": "a prompt and an answer", "likelihood": "tokens", "pairs": "two sides"}[metric.needs]
        if not there:
            raise RequestError(
                f"metric {metric.name} on rows without {missing}",
                expected="rows with what the metric looks at, or other metrics",
                do="for plain text ask for perplexity and bits_per_byte; only preference pairs have two sides",
            )
    for example, num_bytes in zip(system.tokenised, system.num_bytes, strict=True):
        if example.num_trained_tokens == 0 or num_bytes == 0:
            raise RequestError(
                f"{example.id} has {example.num_trained_tokens} learned tokens and {num_bytes} bytes of learned text",
                expected="at least one of each in every held-out row",
                do="take the row out of the held-out file, or give it an answer",
            )


def _run(
    system: SystemUnderTest, metrics: Sequence[MetricDefinition], progress: Progress, first: _Outcome | None
) -> _Outcome:
    """first: the outcome of the first system; None for that one itself."""
    needs = {metric.needs for metric in metrics}
    titled = _Titled(progress, system.name)
    start = time.perf_counter()
    generations = system.engine.generate(system.prompts, titled) if "text" in needs else []
    scores = system.engine.score(system.tokenised, titled) if needs & {"likelihood", "pairs"} else []
    rejected = system.engine.score(system.rejected, titled) if "pairs" in needs else []
    seconds = time.perf_counter() - start
    observed = Observations(
        outputs=[generation.text for generation in generations],
        references=system.references,
        scores=scores,
        rejected_scores=rejected,
        num_bytes=system.num_bytes,
    )
    own = margins(observed) if rejected else []
    observed = replace(observed, first_margins=own if first is None else first.margins)
    return _Outcome(system, generations, scores, own, {m.name: m.statistics(observed) for m in metrics}, seconds)


class _Titled:
    """Progress whose tasks say for which system they run."""

    def __init__(self, progress: Progress, name: str) -> None:
        self._progress, self._name = progress, name

    def task(self, title: str, total: float | None, unit: str, done: float = 0) -> ProgressTask:
        return self._progress.task(f"{self._name}: {title[:1].lower()}{title[1:]}", total, unit, done)


def _resample(outcomes: Sequence[_Outcome], seed: int) -> _Resamples:
    columns: dict[tuple[str, str], slice] = {}
    parts: list[Array] = []
    start = 0
    for outcome in outcomes:
        for name, stats in outcome.statistics.items():
            columns[outcome.system.name, name] = slice(start, start + stats.shape[1])
            start += stats.shape[1]
            parts.append(stats)
    together = np.concatenate(parts, axis=1)
    return _Resamples(together.sum(axis=0), statistics.resampled_sums(together, seed=seed), columns)


def _result(outcome: _Outcome, metrics: Sequence[MetricDefinition], resamples: _Resamples) -> SystemResult:
    system = outcome.system
    found = {}
    for metric in metrics:
        columns = resamples.columns[system.name, metric.name]
        with np.errstate(over="ignore", invalid="ignore"):
            interval = statistics.interval_of(resamples.total[columns], resamples.sums[:, columns], metric.aggregate)
        if not np.isfinite(interval).all():
            raise DivergedError(
                f"{metric.name} of {system.name} is {interval.value}",
                expected="a finite figure",
                do="the weights hold NaN or infinity, or nothing fits this text: look at the run's loss curve",
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
        model=system.model,
        adapter=system.adapter,
        num_few_shot=system.num_few_shot,
        num_samples=len(system.row_ids),
        metrics=found,
        samples=_samples(outcome, metrics),
        seconds=outcome.seconds,
        num_cut_off=sum(generation.finish_reason == "length" for generation in outcome.generations),
    )


def _samples(outcome: _Outcome, metrics: Sequence[MetricDefinition]) -> tuple[Sample, ...]:
    """What the system wrote, row by row, with the figures that mean something for one row (and are finite there)."""
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
            output=generation.text,
            num_new_tokens=generation.num_new_tokens,
            finish_reason=generation.finish_reason,
            scores={name: float(values[row]) for name, values in own.items() if np.isfinite(values[row])},
        )
        for row, generation in enumerate(outcome.generations)
    )


def _compare(earlier: _Outcome, later: _Outcome, metric: MetricDefinition, resamples: _Resamples) -> Comparison:
    num_rows = len(later.system.row_ids)
    found = statistics.difference_of(
        resamples.total,
        resamples.sums,
        resamples.columns[later.system.name, metric.name],
        resamples.columns[earlier.system.name, metric.name],
        metric.aggregate,
        num_rows,
    )
    settled = statistics.is_settled(found)
    word: VerdictWord = "not distinguishable"
    if settled:
        word = "better" if (found.difference > 0) == metric.higher_is_better else "worse"
    return Comparison(
        baseline=earlier.system.name,
        candidate=later.system.name,
        metric=metric.name,
        difference=found.difference,
        low=found.low,
        high=found.high,
        p_value=found.p_value,
        verdict=word,
        rows_needed=None if settled else statistics.rows_needed(found.difference, found.standard_error, num_rows),
    )


def _same_tokens(one: SystemUnderTest, other: SystemUnderTest) -> bool:
    pairs = zip(one.tokenised, other.tokenised, strict=True)
    return all(a.num_trained_tokens == b.num_trained_tokens for a, b in pairs)
