"""What was asked of models: by key, day, model as it was asked for, and target that has answered."""

from __future__ import annotations

from luthier.core.frozen_model import FrozenModel


class Use(FrozenModel):
    """The usage of one answer.

    Attributes:
        project_id: The project that asked.
        key_id: The key that asked; empty without a key.
        model: The model as it was asked for.
        target: The model that answered.
        num_prompt_tokens: Tokens of the prompt.
        num_new_tokens: Tokens of the answer.
        cost_usd: Its price in US dollars; None if no prices were set.
    """

    project_id: str
    key_id: str
    model: str
    target: str
    num_prompt_tokens: int
    num_new_tokens: int
    cost_usd: float | None = None


class DayOfUse(Use):
    """The same summed up over a day.

    Attributes:
        day: In UTC, ISO 8601.
        num_requests: How many answers are summed up.
    """

    day: str
    num_requests: int
