"""/api/v1/feedback: say of an answer how good it was, and what it should have been."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Query
from pydantic import BaseModel

from luthier.core.records.traffic import Feedback, Thumb
from luthier.features.feedback import service as feedback
from luthier.features.feedback.service import FeedbackInput, Outcome
from luthier.platform.http.authentication import Asker, HomeContext, Reader
from luthier.platform.http.errors import documented
from luthier.platform.http.routes import ListObject

router = APIRouter(prefix="/api/v1/feedback", tags=["feedback"])


class FeedbackView(BaseModel):
    """Feedback on an answer. exchange_id: the `id` that came with the answer. model: as requested."""

    id: str
    object: Literal["feedback"] = "feedback"
    exchange_id: str
    model: str
    thumb: Thumb | None
    score: float | None
    correction: str | None
    comment: str
    author: str
    created_at: int


class GivenView(FeedbackView):
    """The result. outcome: `same` where the author had given the same before.

    waits_for_review: whether a correction is in the queue; note: why one is not, as text.
    """

    outcome: Outcome
    waits_for_review: bool
    note: str


class FeedbackList(ListObject[FeedbackView]):
    """Newest first."""


@router.post("", summary="Give feedback on an answer", responses=documented(404))
def give(context: HomeContext, caller: Asker, said: FeedbackInput) -> GivenView:
    """A thumb, a score from 0 to 1, a correction, or several of them, by the `id` of the answer.

    The newest feedback of an author on an answer counts; repeating it changes nothing, so it may be sent again.
    """
    given = feedback.give(context, caller, said)
    view = _view(given.feedback).model_dump()
    return GivenView(**view, outcome=given.outcome, waits_for_review=given.is_queued, note=given.why_not)


@router.get("", summary="List feedback", responses=documented())
def list_all(
    context: HomeContext,
    caller: Reader,
    model: Annotated[str | None, Query(min_length=1, max_length=255, pattern=r"^[^\x00]*$")] = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> FeedbackList:
    """The newest feedback of the project. model: as requested."""
    found = feedback.list_feedback(context, caller.project_id, model=model, limit=limit)
    return FeedbackList(data=[_view(one) for one in found])


def _view(given: Feedback) -> FeedbackView:
    values = given.model_dump(include={"exchange_id", "model", "thumb", "score", "correction", "comment", "author"})
    return FeedbackView(id=given.feedback_id, created_at=int(given.created_at), **values)
