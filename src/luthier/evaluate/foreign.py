"""Results of another judge in our words: lm-evaluation-harness's figures with their standard errors, as a task's.

Where a figure is the mean of its samples' values, systems are compared row by row by the paired bootstrap; else by the
two standard errors, as if the systems had been judged on different rows, which is less sharp.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from scipy.stats import norm

from luthier.core.errors import RequestError
from luthier.core.evaluation import Comparison, Metric, Sample, SystemResult, VerdictWord
from luthier.core.task_result import TaskResult
from luthier.evaluate import statistics
from luthier.evaluate.metrics.protocol import Array, mean_of_sums, mean_statistics

_SHARES: Final = ("acc", "acc_norm", "exact_match", "f1", "mc1", "mc2", "acc_mutual_info", "acc_bytes")


@dataclass(frozen=True, slots=True)
class Foreign:
    """What the harness found of one system: the document of `simple_evaluate` of one task."""

    name: str
    model: str
    adapter: str | None
    num_few_shot: int
    answer: Mapping[str, Any]

    @property
    def task(self) -> str:
        """What the harness calls the task."""
        return str(next(iter(self.answer["results"])))

    @property
    def samples(self) -> list[dict[str, Any]]:
        """Its samples, one a row; of several filters those of the first."""
        found = sorted(self.answer["samples"][self.task], key=lambda one: one["doc_id"])
        first = found[0].get("filter") if found else None
        return [one for one in found if one.get("filter") == first]

    def figures(self) -> dict[str, tuple[float, float | None]]:
        """Each figure with its standard error, where it has one, by name; a filter's name stands behind."""
        result, found = self.answer["results"][self.task], {}
        for key, value in result.items():
            name, comma, which = key.partition(",")
            if not comma or name.endswith("_stderr") or not isinstance(value, int | float):
                continue
            error = result.get(f"{name}_stderr,{which}")
            own = name if which == "none" else f"{name}_{which}".replace("-", "_")
            found[own] = (float(value), float(error) if isinstance(error, int | float) else None)
        return found

    def is_higher_better(self, name: str) -> bool:
        """As the harness says; true where it says nothing."""
        said = self.answer.get("higher_is_better", {}).get(self.task, {})
        return next((bool(said[one]) for one in said if name == one or name.startswith(f"{one}_")), True)

    def values(self, name: str) -> Array | None:
        """The value of each sample, if the figure is their mean; None where it is not."""
        values = [one.get(name) for one in self.samples]
        if not values or any(not isinstance(value, int | float) for value in values):
            return None
        array = np.array(values, dtype=np.float64)
        return array if abs(float(array.mean()) - self.figures()[name][0]) < 1e-9 else None


def as_task_result(
    name: str,
    found: Sequence[Foreign],
    *,
    primary: str | None,
    file: str,
    sha256: str,
    seed: int,
    cautions: Sequence[str] = (),
) -> TaskResult:
    """The figures of all systems, each held against every earlier one. Raises RequestError for an unknown primary."""
    metrics = list(found[0].figures())
    if not metrics or (primary is not None and primary not in metrics):
        raise RequestError(
            f"task {name}: primary {primary!r}; the harness gave {', '.join(metrics) or 'no figure'}",
            expected="one of its figures",
            do="correct primary, or leave it out",
        )
    pairs = [(earlier, later) for place, later in enumerate(found) for earlier in found[:place]]
    comparisons = [_compare(earlier, later, metric, seed) for earlier, later in pairs for metric in metrics]
    without = [metric for metric in metrics if found[0].figures()[metric][1] is None]
    said = []
    if without:
        said.append(f"The harness gives no standard error of {', '.join(without)}, so there is no interval either.")
    return TaskResult(
        name=name,
        kind="lm_eval",
        data_file=file,
        data_sha256=sha256,
        num_rows=len(found[0].samples),
        primary=primary or metrics[0],
        systems=tuple(_system(one) for one in found),
        comparisons=tuple(one for one in comparisons if one is not None),
        cautions=(*cautions, *said),
    )


def _system(one: Foreign) -> SystemResult:
    half = float(norm.isf((1 - statistics.LEVEL) / 2))
    metrics = {
        name: Metric(
            value=value,
            low=value - half * (error or 0.0),
            high=value + half * (error or 0.0),
            unit="fraction" if name.startswith(_SHARES) else "as lm-eval counts it",
            higher_is_better=one.is_higher_better(name),
        )
        for name, (value, error) in one.figures().items()
    }
    return SystemResult(
        name=one.name,
        model=one.model,
        adapter=one.adapter,
        num_few_shot=one.num_few_shot,
        num_samples=len(one.samples),
        metrics=metrics,
        samples=tuple(_sample(one, sample) for sample in one.samples),
        seconds=float(one.answer.get("seconds", 0.0)),
    )


def _sample(one: Foreign, sample: Mapping[str, Any]) -> Sample:
    scores = {name: float(sample[name]) for name in one.figures() if isinstance(sample.get(name), int | float | bool)}
    return Sample(
        row_id=f"{one.task}:{sample['doc_id']}",
        prompt=_prompt(sample),
        reference=str(sample.get("target", "")),
        output=_output(sample),
        num_new_tokens=0,
        finish_reason="stop",
        scores=scores,
    )


def _prompt(sample: Mapping[str, Any]) -> str:
    arguments = sample.get("arguments")
    if isinstance(arguments, Mapping):  # {"gen_args_0": {"arg_0": context, ...}, ...}
        first: Any = next(iter(arguments.values()), {})
        return str(first.get("arg_0", "")) if isinstance(first, Mapping) else str(first)
    return str(arguments[0][0]) if arguments else ""


def _output(sample: Mapping[str, Any]) -> str:
    """What was written, or of options the place of the likeliest."""
    answers = sample.get("filtered_resps", [])
    if answers and isinstance(answers[0], str):
        return str(answers[0])
    likelihoods = [float(one[0]) for one in answers if isinstance(one, list | tuple) and one]
    return f"option {likelihoods.index(max(likelihoods))}" if len(likelihoods) > 1 else ""


def _compare(earlier: Foreign, later: Foreign, metric: str, seed: int) -> Comparison | None:
    """None where nothing can be told: no standard error, and no values of samples."""
    first, second = earlier.values(metric), later.values(metric)
    if first is not None and second is not None and len(first) == len(second):
        found = statistics.paired_bootstrap(
            mean_statistics(second.tolist()), mean_statistics(first.tolist()), mean_of_sums, seed=seed
        )
    elif (unpaired := _unpaired(earlier.figures()[metric], later.figures()[metric])) is not None:
        found = unpaired
    else:
        return None
    settled = statistics.is_settled(found)
    word: VerdictWord = "not distinguishable"
    if settled:
        word = "better" if (found.difference > 0) == later.is_higher_better(metric) else "worse"
    num_rows = len(later.samples)
    return Comparison(
        baseline=earlier.name,
        candidate=later.name,
        metric=metric,
        difference=found.difference,
        low=found.low,
        high=found.high,
        p_value=found.p_value,
        verdict=word,
        rows_needed=None if settled else statistics.rows_needed(found.difference, found.standard_error, num_rows),
    )


def _unpaired(first: tuple[float, float | None], second: tuple[float, float | None]) -> statistics.Difference | None:
    """From two figures with their standard errors; None without those."""
    difference = second[0] - first[0]
    if first[1] is None or second[1] is None:
        return None
    error = math.hypot(first[1], second[1])
    half = float(norm.isf((1 - statistics.LEVEL) / 2)) * error
    p_value = 2 * float(norm.sf(abs(difference) / error)) if error else float(difference == 0)
    return statistics.Difference(difference, difference - half, difference + half, p_value, error)
