"""Made-up results of suites and safety checks, complete enough for code that stores, gates or shows them."""

from __future__ import annotations

import random
from collections.abc import Mapping

from luthier.core.evaluation import Comparison, Metric, Sample, SystemResult, VerdictWord
from luthier.core.results.task_result import (
    Confusion,
    ReliabilityBin,
    SafetyResult,
    SuiteResult,
    TaskFigures,
    TaskResult,
    TasksVerdict,
)

FINGERPRINT = "ab" * 32
HOSTILE = '<script>alert(1)</script>"><img src=x onerror=alert(1)>\u202eevil'
_TIME = "2026-11-26T12:00:00+00:00"


def make_metric(value: float, half: float = 0.03, *, unit: str = "fraction", higher_is_better: bool = True) -> Metric:
    """A figure with an interval that reaches `half` to both sides."""
    return Metric(value=value, low=value - half, high=value + half, unit=unit, higher_is_better=higher_is_better)


def make_task(
    name: str = "sql",
    *,
    kind: str = "sql",
    metrics: Mapping[str, tuple[float, float]] | None = None,
    higher_is_better: bool = True,
    unit: str = "fraction",
    num_rows: int = 200,
    num_samples: int = 6,
    judge: str | None = None,
    num_leaked: int = 0,
    figures: dict[str, TaskFigures] | None = None,
    cautions: tuple[str, ...] = (),
    candidate: str = "run-20261125-093000-aaaaaa",
    text: str = "SELECT name FROM guitars",
    is_general: bool = False,
) -> TaskResult:
    """A task on which the base and a tuned model were judged. metrics: of base and tuned model, by name."""
    of = dict(metrics or {"execution_accuracy": (0.41, 0.86), "runs": (0.7, 0.97)})

    def better(metric: str) -> bool:
        return higher_is_better and not metric.endswith("error")

    # Seeded by the name: pages made of these results are compared byte for byte.
    draw = random.Random(name)  # noqa: S311 - made-up answers, the same each time
    systems = tuple(
        SystemResult(
            name=system,
            model="tiny",
            adapter=None if place == 0 else "/adapter",
            num_samples=num_rows,
            metrics={
                metric: make_metric(values[place], unit=unit, higher_is_better=better(metric))
                for metric, values in of.items()
            },
            samples=tuple(
                _sample(draw, n, text, next(iter(of)), HOSTILE if n == 1 else "") for n in range(num_samples)
            ),
            seconds=12.5,
            num_cut_off=place,
        )
        for place, system in enumerate(("base", candidate))
    )
    comparisons = tuple(
        make_comparison(metric, values[1] - values[0], candidate, higher_is_better=better(metric))
        for metric, values in of.items()
    )
    return TaskResult(
        name=name,
        kind=kind,
        data_file=f"{name}.jsonl",
        data_sha256="5" * 64,
        num_rows=num_rows,
        num_clusters=num_rows // 4,
        num_leaked=num_leaked,
        primary=next(iter(of)),
        systems=systems,
        comparisons=comparisons,
        figures=figures or {},
        judges={} if judge is None else dict.fromkeys(of, judge),
        cautions=cautions,
        is_general=is_general,
    )


def make_comparison(
    metric: str, difference: float, candidate: str, *, half: float = 0.04, higher_is_better: bool = True
) -> Comparison:
    """Tuned less base, with the word that the interval says."""
    low, high = difference - half, difference + half
    word: VerdictWord = "not distinguishable"
    if low > 0 or high < 0:
        word = "better" if (low > 0) == higher_is_better else "worse"
    return Comparison(
        baseline="base",
        candidate=candidate,
        metric=metric,
        difference=difference,
        low=low,
        high=high,
        p_value=0.3 if word == "not distinguishable" else 0.0002,
        verdict=word,
        rows_needed=1_900 if word == "not distinguishable" else None,
    )


def make_suite_result(
    result_id: str = "suite-20261126-120000-aaaaaa",
    *,
    run_id: str | None = None,
    tasks: tuple[TaskResult, ...] | None = None,
    suite: str = "workshop",
    fingerprint: str = FINGERPRINT,
    candidate: str = "run-20261125-093000-aaaaaa",
    base: float = 0.41,
) -> SuiteResult:
    """A suite with something of every kind that is drawn: confusion, reliability, win rates, judged answers."""
    made = tasks if tasks is not None else _tasks(candidate, base)
    return SuiteResult(
        result_id=result_id,
        created_at=_TIME,
        suite=suite,
        fingerprint=fingerprint,
        run_id=run_id,
        candidate=candidate,
        systems=("base", candidate),
        num_seeds=3,
        tasks=made,
        verdict=TasksVerdict(
            word="better",
            headline="The tuned model writes queries that give the right rows in 86 of 100 cases, where the base model "
            "does in 41. On general questions it has lost nothing that these rows could show.",
            details=("By execution accuracy it gains 0.45 [0.41, 0.49] over the base model.",),
            caveats=("200 rows are few for the rarer kinds of queries.",),
        ),
        seconds=384.0,
    )


def make_safety_result(
    result_id: str = "safety-20261126-130000-aaaaaa",
    *,
    run_id: str | None = None,
    candidate: str = "run-20261125-093000-aaaaaa",
    base: str | None = "base",
    fingerprint: str = "cd" * 32,
) -> SafetyResult:
    """Three probes, one of which has got worse."""
    probes = (
        make_task(
            "refusal",
            kind="probe",
            metrics={"refusal_rate": (0.94, 0.71), "over_refusal_rate": (0.08, 0.05)},
            candidate=candidate,
            text="I cannot help with that.",
            cautions=("Refusals are found by phrases: a polite way out that uses none of them counts as an answer.",),
        ),
        make_task(
            "stereotypes",
            kind="probe",
            metrics={"stereotype_preference": (0.56, 0.57)},
            candidate=candidate,
            num_samples=0,
            cautions=(
                "Pairs of sentences measure what is likely, not what a model does; known weaknesses of such sets are "
                "unnatural pairs and mixed-up targets (Blodgett et al., 2021).",
            ),
        ),
        make_task(
            "toxicity",
            kind="probe",
            metrics={"toxic_rate": (0.02, 0.025)},
            higher_is_better=False,
            candidate=candidate,
            text="You are all terrible people.",
            cautions=("A list of words finds crude insults and misses polite ones.",),
        ),
    )
    return SafetyResult(
        result_id=result_id,
        created_at=_TIME,
        suite="default",
        fingerprint=fingerprint,
        run_id=run_id,
        candidate=candidate,
        base=base,
        probes=probes,
        headline="The tuned model refuses less of what it should refuse than the base model did. In stereotypes and "
        "toxicity no difference can be seen.",
        concerns=("Refusal of harmful requests fell from 0.94 to 0.71.",),
        seconds=95.0,
    )


def _tasks(candidate: str, base: float) -> tuple[TaskResult, ...]:
    labels = ("spruce", "cedar", "maple")
    given = Confusion(labels=labels, counts=((48, 9, 3, 0), (11, 41, 6, 2), (2, 4, 72, 2)))
    plain = Confusion(labels=labels, counts=((30, 20, 8, 2), (25, 22, 10, 3), (20, 18, 39, 3)))
    drawn = {
        "base": TaskFigures(confusion=plain, reliability=_bins((0.5, 0.45, 0.5, 0.6, 0.66))),
        candidate: TaskFigures(confusion=given, reliability=_bins((0.31, 0.44, 0.63, 0.78, 0.93))),
    }
    return (
        make_task(metrics={"execution_accuracy": (base, 0.86), "runs": (0.7, 0.97)}, candidate=candidate),
        make_task(
            "wood",
            kind="classify",
            metrics={"accuracy": (0.455, 0.805), "macro_f1": (0.44, 0.8), "calibration_error": (0.2, 0.06)},
            figures=drawn,
            candidate=candidate,
            text="spruce",
            cautions=("Three labels of unequal size: macro-F1 weighs them the same.",),
        ),
        make_task(
            "style",
            kind="pairwise",
            metrics={"win_rate": (0.5, 0.62)},
            judge="strict judge",
            candidate=candidate,
            num_samples=40,
            text="The front is of spruce, since spruce is light and stiff.",
            cautions=("The judge likes long answers: see length against score.",),
        ),
        make_task(
            "general",
            kind="likelihood",
            metrics={"bits_per_byte": (0.81, 0.815)},
            higher_is_better=False,
            unit="bits",
            num_samples=0,
            candidate=candidate,
            is_general=True,
        ),
    )


def _bins(accuracies: tuple[float, ...]) -> tuple[ReliabilityBin, ...]:
    width = 0.7 / len(accuracies)
    return tuple(
        ReliabilityBin(
            low=0.3 + n * width, high=0.3 + (n + 1) * width, num_rows=40, confidence=0.3 + (n + 0.5) * width, accuracy=a
        )
        for n, a in enumerate(accuracies)
    )


def _sample(draw: random.Random, number: int, text: str, metric: str, more: str) -> Sample:
    length = draw.randint(5, 90)
    return Sample(
        row_id=f"rows.jsonl:{number + 1}",
        prompt=f"Question {number}? {more}",
        reference="the right one",
        output=f"{text} {more}" if number % 7 else "",
        num_new_tokens=length,
        finish_reason="stop",
        scores={metric: round(min(1.0, 0.2 + length / 120 + draw.random() / 4), 3)},
    )
