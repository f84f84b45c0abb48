"""What an evaluation says about a case of return on investment: gains, what is answered alone, and baselines."""

from __future__ import annotations

from typing import Literal

from luthier.core.evaluation import AlternativeWord, SystemKind
from luthier.core.frozen_model import FrozenModel

TodayKind = SystemKind | Literal["few_shot", "given"]
"""What today's way is: an evaluated model, that model with examples, a baseline, or what the case itself says."""


class Measured(FrozenModel):
    """A measured figure with its 95% interval.

    Attributes:
        value: the figure.
        low: lower end.
        high: upper end.
    """

    value: float
    low: float
    high: float


class MeasuredAlone(FrozenModel):
    """What a system answers alone, as measured.

    Attributes:
        asked: the required accuracy.
        threshold: the confidence from which on it answers.
        share: of all rows.
        accuracy: of the rows that it answers.
    """

    asked: float
    threshold: float
    share: Measured
    accuracy: Measured


class MeasuredBaseline(FrozenModel):
    """A baseline without a language model, evaluated on the same rows.

    Attributes:
        name: of the system.
        kind: what it is.
        title: what a sentence calls it.
        value: its figure by the metric.
        tuned_less: the tuned model less this baseline, paired.
        tuned_is: whether that difference is distinguishable.
        seconds: wall time of fitting it and of its answers.
        correlation: over rows, of the tuned model's gain over this baseline with that over today's way (or, where the
            case says how accurate today's way is, with the tuned model's own accuracy). 0 where rows are not kept.
        alone: what it answers alone, where that was requested.
    """

    name: str
    kind: SystemKind
    title: str
    value: Measured
    tuned_less: Measured
    tuned_is: AlternativeWord
    seconds: float
    correlation: float = 0.0
    alone: MeasuredAlone | None = None


class MeasuredGains(FrozenModel):
    """What an evaluation says about the case, in points of one metric.

    Attributes:
        evaluation_id: the evaluation.
        run_id: the run that was evaluated; None for a model without one.
        metric: the metric.
        metric_title: its name for people.
        is_share_of_correct: whether it is a share of correct answers.
        num_rows: rows that were evaluated.
        today: the system that is today's way.
        tuned: the tuned model less today's way.
        over_few_shot: the tuned model less the base with examples in its prompt, paired on the same rows; None where
            that is today's way, or was not evaluated.
        today_value: today's way by the metric, where the metric is a share of correct answers.
        shot_tokens: mean tokens that the few-shot examples add to a prompt; None where nothing was shown.
        notes: what it rests on.
        today_kind: what today's way is.
        today_name: the evaluated system that is today's way; None where the case says how accurate that is.
        today_figure: today's way by the metric; None where the case says it.
        tuned_figure: the tuned model by the metric.
        baselines: those without a language model, but for today's way.
        few_shot_correlation: as that of a baseline, of `over_few_shot`.
        alone: what the tuned model answers alone, where that was requested.
    """

    evaluation_id: str
    run_id: str | None
    metric: str
    metric_title: str
    is_share_of_correct: bool
    num_rows: int
    today: str
    tuned: Measured
    over_few_shot: Measured | None
    today_value: float | None
    shot_tokens: float | None
    notes: tuple[str, ...] = ()
    today_kind: TodayKind = "model"
    today_name: str | None = None
    today_figure: Measured | None = None
    tuned_figure: Measured | None = None
    baselines: tuple[MeasuredBaseline, ...] = ()
    few_shot_correlation: float = 0.0
    alone: MeasuredAlone | None = None
