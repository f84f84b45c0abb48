"""/inbox: what waits for people in a project: who does it, by when, until when it is hidden, what is done."""

from __future__ import annotations

from datetime import UTC, date, datetime
from typing import Annotated, Any, Final

from fastapi import APIRouter, Form, Path, Query, Request
from starlette.responses import Response

from luthier.core.access import Caller
from luthier.core.errors import LuthierError, NotAllowedError, RequestError
from luthier.features.human_eval.service import own_link
from luthier.features.inbox import service as inbox
from luthier.features.inbox.records import KIND_TITLES, InboxShow
from luthier.platform.home.context import Context
from luthier.platform.home.duration import parse_duration
from luthier.platform.ui.errors import status_of
from luthier.platform.ui.render import Advised, Page, redirect, render
from luthier.platform.ui.visitor import HomeContext, Reader, Trainer, one_state, own_address, root_of

router = APIRouter(prefix="/inbox")
PAGE = Page(
    "Inbox",
    "/inbox",
    "read",
    order=15,
    key="i",
    count="luthier.features.inbox.service:open_count",
    advised=(Advised(commands=("inbox",)),),
)

SPANS: Final = {"1d": "for a day", "3d": "for 3 days", "7d": "for a week", "30d": "for 30 days"}
_SHOWS: Final[dict[InboxShow, str]] = {"for_you": "For you", "open": "All open", "snoozed": "Snoozed", "done": "Done"}
_Item = Annotated[str, Path(pattern=r"^item-[0-9a-f]{12}$")]
_Short = Annotated[str, Form(max_length=200)]
_Show = Annotated[InboxShow, Form()]
_Back = Annotated[str, Form(max_length=1000)]


@router.get("")
@one_state
def index(
    request: Request,
    context: HomeContext,
    caller: Reader,
    show: InboxShow = "for_you",
    assignee: Annotated[str, Query(max_length=100, pattern=r"^[^\x00]*$")] = "",
) -> Response:
    """The entries of a list."""
    return _page(request, context, caller, show, assignee=assignee)


@router.post("/annotate")
def annotate(
    request: Request,
    context: HomeContext,
    caller: Trainer,
    dataset: _Short = "",
    name: _Short = "",
    due: _Short = "",
    back: _Back = "",
) -> Response:
    """Give the annotation of a dataset to a member. back: as of `assign`."""
    try:
        made = inbox.ask_to_annotate(context, caller, dataset, name, due=_day(due), root=root_of(request))
    except LuthierError as error:
        given = {"dataset": dataset, "name": name, "due": due}
        return _page(request, context, caller, "open", error=error, given=given)
    address = own_address(back) if back else "/inbox?show=open"
    return redirect(request, address, f"{made.work.title}: assigned to {made.assignee}.")


@router.post("/mail")
def mail(request: Request, context: HomeContext, caller: Reader, address: _Short = "") -> Response:
    """The mail address for what the visitor is given."""
    try:
        inbox.set_mail_address(context, caller, address)
    except RequestError as error:
        return _page(request, context, caller, "for_you", error=error, given={"address": address})
    return redirect(request, "/inbox", f"Messages go to {address.strip()}." if address.strip() else "No more mails.")


@router.post("/{item}/assign")
def assign(
    request: Request,
    context: HomeContext,
    caller: Trainer,
    item: _Item,
    name: _Short = "",
    due: _Short = "",
    show: _Show = "for_you",
    back: _Back = "",
) -> Response:
    """Give an entry to a member, or to nobody. back: the page that the form is on, where it is not this one."""
    try:
        made = inbox.assign(context, caller, item, name or None, due=_day(due), root=root_of(request))
    except LuthierError as error:
        return _page(request, context, caller, show, error=error, given={"item": item, "name": name, "due": due})
    whom = made.assignee or "nobody"
    # own_address: a form could name another site to be led to.
    address = own_address(back) if back else _address(show)
    return redirect(request, address, f"{made.work.title}: assigned to {whom}.")


@router.post("/{item}/done")
def done(request: Request, context: HomeContext, caller: Reader, item: _Item, show: _Show = "for_you") -> Response:
    """Mark an entry as done."""
    try:
        made = inbox.finish(context, caller, item)
    except LuthierError as error:
        return _page(request, context, caller, show, error=error)
    return redirect(request, _address(show), f"{made.work.title}: done.")


@router.post("/{item}/snooze")
def snooze(
    request: Request,
    context: HomeContext,
    caller: Reader,
    item: _Item,
    span: _Short = "1d",
    show: _Show = "for_you",
) -> Response:
    """Hide an entry for a time."""
    try:
        made = inbox.snooze(context, caller, item, parse_duration(span, option="the time"))
    except LuthierError as error:
        return _page(request, context, caller, show, error=error)
    return redirect(request, _address(show), f"{made.work.title}: hidden {SPANS.get(span, span)}.")


@router.post("/{item}/reopen")
def reopen(request: Request, context: HomeContext, caller: Reader, item: _Item, show: _Show = "for_you") -> Response:
    """Have an entry wait again."""
    try:
        made = inbox.reopen(context, caller, item)
    except LuthierError as error:
        return _page(request, context, caller, show, error=error)
    return redirect(request, _address(show), f"{made.work.title}: open again.")


@router.post("/{item}/rate")
def rate(request: Request, context: HomeContext, caller: Reader, item: _Item) -> Response:
    """Lead a member to the panel as a rater of their name: trainers, and whom it was assigned to."""
    try:
        entry = inbox.get_entry(context, caller, item)
        if entry.work.kind != "rate" or not inbox.may_settle(caller, entry):
            raise NotAllowedError(
                f"{caller.name!r} may not rate {entry.work.title!r}",
                expected="a panel of raters that is assigned to you, or a trainer",
                do="ask a trainer to assign the panel to you",
            )
        link = own_link(context, caller, entry.work.subject)
    except LuthierError as error:
        return _page(request, context, caller, "for_you", error=error)
    return redirect(request, link.path)


def _page(
    request: Request,
    context: Context,
    caller: Caller,
    show: InboxShow,
    *,
    assignee: str = "",
    error: LuthierError | None = None,
    given: dict[str, str] | None = None,
) -> Response:
    found, numbers = inbox.list_with_counts(context, caller, show=show, assignee=assignee or None)
    people = context.members.list(caller.project_id)
    values: dict[str, Any] = {
        "entries": found,
        "shows": [(one, title, numbers[one]) for one, title in _SHOWS.items()],
        "show": show,
        "assignee": assignee,
        "people": [one.name for one in people],
        "kinds": KIND_TITLES,
        "spans": SPANS,
        # Asked for each entry: the member who was given one may settle that one alone.
        "may_settle": lambda entry: inbox.may_settle(caller, entry),
        "today": datetime.fromtimestamp(context.access.now(), UTC).date().isoformat(),
        "datasets": [dataset for dataset, _ in context.datasets.list(caller.project_id)] if caller.may("train") else [],
        "mail_address": inbox.mail_address(context, caller),
        "has_mail_server": context.settings.smtp is not None,
        "given": given or {},
        "error": error,
    }
    return render(request, "inbox/list.html", values, status=200 if error is None else status_of(error))


def _day(text: str) -> date | None:
    if not text.strip():
        return None
    try:
        return date.fromisoformat(text.strip())
    except ValueError:
        raise RequestError(
            f"the due date {text[:40]!r}", expected="a day such as 2026-12-03", do="correct it"
        ) from None


def _address(show: InboxShow) -> str:
    return "/inbox" if show == "for_you" else f"/inbox?show={show}"
