"""A run: one execution of a plan, what state it is in and what came out."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from luthier.core.budget import Bill
from luthier.core.fit import Fit
from luthier.core.frozen_model import FrozenModel

RunStatus = Literal["planned", "running", "paused", "succeeded", "failed"]


class FirstStep(FrozenModel):
    """The loss of a run's first step, computed before any weight was changed, and what it was computed on.

    Attributes:
        loss: without label smoothing, of the task's own rows where others are replayed; as the objective defines it.
        unit: of the loss, empty where it has none.
        weighting: whether every learned token counts the same, or every row does, its loss then the mean of its own
            tokens; None for objectives that weigh otherwise.
        num_trained_tokens: learned tokens of all rows of the step.
        precision: what it was computed in.
        example_ids: as `luthier data preview` names them, in the order of the rows.
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
        num_steps: steps that were done.
        num_tokens: tokens of all steps, without padding.
        num_trained_tokens: tokens that were learned.
        num_examples: examples of all steps, repetitions counted.
        num_trainable_parameters: parameters that were trained.
        trainable_fraction: their share of all parameters, 0 to 1.
        train_loss: mean of all steps, each by its weight (trained tokens of supervised fine-tuning, pairs of
            preferences).
        best_validation_loss: the lowest; None without validation.
        best_step: the step of the weights that are kept.
        seconds: wall time of the training steps.
        tokens_per_second: over training steps.
        examples_per_second: over training steps.
        seconds_per_step: over training steps.
        peak_memory_bytes: of the device that is trained on, while training.
        host_peak_memory_bytes: of the process beside it, None where the device is the CPU.
        judging_seconds: of judging the held-out rows, models loaded; None while that is not done.
        judging_peak_memory_bytes: the same of the device while judging.
        adapter_path: the folder of the trained outcome (a PEFT adapter, or a whole model after full fine-tuning); None
            while the run is not done.
        adapter_sha256: digest of that outcome; None while the run is not done.
        warnings: what a person should know.
        ranks: of each matrix by its module name, where the method has found them.
        bill: of all processes of the run, judging included, without writing the report; None for runs of before it was
            kept.
        fit: what the losses say of learning by heart or too little; None while the run is not done.
        first_step: None for a run without a step, and for runs of before it was kept.
    """

    status: RunStatus
    stopped_because: str
    num_steps: int
    num_tokens: int
    num_trained_tokens: int
    num_examples: int
    num_trainable_parameters: int
    trainable_fraction: float
    train_loss: float
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
