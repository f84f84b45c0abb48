"""What people say of answers that a deployed model has given, and the queue in which others look at it."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from luthier.core.frozen_model import FrozenModel

Thumb = Literal["up", "down"]
ReviewStatus = Literal["waiting", "accepted", "rejected"]


class Feedback(FrozenModel):
    """What one author says of one answer. The newest word of an author on an answer counts.

    Attributes:
        feedback_id: its id.
        project_id: the project.
        exchange_id: the id that the client got with the answer.
        model: the model, by the name it was asked for.
        thumb: good or bad; None where nothing was said.
        score: from 0 (bad) to 1.
        correction: what the answer should have been.
        comment: in the author's words.
        author: who says it, as the client names them; empty where nobody is named.
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
        model: the model, by the name it was asked for.
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
