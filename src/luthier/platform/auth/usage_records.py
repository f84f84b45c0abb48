"""What was asked of models: by key, day, model as it was asked for, and target that has answered."""

from __future__ import annotations

from luthier.core.frozen_model import FrozenModel


class Use(FrozenModel):
    """One answer. key_id: empty for who asked without a key. cost_usd: None where no prices were set."""

    project_id: str
    key_id: str
    model: str
    target: str
    num_prompt_tokens: int
    num_new_tokens: int
    cost_usd: float | None = None


class DayOfUse(Use):
    """The same summed up over a day (UTC, ISO 8601)."""

    day: str
    num_requests: int
