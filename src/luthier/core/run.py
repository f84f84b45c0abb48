"""A run: one execution of a plan, with its state, its result, its budget and how well it fitted its rows.

A budget says what a run may cost at most, what it has cost so far, and what it will have cost at its end.
"""

from __future__ import annotations

from typing import Literal, Self, cast, get_args

from pydantic import Field

from luthier.core.data_stream import StreamCounts
from luthier.core.estimate import Estimate
from luthier.core.frozen_model import FrozenModel

StopCause = Literal["completed", "early_stopping", "budget", "interrupted", "rung", "hopeless", "unknown"]
"""Why a run ended or paused, for programs: all steps done; no better validation for a while; a cap of its budget; a
signal, or the end of the process that started it; a rung of its study; a curve that cannot become the best of its
study; `unknown` in records of before there were causes."""


class StopReason(str):
    """A sentence of why work is to stop, which also knows its cause.

    Programs decide by the cause, people read the sentence: words that are changed, or that mention something else, must
    not change what happens to a run.

    Attributes:
        cause: what the sentence says, as one of a few words.
    """

    cause: StopCause

    def __new__(cls, text: str, cause: StopCause) -> Self:
        """A sentence with its cause."""
        made = super().__new__(cls, text)
        made.cause = cause
        return made

    def __getnewargs__(self) -> tuple[str, StopCause]:  # type: ignore[override]
        """What pickle and copy make it of again."""
        return str(self), self.cause

    def to_line(self) -> str:
        """Cause and sentence as one text, for another process."""
        return f"{self.cause}:{self}"

    @classmethod
    def from_line(cls, line: str) -> StopReason:
        """What `to_line` has written."""
        cause, _, text = line.partition(":")
        return cls(text, cast("StopCause", cause) if cause in get_args(StopCause) else "unknown")


def cause_of(reason: str | None) -> StopCause:
    """The cause of a reason; `unknown` of a plain text."""
    return reason.cause if isinstance(reason, StopReason) else "unknown"


class FirstActions(FrozenModel):
    """What the first of each action is expected to take, in seconds, before one has been measured.

    Attributes:
        step_seconds: a training step of mean length.
        step_tokens: tokens of that mean step.
        validation_seconds: one pass over the validation rows.
        checkpoint_seconds: writing one checkpoint.
        loading_seconds: reading the base model into memory.
        reference_seconds: what an objective computes before the first step.
        judging: seconds of judging the held-out rows; None where nothing is evaluated, and in plans of before it was
            foreseen.
    """

    step_seconds: Estimate
    step_tokens: float
    validation_seconds: float
    checkpoint_seconds: float
    loading_seconds: float
    reference_seconds: float = 0.0
    judging: Estimate | None = None


class RemoteLoad(FrozenModel):
    """What is asked of a judge behind a server.

    Attributes:
        num_calls: questions that are sent.
        prompt_tokens: of all of them, counted by the tokenizer of the model that is trained.
        new_tokens: of all replies.
    """

    num_calls: Estimate
    prompt_tokens: Estimate
    new_tokens: Estimate


class RemoteJudge(FrozenModel):
    """A model behind an OpenAI-compatible server that grades answers.

    Attributes:
        name: its address, `http(s)://host:port/v1#MODEL`.
        prompt_usd: US dollars for a million tokens of questions; None where no price is configured.
        new_usd: US dollars for a million tokens of replies; None where no price is configured.
        run: what the whole run asks; None before the rows are known.
        step: what one step asks.
        validation: what one validation asks.
    """

    name: str
    prompt_usd: float | None = None
    new_usd: float | None = None
    run: RemoteLoad | None = None
    step: RemoteLoad | None = None
    validation: RemoteLoad | None = None

    def usd_of(self, load: RemoteLoad | None) -> Estimate | None:
        """US dollars of a load; None without prices or without a load."""
        if load is None or self.prompt_usd is None or self.new_usd is None:
            return None
        return load.prompt_tokens.times(self.prompt_usd / 1e6).plus(load.new_tokens.times(self.new_usd / 1e6))

    def usd_of_call(self, prompt_tokens: int, new_tokens: int) -> float | None:
        """US dollars of one reply; None without prices."""
        if self.prompt_usd is None or self.new_usd is None:
            return None
        return (prompt_tokens * self.prompt_usd + new_tokens * self.new_usd) / 1e6


class JudgeBudget(FrozenModel):
    """What models behind servers, which grade answers, are expected to cost.

    Attributes:
        step_usd: of one step; None where one of them has no price.
        validation_usd: of one validation.
    """

    step_usd: Estimate | None
    validation_usd: Estimate


class JudgeBill(FrozenModel):
    """What models behind servers, which grade answers, were asked, without stored replies, which cost nothing.

    Attributes:
        calls: replies that were paid for.
        prompt_tokens: of these questions.
        new_tokens: of these replies.
        usd: what they cost; None where one of the models has no price.
    """

    calls: int
    prompt_tokens: int
    new_tokens: int
    usd: float | None


class BudgetPlan(FrozenModel):
    """The caps of a run (None: no cap), and the rates that turn its time into money and energy.

    A cap is kept at the upper end of its rate.

    Attributes:
        hours: most hours.
        usd: most US dollars.
        tokens: most tokens of training steps, without padding.
        energy_kwh: most energy.
        device: name of the device that the rates are of.
        usd_per_hour: price of all devices of the run together; None where it is unknown.
        price_source: where the price comes from, or why there is none.
        watts: power of all devices of the run together; None where it is unknown.
        watts_source: where the power comes from, or why there is none.
        first: what the first actions are expected to take.
        judges: what models behind servers cost that grade; None where none does.
    """

    hours: float | None = None
    usd: float | None = None
    tokens: int | None = None
    energy_kwh: float | None = None
    device: str
    usd_per_hour: Estimate | None
    price_source: str
    watts: Estimate | None
    watts_source: str
    first: FirstActions
    judges: JudgeBudget | None = None


class Spent(FrozenModel):
    """What a run has taken in all of its processes, work that a kill threw away included.

    Attributes:
        seconds: of work in all processes.
        tokens: of training steps, without padding.
        interrupted_seconds: the part of `seconds` that was in progress when a process was killed; no one could measure
            it, so it is what that action was expected to take.
        judge_calls: replies of models behind servers that graded and were paid for.
        judge_prompt_tokens, judge_new_tokens: of these.
        judge_usd: what they cost, as far as prices are known.
    """

    seconds: float = 0.0
    tokens: int = 0
    interrupted_seconds: float = 0.0
    judge_calls: int = 0
    judge_prompt_tokens: int = 0
    judge_new_tokens: int = 0
    judge_usd: float = 0.0


class Bill(FrozenModel):
    """What a run has cost so far, and what it is expected to have cost once all of its steps are done.

    The `final_` figures hold for a run that goes to its last step and is evaluated: early stopping makes it cheaper. A
    cap may stop it before.

    Attributes:
        hours: of work until now.
        tokens: of training steps until now, without padding.
        usd: cost until now, judges behind servers included; None where no price is known.
        energy_kwh: energy until now; None where no power is known.
        interrupted_hours: the part of `hours` that was lost when processes were killed.
        final_hours: hours once all steps are done.
        final_usd: cost once all steps are done; None where no price is known.
        final_energy_kwh: energy once all steps are done; None where no power is known.
        judges: what judges behind servers were asked and cost; None where the run has none.
    """

    hours: float
    tokens: int
    usd: Estimate | None
    energy_kwh: Estimate | None
    interrupted_hours: float
    final_hours: Estimate
    final_usd: Estimate | None
    final_energy_kwh: Estimate | None
    judges: JudgeBill | None = None

    @property
    def left_seconds(self) -> float:
        """Seconds that are still to come, as expected."""
        return max(0.0, (self.final_hours.value - self.hours) * 3600)


FitKind = Literal["overfitted", "still_learning", "unstable", "settled", "unknown"]


class Remedy(FrozenModel):
    """One thing to do in the next run.

    Attributes:
        text: what to do, for people.
        settings: what requests it, each as an argument of `--set`; may be empty.
    """

    text: str
    settings: tuple[str, ...] = ()


class Fit(FrozenModel):
    """What training and validation loss say of a run, as text and numbers.

    Attributes:
        kind: overfitted: validation loss rose after its best while training loss fell; still_learning: it was falling
            to the end; unstable: it rose, and training loss did not fall; settled: none of these; unknown: too few
            validations.
        seen: the finding with its figures.
        best_step: of the weights that are kept; 0 where there was no validation.
        last_step: the last step that was done.
        remedies: the most effective first.
    """

    kind: FitKind
    seen: str
    best_step: int = 0
    last_step: int = 0
    remedies: tuple[Remedy, ...] = ()

    @property
    def title(self) -> str:
        """The kind as text."""
        return _TITLES[self.kind]


_TITLES: dict[FitKind, str] = {
    "overfitted": "It overfitted",
    "still_learning": "It was still learning at the end",
    "unstable": "Training was unstable",
    "settled": "It has settled",
    "unknown": "Memorisation was not measured",
}


RunStatus = Literal["planned", "running", "paused", "succeeded", "failed"]


class FirstStep(FrozenModel):
    """The loss of a run's first step, computed before any weight was changed, and what it was computed on.

    Attributes:
        loss: without label smoothing, of the task's own rows where others are replayed; as the objective defines it.
        unit: of the loss, empty where it has none.
        weighting: whether every learned token counts the same, or every row does, its loss then the mean over its own
            tokens; None for objectives that weigh otherwise.
        num_trained_tokens: learned tokens of all rows of the step.
        precision: what it was computed in.
        example_ids: as `luthier data preview` names them, in the order of the rows; empty where they are streamed.
        noise: settings that draw random numbers for this loss (`training.neftune_alpha`, dropouts of the model's own
            config): where there are any, the loss is of one draw.
        router_loss: of the routers of a mixture of experts, before its coefficient, which `loss` is without; None where
            they have none.
    """

    loss: float
    unit: str
    weighting: str | None
    num_trained_tokens: int
    precision: str
    example_ids: tuple[str, ...]
    noise: tuple[str, ...] = ()
    router_loss: float | None = None


class TrainResult(FrozenModel):
    """What the loop returns. Losses as the objective defines them; speeds over training steps only (no validation).

    Attributes:
        status: how the run ended.
        stopped_because: why it ended, as text.
        stop_cause: the same, for programs.
        num_steps: steps that were done.
        num_tokens: tokens of all steps, without padding.
        num_trained_tokens: tokens that were learned.
        num_examples: examples of all steps, repetitions counted.
        num_trainable_parameters: parameters that were trained.
        trainable_fraction: their share of all parameters, 0 to 1.
        train_loss: what was minimised: mean of all steps, each by its weight (trained tokens of supervised fine-tuning,
            pairs of preferences), with regularisation and replayed rows.
        plain_train_loss: the same over the task's own rows, without what label smoothing, dft and class weights add, so
            that it compares with validation losses; None for runs of before it was kept.
        best_validation_loss: the lowest; None without validation.
        best_step: the step of the weights that are kept.
        seconds: wall time of the training steps.
        tokens_per_second: over training steps.
        examples_per_second: over training steps.
        seconds_per_step: over training steps.
        peak_memory_bytes: of the device that is trained on, while training.
        host_peak_memory_bytes: of the host process, None where the device is the CPU.
        judging_seconds: of judging the held-out rows, models loaded; None while that is not done.
        judging_peak_memory_bytes: the same of the device while judging.
        adapter_path: the folder of the trained outcome (a PEFT adapter, or a whole model after full fine-tuning); None
            while the run is not done.
        adapter_sha256: digest of that outcome; None while the run is not done.
        warnings: what a person should know.
        ranks: of each matrix by its module name, where the method has found them.
        bill: of all processes of the run, judging included, without writing the report; None for runs of before it was
            kept.
        fit: what the losses say of overfitting or of stopping too early; None while the run is not done.
        first_step: None for a run without a step, and for runs of before it was kept.
        stream: what was read of training rows that are streamed; None of all others.
    """

    status: RunStatus
    stopped_because: str
    stop_cause: StopCause = "unknown"
    num_steps: int
    num_tokens: int
    num_trained_tokens: int
    num_examples: int
    num_trainable_parameters: int
    trainable_fraction: float
    train_loss: float
    plain_train_loss: float | None = None
    best_validation_loss: float | None
    best_step: int
    seconds: float
    tokens_per_second: float
    examples_per_second: float
    seconds_per_step: float
    peak_memory_bytes: int
    host_peak_memory_bytes: int | None = None
    judging_seconds: float | None = None
    judging_peak_memory_bytes: int | None = None
    adapter_path: str | None
    adapter_sha256: str | None
    warnings: tuple[str, ...] = ()
    ranks: dict[str, int] = Field(default_factory=dict)
    bill: Bill | None = None
    fit: Fit | None = None
    first_step: FirstStep | None = None
    stream: StreamCounts | None = None

    @property
    def comparable_train_loss(self) -> float:
        """The mean training loss that compares with validation losses; of older runs what was minimised."""
        return self.train_loss if self.plain_train_loss is None else self.plain_train_loss


class RunRecord(FrozenModel):
    """A run as the store knows it. Times are UTC, ISO 8601.

    Attributes:
        run_id: its id.
        status: how far it is.
        base_model: the name of its base model.
        method: the name of its method.
        plan_hash: the hash of its plan.
        created_at: when it was made.
        updated_at: when its record last changed.
        step: the last step that was reported.
        num_steps: steps of the whole run.
        stopped_because: why it ended or paused; None while it runs.
        result: what came out; None until it has ended.
        evaluation_id: the evaluation of its outcome; None before.
        report_path: its report; None before.
    """

    run_id: str
    status: RunStatus
    base_model: str
    method: str
    plan_hash: str
    created_at: str
    updated_at: str
    step: int = 0
    num_steps: int = 0
    stopped_because: str | None = None
    result: TrainResult | None = None
    evaluation_id: str | None = None
    report_path: str | None = None

    @property
    def is_trained(self) -> bool:
        """Whether its weights are trained: only its evaluation and its report may be missing."""
        # A run that stopped early has weights before its last step.
        has_weights = self.result is not None and self.result.adapter_path is not None
        return has_weights or 0 < self.num_steps <= self.step

    @property
    def stop_cause(self) -> StopCause:
        """Why it ended or paused, for programs; `unknown` while it runs, after an error, and in old records."""
        # An error leaves the result of an earlier pause in place: it does not describe this end.
        result = self.result
        if result is None or (result.status, result.stopped_because) != (self.status, self.stopped_because):
            return "unknown"
        return result.stop_cause
