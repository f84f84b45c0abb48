"""The words of judging: samples, metrics with intervals, comparisons, and the verdict."""

from __future__ import annotations

from typing import Final, Literal

from pydantic import Field

from luthier.core.frozen_model import FrozenModel

VerdictWord = Literal["better", "worse", "not distinguishable"]
NOT_DISTINGUISHABLE: Final = "not distinguishable"
NUM_SHOTS: Final = 4
"""Examples in the prompt of the second baseline, where nobody asks for another number."""
NUM_JUDGED: Final = 200
"""Held-out rows that are judged at most, where nobody asks for another number."""


class Metric(FrozenModel):
    """One figure over all samples with its 95% interval, and the unit it is counted in."""

    value: float
    low: float
    high: float
    unit: str
    higher_is_better: bool


class Sample(FrozenModel):
    """What each system made of one held-out row. `scores` are this sample's own, where a metric has them.

    Attributes:
        output: the answer without its thought, which `reasoning` holds.
        num_new_tokens: of both.
        num_thinking_tokens: of the thought, None where a server does not tell.
    """

    row_id: str
    prompt: str
    reference: str
    output: str
    num_new_tokens: int
    finish_reason: Literal["stop", "length", "error"]
    scores: dict[str, float] = Field(default_factory=dict)
    reasoning: str | None = None
    num_thinking_tokens: int | None = 0


class ThinkingFigures(FrozenModel):
    """How a system thought before its answers.

    Attributes:
        num_thoughts: answers with a thought.
        num_cut_off: of these the ones whose thought was cut off, so that there is no answer.
        mean_tokens, least_tokens, most_tokens: of a thought; None where a server does not tell.
    """

    num_thoughts: int
    num_cut_off: int
    mean_tokens: float | None = None
    least_tokens: int | None = None
    most_tokens: int | None = None


class SystemResult(FrozenModel):
    """One system under evaluation: base, base with few-shot examples, or a tuned model.

    Attributes:
        num_cut_off: outputs that ended at the token limit.
        num_empty: outputs without any text.
        thinking: how it thought; None where it did not.
    """

    name: str
    model: str
    adapter: str | None = None
    num_few_shot: int = 0
    num_samples: int
    metrics: dict[str, Metric]
    samples: tuple[Sample, ...] = ()
    seconds: float
    num_cut_off: int = 0
    num_empty: int = 0
    thinking: ThinkingFigures | None = None


class Comparison(FrozenModel):
    """Candidate minus baseline on the same rows, with a paired 95% interval.

    Attributes:
        rows_needed: where not distinguishable, about how many held-out rows would settle a difference of this size (80%
            power, two-sided 5%); None where the difference is 0 or settled.
        adjusted_p_value: Holm's, where several tasks and metrics were asked about one candidate.
        test: what the p-value comes from; seeds: rows and trainings with several seeds together.
    """

    baseline: str
    candidate: str
    metric: str
    difference: float
    low: float
    high: float
    p_value: float
    verdict: VerdictWord
    rows_needed: int | None = None
    adjusted_p_value: float | None = None
    test: Literal["bootstrap", "mcnemar", "seeds"] = "bootstrap"


class Verdict(FrozenModel):
    """The answer as text. `headline` is one sentence; `caveats` say what it rests on and what it does not.

    Attributes:
        details: the figures behind the headline in the first `num_primary_details` of them, then what other metrics
            say.
    """

    word: VerdictWord
    metric: str
    headline: str
    details: tuple[str, ...] = ()
    num_primary_details: int = 0
    caveats: tuple[str, ...] = ()


class Forgetting(FrozenModel):
    """What tuning did to rows that are not of the task: base and tuned model on general rows, by likelihood.

    Attributes:
        word: "worse" is forgotten.
        sentence: the finding with its interval.
        comparisons: tuned minus base.
    """

    held_out_file: str
    held_out_sha256: str
    num_rows: int
    systems: tuple[SystemResult, ...]
    comparisons: tuple[Comparison, ...]
    word: VerdictWord
    sentence: str


class Evaluation(FrozenModel):
    """One evaluation: several systems judged on the same held-out rows.

    Attributes:
        rows_notes: what a person should know of how the rows were read, such as the column map that they were read by,
            and of how models were asked that have no fast way.
    """

    evaluation_id: str
    created_at: str
    run_id: str | None = None
    held_out_file: str
    held_out_sha256: str
    num_rows: int
    systems: tuple[SystemResult, ...]
    comparisons: tuple[Comparison, ...]
    verdict: Verdict | None = None
    forgetting: Forgetting | None = None
    rows_notes: tuple[str, ...] = ()
    seconds: float


class EvaluationOverview(FrozenModel):
    """What a list tells of an evaluation.

    Attributes:
        systems: their names, in order.
        models: what they were made of, each once.
    """

    evaluation_id: str
    created_at: str
    run_id: str | None
    held_out_file: str
    num_rows: int
    systems: tuple[str, ...]
    models: tuple[str, ...]
    word: VerdictWord | None
    headline: str

    @classmethod
    def of(cls, evaluation: Evaluation) -> EvaluationOverview:
        """Of a whole one."""
        verdict = evaluation.verdict
        return cls(
            evaluation_id=evaluation.evaluation_id,
            created_at=evaluation.created_at,
            run_id=evaluation.run_id,
            held_out_file=evaluation.held_out_file,
            num_rows=evaluation.num_rows,
            systems=tuple(system.name for system in evaluation.systems),
            # dict.fromkeys: each once, in the order of the systems; a set would have none.
            models=tuple(dict.fromkeys(system.model for system in evaluation.systems)),
            word=None if verdict is None else verdict.word,
            headline="" if verdict is None else verdict.headline,
        )
