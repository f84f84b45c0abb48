#!/usr/bin/env python3
"""How often is "better than the best alternative" said of a model that is no better than any? Simulated studies.

    python benchmarks/verdict_truth.py                    1,000 studies a case, JSON to standard output
    python benchmarks/verdict_truth.py --studies 100 --only rouge

In each study the base, ways to prompt it, baselines without a language model and the tuned model are right equally
often, in truth. Their answers go through all of what an evaluation does with answers: metric, resampling, comparisons,
verdict. `better`, `worse`: share of studies in which the verdict's `better_than_best_alternative` says so; `word`: in
which the verdict as a whole is "better". `common`: share of rows in which all systems do the same, as they do where
rows are easy or hard.

In cases with groups, rows of one group, such as the questions on one document, do the same in most groups: a system has
all of them right or none. `better_of_rows` is what `better` would be if every row counted by itself.

All studies of a case have the same rows, and an answer to a row is one of five: which rows each resample holds is drawn
once, and the metric computes each of these answers once. All else is computed in every study.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from typing import Any, Literal
from unittest.mock import patch

import numpy as np

from luthier.core.dataset import TokenisedExample
from luthier.core.evaluation import Verdict
from luthier.core.evaluation_plan import Prompting
from luthier.core.ports import Generation, Progress, Prompt, Score, SilentProgress
from luthier.ml.baselines.predict import Predictions, as_system
from luthier.ml.evaluation import statistics
from luthier.ml.evaluation.compare import judge_in_full, verdict
from luthier.ml.evaluation.metrics.protocol import Array, MetricDefinition, Observations
from luthier.ml.evaluation.metrics.registry import as_definitions
from luthier.ml.evaluation.one_system import as_one_system
from luthier.ml.evaluation.statistics import seeds
from luthier.ml.evaluation.statistics.resampling import NUM_RESAMPLES, cluster_sums, resampled_sums
from luthier.ml.evaluation.systems import SystemUnderTest

NUM_WORDS = 4
"""Of each answer: a graded one has some of them right."""
RIGHT = 0.6
_DRAWN = Prompting(kind="few_shot", examples="drawn", num_draws=4)
_KINDS: tuple[Literal["majority", "nearest", "linear", "copy"], ...] = ("majority", "nearest", "linear", "copy")


@dataclass(frozen=True)
class Case:
    """One kind of study.

    Attributes:
        metric: `exact_match`, where an answer is right or not, or `rouge_l`, where some of its words are.
        num_prompts: ways to prompt the base.
        num_baselines: without a language model, at most four.
        common: share of rows in which all systems do the same.
        num_rows: held-out rows.
        draws: shares of rows that draws of examples for one prompt are right on, evaluated as one system; none higher
            than the tuned model's.
        groups: rows of each group, whose sum is `num_rows`; empty where every row is by itself.
        alike: share of groups whose rows do the same.
        counts: what intervals and tests count where there are groups: these, as evaluations do, or rows.
    """

    metric: Literal["exact_match", "rouge_l"]
    num_prompts: int
    num_baselines: int
    common: float
    num_rows: int = 60
    draws: tuple[float, ...] = ()
    groups: tuple[int, ...] = ()
    alike: float = 0.8
    counts: Literal["groups", "rows"] = "groups"

    @property
    def name(self) -> str:
        """As results call it."""
        drawn = f", draws {', '.join(map(str, self.draws))}" if self.draws else ""
        counts = f"{self.num_prompts} prompts, {self.num_baselines} baselines"
        return f"{self.metric}, {counts}, {self.common:g} common{drawn}{self._grouped}"

    @property
    def _grouped(self) -> str:
        if not self.groups:
            return ""
        least, most = min(self.groups), max(self.groups)
        return f", {len(self.groups)} groups of {least if least == most else f'{least} to {most}'}"

    @property
    def of_row(self) -> list[int]:
        """The group of each row."""
        return [number for number, size in enumerate(self.groups) for _ in range(size)]

    @property
    def clusters(self) -> list[int] | None:
        """What an evaluation passes on: the group of each row where groups count."""
        return self.of_row if self.groups and self.counts == "groups" else None


CASES = [
    Case(metric, num_prompts, num_baselines, common)
    for metric in ("exact_match", "rouge_l")
    for num_prompts, num_baselines in ((0, 1), (4, 4))
    for common in (0.0, 0.7)
]
CASES += [Case("exact_match", 0, 0, 0.0, draws=draws) for draws in ((0.6,) * 4, (0.2, 0.3, 0.4, 0.6))]
_UNEQUAL = (24, 12, 6, 4, 3, 3, 2, 2, 2, 2)
CASES += [
    Case(metric, num_prompts, num_baselines, 0.0, groups=(5,) * 12)
    for metric in ("exact_match", "rouge_l")
    for num_prompts, num_baselines in ((0, 1), (4, 4))
]
CASES += [Case(metric, 0, 1, 0.0, groups=_UNEQUAL) for metric in ("exact_match", "rouge_l")]
CASES += [Case("exact_match", 0, 0, 0.0, draws=(0.6,) * 4, groups=(5,) * 12)]


def main() -> None:
    """Simulate all cases, or those whose name holds --only."""
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--studies", type=int, default=1_000)
    cli.add_argument("--only", default="", help="part of the names of cases")
    args = cli.parse_args()
    found = []
    for case in CASES:
        if args.only in case.name:
            found.append(simulate(case, args.studies))
            print(json.dumps(found[-1]), file=sys.stderr, flush=True)
    print(json.dumps({"studies": args.studies, "cases": found}, indent=1))


def simulate(case: Case, num_studies: int) -> dict[str, Any]:
    """Shares over the studies of one case, in its own stream of random numbers."""
    start, used = time.perf_counter(), time.process_time()
    found = _verdicts(case, num_studies)
    words = [one.better_than_best_alternative for one in found]
    # The same studies in another way of counting, for comparison.
    of_rows = _verdicts(replace(case, counts="rows"), num_studies) if case.groups else []
    alone = [one.better_than_best_alternative for one in of_rows].count("better") / num_studies
    return {
        "case": case.name,
        "rows": case.num_rows,
        "better": words.count("better") / num_studies,
        "worse": words.count("worse") / num_studies,
        "word": sum(one.word == "better" for one in found) / num_studies,
        "seconds": round(time.perf_counter() - start, 1),
        "cpu_seconds": round(time.process_time() - used, 1),
    } | ({"better_of_rows": alone} if case.groups else {})


def _verdicts(case: Case, num_studies: int) -> list[Verdict]:
    """Of each study, in the case's own stream of random numbers."""
    generator = np.random.default_rng([len(case.name), *case.name.encode()])
    # Rows, seed and so draws are those of every study: which rows a resample holds is drawn once.
    known = [patch.object(module, "resampled_sums", _sums_of_known_draws) for module in (statistics, seeds)]
    with known[0], known[1]:
        return [study(case, generator) for _ in range(num_studies)]


@cache
def _draws(num_rows: int, seed: int, num_resamples: int) -> Array:
    """How often each resample holds each row, [resamples, rows]."""
    return resampled_sums(np.eye(num_rows), seed=seed, num_resamples=num_resamples)


def _sums_of_known_draws(
    stats: Array, *, seed: int, num_resamples: int = NUM_RESAMPLES, clusters: Sequence[Hashable] | None = None
) -> Array:
    rows = cluster_sums(stats, clusters)
    sums: Array = _draws(len(rows), seed, num_resamples) @ rows
    return sums


class _Remembered:
    """A metric that computes its statistics of an answer and its reference once, whichever study has them first."""

    def __init__(self, metric: MetricDefinition) -> None:
        self._metric = metric
        self._rows: dict[tuple[str, str], Array] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._metric, name)

    def statistics(self, observed: Observations) -> Array:
        """[rows, k]: those of the metric."""
        pairs = list(zip(observed.outputs, observed.references, strict=True))
        if new := [pair for pair in dict.fromkeys(pairs) if pair not in self._rows]:
            outputs, references = zip(*new, strict=True)
            found = self._metric.statistics(Observations(outputs=outputs, references=references))
            self._rows |= dict(zip(new, found, strict=True))
        return np.stack([self._rows[pair] for pair in pairs])


@cache
def _metrics(name: str) -> list[MetricDefinition]:
    remembered: Any = [_Remembered(metric) for metric in as_definitions([name])]
    return list(remembered)


def study(case: Case, generator: np.random.Generator) -> Verdict:
    """The verdict on a tuned model that is as good as everything beside it."""
    num_systems = 2 + case.num_prompts + case.num_baselines
    right = _right_words(case, generator, (num_systems, case.num_rows))
    answers = [[_answer(row, int(num)) for row, num in enumerate(own)] for own in right]
    base, *others, last = answers
    prompted, simple = others[: case.num_prompts], others[case.num_prompts :]
    tuned = _system("tuned", last, adapter="adapter")
    systems = [
        _system("base", base),
        *(
            _system(f"base, prompt {number}", own, prompting=Prompting(kind="few_shot", examples="drawn"))
            for number, own in enumerate(prompted, start=1)
        ),
        *(
            as_system(Predictions(kind, kind, tuple(own), 0.1, case.num_rows), tuned)
            for kind, own in zip(_KINDS, simple, strict=False)
        ),
        tuned,
    ]
    draws = [
        _system(f"draw {number}", _by_share(case, generator, share), prompting=_DRAWN)
        for number, share in enumerate(case.draws)
    ]
    metrics = _metrics(case.metric)
    judged = judge_in_full(
        [systems[0], *draws, *systems[1:]],
        metrics=metrics,
        seed=0,
        progress=SilentProgress(),
        clusters=case.clusters,
    )
    if draws:
        names = [one.name for one in draws]
        judged = as_one_system(judged, names, metrics, seed=0, clusters=case.clusters, test="draws")
    return verdict(judged.systems, judged.comparisons, primary=case.metric)


def _by_share(case: Case, generator: np.random.Generator, share: float) -> list[str]:
    if case.groups:
        right = _by_groups(case, generator, 1, lambda size: NUM_WORDS * (generator.random(size) < share))[0]
        return [_answer(row, int(num)) for row, num in enumerate(right)]
    return [_answer(row, NUM_WORDS * bool(generator.random() < share)) for row in range(case.num_rows)]


def _right_words(case: Case, generator: np.random.Generator, shape: tuple[int, int]) -> np.ndarray[Any, Any]:
    """How many words of each answer are right, [systems, rows]."""

    def drawn(size: tuple[int, int]) -> np.ndarray[Any, Any]:
        if case.metric == "exact_match":
            return NUM_WORDS * (generator.random(size) < RIGHT)
        return generator.binomial(NUM_WORDS, RIGHT, size)

    if case.groups:
        return _by_groups(case, generator, shape[0], drawn)
    is_common = generator.random((1, shape[1])) < case.common
    return np.where(is_common, drawn((1, shape[1])), drawn(shape))


def _by_groups(
    case: Case,
    generator: np.random.Generator,
    num_systems: int,
    drawn: Callable[[tuple[int, int]], np.ndarray[Any, Any]],
) -> np.ndarray[Any, Any]:
    """[systems, rows]: of most groups each system has all rows alike, and of the others each row by itself."""
    of_groups = (num_systems, len(case.groups))
    is_alike = generator.random(of_groups) < case.alike
    return np.where(is_alike[:, case.of_row], drawn(of_groups)[:, case.of_row], drawn((num_systems, case.num_rows)))


@cache
def _answer(row: int, num_right: int) -> str:
    return " ".join(_reference(row).split()[:num_right] + ["wrong"] * (NUM_WORDS - num_right))


@cache
def _reference(row: int) -> str:
    return " ".join(f"r{row}w{place}" for place in range(NUM_WORDS))


@lru_cache(maxsize=8)
def _rows(num: int) -> dict[str, Any]:
    """What all systems have of the rows."""
    rows = range(num)
    return {
        "prompts": tuple(Prompt(text=f"question {row}", max_new_tokens=NUM_WORDS) for row in rows),
        "references": tuple(_reference(row) for row in rows),
        "row_ids": tuple(f"test.jsonl:{row + 1}" for row in rows),
        "prompt_texts": tuple(f"question {row}" for row in rows),
        "tokenised": (),
        "num_bytes": (),
    }


def _system(
    name: str, answers: Sequence[str], *, adapter: str | None = None, prompting: Prompting | None = None
) -> SystemUnderTest:
    return SystemUnderTest(
        name=name,
        model="base",
        adapter=adapter,
        num_few_shot=0 if prompting is None else 1,
        engine=_Written(name, answers),
        prompting=prompting,
        **_rows(len(answers)),
    )


class _Written:
    """An engine whose answers are there already."""

    def __init__(self, name: str, answers: Sequence[str]) -> None:
        self.name, self._answers = name, answers

    def generate(self, prompts: Sequence[Prompt], progress: Progress) -> list[Generation]:  # noqa: ARG002
        """The answers, in the order of the rows."""
        return [
            Generation(text=text, num_prompt_tokens=0, num_new_tokens=NUM_WORDS, finish_reason="stop")
            for text in self._answers
        ]

    def score(self, examples: Sequence[TokenisedExample], progress: Progress) -> list[Score]:  # noqa: ARG002
        """Nothing: no likelihood is judged."""
        return []

    def close(self) -> None:
        """Nothing to free."""


if __name__ == "__main__":
    main()
