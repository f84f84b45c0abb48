"""Conversion of lm-evaluation-harness results: its figures with standard errors, as the result of a task.

If a figure is the mean of its samples' values, systems are compared row by row by the paired bootstrap, or by McNemar's
exact test if each value is right or wrong; otherwise by the two standard errors, as if the systems had been evaluated
on different rows, which has less power. Intervals from standard errors are those of Student's t on the scale of what a
figure can be (`core.bounds`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
from scipy.special import stdtr, stdtrit

from luthier.core.errors import RequestError
from luthier.core.evaluation import Comparison, Metric, Sample, SystemResult
from luthier.core.records.bounds import REAL_LINE, UNIT, Bounds
from luthier.core.results.suite import TaskResult
from luthier.ml.evaluation import statistics
from luthier.ml.evaluation.metrics.protocol import Array, mean_of_sums, mean_statistics
from luthier.ml.evaluation.statistics.intervals import TAIL
from luthier.ml.evaluation.statistics.resampling import is_share, share_ends

_SHARES: Final = ("acc", "acc_norm", "exact_match", "f1", "mc1", "mc2", "acc_mutual_info", "acc_bytes")
_KNOWN: Final = {
    "perplexity": Bounds(1.0, math.inf),
    "word_perplexity": Bounds(1.0, math.inf),
    "byte_perplexity": Bounds(1.0, math.inf),
    "bits_per_byte": Bounds(0.0, math.inf),
    "bleu": Bounds(0.0, 100.0),
    "chrf": Bounds(0.0, 100.0),
    "ter": Bounds(0.0, math.inf),
    "mcc": Bounds(-1.0, 1.0),
    "brier_score": Bounds(0.0, 2.0),
}
"""Bounds of further figures of the harness; others have unknown bounds."""


@dataclass(frozen=True, slots=True)
class Foreign:
    """The harness's result of one system in one task.

    Attributes:
        name: of the system.
        model: its base model.
        adapter: folder of its adapter; None for a model without one.
        num_few_shot: examples in the prompt.
        answer: the document that `simple_evaluate` returns.
    """

    name: str
    model: str
    adapter: str | None
    num_few_shot: int
    answer: Mapping[str, Any]

    @property
    def task(self) -> str:
        """The task's name in the harness."""
        return str(next(iter(self.answer["results"])))

    @property
    def samples(self) -> list[dict[str, Any]]:
        """Its samples, one per row; with several filters those of the first."""
        # By document: the harness logs samples in the order in which they were computed, and rows are paired by
        # position.
        found = sorted(self.answer["samples"][self.task], key=lambda one: one["doc_id"])
        first = found[0].get("filter") if found else None
        return [one for one in found if one.get("filter") == first]

    def figures(self) -> dict[str, tuple[float, float | None]]:
        """Each figure with its standard error, if any, by name, with the filter's name as suffix."""
        result, found = self.answer["results"][self.task], {}
        for key, value in result.items():
            name, comma, which = key.partition(",")
            if not comma or name.endswith("_stderr") or not isinstance(value, int | float):
                continue
            error = result.get(f"{name}_stderr,{which}")
            # The harness uses "none" for a figure without a filter.
            own = name if which == "none" else f"{name}_{which}".replace("-", "_")
            found[own] = (float(value), float(error) if isinstance(error, int | float) else None)
        return found

    def is_higher_better(self, name: str) -> bool:
        """As declared by the harness; true by default."""
        said = self.answer.get("higher_is_better", {}).get(self.task, {})
        return next((bool(said[one]) for one in said if name == one or name.startswith(f"{one}_")), True)

    def values(self, name: str) -> Array | None:
        """The value of each sample if the figure is their mean, otherwise None."""
        values = [one.get(name) for one in self.samples]
        if not values or any(not isinstance(value, int | float) for value in values):
            return None
        array = np.array(values, dtype=np.float64)
        # Some figures (F1, BLEU, perplexity) are not means of the samples' values, so resampling these would be wrong.
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
    """The figures of all systems, each compared with every earlier one.

    Args:
        name: of the task.
        found: the systems in order, baselines first.
        primary: the primary figure of the task; None for the first.
        file: of the data, for the result.
        sha256: of that file.
        seed: of the resampling.
        cautions: sentences to go with the result.

    Raises:
        RequestError: the harness gave no such figure.
    """
    metrics = list(found[0].figures())
    if not metrics or (primary is not None and primary not in metrics):
        raise RequestError(
            f"task {name}: primary {primary!r}; the harness gave {', '.join(metrics) or 'no figure'}",
            expected="one of its figures",
            do="correct primary, or leave it out",
        )
    pairs = [(earlier, later) for place, later in enumerate(found) for earlier in found[:place]]
    bounds = {metric: _bounds(metric, [one.figures()[metric][0] for one in found]) for metric in metrics}
    comparisons = [
        _compare(earlier, later, metric, bounds[metric], seed) for earlier, later in pairs for metric in metrics
    ]
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
        systems=tuple(_system(one, bounds) for one in found),
        comparisons=tuple(one for one in comparisons if one is not None),
        cautions=(*cautions, *said),
    )


def _bounds(name: str, values: Iterable[float]) -> Bounds:
    """The bounds of a figure. Some tasks of the harness use 0 to 100 for the same name: then it is not a fraction."""
    known = UNIT if name.startswith(_SHARES) else _KNOWN.get(name, REAL_LINE)
    return known if all(known.hold(value) for value in values) else REAL_LINE


def _system(one: Foreign, bounds: Mapping[str, Bounds]) -> SystemResult:
    metrics = {}
    for name, (value, error) in one.figures().items():
        low, high = _ends(value, error, len(one.samples), bounds[name])
        metrics[name] = Metric(
            value=value,
            low=low,
            high=high,
            unit="fraction" if bounds[name] == UNIT else "as lm-eval counts it",
            higher_is_better=one.is_higher_better(name),
        )
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


def _ends(value: float, error: float | None, num_rows: int, bounds: Bounds) -> tuple[float, float]:
    """The interval from a standard error, within the bounds; Wilson's interval if none or all are right."""
    if error is None:
        return value, value
    if error == 0 and bounds == UNIT and value in (0, 1) and num_rows:
        return share_ends(value * num_rows, num_rows, TAIL)
    return bounds.around(value, error, _quantile(num_rows))


def _quantile(num_rows: int) -> float:
    return -float(stdtrit(max(1, num_rows - 1), TAIL))


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
    """The generated text, or the index of the likeliest option."""
    answers = sample.get("filtered_resps", [])
    if answers and isinstance(answers[0], str):
        return str(answers[0])
    likelihoods = [float(one[0]) for one in answers if isinstance(one, list | tuple) and one]
    return f"option {likelihoods.index(max(likelihoods))}" if len(likelihoods) > 1 else ""


def _compare(earlier: Foreign, later: Foreign, metric: str, bounds: Bounds, seed: int) -> Comparison | None:
    """None if it cannot be computed: neither standard errors nor sample values."""
    first, second = earlier.values(metric), later.values(metric)
    # Rows are paired by position: systems that were evaluated on different numbers of rows cannot be.
    if first is not None and second is not None and len(first) == len(second):
        own, other = mean_statistics(second.tolist()), mean_statistics(first.tolist())
        found = statistics.paired_bootstrap(own, other, mean_of_sums, bounds=bounds, seed=seed)
        are_shares = is_share(own, mean_of_sums) and is_share(other, mean_of_sums)
        test: Literal["bootstrap", "mcnemar", "unpaired_t"] = "mcnemar" if are_shares else "bootstrap"
    else:
        num_rows = min(len(earlier.samples), len(later.samples))
        unpaired = _unpaired(earlier.figures()[metric], later.figures()[metric], num_rows, bounds.of_differences)
        if unpaired is None:
            return None
        found, test = unpaired, "unpaired_t"
    settled = statistics.is_settled(found)
    num_rows = len(later.samples)
    return Comparison(
        baseline=earlier.name,
        candidate=later.name,
        metric=metric,
        difference=found.difference,
        low=found.low,
        high=found.high,
        p_value=found.p_value,
        verdict=statistics.verdict_word(found, higher_is_better=later.is_higher_better(metric)),
        rows_needed=None if settled else statistics.rows_needed(found.difference, found.standard_error, num_rows),
        test=test,
    )


def _unpaired(
    first: tuple[float, float | None], second: tuple[float, float | None], num_rows: int, bounds: Bounds
) -> statistics.Difference | None:
    """From two figures with their standard errors; None without those.

    Args:
        first: figure and standard error of the earlier system.
        second: those of the later one.
        num_rows: rows of the smaller of both, for the degrees of freedom.
        bounds: what they can differ by.
    """
    difference = second[0] - first[0]
    if first[1] is None or second[1] is None:
        return None
    error = math.hypot(first[1], second[1])
    if not error:
        # Without spread only rows in which the two differ are informative, and these are unknown.
        return statistics.Difference(difference, min(difference, 0.0), max(difference, 0.0), 1.0, 0.0)
    place = bounds.inside(difference, error)
    # Delta method: the t-ratio is taken on the linked scale, where the interval below is computed, so the two agree.
    ratio = abs(bounds.link(place) - bounds.link(0.0)) / (error * bounds.slope(place))
    ends = bounds.around(difference, error, _quantile(num_rows))
    return statistics.Difference(difference, *ends, 2 * float(stdtr(max(1, num_rows - 1), -ratio)), error)
