"""Answers for the playground: line by line while a model writes, or whole."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from typing import Any

from fastapi import Request

from luthier.core.access import Caller
from luthier.core.errors import BusyError, LuthierError, error_from
from luthier.core.stream import Ended, Failed, Piece, Started, TextRequest
from luthier.features.playground.form import Turn
from luthier.features.playground.models import route_to
from luthier.features.serving.completion_stream import CompletionStream
from luthier.ml.charts.figures import duration, speed
from luthier.platform.home.context import Context
from luthier.platform.ui.page_advice import page_advice

_MAX_CHARACTERS = 100
_ENDS = {"stop": "", "length": " · cut off at its limit", "tool_calls": ""}


async def written(context: Context, caller: Caller, model: str, asked: TextRequest) -> AsyncIterator[bytes]:
    """An answer as lines of JSON; the first comes when the ask was taken, and before it a LuthierError may.

    {"kind": "asked"}, {"kind": "started"}, {"kind": "thought", "text"}, {"kind": "text", "text"}, then
    {"kind": "ended", "facts", "exchange"} or {"kind": "failed", "error"}. Whoever stops reading stops the model.
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
                yield _line(kind="ended", facts=_facts(stream), exchange=stream.exchange.exchange_id)
                return
            elif isinstance(event, Failed):
                yield _line(kind="failed", error=error_document(error_from(event.error)))
                return
    finally:
        await stream.leave()


async def whole(request: Request, context: Context, caller: Caller, model: str, asked: TextRequest) -> Turn | None:
    """An answer, once it has ended; None where the reader has gone. Raises LuthierError."""
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
        found, told = stream.answer.choices[0], stream.exchange.exchange_id
        return Turn(
            role="assistant", content=found.text, facts=_facts(stream), exchange_id=told, thought=found.reasoning
        )
    finally:
        await stream.leave()


def error_document(error: LuthierError) -> dict[str, Any]:
    """An error for the page's script; retry_seconds: when there may be room."""
    document = {"came": error.came, "expected": error.expected, "do": page_advice(error.do).striptags()}
    if isinstance(error, BusyError):
        document |= {"do": f"ask again in {error.retry_seconds:.0f} s"}
    return document


def _facts(stream: CompletionStream) -> str:
    """`31 tokens read, 24 written · first after 0.2 s · 45 tokens/s`."""
    answer, now = stream.answer, time.monotonic()
    words = f"{answer.num_prompt_tokens:,} tokens read, {answer.num_new_tokens:,} written"
    if answer.num_thinking_tokens:
        words += f" ({answer.num_thinking_tokens:,} of them thought)"
    if stream.first_at:
        waited = stream.first_at - stream.began_at
        words += f" · first after {duration(waited) if waited >= 1 else f'{1000 * waited:.0f} ms'}"
        if answer.num_new_tokens > 1 and now > stream.first_at:
            # The first token is not counted: its time is that of reading the prompt.
            words += f" · {speed((answer.num_new_tokens - 1) / (now - stream.first_at))} tokens/s"
    return words + _options(stream) + _ENDS[answer.choices[0].reason or "stop"]


def _options(stream: CompletionStream) -> str:
    """The template options that the model was trained with, and so was asked with; shortened where they are long."""
    options = dict(stream.answer.routed.served.template_options) if stream.answer.routed else {}
    words = ", ".join(f"{name}={json.dumps(value)}" for name, value in options.items())
    return f" · {words if len(words) <= _MAX_CHARACTERS else words[:_MAX_CHARACTERS] + '…'}" if words else ""


def _line(**document: Any) -> bytes:
    # ASCII only: no character of the text can be taken for the end of a line.
    return json.dumps(document, ensure_ascii=True, separators=(",", ":")).encode() + b"\n"
