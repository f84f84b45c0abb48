"""/rate/{token}: where somebody rates answers, let in by a link alone. Nothing here says which system wrote what."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Final

from fastapi import APIRouter, Depends, Request
from starlette.datastructures import FormData
from starlette.responses import Response

from luthier.core.errors import ConflictError, LuthierError, NotFoundError, RequestError
from luthier.core.results.human_eval import HIGHEST, LOWEST, MAX_COMMENT_CHARACTERS, Rater, RatingPanel
from luthier.features.human_eval import rating_view
from luthier.features.human_eval import service as rating_links
from luthier.platform.auth.members_store import Session
from luthier.platform.auth.rate_limiter import FailureLimit, TooManyFailuresError
from luthier.platform.home.context import Context
from luthier.platform.ui.errors import status_of, with_retry_after
from luthier.platform.ui.render import redirect, render
from luthier.platform.ui.visitor import HomeContext, MaybeVisitor, address_of

router = APIRouter(prefix="/rate")

FAILURES_PER_MINUTE: Final = 10
"""From one address; with more invalid links the client has to wait."""
_QUESTIONS: Final = {
    "relevance": "Does it answer the question?",
    "coherence": "Is it clear, and does it hang together?",
    "accuracy": "Is what it says true?",
    "helpfulness": "Does it help the person who asked?",
}
_ENDS: Final = {
    "relevance": ("not at all", "fully"),
    "coherence": ("not at all", "fully"),
    "accuracy": ("all wrong", "all true"),
    "helpfulness": ("not at all", "very much"),
}


@dataclass(frozen=True, slots=True)
class _RaterSession:
    """The rater of the link. problem: why the link is refused."""

    panel: RatingPanel | None = None
    rater: Rater | None = None
    problem: LuthierError | None = None


def _authenticate(request: Request, context: HomeContext, token: str) -> _RaterSession:
    failures: FailureLimit = request.app.state.rating_failures
    try:
        # Guessing is hopeless at 256 bits; the limit keeps one address from making the database look up at will.
        with failures.attempt(address_of(request)) as attempt:
            found = rating_links.rater_of_token(context, token)
            # Set before the block ends: leaving it is what counts the attempt.
            attempt.failed = found is None
    except TooManyFailuresError as error:
        return _RaterSession(problem=error)
    if found is None:
        return _RaterSession(
            problem=NotFoundError(
                "this link is not valid",
                expected="the whole link as sent to you; it may have been replaced or withdrawn since",
                do="copy it again, or ask its sender for another one",
            )
        )
    return _RaterSession(panel=found[1], rater=found[0])


Came = Annotated[_RaterSession, Depends(_authenticate)]


async def _form_of(request: Request) -> FormData:
    # No one is signed in here: the body is bounded, and a file is never accepted.
    return await request.form(max_fields=50, max_files=0)


SentForm = Annotated[FormData, Depends(_form_of)]


@router.get("/{token}")
def look(
    request: Request,
    context: HomeContext,
    came: Came,
    session: MaybeVisitor,
    token: str,
    begin: str = "",
    mine: str = "",
) -> Response:
    """What to do, then one item after the other, then thanks. A member is asked first whether the link is theirs."""
    if came.rater is not None and session is not None and not (begin or mine) and _is_other(session, came.rater):
        return _of_somebody_else(request, context, came, session, token)
    return _page(request, context, came, token, is_begun=bool(begin))


@router.post("/{token}")
def rate(request: Request, context: HomeContext, came: Came, token: str, form: SentForm) -> Response:
    """Store the rating of an item, and go to the next one."""
    if came.panel is None or came.rater is None:
        return _page(request, context, came, token)
    comment = str(form.get("comment", "")).replace("\r\n", "\n")  # as it was written; a browser sends both
    try:
        item, shown_at = _number(form, "item"), _moment(form)
        if came.panel.kind == "pairwise":
            choice = str(form.get("choice", ""))
            rating_view.keep_preference(
                context, came.panel, came.rater, item, choice, comment=comment, shown_at=shown_at
            )
        else:
            scores = {name: _number(form, name) for name in came.panel.criteria if form.get(name)}
            rating_view.keep_scores(context, came.panel, came.rater, item, scores, comment=comment, shown_at=shown_at)
    # The panel was closed while the page was open; its own page reports it.
    except ConflictError:
        return redirect(request, f"/rate/{token}")
    except RequestError as error:
        typed = {name: str(value) for name, value in form.items()}
        return _page(request, context, came, token, is_begun=True, error=error, typed=typed)
    return redirect(request, f"/rate/{token}?begin=1")


@router.post("/{token}/undo")
def undo(request: Request, context: HomeContext, came: Came, token: str) -> Response:
    """Take the newest rating back, and show its item again."""
    if came.panel is None or came.rater is None:
        return _page(request, context, came, token)
    try:
        rating_view.take_back(context, came.panel, came.rater)
    except ConflictError:
        return redirect(request, f"/rate/{token}")
    return redirect(request, f"/rate/{token}?begin=1")


def _is_other(session: Session, rater: Rater) -> bool:
    """Whether a member is signed in who is not the rater by name; keys and the person at the machine try links out."""
    return session.how in ("password", "oidc", "passkey") and session.caller.name != rater.name


def _of_somebody_else(
    request: Request, context: Context, came: _RaterSession, session: Session, token: str
) -> Response:
    """409: the link is good, and the browser belongs to a member who would rate in another name."""
    assert came.panel is not None
    assert came.rater is not None
    is_theirs = rating_links.is_panel_of(context, session.caller, came.panel.panel_id)
    values = {
        "rater_name": came.rater.name if is_theirs else "",
        "visitor_name": session.caller.name,
        "panel_address": f"/evaluations/panels/{came.panel.panel_id}" if is_theirs else "",
        "address": f"/rate/{token}",
    }
    return render(request, "human_eval/rate/other.html", values, status=409)


def _page(
    request: Request,
    context: Context,
    came: _RaterSession,
    token: str,
    *,
    is_begun: bool = False,
    error: RequestError | None = None,
    typed: dict[str, str] | None = None,
) -> Response:
    if came.panel is None or came.rater is None:
        assert came.problem is not None
        refused = render(
            request, "human_eval/rate/refused.html", {"error": came.problem}, status=status_of(came.problem)
        )
        return with_retry_after(refused, came.problem)
    values = {"panel": came.panel, "address": f"/rate/{token}", "is_closed": came.panel.closed_at is not None}
    if values["is_closed"]:
        return render(request, "human_eval/rate/end.html", values)
    view = rating_view.next_item(context, came.panel, came.rater)
    values |= {
        "desk": view,
        "error": error,
        "typed": typed or {},
        "questions": _QUESTIONS,
        "ends": _ENDS,
        "scores": range(LOWEST, HIGHEST + 1),
        "most_comment": MAX_COMMENT_CHARACTERS,
    }
    if view.item is None:
        return render(request, "human_eval/rate/end.html", values)
    if not is_begun and not view.is_begun:
        return render(request, "human_eval/rate/start.html", values)
    return render(request, "human_eval/rate/item.html", values, status=200 if error is None else status_of(error))


def _number(form: FormData, name: str) -> int:
    text = str(form.get(name, ""))
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise RequestError(f"{name}={text[:40]!r}", expected="a number, as this page sends it", do="reload the page")
    return int(text)


def _moment(form: FormData) -> float | None:
    """When the page was made, as its form says; None for anything that is no time."""
    try:
        found = float(str(form.get("shown_at", "")))
    except ValueError:
        return None
    return found if 0 < found < 1e11 else None
