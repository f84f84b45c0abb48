"""/playground: chat with one model or two side by side, and store corrected answers as test cases.

/playground/head: the form of a model with a task head.
"""

from __future__ import annotations

import asyncio
import itertools
import re
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final
from urllib.parse import quote

from fastapi import APIRouter, Depends, Query, Request
from fastapi.concurrency import run_in_threadpool
from starlette.datastructures import FormData
from starlette.responses import JSONResponse, Response, StreamingResponse

from luthier.core.access import Caller
from luthier.core.errors import BusyError, LuthierError, ModelSourceError, RequestError
from luthier.core.records.traffic import Thumb
from luthier.features.datasets.service import DEFAULT_NAME, SavedCase, save_case
from luthier.features.feedback import service as feedback
from luthier.features.feedback.service import FeedbackInput
from luthier.features.playground.chat import (
    DEFAULTS,
    EFFORTS,
    MAX_SIDES,
    PlaygroundModel,
    Side,
    error_document,
    list_head_models,
    list_playground_models,
    messages_of,
    request_of,
    settings_of,
    sides_of,
    text_of,
    whole,
    written,
)
from luthier.features.playground.heads import MAX_TEXTS, HeadAnswer, HeadForm, ask_head, head_by_name
from luthier.platform.home.context import Context
from luthier.platform.ui.errors import status_of
from luthier.platform.ui.forms import shown_once
from luthier.platform.ui.i18n.environments import words as page_words
from luthier.platform.ui.page_work import Led, page_work
from luthier.platform.ui.render import Page, page_language, redirect, render
from luthier.platform.ui.visitor import Asker, HomeContext, Trainer, one_state

router = APIRouter(prefix="/playground")
PAGE = Page("Playground", "/playground", "infer", order=60, key="p", group="use")

_FENCE: Final = re.compile(r"^```[^\n]*\n(.*?)(?:^```[ \t]*$\n?|\Z)", re.DOTALL | re.MULTILINE)
_PLACE: Final = re.compile(r"([1-9]):([0-9]{1,3})")


async def _form_of(request: Request) -> FormData:
    """Handlers that wait for nothing else stay plain functions."""
    return await request.form()


Sent = Annotated[FormData, Depends(_form_of)]


@dataclass(slots=True)
class _Shown:
    """What the page shows. saved: the test case that was just kept; notice: the result of feedback."""

    sides: list[Side]
    settings: dict[str, str]
    message: str = ""
    cases: str = DEFAULT_NAME
    error: LuthierError | None = None
    saved: SavedCase | None = None
    notice: str = ""
    unknown: Sequence[str] = ()


@router.get("")
@one_state
def show(
    request: Request, context: HomeContext, caller: Asker, model: Annotated[list[str] | None, Query()] = None
) -> Response:
    """A new conversation, with the models that the address names."""
    models = list_playground_models(context, caller)
    # A conversation continues: the form was sent by POST, and this is the page of the redirect.
    if (said := shown_once(request).take(request).get("said")) is not None:
        return _page(request, models, said)
    # Other pages link here by run, and people by name.
    known = {one.run_id: one.name for one in models if one.run_id} | {one.name: one.name for one in models}
    # The address is anybody's text, and is shown again where it names no model.
    wanted = [name[:1024] for name in model or [] if name][:MAX_SIDES]
    # Pages link here for models of any kind.
    if wanted and wanted[0] not in known and _has_form_of_its_own(context, caller, wanted[0]):
        return redirect(request, _head_address(wanted[0]))
    chosen = [known[name] for name in wanted if name in known] or [one.name for one in models[:1]]
    unknown = [name for name in wanted if name not in known]
    shown = _Shown([Side(name) for name in chosen], dict(DEFAULTS), unknown=unknown)
    return _page(request, models, shown)


@router.post("")
async def say(request: Request, context: HomeContext, caller: Asker, form: Sent) -> Response:
    """Without scripts: say something, or ask again, and have the page when all answers are there."""
    # Reading the database blocks, and this handler runs on the event loop.
    models = await run_in_threadpool(list_playground_models, context, caller)
    shown = _Shown([Side()], settings_of(form), text_of(form, "message"), text_of(form, "cases", DEFAULT_NAME))
    try:
        shown.sides = sides_of(form)
        chosen = [side for side in shown.sides if side.model]
        asked = _say(chosen, shown.message, is_again=form.get("do") == "again")
        requests = [(side, request_of(shown.settings, side.turns)) for side in asked]
    except LuthierError as error:
        shown.error = error
        return _page(request, models, shown, status=422)
    # One model that fails must not take the answer of the other away.
    answers = await asyncio.gather(
        *(whole(request, context, caller, s.model, r, _language(request)) for s, r in requests), return_exceptions=True
    )
    for side, answer in zip(asked, answers, strict=True):
        if isinstance(answer, LuthierError):
            side.error = answer
        # Nothing that a visitor could act on: it is a fault of the program.
        elif isinstance(answer, BaseException):
            raise answer
        elif answer is not None:
            side.turns.append(answer)
    # The question has moved into the conversation.
    shown.message = ""
    return _lead(request, shown)


@dataclass(frozen=True, slots=True)
class _HeadShown:
    """What the form of a task head shows."""

    form: HeadForm
    answer: HeadAnswer | None = None
    error: LuthierError | None = None


@router.get("/head")
def show_head(
    request: Request, context: HomeContext, caller: Asker, model: Annotated[str, Query(max_length=1024)] = ""
) -> Response:
    """The form of a model with a task head, and what it has just given; without a name the models to choose from."""
    shown: _HeadShown = shown_once(request).take(request).get("head") or _HeadShown(HeadForm(model=model))
    head, error = None, shown.error
    if name := shown.form.model:
        try:
            head = head_by_name(context, caller, name)
            if head is None:
                return redirect(request, f"/playground?model={quote(name, safe='')}")
        except LuthierError as found:
            error = error or found
    values = {
        "models": list_head_models(context, caller),
        "form": shown.form,
        "answer": shown.answer,
        "head": head,
        "error": error,
        "max_texts": MAX_TEXTS,
    }
    return render(request, "playground/head.html", values, status=200 if error is None else status_of(error))


@router.post("/head")
def use_head(request: Request, context: HomeContext, caller: Asker, form: Sent) -> Response:
    """Have a model with a task head read the form, and lead to what it gives."""
    asked = HeadForm.of(form)
    address = _head_address(asked.model)

    def work() -> Led:
        # An error leads back to the form as well, so that what was entered is not lost.
        try:
            shown = _HeadShown(asked, ask_head(context, caller, asked))
        except LuthierError as error:
            shown = _HeadShown(asked, error=error)
        return Led(shown_once(request).put(request, address, {"head": shown}))

    return page_work(request).answer(request, f"{asked.model} is reading", work, back=address)


def _head_address(name: str) -> str:
    return f"/playground/head?model={quote(name, safe='')}"


def _has_form_of_its_own(context: Context, caller: Caller, name: str) -> bool:
    try:
        return head_by_name(context, caller, name) is not None
    except ModelSourceError:
        return True  # which says what is wrong with its head
    except LuthierError:
        return False


@router.post("/answer")
async def answer(request: Request, context: HomeContext, caller: Asker, form: Sent) -> Response:
    """For scripts: the answer of one model to a conversation, as lines of JSON while it writes."""
    try:
        sides = sides_of(form)
        if len(sides) != 1 or not sides[0].model or not sides[0].turns or sides[0].turns[-1].role != "user":
            raise RequestError("nothing to answer", expected="a model and a question", do="write a question")
        turns = request_of(settings_of(form), sides[0].turns)
        lines = written(context, caller, sides[0].model, turns, _language(request))
        # Awaited before the response begins: a refusal still gets its own HTTP status.
        first = await anext(lines)
    except LuthierError as error:
        return _refused(request, error)
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return StreamingResponse(_after(first, lines), media_type="application/x-ndjson", headers=headers)


@router.post("/cases")
def save(request: Request, context: HomeContext, caller: Trainer, form: Sent) -> Response:
    """Keep an answer, as it should be, with the conversation before it; for scripts the answer is JSON."""
    is_script = "application/json" in request.headers.get("accept", "")
    shown = _Shown([Side()], settings_of(form), text_of(form, "message"), text_of(form, "cases", DEFAULT_NAME))
    try:
        shown.sides = sides_of(form)
        shown.saved = _save(context, caller, shown, form)
    except LuthierError as error:
        if is_script:
            return _refused(request, error)
        shown.error = error
        return _page(request, list_playground_models(context, caller), shown, status=status_of(error))
    if not is_script:
        return _lead(request, shown)
    dataset, version = shown.saved.dataset, shown.saved.version
    address = f"/datasets/{dataset.dataset_id}?version={version.number}"
    words = f"row {version.num_rows} of {dataset.name}, version {version.number}"
    return JSONResponse({"address": address, "words": words})


@router.post("/feedback")
def give(request: Request, context: HomeContext, caller: Asker, form: Sent) -> Response:
    """Store a thumb or a correction of an answer, by the signed-in user; for scripts the answer is JSON."""
    # The same address serves the page without scripts, which needs a redirect.
    is_script = "application/json" in request.headers.get("accept", "")
    shown = _Shown([Side()], settings_of(form), text_of(form, "message"), text_of(form, "cases", DEFAULT_NAME))
    try:
        shown.sides = sides_of(form)
        thumb, said = _said_of(shown, form, caller)
        # A thumb after a correction says nothing of the correction, which waits for review.
        given = (feedback.give_thumb if said.correction is None else feedback.give)(context, caller, said)
    except LuthierError as error:
        if is_script:
            return _refused(request, error)
        shown.error = error
        return _page(request, list_playground_models(context, caller), shown, status=status_of(error))
    if said.correction is not None:
        shown.notice = f"Saved, but {given.why_not}." if given.why_not else "Saved for review."
    elif given.feedback.correction:
        shown.notice = "Saved; your correction stays."
    elif thumb == "down":
        shown.notice = "Saved. What should it have said? Write it below the answer and send it for review."
    else:
        shown.notice = "Thanks, it is saved."
    if is_script:
        return JSONResponse({"thumb": thumb, "words": _language(request)(shown.notice)})
    return _lead(request, shown)


def _lead(request: Request, shown: _Shown) -> Response:
    """Redirect to the page with the conversation: a reload sends nothing again, and stores nothing twice."""
    return redirect(request, shown_once(request).put(request, "/playground", {"said": shown}))


def _say(sides: Sequence[Side], message: str, *, is_again: bool) -> list[Side]:
    """Put the question; returns those who are to answer.

    Raises:
        RequestError: No model is chosen, the message is empty, or there is no question to ask again.
    """
    if not sides:
        raise RequestError("no model is chosen", expected="one or two models", do="choose a model")
    if is_again:
        ready = [side for side in sides if side.ask_again()]
        if not ready:
            raise RequestError("there is no question yet", expected="a question", do="write a message first")
        return ready
    if not message.strip():
        raise RequestError("an empty message", expected="a question, or a text to continue", do="write a message")
    for side in sides:
        side.ask_next(message)
    return list(sides)


def _said_of(shown: _Shown, form: FormData, caller: Caller) -> tuple[str, FeedbackInput]:
    """The thumb of an answer, and the comment on it. A correction keeps the thumb that was given before."""
    word, _, place = text_of(form, "said").partition(":")
    side, turn = _place_of(shown, place)
    answer = side.turns[turn]
    if word not in ("up", "down", "correct") or not answer.exchange_id:
        raise RequestError("no feedback given", expected="an answer of this page", do="use the buttons of an answer")
    thumb: Thumb | None = word if word in ("up", "down") else answer.thumb or None  # type: ignore[assignment]
    # Fields of a form have no colon in their names.
    correction = text_of(form, f"reference-{place.replace(':', '-')}") if word == "correct" else None
    if correction is not None and correction.strip() in ("", answer.content.strip()):
        raise RequestError("a correction that equals the answer", expected="the correct answer", do="write it first")
    side.turns[turn] = answer.model_copy(update={"thumb": thumb or ""})
    return thumb or "", FeedbackInput(
        exchange_id=answer.exchange_id, thumb=thumb, correction=correction, author=caller.name
    )


def _place_of(shown: _Shown, text: str) -> tuple[Side, int]:
    """The side and the turn of `1:3`. Raises RequestError where there is no such answer."""
    place = _PLACE.fullmatch(text)
    number, turn = (int(place[1]) - 1, int(place[2])) if place else (MAX_SIDES, 0)
    # Turn 0 is a question, never an answer.
    if number >= len(shown.sides) or not 0 < turn < len(shown.sides[number].turns):
        raise RequestError("no such answer", expected="an answer on this page", do="choose one that is shown")
    return shown.sides[number], turn


def _save(context: Context, caller: Caller, shown: _Shown, form: FormData) -> SavedCase:
    place = text_of(form, "save")
    side, turn = _place_of(shown, place)
    conversation = messages_of(shown.settings, side.turns[:turn])
    reference = text_of(form, f"reference-{place.replace(':', '-')}")
    return save_case(context, caller, conversation, reference, dataset=shown.cases, model=side.model)


async def _after(first: bytes, lines: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield first
    async for line in lines:
        yield line


def _language(request: Request) -> Callable[[str], str]:
    """Writes a text in the language of the page."""
    return page_words(page_language(request, "playground/show.html"))


def _refused(request: Request, error: LuthierError) -> Response:
    headers = {"Retry-After": f"{error.retry_seconds:.0f}"} if isinstance(error, BusyError) else None
    return JSONResponse(
        {"error": error_document(error, _language(request))}, status_code=status_of(error), headers=headers
    )


def _page(request: Request, models: Sequence[PlaygroundModel], shown: _Shown, *, status: int = 200) -> Response:
    # An empty side is where a second model can be chosen.
    sides = [*shown.sides, *(Side() for _ in range(MAX_SIDES - len(shown.sides)))]
    # The list comes ordered by kind, as `groupby` needs it.
    groups = [(kind, list(ones)) for kind, ones in itertools.groupby(models, key=lambda one: one.kind)]
    values: dict[str, Any] = {
        "sides": sides,
        "groups": groups,
        "titles": defaultdict(str, {one.name: one.title for one in models}),
        "shown": shown,
        "settings": shown.settings,
        "efforts": EFFORTS,
        "pieces_of": _pieces,
        "again": [side.model for side in sides if side.model],
    }
    return render(request, "playground/show.html", values, status=status)


def _pieces(text: str) -> list[tuple[bool, str]]:
    """A text in pieces, each with whether it was between code fences."""
    pieces, at = [], 0
    for found in _FENCE.finditer(text):
        pieces += [(False, text[at : found.start()].strip("\n")), (True, found[1].rstrip("\n"))]
        at = found.end()
    pieces.append((False, text[at:].strip("\n")))
    return [piece for piece in pieces if piece[1]]
