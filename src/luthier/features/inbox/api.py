"""/api/v1/inbox: what waits for people in a project, and who does it."""

from __future__ import annotations

from datetime import UTC, date, datetime
from typing import Annotated, Literal

from fastapi import APIRouter, Path, Query, Request
from pydantic import BaseModel, Field

from luthier.core.frozen_model import ClosedModel
from luthier.features.inbox import service as inbox
from luthier.features.inbox.records import InboxEntry, InboxKind, InboxShow, InboxState
from luthier.platform.http.authentication import HomeContext, Reader, Trainer
from luthier.platform.http.errors import documented
from luthier.platform.http.routes import ListObject

router = APIRouter(prefix="/api/v1/inbox", tags=["inbox"])

_Item = Annotated[str, Path(pattern=r"^item-[0-9a-f]{12}$")]
_Name = Annotated[str, Field(min_length=1, max_length=100)]


class AssignBody(ClosedModel):
    """assignee: the name of a member; null for nobody. due: the last day on which it is in time (UTC)."""

    assignee: _Name | None
    due: date | None = None


class AnnotationBody(ClosedModel):
    """The dataset to annotate, whether that was begun or not, and the member who does it."""

    dataset: Annotated[str, Field(min_length=1, max_length=64)]
    assignee: _Name
    due: date | None = None


class SnoozeBody(ClosedModel):
    """How long an entry is hidden."""

    seconds: Annotated[int, Field(ge=1, le=int(inbox.MAX_SNOOZE_SECONDS))]


class InboxItemView(BaseModel):
    """An entry. about: the id or name of what it is about. url: the page where it is done, on this server.

    waiting_since: null where that is not known. due: the last day on which it is in time (UTC).
    """

    id: str
    object: Literal["inbox.item"] = "inbox.item"
    kind: InboxKind
    about: str
    title: str
    detail: str
    url: str
    status: InboxState
    waiting_since: int | None
    assignee: str | None
    assigned_by: str | None
    due: date | None
    overdue: bool
    snoozed_until: int | None
    done_by: str | None
    done_at: int | None


class InboxList(ListObject[InboxItemView]):
    """Overdue entries first, then by their dates, then the oldest."""


@router.get("", summary="List the inbox", responses=documented())
def list_all(
    context: HomeContext,
    caller: Reader,
    show: InboxShow = "open",
    assignee: Annotated[str | None, Query(min_length=1, max_length=100, pattern=r"^[^\x00]*$")] = None,
) -> InboxList:
    """Panels to rate, answers to review, rows to annotate, alerts, canaries to decide about, and jobs that failed."""
    return InboxList(data=[_view(one) for one in inbox.list_entries(context, caller, show=show, assignee=assignee)])


@router.post("/annotations", status_code=201, summary="Have a dataset annotated", responses=documented(404))
def annotate(request: Request, context: HomeContext, caller: Trainer, asked: AnnotationBody) -> InboxItemView:
    """An entry for a member, whether the annotation was begun or not."""
    root = _root(request)
    return _view(inbox.ask_to_annotate(context, caller, asked.dataset, asked.assignee, due=asked.due, root=root))


@router.post("/{item}/assign", summary="Assign an entry", responses=documented(404))
def assign(request: Request, context: HomeContext, caller: Trainer, item: _Item, asked: AssignBody) -> InboxItemView:
    """The member gets a mail where they gave an address; webhooks get `luthier.inbox.assigned`."""
    return _view(inbox.assign(context, caller, item, asked.assignee, due=asked.due, root=_root(request)))


@router.post("/{item}/done", summary="Mark an entry as done", responses=documented(404, 409))
def done(context: HomeContext, caller: Trainer, item: _Item) -> InboxItemView:
    """For all of the project. It opens again when something new comes up in its place."""
    return _view(inbox.finish(context, caller, item))


@router.post("/{item}/snooze", summary="Snooze an entry", responses=documented(404))
def snooze(context: HomeContext, caller: Trainer, item: _Item, asked: SnoozeBody) -> InboxItemView:
    """Hidden for a time, for all of the project."""
    return _view(inbox.snooze(context, caller, item, float(asked.seconds)))


@router.post("/{item}/reopen", summary="Reopen an entry", responses=documented(404))
def reopen(context: HomeContext, caller: Trainer, item: _Item) -> InboxItemView:
    """One that was snoozed or marked as done."""
    return _view(inbox.reopen(context, caller, item))


def _root(request: Request) -> str:
    """What links in messages begin with, for a project without an address of links."""
    return f"{request.url.scheme}://{request.url.netloc}"


def _view(one: InboxEntry) -> InboxItemView:
    work, mark = one.work, one.mark
    is_done = one.state == "done"
    return InboxItemView(
        id=one.item_id,
        kind=work.kind,
        about=work.subject,
        title=work.title,
        detail=work.detail,
        url=work.address,
        status=one.state,
        waiting_since=None if work.since is None else int(work.since),
        assignee=one.assignee or None,
        assigned_by=mark.assigned_by or None,
        due=None if mark.due_at is None else datetime.fromtimestamp(mark.due_at, UTC).date(),
        overdue=one.is_overdue,
        snoozed_until=int(mark.snoozed_until) if one.state == "snoozed" and mark.snoozed_until else None,
        done_by=mark.done_by if is_done else None,
        done_at=int(mark.done_at) if is_done and mark.done_at is not None else None,
    )
