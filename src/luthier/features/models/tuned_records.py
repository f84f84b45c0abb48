"""A model that a job has made: the outcome of its run, or what the run was after an epoch."""

from __future__ import annotations

from pydantic import Field

from luthier.core.frozen_model import FrozenModel


class TunedModel(FrozenModel):
    """What can be asked by name. `model_id`: `ft:BASE:PROJECT:SUFFIX:ID`, a checkpoint with `:ckpt-step-N` behind it.

    adapter_path: its folder, as `TrainResult.adapter_path`. step: None for the outcome. metrics: losses (nats a trained
    token) and accuracies after that step, by name. Times are seconds since 1970.
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
