"""The events of a run, in order. The loop emits these and does not know its listeners."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import Field, TypeAdapter

from luthier.core.frozen_model import FrozenModel
from luthier.core.run import Bill, RunStatus

PLAIN_LOSS: Final = "plain_loss"
"""The measure that holds the loss without what regularisation adds to it, where it adds something."""


TASK_LOSS: Final = "task_loss"
REPLAY_LOSS: Final = "replay_loss"
"""The measures that hold the plain loss of the task's own rows and that of replayed ones, where rows are replayed."""


ROUTER_LOSS: Final = "router_loss"
"""The measure that holds the loss of the routers of a mixture of experts, not yet multiplied by its coefficient. The
loss of a step is without it, so that it can be compared with that of a validation."""


class RunStarted(FrozenModel):
    """The loop is about to take its first step.

    Attributes:
        kind: names the event.
        from_step: the last step that was done before; 0 for a new run.
        num_steps: steps of the whole run.
    """

    kind: Literal["run_started"] = "run_started"
    from_step: int
    num_steps: int


class StepDone(FrozenModel):
    """One optimizer update.

    Attributes:
        kind: names the event.
        step: its number, from 1 on.
        epoch: passes over the training rows so far; None where nothing says how many rows there are.
        loss: what is minimised; of supervised fine-tuning nats a trained token, on average.
        learning_rate: of this step.
        gradient_norm: before clipping.
        num_tokens: tokens of the step, without padding.
        num_trained_tokens: tokens that are learned.
        seconds: wall time of the step.
        measures: other means of the step, by name, as the objective gives them.
    """

    kind: Literal["step"] = "step"
    step: int
    epoch: float | None
    loss: float
    learning_rate: float
    gradient_norm: float
    num_tokens: int
    num_trained_tokens: int
    seconds: float
    measures: dict[str, float] = Field(default_factory=dict)


def comparable_loss(event: StepDone) -> float:
    """The loss of a step that is comparable with that of a validation: of the task's rows, without regularisation."""
    # The most specific first: with replayed rows the plain loss is a mixture of both kinds.
    for name in (TASK_LOSS, PLAIN_LOSS):
        if name in event.measures:
            return event.measures[name]
    return event.loss


class ValidationDone(FrozenModel):
    """Loss and measures of the objective on the validation split after `step`, as in `StepDone`.

    Attributes:
        kind: names the event.
        step: the step after which it was computed.
        loss: as in `StepDone`, over the validation rows.
        num_trained_tokens: learned tokens of the validation rows.
        is_best: whether it is the lowest so far.
        seconds: wall time of the validation.
        measures: other means, by name.
        loss_by_source: the loss over the rows of each source, by its name; empty where they are of one source.
    """

    kind: Literal["validation"] = "validation"
    step: int
    loss: float
    num_trained_tokens: int
    is_best: bool
    seconds: float
    measures: dict[str, float] = Field(default_factory=dict)
    loss_by_source: dict[str, float] = Field(default_factory=dict)


class CheckpointSaved(FrozenModel):
    """A checkpoint is whole on disk: files, fsync and manifest done.

    Attributes:
        kind: names the event.
        step: the step that it holds.
        path: its folder.
        num_bytes: its size.
    """

    kind: Literal["checkpoint"] = "checkpoint"
    step: int
    path: str
    num_bytes: int


class CheckpointUploaded(FrozenModel):
    """A checkpoint is whole in object storage: another machine can resume the run from it.

    Attributes:
        kind: names the event.
        step: the step that it holds.
        num_bytes: what was sent.
        seconds: how long that took, in the background.
    """

    kind: Literal["checkpoint_uploaded"] = "checkpoint_uploaded"
    step: int
    num_bytes: int
    seconds: float


class SnapshotSaved(FrozenModel):
    """A complete snapshot of what is trained, after an epoch, in a folder that can be used like the result of the run.

    Attributes:
        kind: names the event.
        step: the last step of the epoch.
        path: its folder.
        metrics: of that very step, by name: `train_loss`, `train_token_accuracy`, `valid_loss`, `valid_token_accuracy`,
            if they are known.
    """

    kind: Literal["snapshot"] = "snapshot"
    step: int
    path: str
    metrics: dict[str, float] = Field(default_factory=dict)


class WarningRaised(FrozenModel):
    """Something a person should know.

    Attributes:
        kind: names the event.
        step: the step at which it was seen.
        code: for programs; stable between versions.
        message: what was found and what to do.
    """

    kind: Literal["warning"] = "warning"
    step: int
    code: str
    message: str


class BillUpdated(FrozenModel):
    """What the run has cost and is expected to cost, computed again after `step`; a few times a run.

    Attributes:
        kind: names the event.
        step: the step after which it was computed.
        bill: cost so far and expected cost.
    """

    kind: Literal["bill"] = "bill"
    step: int
    bill: Bill


class GpuSample(FrozenModel):
    """A GPU in a moment; what its driver does not report is None.

    Attributes:
        name: `GPU 0`.
        utilisation: the share of the last moments in which it computed, from 0 to 1.
        memory_bytes: in use, by whichever process.
        power_watts: what it draws.
    """

    name: str
    utilisation: float | None = None
    memory_bytes: int | None = None
    power_watts: float | None = None


class MachineSampled(FrozenModel):
    """What the run and its machine did, up to the end of `step`.

    Attributes:
        kind: names the event.
        step: the last step that was done.
        at: when, in seconds since 1970.
        run_cores: cores that the run's processes kept busy, on average since the sample before.
        machine_cores: cores that were busy in all.
        num_cores: that the machine has.
        run_memory_bytes: resident memory of the run's processes; pages that they share are counted in each.
        machine_memory_bytes: in use by all processes.
        memory_bytes: that the machine has.
        gpus: its GPUs, where the run trains on one.
    """

    kind: Literal["machine"] = "machine"
    step: int
    at: float
    run_cores: float
    machine_cores: float
    num_cores: int
    run_memory_bytes: int
    machine_memory_bytes: int
    memory_bytes: int
    gpus: tuple[GpuSample, ...] = ()


class SampleAnswer(FrozenModel):
    """A fixed prompt and what the model in training answers to it, greedily.

    Attributes:
        prompt: as text, with the turns of the chat template.
        answer: what was written.
        reference: the answer of the row; empty for a prompt of the recipe.
        num_new_tokens: of the answer.
        is_cut: whether it ended at the limit of tokens.
    """

    prompt: str
    answer: str
    reference: str = ""
    num_new_tokens: int = 0
    is_cut: bool = False


class SamplesAnswered(FrozenModel):
    """The fixed prompts of a run, answered by the weights of `step`.

    Attributes:
        kind: names the event.
        step: the step of the weights.
        answers: one a prompt, in the same order at each step.
        seconds: wall time.
    """

    kind: Literal["samples"] = "samples"
    step: int
    answers: tuple[SampleAnswer, ...]
    seconds: float


class RunEnded(FrozenModel):
    """The last event.

    Attributes:
        kind: names the event.
        step: the last step that was done.
        status: how the run ended.
        reason: as text: all steps done, early stopping, SIGTERM, diverged.
    """

    kind: Literal["run_ended"] = "run_ended"
    step: int
    status: RunStatus
    reason: str


Event = Annotated[
    RunStarted
    | StepDone
    | ValidationDone
    | SnapshotSaved
    | CheckpointSaved
    | CheckpointUploaded
    | WarningRaised
    | BillUpdated
    | MachineSampled
    | SamplesAnswered
    | RunEnded,
    Field(discriminator="kind"),
]
event_adapter: TypeAdapter[Event] = TypeAdapter(Event)
