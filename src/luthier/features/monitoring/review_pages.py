"""/review: one exchange after the other: accept, reject, or write what the answer should have been."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal, get_args
from urllib.parse import urlencode

from fastapi import APIRouter, Form, Query, Request
from starlette.responses import Response

from luthier.core.access import Caller
from luthier.core.errors import ConflictError, LuthierError
from luthier.core.ids import sha256_document
from luthier.core.records.traffic import ReviewItem, ReviewStatus
from luthier.core.text.counted import counted
from luthier.features.feedback import review as review_queue
from luthier.features.feedback.accepted_rows import AddedRows, add_accepted, add_to_new_dataset, targets
from luthier.features.feedback.review import Decision
from luthier.features.monitoring import loop as monitor_loop
from luthier.platform.home.context import Context
from luthier.platform.ui.errors import status_of
from luthier.platform.ui.page_work import Led, page_work
from luthier.platform.ui.render import Advised, Page, is_fragment_request, redirect, render
from luthier.platform.ui.visitor import HomeContext, Reader, Trainer, one_state

router = APIRouter(prefix="/review")
PAGE = Page(
    "Review",
    "/review",
    "read",
    order=90,
    key="v",
    group="data",
    advised=(Advised(commands=("feedback",), calls=("feedback",)),),
)

_STATUSES: Final[tuple[ReviewStatus, ...]] = get_args(ReviewStatus)
_MAX_SEEN_CHARACTERS: Final = 64
_Model = Annotated[str, Query(max_length=255, pattern=r"^[^\x00]*$")]
_ModelOfForm = Annotated[str, Form(max_length=255, pattern=r"^[^\x00]*$")]
_Item = Annotated[str, Form(max_length=64)]
_Text = Annotated[str, Form(max_length=2 * review_queue.MAX_CHARACTERS)]


@dataclass(frozen=True, slots=True)
class ReviewView:
    """The state of the review page.

    Attributes:
        item: The item; None where nothing is shown.
        model: The model of the filter; empty for all.
        status: The status of the filter.
        counts: Items by model and status.
        previous: The id of the item before.
        following: The id of the item after.
        is_edited: Whether the form is open.
        notice: What the last request has done.
        error: Why an edit was refused.
        typed: The text of an edit that was refused.
    """

    item: ReviewItem | None
    model: str
    status: ReviewStatus
    counts: dict[tuple[str, ReviewStatus], int]
    previous: str | None = None
    following: str | None = None
    is_edited: bool = False
    notice: str = ""
    error: LuthierError | None = None
    typed: str | None = None

    @property
    def seen(self) -> str:
        """To be sent back with a decision."""
        return "" if self.item is None else _seen(self.item)

    @property
    def filters(self) -> list[tuple[ReviewStatus, int]]:
        """How many items of each status there are, of the chosen model."""
        return [(status, self.num(status)) for status in _STATUSES]

    @property
    def models(self) -> list[str]:
        """Those that have items."""
        return sorted({model for model, _ in self.counts})

    def num(self, status: ReviewStatus | None = None) -> int:
        """Items of the chosen model, with a status or all."""
        return sum(
            count
            for (model, one), count in self.counts.items()
            if (not self.model or model == self.model) and status in (None, one)
        )

    def at(
        self, *, item: str | None = None, status: str | None = None, model: str | None = None, edit: bool = False
    ) -> str:
        """The address of another item, filter or form.

        Args:
            item: The item to show; None for the first one that the filter leaves.
            status: The filter; None for that of this page.
            model: The model whose answers are shown, empty for all; None for that of this page.
            edit: Whether the page has the form of a correction.
        """
        values = {
            "model": self.model if model is None else model,
            "status": status or self.status,
            "item": item,
            "edit": "1" if edit else "",
        }
        return f"/review?{urlencode({name: value for name, value in values.items() if value})}"


@router.get("")
@one_state
def look(
    request: Request,
    context: HomeContext,
    caller: Reader,
    model: _Model = "",
    status: ReviewStatus = "waiting",
    item: Annotated[str | None, Query(max_length=64)] = None,
    edit: bool = False,
) -> Response:
    """The requested item, else the first that is shown."""
    if item is None:
        _, item = review_queue.neighbours(context, caller.project_id, None, model=model or None, status=status)
    return _page(request, context, caller, _review_view(context, caller, item, model, status, is_edited=edit))


@router.post("/decide")
def decide(
    request: Request,
    context: HomeContext,
    caller: Trainer,
    item: _Item,
    seen: Annotated[str, Form(max_length=_MAX_SEEN_CHARACTERS)],
    decision: Annotated[Literal["accept", "reject", "edit"], Form()],
    answer: _Text = "",
    model: _ModelOfForm = "",
    status: Annotated[ReviewStatus, Form()] = "waiting",
) -> Response:
    """Keep one decision, and lead to the next item; or show why it cannot be kept."""
    found = review_queue.show_item(context, caller.project_id, item)
    # Browsers send CRLF for line breaks of a textarea; a model would learn the carriage returns.
    is_edit, edited = decision == "edit", answer.replace("\r\n", "\n") if decision == "edit" else None
    made: Decision = "accept" if decision == "edit" else decision
    try:
        # Optimistic lock over the page's lifetime; the store checks again between this read and the write.
        if _seen(found) != seen:
            raise ConflictError(
                f"{found.decided_by or 'somebody'} has changed this item in the meantime: it is {found.status}",
                expected="the item as you saw it",
                do="check its current state, then decide again",
            )
        review_queue.decide(context, caller, found, made, edited=edited)
    except LuthierError as error:
        view = _review_view(context, caller, item, model, status, is_edited=is_edit, error=error, typed=edited)
        return _page(request, context, caller, view)
    _, following = review_queue.neighbours(context, caller.project_id, item, model=model or None, status=status)
    # At the end of the list it continues from its start: items that were skipped are there.
    if following is None:
        _, following = review_queue.neighbours(context, caller.project_id, None, model=model or None, status=status)
    words = {"accept": "accepted", "reject": "rejected", "edit": "accepted as you wrote it"}[decision]
    return _lead(
        request, context, caller, _review_view(context, caller, following, model, status, notice=f"it is {words}")
    )


@router.post("/undo")
def undo(
    request: Request,
    context: HomeContext,
    caller: Trainer,
    item: _Item = "",
    model: _ModelOfForm = "",
    status: Annotated[ReviewStatus, Form()] = "waiting",
) -> Response:
    """Have an item wait again, or what the visitor has decided last, and lead to it."""
    if not item:
        last = review_queue.last_of(context, caller)
        if last is None:
            _, first = review_queue.neighbours(context, caller.project_id, None, model=model or None, status=status)
            notice = "you have no decision to undo"
            return _lead(request, context, caller, _review_view(context, caller, first, model, status, notice=notice))
        item = last.review_id
    try:
        again = review_queue.undo(context, caller, item)
    except ConflictError as error:  # somebody else was quicker, or another tab
        return _page(request, context, caller, _review_view(context, caller, item, model, status, error=error))
    view = _review_view(context, caller, again.review_id, model, "waiting", notice="it waits again")
    return _lead(request, context, caller, view)


@router.post("/queue")
def queue(
    request: Request,
    context: HomeContext,
    caller: Trainer,
    model: Annotated[str, Form(min_length=1, max_length=255, pattern=r"^[^\x00]*$")],
    what: Annotated[Literal["sample", "liked"], Form()],
    num: Annotated[int, Form(ge=1, le=review_queue.MAX_QUEUED)] = 20,
) -> Response:
    """Have answers of a model reviewed."""
    address = f"/review?{urlencode({'model': model})}"

    def work() -> Led:
        if what == "sample":
            made = review_queue.queue_sample(context, caller, model, num)
        else:
            made = review_queue.queue_liked(context, caller, model)
        notice = f"{counted(made.num_queued, 'answer is', 'answers are')} waiting for review."
        if not made.num_wordless:
            return Led(address, notice)
        left_notice = f"{counted(made.num_wordless, 'answer')} cannot be reviewed: the text was not stored."
        return Led(address, f"{notice} {left_notice}")

    return page_work(request).answer(request, "Answers are being chosen for review", work, back=address)


@router.post("/add")
def add(
    request: Request,
    context: HomeContext,
    caller: Trainer,
    dataset: Annotated[str, Form(max_length=64)] = "",
    name: Annotated[str, Form(max_length=200)] = "",
    model: _ModelOfForm = "",
) -> Response:
    """Make the next version of a dataset with the accepted answers, or a dataset of them, and lead to it."""
    back = f"/review?{urlencode({'model': model, 'status': 'accepted'})}"

    def work() -> Led:
        if dataset:
            made = add_accepted(context, caller, dataset, model or None)
        else:
            made = add_to_new_dataset(context, caller, name, model or None)
        address = f"/datasets/{made.version.dataset_id}?version={made.version.number}"
        return Led(address, _added_words(made))

    if dataset:
        context.datasets.get(caller.project_id, dataset)
    try:
        return page_work(request).answer(
            request, "The accepted answers are compared with held-out rows", work, back=back
        )
    except LuthierError as error:
        view = _review_view(context, caller, None, model, "accepted", error=error)
        return _page(request, context, caller, view)


def _added_words(made: AddedRows) -> str:
    added = counted(made.num_added, "accepted answer was", "accepted answers were")
    words = f"{added} added as version {made.version.number}."
    if made.num_replaced:
        words += f" {counted(made.num_replaced, 'row was', 'rows were')} replaced, with the same prompt."
    for reason, num in made.left_out.items():
        words += f" {num} not added: {reason}."
    return " ".join([words, *(f"Note: {caution}." for caution in made.cautions)])


def _review_view(
    context: Context,
    caller: Caller,
    item: str | None,
    model: str,
    status: ReviewStatus,
    *,
    is_edited: bool = False,
    notice: str = "",
    error: LuthierError | None = None,
    typed: str | None = None,
) -> ReviewView:
    found = None if item is None else review_queue.show_item(context, caller.project_id, item)
    previous, following = None, None
    if item is not None:
        previous, following = review_queue.neighbours(
            context, caller.project_id, item, model=model or None, status=status
        )
    counts = review_queue.counts(context, caller.project_id)
    # The form is only shown to those whose decision would be accepted.
    is_edited = is_edited and caller.may("train")
    return ReviewView(found, model, status, counts, previous, following, is_edited, notice, error, typed)


def _lead(request: Request, context: Context, caller: Caller, view: ReviewView) -> Response:
    if is_fragment_request(request):
        return _page(request, context, caller, view)
    address = view.at(item=None if view.item is None else view.item.review_id)
    return redirect(request, address, f"{view.notice[:1].upper()}{view.notice[1:]}.")


def _page(request: Request, context: Context, caller: Caller, view: ReviewView) -> Response:
    template = "monitoring/review/desk.html" if is_fragment_request(request) else "monitoring/review/show.html"
    names = sorted({*monitor_loop.monitored_models(context, caller.project_id), *view.models})
    status = 200 if view.error is None else status_of(view.error)
    values = {"desk": view, "names": names, **_additions(request, context, caller, view)}
    answer = render(request, template, values, status=status)
    if is_fragment_request(request):
        item = None if view.item is None else view.item.review_id
        # The address follows the item without a history entry for each one: "back" leaves the queue.
        answer.headers["HX-Replace-Url"] = view.at(item=item, edit=view.is_edited)
    return answer


def _additions(request: Request, context: Context, caller: Caller, view: ReviewView) -> dict[str, Any]:
    """The datasets to which accepted answers can be added, and the one that is chosen."""
    if not caller.may("train") or not view.num("accepted"):
        return {"targets": [], "target": None}
    found = targets(context, caller, view.model or None)
    wanted = request.query_params.get("dataset", "")
    chosen = next((one for one in found if one.dataset.dataset_id == wanted), found[0] if found else None)
    return {"targets": found, "target": chosen, "new_name": f"{view.model or 'answers'} reviewed"}


def _seen(item: ReviewItem) -> str:
    # 64 bits guard against accidents, not attackers: the caller may change the item anyway.
    return sha256_document(item.model_dump(mode="json"))[:16]
