"""The tokens of a prompt as its model reads it, without an answer: for the counting routes of two APIs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from fastapi import Request
from starlette.concurrency import run_in_threadpool

from luthier.core.access import Caller
from luthier.core.errors import LuthierError
from luthier.core.stream import TextRequest
from luthier.features.serving import service as serving
from luthier.features.serving.api.answering import USER_HEADER, Event, refused, watch
from luthier.features.serving.completion_stream import queued, uncancelled
from luthier.features.serving.models import route, user_of
from luthier.platform.home.context import Context
from luthier.platform.http.authentication import count_refused


async def counted(
    request: Request, context: Context, caller: Caller, model: str, asked: TextRequest
) -> serving.Answer | None:
    """Have the engine count a prompt; a disconnected client cancels it. None: the client is gone.

    Args:
        request: The client's HTTP request.
        context: The home.
        caller: The caller.
        model: The name in the request.
        asked: A request with `counts_tokens`.

    Raises:
        ApiError: The prompt or the model is refused.
    """
    inbox = asyncio.Queue[Event | None]()
    hear, answer = queued(inbox), serving.Answer([serving.Choice()])
    cancels: list[Callable[[], None]] = []

    def begin() -> None:
        answer.routed = route(context, caller, model, user_of(caller, [asked], request.headers.get(USER_HEADER)))
        # Stored at once instead of returned: if this task is cancelled, the return value of the thread is lost.
        cancels.append(serving.ask(context, caller, answer.routed, [asked], hear)[0])

    try:
        await run_in_threadpool(begin)
        watcher = asyncio.create_task(watch(request, inbox))
        try:
            while not answer.has_ended:
                event = await inbox.get()
                if event is None:
                    return None
                answer.hear(event)
        finally:
            watcher.cancel()
    except LuthierError as error:
        raise refused(error) from error
    finally:
        for cancel in cancels:
            cancel()
        await uncancelled(run_in_threadpool(_charge, context, caller, answer))
    if answer.error is not None:
        count_refused(request, answer.num_contexts)
        raise refused(answer.error)
    return answer


def _charge(context: Context, caller: Caller, answer: serving.Answer) -> None:
    """Only what another server has written is usage: counting costs no pass of a model of this one."""
    if answer.num_new_tokens:
        serving.charge(context, caller, answer)
    elif answer.num_refused_tokens:
        serving.charge_refused(context, caller, answer.num_refused_tokens)
