"""What was asked of a deployed model and answered: one exchange, as much of it as the project's policy keeps."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import Field

from luthier.core.frozen_model import FrozenModel
from luthier.core.records.logging_mode import Keeping


class TrafficPolicy(FrozenModel):
    """What is kept of a project's traffic.

    Attributes:
        keep: `off` nothing; `metadata` times, sizes, who and how it ended, no text; `sampled` the text of `fraction` of
            all exchanges, metadata of all; `full` the text of all.
        fraction: the share of exchanges whose text is kept under `sampled`.
        mask_personal_data: whether personal data in kept text is masked before it is written.
        keep_days: files of days before that are deleted.
    """

    keep: Keeping = "metadata"
    fraction: Annotated[float, Field(gt=0, le=1)] = 0.1
    mask_personal_data: bool = True
    keep_days: Annotated[int, Field(ge=1)] = 30


class Exchange(FrozenModel):
    """One request and its answer.

    Attributes:
        exchange_id: the id that the client got (`chatcmpl-...`).
        project_id: the project.
        at: when it was asked, seconds since 1970.
        model: as it was requested (the name of a deployment, mostly).
        target: who answered.
        is_canary: whether that was the deployment's canary.
        user_digest: a keyed hash of who asked, the same for the same user of a project; empty where nobody was named.
        status: as HTTP has it.
        error_code: why it failed.
        finish_reason: why the answer ended, as OpenAI names it; empty for a failure.
        num_prompt_tokens: tokens of the prompt.
        num_new_tokens: tokens of the answer.
        seconds: to the end of the answer.
        first_token_seconds: None where no token came.
        cost_usd: None where no prices were set.
        messages: the turns of the request, masked where the policy asks for it; None where no text was kept.
        answer: the text of the answer; None likewise.
        num_masked: places that were masked.
    """

    exchange_id: str
    project_id: str
    at: float
    model: str
    target: str = ""
    is_canary: bool = False
    user_digest: str = ""
    status: int = 200
    error_code: str = ""
    finish_reason: str = ""
    num_prompt_tokens: int = 0
    num_new_tokens: int = 0
    seconds: float = 0.0
    first_token_seconds: float | None = None
    cost_usd: float | None = None
    messages: tuple[dict[str, Any], ...] | None = None
    answer: str | None = None
    num_masked: int = 0

    @property
    def has_text(self) -> bool:
        """Whether its words were kept."""
        return self.messages is not None


class TrafficFile(FrozenModel):
    """A Parquet file of exchanges of one project and day (UTC, ISO 8601).

    Attributes:
        project_id: the project.
        day: in UTC, ISO 8601.
        file: its path below the folder of the project.
        num_exchanges: exchanges in it.
        num_bytes: its size.
        first_at: the earliest exchange, in seconds since 1970.
        last_at: the latest exchange, in seconds since 1970.
        num_by_hour: by model, then by hour (`2026-11-26T21`), how many exchanges there are; models beyond MOST_MODELS
            are summed up under an empty name.
    """

    MOST_MODELS: ClassVar[int] = 100

    project_id: str
    day: str
    file: str
    num_exchanges: int
    num_bytes: int
    first_at: float
    last_at: float
    num_by_hour: dict[str, dict[str, int]] = Field(default_factory=dict)

    def may_hold(self, model: str) -> bool:
        """Whether exchanges of a model may be in it."""
        # The empty name sums up all models beyond the first 100: any may be among them.
        return model in self.num_by_hour or "" in self.num_by_hour
