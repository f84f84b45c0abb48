"""Small evaluations with hand-written figures, for tests of what an evaluation recommends and how it is shown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from luthier.core.evaluation import (
    Alternative,
    AlternativeKind,
    AlternativeWord,
    Comparison,
    Evaluation,
    Metric,
    RowsCurve,
    Sample,
    SystemKind,
    SystemResult,
    Verdict,
    VerdictWord,
)
from luthier.core.evaluation_plan import Prompting

METRIC = "label_accuracy"
NUM_ROWS = 100


def system(
    name: str,
    value: float,
    *,
    kind: SystemKind = "model",
    prompting: Prompting | None = None,
    num_few_shot: int = 0,
    metric: str = METRIC,
    higher_is_better: bool = True,
    samples: Sequence[Sample] = (),
    unit: str = "fraction",
) -> SystemResult:
    """One system with an interval of a tenth on both sides; `tuned` has an adapter."""
    figure = Metric(value=value, low=value - 0.1, high=value + 0.1, unit=unit, higher_is_better=higher_is_better)
    return SystemResult(
        name=name,
        model="tiny" if kind == "model" else "",
        adapter="/adapter" if name == "tuned" else None,
        kind=kind,
        num_few_shot=num_few_shot,
        num_samples=NUM_ROWS,
        metrics={metric: figure},
        samples=tuple(samples),
        seconds=1.0,
        prompting=prompting,
    )


def sample(row: int, output: str, score: float, metric: str = METRIC, **more: Any) -> Sample:
    """What a system answered to a row; right where the score is 1."""
    values: dict[str, Any] = {"prompt": f"question {row}", "reference": "right"}
    return Sample(
        row_id=f"t.jsonl:{row}", output=output, num_new_tokens=1, finish_reason="stop", scores={metric: score},
        **(values | more),
    )  # fmt: skip


FOUR_EXAMPLES = Prompting(kind="few_shot", examples="drawn", extra_prompt_tokens=120.0)
LINEAR = "linear classifier"
KINDS: dict[str, AlternativeKind] = {"base + 4 examples": "few_shot", LINEAR: "linear", "commonest answer": "majority"}


def judged(
    tuned: float,
    others: Sequence[SystemResult],
    words: Sequence[VerdictWord],
    *,
    word: VerdictWord,
    beats_all: AlternativeWord | None = None,
    rows_needed: int | None = None,
    metric: str = METRIC,
    higher_is_better: bool = True,
    unit: str = "fraction",
    tuned_samples: Sequence[Sample] = (),
    **changes: Any,
) -> Evaluation:
    """The tuned model against other systems.

    Args:
        tuned: its figure.
        others: what it is compared with.
        words: of the comparison with each of them.
        word: of the verdict.
        beats_all: against the best alternative.
        rows_needed: of each comparison that is not distinguishable.
        metric: of the verdict.
        higher_is_better: its direction.
        unit: of the metric.
        tuned_samples: answers of the tuned model.
        changes: of the verdict.
    """
    own = system("tuned", tuned, metric=metric, higher_is_better=higher_is_better, unit=unit, samples=tuned_samples)
    comparisons = tuple(
        Comparison(
            baseline=one.name,
            candidate="tuned",
            metric=metric,
            difference=tuned - one.metrics[metric].value,
            low=tuned - one.metrics[metric].value - 0.08,
            high=tuned - one.metrics[metric].value + 0.08,
            p_value=0.5,
            verdict=found,
            rows_needed=rows_needed if found == "not distinguishable" else None,
        )
        for one, found in zip(others, words, strict=True)
    )
    alternatives = tuple(
        Alternative(name=one.name, kind=KINDS[one.name], metric=metric, value=one.metrics[metric].value, low=0.0,
                    high=1.0, seconds=1.0)
        for one in others
        if one.name in KINDS
    )  # fmt: skip
    best = max(alternatives, key=lambda one: one.value, default=None)
    verdict = Verdict(
        word=word,
        metric=metric,
        headline="A headline.",
        alternatives=alternatives,
        best_alternative=None if best is None else best.name,
        better_than_best_alternative=beats_all,
    )
    return Evaluation(
        evaluation_id="eval-20261125-093000-aaaaaa",
        created_at="2026-11-25T09:30:00+00:00",
        held_out_file="t.jsonl",
        held_out_sha256="0" * 64,
        num_rows=NUM_ROWS,
        systems=(*others, own),
        comparisons=comparisons,
        verdict=verdict.model_copy(update=changes),
        seconds=2.0,
    )


def curve(word: str = "more_rows", more_rows: int | None = 400) -> RowsCurve:
    """Whether more training rows help."""
    return RowsCurve.model_validate(
        {"system": LINEAR, "metric": METRIC, "word": word, "advice": "More rows would help.", "more_rows": more_rows}
    )
