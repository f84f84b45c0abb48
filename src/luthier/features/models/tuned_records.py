"""A model that a job has made: the outcome of its run, or what the run was after an epoch."""

from __future__ import annotations

from pydantic import Field

from luthier.core.frozen_model import FrozenModel


class TunedModel(FrozenModel):
    """A tuned model that can be asked by name.

    Attributes:
        model_id: `ft:BASE:PROJECT:SUFFIX:ID`; a checkpoint with `:ckpt-step-N` behind it.
        project_id: The project that owns it.
        job_id: The job that made it.
        run_id: The run of that job.
        base_model: The base model, as recipes name it.
        adapter_path: The folder of its weights, as `TrainResult.adapter_path`.
        step: The training step of a checkpoint; None for the outcome.
        checkpoint_id: The id of a checkpoint (`ftckpt_...`); None for the outcome.
        metrics: Losses (nats a trained token) and accuracies (0 to 1) after that step, by name.
        created_at: Seconds since 1970.
    """

    model_id: str
    project_id: str
    job_id: str
    run_id: str
    base_model: str
    adapter_path: str
    step: int | None = None
    checkpoint_id: str | None = None
    metrics: dict[str, float] = Field(default_factory=dict)
    created_at: float = 0.0
