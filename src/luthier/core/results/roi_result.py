"""The answer to a case of return on investment, and what an evaluation says about the case.

The answer: what the case is worth, how sure that is, what it hangs on, and what plainer ways are worth. An evaluation
gives the gains, the share of answers without a person, and baselines. Money is in the case's currency. An interval
holds 95% of the random draws.
"""

from __future__ import annotations

from typing import Literal

from luthier.core.estimate import Estimate
from luthier.core.evaluation import AlternativeWord, SystemKind
from luthier.core.frozen_model import FrozenModel
from luthier.core.results.roi import Case

TodayKind = SystemKind | Literal["few_shot", "given"]
"""What today's way is: an evaluated model, that model with examples, a baseline, or what the case itself says."""


class MeasuredAlone(FrozenModel):
    """What a system answers alone, as measured.

    Attributes:
        asked: the required accuracy.
        threshold: the confidence from which on it answers; None where no threshold reaches that accuracy, so that it
            answers nothing.
        share: of all rows; 0 without a threshold.
        accuracy: of the rows that it answers; None where it answers none.
    """

    asked: float
    threshold: float | None
    share: Estimate
    accuracy: Estimate | None


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
    value: Estimate
    tuned_less: Estimate
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
    tuned: Estimate
    over_few_shot: Estimate | None
    today_value: float | None
    shot_tokens: float | None
    notes: tuple[str, ...] = ()
    today_kind: TodayKind = "model"
    today_name: str | None = None
    today_figure: Estimate | None = None
    tuned_figure: Estimate | None = None
    baselines: tuple[MeasuredBaseline, ...] = ()
    few_shot_correlation: float = 0.0
    alone: MeasuredAlone | None = None


Answer = Literal["yes", "no", "open"]
Kind = Literal["money", "share", "gain", "number"]


class Spread(FrozenModel):
    """A figure under doubt.

    Attributes:
        typical: with every input at its typical value.
        mean: over the draws.
        low: lower end of 95% of the draws.
        high: upper end of 95% of the draws.
    """

    typical: float
    mean: float
    low: float
    high: float


class SpreadOrNever(FrozenModel):
    """As a spread, of something that may never happen; None where it does not.

    Attributes:
        typical: with every input at its typical value.
        low: lower end of 95% of the draws.
        high: upper end of 95% of the draws.
    """

    typical: float | None
    low: float | None
    high: float | None


class Part(FrozenModel):
    """One part of a sum. What costs is negative.

    Attributes:
        name: for programs.
        title: for people.
        amount: money; costs are negative.
    """

    name: str
    title: str
    amount: Spread


class Priced(FrozenModel):
    """One way against today's.

    Attributes:
        name: for programs.
        title: for people.
        phrase: what a sentence calls it.
        is_baseline: whether it is a measured baseline without a language model.
        seconds: wall time of fitting a baseline and of its answers; None for other ways.
        tuned_is: whether the tuned model is distinguishable from a baseline by its answers; None for other ways.
        gain: accuracy less today's.
        serving_per_month: what calls cost that way.
        once: spent before it is in use.
        per_month: what each month then brings, all costs taken off.
        value: over the horizon.
        payback_months: months until what was spent once has come back.
        probability_pays: the share of draws in which value is above 0.
        probability_tuned_is_worth_more: None for the tuned model itself.
    """

    name: str
    title: str
    phrase: str
    is_baseline: bool = False
    seconds: float | None = None
    tuned_is: AlternativeWord | None = None
    gain: Spread
    serving_per_month: Spread
    once: Spread
    per_month: Spread
    value: Spread
    payback_months: SpreadOrNever
    probability_pays: float
    probability_tuned_is_worth_more: float | None = None


class NotPriced(FrozenModel):
    """A plain way that the case says too little about.

    Attributes:
        name: for programs.
        title: for people.
        needs: what the case must say.
    """

    name: str
    title: str
    needs: str


class Bar(FrozenModel):
    """One bar of the tornado: the value over the horizon with this input at its low and at its high, others typical.

    Attributes:
        name: the input, for programs.
        title: the input, for people.
        kind: how its values are written.
        low: its low value.
        typical: its typical value.
        high: its high value.
        value_at_low: the value over the horizon with the input at its low.
        value_at_high: the value over the horizon with the input at its high.
    """

    name: str
    title: str
    kind: Kind
    low: float
    typical: float
    high: float
    value_at_low: float
    value_at_high: float

    @property
    def swing(self) -> float:
        """How far the value moves."""
        return abs(self.value_at_high - self.value_at_low)


class BreakEven(FrozenModel):
    """Where the answer turns, all else typical.

    Attributes:
        name: the input, for programs.
        title: the input, for people.
        kind: how its values are written.
        now: its typical value.
        needed: the value at which the answer turns; None where none does.
        at_least: whether the input must be at least that; if not, at most.
        against: what it is compared with.
        sentence: the finding.
    """

    name: str
    title: str
    kind: Kind
    now: float
    needed: float | None
    at_least: bool
    against: str
    sentence: str


class Month(FrozenModel):
    """What has come together by the end of a month, all that was spent taken off.

    Attributes:
        month: its number, from the start on.
        typical: with every input at its typical value.
        low: lower end of 95% of the draws.
        high: upper end of 95% of the draws.
    """

    month: int
    typical: float
    low: float
    high: float


class Histogram(FrozenModel):
    """How often the draws give which value over the horizon.

    Attributes:
        edges: bounds of the bins, one more than there are counts.
        counts: draws in each bin.
    """

    edges: tuple[float, ...]
    counts: tuple[int, ...]


class RoiResult(FrozenModel):
    """The whole answer.

    Attributes:
        answer: yes, no, or open.
        headline: one sentence.
        reasons: why.
        changes: what would have to change for another answer.
        notes: what was assumed, and where figures are from.
        case: the request.
        measured: what an evaluation says; None where gains are assumed.
        today_per_month: what calls cost today.
        tuned: the tuned model against today's way.
        probability_within_budget: the share of draws within the budget; None without one.
        once_parts: parts of what is spent before it is in use.
        monthly_parts: parts of what each month then brings.
        today_accuracy: how accurate today's way is; None where nothing says it.
        alternatives: plainer ways against today's.
        best_alternative: the name of the one that is worth most; None where doing nothing is worth more.
        use_instead: the name of the alternative to take in place of the tuned model; None where there is none.
        not_priced: plainer ways that the case says too little about.
        break_even_gain: the gain in accuracy from which on it pays.
        break_even_gain_over_best: the gain in accuracy from which on it is worth more than the best alternative, and
            than doing nothing, never where that is more than there is to gain; None without alternatives.
        break_evens: where the answer turns, by input.
        tornado: inputs by how far they move the value.
        months: money over time.
        histogram: the draws.
        num_draws: how many.
        distribution: how inputs are drawn, for people.
    """

    answer: Answer
    headline: str
    reasons: tuple[str, ...]
    changes: tuple[str, ...]
    notes: tuple[str, ...]
    case: Case
    measured: MeasuredGains | None
    today_per_month: Spread
    tuned: Priced
    probability_within_budget: float | None
    once_parts: tuple[Part, ...]
    monthly_parts: tuple[Part, ...]
    today_accuracy: Estimate | None
    alternatives: tuple[Priced, ...]
    best_alternative: str | None
    use_instead: str | None
    not_priced: tuple[NotPriced, ...]
    break_even_gain: SpreadOrNever
    break_even_gain_over_best: SpreadOrNever | None
    break_evens: tuple[BreakEven, ...]
    tornado: tuple[Bar, ...]
    months: tuple[Month, ...]
    histogram: Histogram
    num_draws: int
    distribution: str

    @property
    def breaks_even_below(self) -> bool:
        """Whether break-evens say where it stops being worth more: it is, at typical values too, which may differ."""
        rival = max((way.value.typical for way in self.alternatives), default=0.0)
        return self.answer == "yes" and self.tuned.value.typical > max(0.0, rival)
