"""Traffic of deployed models: exchanges of a prompt and an answer, and feedback of people on them.

Of an exchange only as much is kept as the project's policy says. Feedback has a queue in which others review it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Final, Literal, Self

from pydantic import Field, model_validator

from luthier.core.frozen_model import FrozenModel
from luthier.core.records.logging_mode import LoggingMode


class TrafficPolicy(FrozenModel):
    """What is kept of a project's traffic.

    Attributes:
        keep: `off` nothing; `metadata` times, sizes, who and how it ended, no text; `sampled` the text of `fraction` of
            all exchanges, metadata of all; `full` the text of all.
        fraction: the share of exchanges whose text is kept under `sampled`.
        mask_personal_data: whether personal data in kept text is masked before it is written.
        keep_days: files of days before that are deleted.
    """

    keep: LoggingMode = "metadata"
    fraction: Annotated[float, Field(gt=0, le=1)] = 0.1
    mask_personal_data: bool = True
    keep_days: Annotated[int, Field(ge=1)] = 30


_CALLS: Final = "tool_calls"
_TEXT: Final = "content"


def answer_of_calls(calls: Sequence[dict[str, Any]], text: str = "") -> str:
    """An answer with tool calls as the log keeps it.

    Args:
        calls: In OpenAI's format.
        text: What the answer says beside its calls.
    """
    said = {_TEXT: text} if text.strip() else {}
    return json.dumps({**said, _CALLS: list(calls)}, ensure_ascii=False)


def is_of_calls(answer: str) -> bool:
    """Whether a text is what the log keeps of an answer with tool calls: no text that a model could learn."""
    return _parts_of_calls(answer) is not None


def said_in(answer: str) -> str | None:
    """What an answer in the log says to its reader; None where it calls tools and says nothing beside."""
    parts = _parts_of_calls(answer)
    return answer if parts is None else str(parts.get(_TEXT) or "") or None


def written_in(answer: str) -> str:
    """All that a model has written in an answer in the log: what it says, and the names and arguments of its calls."""
    if (parts := _parts_of_calls(answer)) is None:
        return answer
    functions = [one.get("function") for one in parts[_CALLS] if isinstance(one, dict)]
    # Without their ids, which the server has drawn.
    found = [str(one.get(name) or "") for one in functions if isinstance(one, dict) for name in ("name", "arguments")]
    return "\n".join(text for text in (str(parts.get(_TEXT) or ""), *found) if text)


def _parts_of_calls(answer: str) -> dict[str, Any] | None:
    if not answer.lstrip().startswith("{"):
        return None
    try:
        found = json.loads(answer)
    except (ValueError, RecursionError):
        return None
    is_one = isinstance(found, dict) and {_CALLS} <= set(found) <= {_CALLS, _TEXT}
    return found if is_one and isinstance(found[_CALLS], list) else None


class Exchange(FrozenModel):
    """One request and its answer.

    Attributes:
        exchange_id: the id that the client got (`chatcmpl-...`).
        project_id: the project.
        at: the time of the request, seconds since 1970.
        model: as requested (usually the name of a deployment).
        target: who answered.
        is_canary: whether that was the deployment's canary.
        user_digest: a keyed hash of the user, the same for the same user of a project; empty where none was named.
        status: as HTTP has it.
        error_code: why it failed.
        finish_reason: why the answer ended, as OpenAI names it; empty for a failure.
        num_prompt_tokens: tokens of the prompt.
        num_new_tokens: tokens of the answer.
        seconds: to the end of the answer.
        first_token_seconds: None where no token came.
        cost_usd: None where no prices were set.
        messages: the turns of the request, masked where the policy requires it; None where no text was kept.
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


Thumb = Literal["up", "down"]
ReviewStatus = Literal["waiting", "accepted", "rejected"]


class Feedback(FrozenModel):
    """What one author says of one answer. The newest word of an author on an answer counts.

    Attributes:
        feedback_id: its id.
        project_id: the project.
        exchange_id: the id that the client got with the answer.
        model: the model, by the name it was requested under.
        thumb: good or bad; None where it is not given.
        score: from 0 (bad) to 1.
        correction: what the answer should have been.
        comment: in the author's words.
        author: its author, as the client names them; empty where none is named.
        created_at: seconds since 1970.
    """

    feedback_id: str
    project_id: str
    exchange_id: str
    model: str
    thumb: Thumb | None = None
    score: float | None = Field(default=None, ge=0, le=1)
    correction: str | None = None
    comment: str = ""
    author: str = ""
    created_at: float = 0.0

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        # A comment alone cannot be counted.
        if self.thumb is None and self.score is None and not self.correction:
            raise ValueError("a thumb, a score or a correction")
        return self


class ReviewItem(FrozenModel):
    """An exchange that a person is to look at before it may be trained on.

    Attributes:
        review_id: its id.
        project_id: the project.
        model: the model, by the name it was requested under.
        source: where it comes from.
        exchange_id: the exchange; empty where it is of none.
        messages: the turns before the answer.
        answer: what was answered.
        correction: what is to be learned instead, None where the answer itself is good.
        status: whether it waits, and how it was decided.
        decided_by: who decided; empty while it waits.
        decided_at: seconds since 1970; None while it waits.
        created_at: seconds since 1970.
    """

    review_id: str
    project_id: str
    model: str
    source: Literal["correction", "traffic", "rating"]
    exchange_id: str = ""
    messages: tuple[dict[str, Any], ...]
    answer: str
    correction: str | None = None
    status: ReviewStatus = "waiting"
    decided_by: str = ""
    decided_at: float | None = None
    created_at: float = 0.0

    @property
    def learned(self) -> str:
        """The text that is trained on where it is accepted."""
        return self.answer if self.correction is None else self.correction
