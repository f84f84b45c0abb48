"""A chat of the playground: the models to choose from, its form, and answers, streamed line by line or whole."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from fastapi import Request
from pydantic import Field, TypeAdapter, ValidationError
from starlette.datastructures import FormData

from luthier.core.access import Caller
from luthier.core.conversation import Conversation, Message
from luthier.core.errors import BusyError, LuthierError, RequestError, error_from
from luthier.core.frozen_model import FrozenModel
from luthier.core.ids import is_id
from luthier.core.stream import Ended, Failed, Piece, Sampling, Started, TextRequest
from luthier.core.task_head import is_task_model
from luthier.core.text.counted import counted
from luthier.core.text.names import distinct_names
from luthier.features.serving.completion_stream import CompletionStream
from luthier.features.serving.models import Routed, fastest, head_of_deployment, route, user_of
from luthier.features.serving.service import new_seed
from luthier.features.serving.targets import local_base_models, served_target
from luthier.ml.charts.figures import duration, speed
from luthier.platform.home.context import Context
from luthier.platform.ui.render import page_advice

_MAX_RUNS: Final = 50


class PlaygroundModel(FrozenModel):
    """A model or run by its name.

    Attributes:
        name: Its name in requests.
        kind: Its group, in the plural.
        title: What people call it, where that is another one: the name of the run that made it.
        note: A hint next to the name.
        run_id: The run that made a tuned model, and is then not listed separately.
        has_task_head: Whether it writes no text, and has its own form.
    """

    name: str
    kind: str
    title: str = ""
    note: str = ""
    run_id: str | None = None
    has_task_head: bool = False


def list_playground_models(context: Context, caller: Caller) -> Sequence[PlaygroundModel]:
    """What writes text: deployments, tuned models, runs that have succeeded, and base models on this machine.

    The newest of each first; of runs the newest 50.
    """
    found = [one for one in _made_models(context, caller) if not one.has_task_head]
    return [
        *found,
        *(PlaygroundModel(name=name, kind="base models") for name in local_base_models(context, caller.project_id)),
    ]


def list_head_models(context: Context, caller: Caller) -> Sequence[PlaygroundModel]:
    """The same of models with a task head."""
    return [one for one in _made_models(context, caller) if one.has_task_head]


def _made_models(context: Context, caller: Caller) -> list[PlaygroundModel]:
    own, permitted = context.tuned_models.list(caller.project_id), context.tuned_models.permitted(caller.project_id)
    runs = [run for run in context.runs.of_project(caller.project_id, limit=_MAX_RUNS) if run.status == "succeeded"]
    # Runs of this project alone have names here: who permits a checkpoint shows its name in requests.
    made_by = dict.fromkeys([*(one.run_id for one in own), *(run.run_id for run in runs)])
    titles = distinct_names(context.run_labels.names(list(made_by)))
    found = [
        PlaygroundModel(
            name=one.name,
            kind="deployments",
            note=", ".join(titles.get(share.target, share.target) for share in one.revision.shares),
            has_task_head=head_of_deployment(context, caller, one) is not None,
        )
        for one in context.deployments.list(caller.project_id)
    ]
    found += [
        PlaygroundModel(
            name=one.model_id,
            kind="tuned models",
            title=_title(titles.get(one.run_id, ""), one.step),
            run_id=one.run_id if one.step is None else None,
            has_task_head=is_task_model(one.adapter_path),
        )
        for one in (*own, *permitted)
    ]
    named = {one.run_id for one in found}
    for run in runs:
        made = None if run.result is None else run.result.adapter_path
        if made is not None and run.run_id not in named and Path(made).is_dir():
            note, has_head = f"{run.base_model}, {run.method}", is_task_model(made)
            title = titles[run.run_id]
            found.append(PlaygroundModel(name=run.run_id, kind="runs", title=title, note=note, has_task_head=has_head))
    return found


def _title(run_name: str, step: int | None) -> str:
    """What people call a tuned model; a checkpoint is named with its step."""
    return f"{run_name}, step {step:,}" if run_name and step is not None else run_name


def route_to(context: Context, caller: Caller, name: str, requests: Sequence[TextRequest]) -> Routed:
    """Who answers to a name, or what a run of the project has made.

    Raises:
        NotFoundError: The project has no model or run of this name.
        ConflictError: The run has no result that can be served.
    """
    if is_id(name, "run"):
        return Routed(name, name, fastest(context, served_target(context, caller, name)))
    return route(context, caller, name, user_of(caller, requests))


MAX_SIDES: Final = 2
MAX_TURNS: Final = 200
MAX_CHARACTERS: Final = 400_000
"""Of a conversation, all turns together."""
_MAX_STOPS: Final = 4
_MAX_STOP_CHARACTERS: Final = 1024
DEFAULTS: Final = {
    "system": "", "temperature": "0.7", "top_p": "1", "max_tokens": "256", "seed": "", "stop": "", "effort": "",
}  # fmt: skip
EFFORTS: Final = {"": "as the model was trained", "none": "none", "low": "low", "medium": "medium", "high": "high"}
"""How much a model is to think, by the value of the field; what it means is the chat template's."""


class Turn(FrozenModel):
    """One turn of a conversation.

    Attributes:
        role: Who says it.
        content: The text.
        facts: Of an answer, its tokens and times, as text.
        exchange_id: Of an answer, its id in the traffic log.
        thumb: That was given to an answer.
        thought: Written before the answer; it is shown, and not sent back to the model.
    """

    role: Literal["user", "assistant"]
    content: str
    facts: str = Field(default="", max_length=300)
    exchange_id: str = Field(default="", max_length=128)
    thumb: Literal["", "up", "down"] = ""
    thought: str = ""


_TURNS: Final[TypeAdapter[tuple[Turn, ...]]] = TypeAdapter(tuple[Turn, ...])


@dataclass(slots=True)
class Side:
    """A model and the conversation with it. error: why the last request failed."""

    model: str = ""
    turns: list[Turn] = field(default_factory=list)
    error: Exception | None = None

    def as_json(self) -> str:
        """The conversation for a hidden field, in signs that no page shows in another way."""
        return json.dumps([turn.model_dump() for turn in self.turns])

    def ask_next(self, message: str) -> None:
        """Add a message; it replaces a question that was never answered."""
        # Its model had failed; two questions in a row would not fit the chat template.
        if self.turns and self.turns[-1].role == "user":
            self.turns.pop()
        self.turns.append(Turn(role="user", content=message))

    def ask_again(self) -> bool:
        """Take the last answer back; returns whether there is a question to be answered."""
        if self.turns and self.turns[-1].role == "assistant":
            self.turns.pop()
        return bool(self.turns)


def sides_of(form: FormData) -> list[Side]:
    """The models and the conversation with each.

    Raises:
        RequestError: A conversation is not one that the page has written, or is too long.
    """
    # A field may come as a file, which is not text.
    models = [text for text in form.getlist("model") if isinstance(text, str)][:MAX_SIDES]
    talks = [text for text in form.getlist("talk") if isinstance(text, str)][:MAX_SIDES]
    # A side without messages may have no field.
    talks += ["[]"] * (len(models) - len(talks))
    return [Side(model, _turns(stream)) for model, stream in zip(models, talks, strict=False)]


def settings_of(form: FormData) -> dict[str, str]:
    """All settings as they were written, to be shown again."""
    return {name: text_of(form, name, default) for name, default in DEFAULTS.items()}


def text_of(form: FormData, name: str, default: str = "") -> str:
    """A field that is text; forms end lines as the web does, models as all others do."""
    found = form.get(name, default)
    return found.replace("\r\n", "\n") if isinstance(found, str) else default


def request_of(settings: Mapping[str, str], turns: Sequence[Turn]) -> TextRequest:
    """The request to the model.

    Raises:
        RequestError: An invalid setting.
    """
    seed = settings["seed"].strip()
    sampling = Sampling(
        temperature=_number(settings, "temperature", 0, 2),
        top_p=_number(settings, "top_p", 0, 1),
        # A new one each time, so that asking again gives another answer.
        seed=int(_number(settings, "seed", -(2**62), 2**62, is_whole=True)) if seed else new_seed(),
    )
    return TextRequest(
        conversation=Conversation(messages=messages_of(settings, turns)),
        sampling=sampling,
        max_new_tokens=int(_number(settings, "max_tokens", 1, 100_000, is_whole=True)),
        stop=_stops(settings["stop"]),
        reasoning_effort=_effort(settings["effort"]),
    )


def messages_of(settings: Mapping[str, str], turns: Sequence[Turn]) -> tuple[Message, ...]:
    """The conversation, with the system prompt before it. Raises RequestError for one that is too long."""
    _check(turns, len(settings["system"]))
    begin = [Message(role="system", content=settings["system"])] if settings["system"].strip() else []
    return (*begin, *(Message(role=turn.role, content=turn.content) for turn in turns))


def _turns(text: str) -> list[Turn]:
    try:
        # The hidden field comes back from the browser, and may have been changed there.
        found = list(_TURNS.validate_json(text or "[]"))
    except ValidationError:
        raise RequestError(
            "a conversation that does not come from this page",
            expected="the hidden field, unchanged",
            do="start a new conversation",
        ) from None
    _check(found, 0)
    return found


def _check(turns: Sequence[Turn], more: int) -> None:
    num_characters = more + sum(len(turn.content) for turn in turns)
    if len(turns) > MAX_TURNS or num_characters > MAX_CHARACTERS:
        raise RequestError(
            f"a conversation of {len(turns):,} turns and {num_characters:,} characters",
            expected=f"at most {MAX_TURNS} turns and {MAX_CHARACTERS:,} characters",
            do="start a new conversation",
        )


def _number(settings: Mapping[str, str], name: str, low: float, high: float, *, is_whole: bool = False) -> float:
    text = settings[name].strip()
    try:
        found = float(int(text)) if is_whole else float(text)
    except (ValueError, OverflowError):
        found = float("nan")
    # No comparison is true of NaN, so a text that is not a number is refused here, too.
    if not low <= found <= high:
        what = "a whole number" if is_whole else "a number"
        raise RequestError(
            f"{name.replace('_', ' ')} {text[:40]!r}", expected=f"{what} from {low:,} to {high:,}", do="correct it"
        )
    # From the text again: a float cannot hold every seed of 62 bits.
    return int(text) if is_whole else found


def _effort(text: str) -> str | None:
    if text not in EFFORTS:
        raise RequestError(f"thinking {text[:40]!r}", expected=f"one of {', '.join(EFFORTS)}", do="choose one of these")
    return text or None


def _stops(text: str) -> tuple[str, ...]:
    found = tuple(line for line in text.replace("\r", "").split("\n") if line)
    if len(found) > _MAX_STOPS or any(len(stop) > _MAX_STOP_CHARACTERS for stop in found):
        raise RequestError(
            f"{len(found)} texts to stop at",
            expected=f"at most {_MAX_STOPS}, one a line, of at most {_MAX_STOP_CHARACTERS:,} characters",
            do="leave some out",
        )
    return found


_MAX_CHARACTERS = 100
Say = Callable[[str], str]
"""Writes a text in the language of the page."""
_ENDS = {"stop": "", "length": "cut off at its limit", "tool_calls": ""}


async def written(
    context: Context, caller: Caller, model: str, asked: TextRequest, say: Say = str
) -> AsyncIterator[bytes]:
    """An answer as lines of JSON; the first comes when the ask was taken, and before it a LuthierError may.

    {"kind": "asked"}, {"kind": "started"}, {"kind": "thought", "text"}, {"kind": "text", "text"}, then
    {"kind": "ended", "facts", "exchange"} or {"kind": "failed", "error"}. The model stops when the reader stops
    reading. say: writes a text in the language of the page.
    """
    stream = CompletionStream(context, caller, [asked], model=model)
    try:
        await stream.begin(lambda: route_to(context, caller, model, [asked]))
        yield _line(kind="asked")
        while (event := await stream.next()) is not None:
            if isinstance(event, Started):
                yield _line(kind="started")
            elif isinstance(event, Piece):
                if event.reasoning:
                    yield _line(kind="thought", text=event.reasoning)
                if event.text or not event.reasoning:
                    yield _line(kind="text", text=event.text)
            elif isinstance(event, Ended):
                # Charged before the last line: a page that reads its usage then finds this answer in it.
                await stream.charge()
                yield _line(kind="ended", facts=_facts(stream, say), exchange=stream.exchange.exchange_id)
                return
            elif isinstance(event, Failed):
                yield _line(kind="failed", error=error_document(error_from(event.error), say))
                return
    finally:
        await stream.leave()


async def whole(
    request: Request, context: Context, caller: Caller, model: str, asked: TextRequest, say: Say = str
) -> Turn | None:
    """An answer, once it has ended; None where the reader is gone.

    Raises:
        LuthierError: The model cannot answer; the error is the one that the answer ended with.
    """
    stream = CompletionStream(context, caller, [asked], model=model, hears_pieces=False)
    try:
        await stream.begin(lambda: route_to(context, caller, model, [asked]))
        watcher = asyncio.create_task(stream.watch(request.receive))
        try:
            while not stream.answer.has_ended:
                if await stream.next() is None:
                    return None
        finally:
            watcher.cancel()
        if stream.answer.error is not None:
            raise stream.answer.error
        found, exchange_id = stream.answer.choices[0], stream.exchange.exchange_id
        return Turn(
            role="assistant",
            content=found.text,
            facts=_facts(stream, say),
            exchange_id=exchange_id,
            thought=found.reasoning,
        )
    finally:
        await stream.leave()


def error_document(error: LuthierError, say: Say = str) -> dict[str, Any]:
    """An error for the page's script; retry_seconds: when there may be room."""
    do = f"try again in {error.retry_seconds:.0f} s" if isinstance(error, BusyError) else error.do
    return {"came": say(error.came), "expected": say(error.expected), "do": page_advice(say(do), say).striptags()}


def _facts(stream: CompletionStream, say: Say) -> str:
    """`31 tokens read, 24 written · first after 0.2 s · 45 tokens/s`."""
    answer, now = stream.answer, time.monotonic()
    words = f"{counted(answer.num_prompt_tokens, 'token')} read, {answer.num_new_tokens:,} written"
    if answer.num_thinking_tokens:
        words += f" ({answer.num_thinking_tokens:,} of them thought)"
    parts = [say(words)]
    if stream.first_at:
        waited = stream.first_at - stream.began_at
        parts.append(say(f"first after {duration(waited) if waited >= 1 else f'{1000 * waited:.0f} ms'}"))
        if answer.num_new_tokens > 1 and now > stream.first_at:
            # The first token is not counted: its time is that of reading the prompt.
            parts.append(say(f"{speed((answer.num_new_tokens - 1) / (now - stream.first_at))} tokens/s"))
    parts += [_options(stream), say(_ENDS[answer.choices[0].reason or "stop"])]
    return " · ".join(filter(None, parts))


def _options(stream: CompletionStream) -> str:
    """The template options that the model was trained with, and so is prompted with; shortened where they are long."""
    options = dict(stream.answer.routed.served.template_options) if stream.answer.routed else {}
    words = ", ".join(f"{name}={json.dumps(value)}" for name, value in options.items())
    return words if len(words) <= _MAX_CHARACTERS else words[:_MAX_CHARACTERS] + "…"


def _line(**document: Any) -> bytes:
    # ASCII only: no character of the text can be taken for the end of a line.
    return json.dumps(document, ensure_ascii=True, separators=(",", ":")).encode() + b"\n"
