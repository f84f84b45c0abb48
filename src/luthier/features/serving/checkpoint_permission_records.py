"""That a project may ask a model of another one."""

from __future__ import annotations

from luthier.core.frozen_model import FrozenModel


class CheckpointPermission(FrozenModel):
    """One model, one project that may ask it. `created_at` is seconds since 1970."""

    permission_id: str
    model_id: str
    project_id: str
    created_at: float
