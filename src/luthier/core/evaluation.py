"""The words of judging: samples, metrics with intervals, comparisons, and the verdict."""

from __future__ import annotations

from typing import Any, Final, Literal

from pydantic import Field

from luthier.core.conversation import text_with_calls
from luthier.core.estimate import Estimate
from luthier.core.evaluation_plan import Bar, Prompting, ThinkingFigures
from luthier.core.frozen_model import FrozenModel, SparseModel

VerdictWord = Literal["better", "worse", "not distinguishable"]
NOT_DISTINGUISHABLE: Final = "not distinguishable"
SystemKind = Literal["model", "head", "majority", "popularity", "nearest", "linear", "ridge", "copy"]
"""What answers: a language model, or a baseline without one that is fitted on the training rows."""


class Metric(FrozenModel):
    """One figure over all samples, with its interval.

    Attributes:
        value: the figure.
        low: lower end of the 95% interval.
        high: upper end of the 95% interval.
        unit: what it is counted in; empty for a plain number.
        higher_is_better: the direction.
    """

    value: float
    low: float
    high: float
    unit: str
    higher_is_better: bool


class Sample(SparseModel):
    """What one system made of one held-out row.

    Attributes:
        row_id: the row.
        prompt: the prompt as text.
        reference: the row's own answer.
        output: the answer without its thought, which `reasoning` holds.
        num_new_tokens: of both.
        finish_reason: why the answer ended.
        scores: this sample's own figures, for metrics that have them, by name.
        reasoning: the thought; None where there is none.
        num_thinking_tokens: of the thought, None where a server does not report it.
        tool_calls: calls of tools, in OpenAI's format, which are no part of `output`.
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
    tool_calls: tuple[dict[str, Any], ...] = ()
    later_fields = ("tool_calls",)

    @property
    def shown(self) -> str:
        """The answer as people compare it: its text and its calls of tools."""
        return text_with_calls(self.output, self.tool_calls)


class SystemResult(FrozenModel):
    """One system under evaluation: base, base with few-shot examples, or a tuned model.

    Attributes:
        name: what reports call it.
        model: its base model.
        adapter: its adapter; None for a base model and one that was trained whole.
        num_few_shot: examples in its prompt.
        num_samples: rows that it was evaluated on.
        metrics: its figures by name.
        samples: single answers, if they are kept.
        seconds: wall time of judging it.
        num_cut_off: outputs that ended at the token limit.
        num_empty: outputs without any text, and without calls of tools.
        thinking: how it thought; None where it did not.
        kind: a language model that writes, one with a task head, or a baseline without one, whose `seconds` are those
            of fitting and answering.
        prompting: what its prompts contain besides the text of the rows; None for nothing, and in evaluations of before
            this was recorded.
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
    kind: SystemKind = "model"
    prompting: Prompting | None = None

    @property
    def is_prompted(self) -> bool:
        """Whether its prompts hold more than the text of the rows."""
        return self.num_few_shot > 0 or self.prompting is not None

    @property
    def is_model(self) -> bool:
        """Whether it is a language model, one with a task head in place of text included."""
        return self.kind in ("model", "head")


class Comparison(FrozenModel):
    """Candidate minus baseline on the same rows, with a paired 95% interval.

    Attributes:
        baseline: the name of the system that is compared with.
        candidate: the name of the system that is evaluated.
        metric: the name of the metric.
        difference: candidate minus baseline, in the metric's unit.
        low: lower end of the 95% interval.
        high: upper end of the 95% interval.
        p_value: two-sided, before any adjustment.
        verdict: what the interval says.
        rows_needed: where not distinguishable, about how many held-out rows would settle a difference of this size (80%
            power, two-sided 5%); None where the difference is 0 or settled.
        adjusted_p_value: Holm's, where several tasks and metrics were tested for one candidate.
        test: what the p-value comes from; `seeds`: rows and trainings with several seeds together; `draws`: rows and
            draws of few-shot examples together; `strongest_draw`: rows, against the draw that is hardest to beat, with
            its difference; `unpaired_t`: two standard errors, as if on different rows.
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
    test: Literal["bootstrap", "mcnemar", "seeds", "draws", "strongest_draw", "unpaired_t"] = "bootstrap"


AlternativeKind = Literal[
    "majority", "popularity", "nearest", "linear", "ridge", "copy", "few_shot", "instruction", "optimised_prompt",
    "label_likelihood", "head", "run",
]  # fmt: skip
"""What one could use instead of the evaluated model: a baseline without a language model, the base as it is prompted or
scored by its likeliest label, or another run."""
AlternativeWord = Literal["better", "worse", "not_distinguishable"]
ALTERNATIVE_WORDS: Final[dict[VerdictWord, AlternativeWord]] = {
    "better": "better",
    "worse": "worse",
    NOT_DISTINGUISHABLE: "not_distinguishable",
}
"""The words of a verdict as JSON has them for alternatives."""


class Alternative(FrozenModel):
    """What one could use instead of the evaluated model, by the metric that the verdict rests on.

    Attributes:
        name: of the system.
        kind: what it is.
        metric: the metric's name.
        value: the figure, in the metric's unit.
        low: lower end of its 95% interval.
        high: upper end of its 95% interval.
        seconds: wall time of fitting it and of its answers.
        extra_prompt_tokens: tokens that it adds to each prompt, on average; None without a prompt or where unknown.
    """

    name: str
    kind: AlternativeKind
    metric: str
    value: float
    low: float
    high: float
    seconds: float
    extra_prompt_tokens: float | None = None


class ReliabilityBin(FrozenModel):
    """Rows of about the same confidence, and how many of them are right.

    Attributes:
        low: lower end of their confidences.
        high: upper end; of bins of equal width the next bin's lower end, which is not included.
        num_rows: rows in it.
        confidence: their mean confidence.
        accuracy: the fraction of them that was right.
    """

    low: float
    high: float
    num_rows: int
    confidence: float
    accuracy: float


class Coverage(FrozenModel):
    """Which share of cases a system can answer alone at an accuracy, the rest going to a person.

    The threshold is chosen on other rows than those that it is evaluated on
    (`luthier.ml.evaluation.metrics.calibration`): on validation rows, or, without enough of them, on the held-out rows
    of the other folds.

    Attributes:
        asked: the required accuracy.
        threshold: the confidence from which on it answers alone; None where none reaches the accuracy.
        num_rows: rows that it was evaluated on.
        num_answered: of these the ones that it answers alone.
        share: the share of them.
        share_low: lower end of its exact 95% interval.
        share_high: upper end.
        accuracy: of those that it answers alone, the share that is right; None where it answers none.
        low: lower end of the exact 95% interval of the accuracy.
        high: upper end.
        chosen_on: the rows that chose the threshold. `held_out`: each fifth of the held-out rows is answered with a
            threshold from the others, and `threshold` is that of all of them.
        num_validation_rows: validation rows that chose it; 0 where held-out rows did.
    """

    asked: float
    threshold: float | None
    num_rows: int
    num_answered: int
    share: float
    share_low: float
    share_high: float
    accuracy: float | None
    low: float | None
    high: float | None
    chosen_on: Literal["held_out", "validation"] = "held_out"
    num_validation_rows: int = 0

    @property
    def is_shown(self) -> bool:
        """Whether the whole interval of the accuracy reaches the required one."""
        return self.low is not None and self.low >= self.asked

    @property
    def is_of_all(self) -> bool:
        """Whether it answers every case."""
        return 0 < self.num_answered == self.num_rows

    @property
    def percent(self) -> str:
        """The share for a sentence, `62%`: none and all of the cases alone are 0% and 100%."""
        whole = round(100 * self.share)
        if 0 < self.num_answered < self.num_rows:
            whole = min(99, max(1, whole))
        return f"{whole}%"


class LabelConfidence(FrozenModel):
    """How sure one system is of its labels, and how far that can be believed.

    Attributes:
        system: its name.
        num_labels: labels that it gives probabilities.
        calibration_error: mean distance of confidence and accuracy, debiased, over bins of equal mass.
        brier: the Brier score, 0 to 2.
        bins: of the reliability diagram, from low to high confidence.
        confidence: of each row, in their order, the probability of its likeliest label.
        is_right: of each row, whether that label is its own.
        coverage: which share of cases it can answer alone; None where no accuracy is required.
        validation_confidence: as `confidence`, of the validation rows that choose a threshold; empty where none do.
        validation_is_right: of each of these, whether the label is its own.
        groups: of each row, the number of its group, where rows of one group count together in intervals; else empty.
    """

    system: str
    num_labels: int
    calibration_error: Metric
    brier: Metric
    bins: tuple[ReliabilityBin, ...]
    confidence: tuple[float, ...]
    is_right: tuple[bool, ...]
    coverage: Coverage | None = None
    validation_confidence: tuple[float, ...] = ()
    validation_is_right: tuple[bool, ...] = ()
    groups: tuple[int, ...] = ()


class RowsPoint(FrozenModel):
    """What a baseline reaches with some of the training rows.

    Attributes:
        rows: training rows that it was fitted on.
        value: the figure on the held-out rows, in the metric's unit; the mean over the draws.
        low: lower end of its 95% interval, over held-out rows and draws.
        high: upper end of the interval.
        num_draws: different choices of that many rows; 0 where it is expected, and not measured.
    """

    rows: int
    value: float
    low: float
    high: float
    num_draws: int


class RowsCurve(FrozenModel):
    """Whether more rows would help: a baseline's figure from a quarter, half and the whole of the training rows.

    Attributes:
        system: the baseline; empty where none could be fitted.
        metric: the metric's name.
        points: by number of rows; empty where there are too few rows.
        word: `more_rows` would help, there are `enough_rows`, or it is `unclear`.
        advice: the finding as a sentence.
        more_rows: about how many additional rows bring a gain that is worth them; None for other words.
        expected_gain: by how much twice as many rows make the figure better, with its 95% interval, in the metric's
            unit; None without points, and where the baseline was fitted on a part of the rows and may gain by more.
        expected: the figure that this gives.
    """

    system: str = ""
    metric: str
    points: tuple[RowsPoint, ...] = ()
    word: Literal["more_rows", "enough_rows", "unclear"]
    advice: str
    more_rows: int | None = None
    expected_gain: Estimate | None = None
    expected: RowsPoint | None = None


class Verdict(FrozenModel):
    """The answer as text.

    Attributes:
        word: the answer in a word.
        metric: the metric that it rests on.
        headline: one sentence.
        details: the figures behind the headline in the first `num_primary_details` of them, then what other metrics
            say.
        num_primary_details: how many of the details belong to the headline.
        caveats: what it rests on and what it does not show.
        alternatives: what one could use instead, each evaluated on the same rows.
        best_alternative: the name of the one with the best figure; None where there are none.
        better_than_best_alternative: `better`: distinguishable from every alternative, and better; `worse`:
            distinguishable from the best one, all of them taken into account; None where there are none.
        good_enough: `yes`: the whole 95% interval reaches the bar; `not_asked`: no bar was set.
        bar: what was required.
        learning_curve: whether more training rows would help; None where no baseline was fitted.
        coverage: the share of cases that the evaluated system can answer alone at the bar; None where unknown.
        num_leaked: held-out rows that are also training rows.
    """

    word: VerdictWord
    metric: str
    headline: str
    details: tuple[str, ...] = ()
    num_primary_details: int = 0
    caveats: tuple[str, ...] = ()
    alternatives: tuple[Alternative, ...] = ()
    best_alternative: str | None = None
    better_than_best_alternative: AlternativeWord | None = None
    good_enough: Literal["yes", "no", "not_asked"] = "not_asked"
    bar: Bar | None = None
    learning_curve: RowsCurve | None = None
    coverage: Coverage | None = None
    num_leaked: int = 0

    @property
    def title(self) -> str:
        """The word, and whether it is good enough where that was requested: `better, but not good enough`."""
        if self.good_enough == "not_asked":
            return self.word
        is_expected = (self.good_enough == "yes") == (self.word == "better")
        joint = ", " if is_expected else ", but "
        return f"{self.word}{joint}{'good enough' if self.good_enough == 'yes' else 'not good enough'}"


class SourceFigures(FrozenModel):
    """One source of the rows by the metric of the verdict; no figures where it has too few rows.

    Attributes:
        source: its name.
        num_rows: its evaluated rows.
        comparison: paired, with a p-value that is adjusted for the number of sources, as its verdict is.
    """

    source: str
    num_rows: int
    metric: str
    baseline: Metric | None = None
    candidate: Metric | None = None
    comparison: Comparison | None = None


class Forgetting(FrozenModel):
    """What tuning did to rows that are not of the task: base and tuned model on general rows, by likelihood.

    Attributes:
        held_out_file: the file of general rows.
        held_out_sha256: its digest.
        num_rows: rows that were evaluated.
        systems: base and tuned model.
        comparisons: tuned minus base.
        word: "worse" is forgotten.
        sentence: the finding with its interval.
    """

    held_out_file: str
    held_out_sha256: str
    num_rows: int
    systems: tuple[SystemResult, ...]
    comparisons: tuple[Comparison, ...]
    word: VerdictWord
    sentence: str


class KlToBase(FrozenModel):
    """How far a tuned model moved from its base on the task's prompts: mean KL(candidate || base) a token, in nats.

    Attributes:
        candidate: name of the tuned system.
        base: name of its base.
        value: the mean over the tokens of the rows' own answers.
        low: lower end of the 95% interval, over rows.
        high: upper end of the interval.
        num_rows: rows that were scored.
        num_tokens: tokens of their answers.
        sentence: the finding.
    """

    candidate: str
    base: str
    value: float
    low: float
    high: float
    num_rows: int
    num_tokens: int
    sentence: str


class Evaluation(FrozenModel):
    """One evaluation: several systems evaluated on the same held-out rows.

    Attributes:
        evaluation_id: its id.
        created_at: UTC, ISO 8601.
        run_id: the run that was evaluated; None for models without one.
        held_out_file: the file of held-out rows.
        held_out_sha256: its digest.
        num_rows: rows that were evaluated.
        num_rows_in_file: held-out rows that could have been; None in evaluations of before it was recorded.
        systems: what was evaluated.
        comparisons: pairs of systems on the same rows.
        verdict: the answer; None where there was nothing to compare.
        by_source: the figures for each source of the rows, by the metric of the verdict; empty where they are of one.
        forgetting: what tuning did to general rows; None where it was not measured.
        kl_to_base: how far tuning moved the model on these rows; None where it was not measured.
        rows_notes: how the rows were read, such as by a column map, and models asked that have no fast way.
        baselines_left_out: baselines that do not fit the rows, each with the reason.
        labels: what the rows' answers are, where they are labels (`luthier.ml.evaluation.metrics.classification`), in
            alphabetical order; else empty.
        label_confidence: of the evaluated system, and of baselines with probabilities, where answers are labels.
        label_confidence_left_out: why the evaluated system has none; empty where it has, or answers are not labels.
        seconds: wall time of the whole evaluation.
        num_workers: processes that computed side by side, at most; None in evaluations of before it was recorded.
    """

    evaluation_id: str
    created_at: str
    run_id: str | None = None
    held_out_file: str
    held_out_sha256: str
    num_rows: int
    num_rows_in_file: int | None = None
    systems: tuple[SystemResult, ...]
    comparisons: tuple[Comparison, ...]
    verdict: Verdict | None = None
    by_source: tuple[SourceFigures, ...] = ()
    forgetting: Forgetting | None = None
    kl_to_base: KlToBase | None = None
    rows_notes: tuple[str, ...] = ()
    baselines_left_out: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    label_confidence: tuple[LabelConfidence, ...] = ()
    label_confidence_left_out: str = ""
    seconds: float
    num_workers: int | None = None
