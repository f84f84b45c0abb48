"""The form of models with a task head: a text in, and labels with probabilities, a number, a ranking or the nearest
texts out. Each form is one request, counted and recorded as those of the API are."""

from __future__ import annotations

import queue
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from starlette.datastructures import FormData

from luthier.core.access import Caller
from luthier.core.conversation import Conversation, Message
from luthier.core.errors import ConflictError, ModelSourceError, RequestError, error_from
from luthier.core.frozen_model import FrozenModel
from luthier.core.pooling import PoolingRequest
from luthier.core.stream import Failed, Pooled, StreamEvent
from luthier.core.task_head import TaskHead, TaskHeadKind
from luthier.features.playground.chat import MAX_CHARACTERS, route_to, text_of
from luthier.features.serving import service as serving
from luthier.features.serving.head_answers import classified, embedding_request, ranking_request
from luthier.features.serving.models import Routed, head_of
from luthier.features.traffic.log import Operation, RequestRecord
from luthier.platform.home.context import Context

MAX_TEXTS: Final = 200
"""Documents of a form."""
_MAX_LINES: Final = 20
_MAX_LINE_CHARACTERS: Final = 600
_MAX_TITLE_CHARACTERS: Final = 160
_BLANK_LINE: Final = re.compile(r"\n[ \t]*\n")
_OPERATIONS: Final[dict[TaskHeadKind, Operation]] = {
    "classify": "classify",
    "regress": "classify",
    "rank": "rerank",
    "embed": "embeddings",
}


class HeadForm(FrozenModel):
    """What was entered.

    Attributes:
        model: Its name in requests.
        text: What is read; of models that search the query.
        system: Instructions before the text.
        documents: Of models that search: the documents, as `documents_of` separates them.
        dimensions: Of embeddings: how many numbers of each vector; empty for all.
    """

    model: str = ""
    text: str = ""
    system: str = ""
    documents: str = ""
    dimensions: str = ""

    @classmethod
    def of(cls, form: FormData) -> HeadForm:
        """The fields of a form that was sent; those it lacks are empty.

        Raises:
            RequestError: One is too long.
        """
        found = {name: text_of(form, name) for name in cls.model_fields}
        num = sum(map(len, found.values()))
        if num > MAX_CHARACTERS:
            raise RequestError(
                f"{num:,} characters in the form", expected=f"at most {MAX_CHARACTERS:,}", do="leave some out"
            )
        return cls(**found | {"model": found["model"][:1024]})


@dataclass(frozen=True, slots=True)
class HeadLine:
    """One line of an answer, with a bar.

    Attributes:
        text: A label or a document, cut where it is long.
        value: Its probability, relevance or similarity, for people.
        share: Of the whole bar, 0 to 1.
        is_given: Whether the model gives this label.
    """

    text: str
    value: str
    share: float
    is_given: bool = False


@dataclass(frozen=True, slots=True)
class HeadAnswer:
    """What a model has given.

    Attributes:
        kind: Of its head.
        title: The answer in a few words.
        lines: Labels or documents, the likeliest or most relevant first.
        num_left_out: Labels that have no line.
        note: What a person should know of the figures; empty for nothing.
        num_tokens: That were read.
    """

    kind: TaskHeadKind
    title: str
    lines: tuple[HeadLine, ...]
    num_left_out: int
    note: str
    num_tokens: int


def head_by_name(context: Context, caller: Caller, name: str) -> TaskHead | None:
    """The head of a model; None where it writes text.

    Raises:
        NotFoundError: The project has no model or run of this name.
        ConflictError: The run has no result that can be served.
        ModelSourceError: The task head of the model is damaged.
    """
    return _found(context, caller, name)[1]


def _found(context: Context, caller: Caller, name: str) -> tuple[Routed, TaskHead | None]:
    """Who answers to a name, with its head. Messages name no path of this machine, which a visitor must not learn."""
    try:
        routed = route_to(context, caller, name, [])
        return routed, head_of(routed.served)
    except ConflictError:
        raise ConflictError(
            f"{name} has no model that can be used yet",
            expected="a run that has succeeded",
            do="see its page, and resume it",
        ) from None
    except ModelSourceError:
        raise ModelSourceError(
            f"the task head of {name} is damaged",
            expected="its files as the run wrote them",
            do="train it again, or copy the files of its run again",
        ) from None


def documents_of(text: str) -> list[str]:
    """Pasted documents: those between empty lines, or, where there is no empty line, one a line."""
    # Documents of several lines are possible as soon as one empty line separates two of them.
    parts = _BLANK_LINE.split(text) if _BLANK_LINE.search(text.strip()) else text.splitlines()
    return [part.strip() for part in parts if part.strip()]


def ask_head(context: Context, caller: Caller, form: HeadForm) -> HeadAnswer:
    """What a model with a task head gives of a form.

    Args:
        context: The home.
        caller: Whose budget is used.
        form: What was entered.

    Raises:
        RequestError: The model writes text, or something is missing or does not fit.
        NotFoundError: The project has no model or run of this name.
        ConflictError: The run has no result that can be served.
        ModelSourceError: The task head of the model is damaged.
        QuotaError: The daily token budget of the caller is used up.
        BusyError: Too many requests are running or waiting.
        WorkError: The server is shutting down, or the engine process has ended.
    """
    routed, head = _found(context, caller, form.model)
    if head is None:
        raise RequestError(
            f"{form.model} writes text", expected="a model with a task head", do="chat with it in the playground"
        )
    what = "query" if head.kind in ("rank", "embed") else "text"
    if not form.text.strip():
        raise RequestError(
            f"no {what}",
            expected=f"a {what} that is not empty",
            do="write a query" if what == "query" else "write a text",
        )
    if head.kind in ("rank", "embed"):
        return _searched(context, caller, routed, head, form)
    messages = [Message(role="system", content=form.system)] if form.system.strip() else []
    conversation = Conversation(messages=(*messages, Message(role="user", content=form.text)))
    asked = PoolingRequest(conversations=(conversation,), kind=head.kind)
    pooled = _ask(context, caller, routed, asked, head.kind)
    make = _number if head.kind == "regress" else _labels
    return make(head, pooled.outputs[0], pooled.num_prompt_tokens)


def _ask(context: Context, caller: Caller, routed: Routed, asked: PoolingRequest, kind: TaskHeadKind) -> Pooled:
    """One request, waited for; charged and recorded however it ends."""
    exchange = RequestRecord(context, caller, routed.model, operation=_OPERATIONS[kind])
    events: queue.SimpleQueue[StreamEvent] = queue.SimpleQueue()
    failure: BaseException | None = None
    num_tokens = 0
    try:
        cancel: Callable[[], None] = serving.ask_pooling(context, caller, routed, asked, events.put)
        try:
            # Blocks the thread of this request alone; the engine's thread puts the event.
            event = events.get()
        finally:
            cancel()
        if isinstance(event, Failed):
            serving.charge_refused(context, caller, event.num_refused_tokens)
            raise error_from(event.error)
        assert isinstance(event, Pooled)
        num_tokens = event.num_prompt_tokens
        serving.charge_pooled(context, caller, event, routed)
        return event
    # BaseException, so that the exchange is recorded however it ends.
    except BaseException as error:
        failure = error
        raise
    finally:
        exchange.end(routed, error=failure, num_prompt_tokens=num_tokens)


def _labels(head: TaskHead, outputs: Sequence[float], num_tokens: int) -> HeadAnswer:
    given = head.labels_of(outputs)
    # Stable: of equal probabilities the commonest class comes first.
    order = sorted(range(len(outputs)), key=lambda place: -outputs[place])
    lines = [
        HeadLine(_short(head.labels[n]), f"{outputs[n]:.1%}", outputs[n], head.labels[n] in given)
        for n in order[:_MAX_LINES]
    ]
    if head.is_multi_label:
        note = f"Each label has its own probability; it is given from {head.threshold:.0%} on."
    else:
        note = "The probabilities of all labels add up to 100%."
    title = ", ".join(given) or f"No label: none has a probability of {head.threshold:.0%} or more"
    return HeadAnswer("classify", title, tuple(lines), len(order) - len(lines), note, num_tokens)


def _number(head: TaskHead, outputs: Sequence[float], num_tokens: int) -> HeadAnswer:
    # Already in the unit of the training rows.
    value, low, high = outputs[0], head.lowest, head.highest
    title = str(classified(head, outputs)["label"])
    if low is None or high is None or high <= low:
        return HeadAnswer("regress", title, (), 0, "", num_tokens)
    note = "The bar goes from the smallest to the largest number of the training rows."
    if not low <= value <= high:
        note = "It is outside the range of the training rows, which the bar covers: it may be far off."
    # The bar is clamped; the figure beside it is not.
    share = min(1.0, max(0.0, (value - low) / (high - low)))
    line = HeadLine(f"{low:,g} to {high:,g} in the training rows", title, share)
    return HeadAnswer("regress", title, (line,), 0, note, num_tokens)


def _searched(context: Context, caller: Caller, routed: Routed, head: TaskHead, form: HeadForm) -> HeadAnswer:
    documents = documents_of(form.documents)
    if not documents or len(documents) > MAX_TEXTS:
        raise RequestError(
            f"{len(documents):,} documents" if documents else "no documents",
            expected=f"1 to {MAX_TEXTS} documents, separated by empty lines, or one a line",
            do="leave some out" if documents else "paste some",
        )
    if head.kind == "rank":
        asked = ranking_request(head, [(form.text, document) for document in documents])
        pooled = _ask(context, caller, routed, asked, head.kind)
        values = [outputs[0] for outputs in pooled.outputs]
        note = "Relevance, 0 to 1, orders the documents of one query; alone, it does not say that one is relevant."
    else:
        length = _dimensions(form.dimensions)
        of_documents = embedding_request(routed.served, head, documents, length, is_query=False)
        # One request for both: only the text before them differs.
        query = embedding_request(routed.served, head, [form.text], length, is_query=True).inputs
        # Also of a model whose vectors have another length: the product of two of length 1 is their cosine.
        asked = of_documents.model_copy(update={"inputs": (*query, *of_documents.inputs), "is_normalised": True})
        pooled = _ask(context, caller, routed, asked, head.kind)
        first, *rest = pooled.outputs
        values = [sum(a * b for a, b in zip(first, vector, strict=True)) for vector in rest]
        note = f"Cosine similarity, -1 to 1, of vectors of {len(first):,} numbers."
    order = sorted(range(len(documents)), key=lambda place: -values[place])
    lines = [HeadLine(_short(documents[n]), f"{values[n]:.3f}", min(1.0, max(0.0, values[n]))) for n in order]
    return HeadAnswer(
        head.kind, _short(documents[order[0]], _MAX_TITLE_CHARACTERS), tuple(lines), 0, note, pooled.num_prompt_tokens
    )


def _dimensions(text: str) -> int | None:
    if not text.strip():
        return None
    try:
        return int(text)
    except ValueError:
        raise RequestError(
            f"dimensions {text[:50]!r}", expected="a whole number", do="choose one of the list"
        ) from None


def _short(text: str, most: int = _MAX_LINE_CHARACTERS) -> str:
    return text if len(text) <= most else f"{text[:most]}\N{HORIZONTAL ELLIPSIS}"
