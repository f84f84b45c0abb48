"""An ask followed from an event loop: its events, its end, and what it has taken."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable
from typing import Any

import pytest

from luthier.core.access import Caller
from luthier.core.errors import BusyError, OverlongError
from luthier.core.records.traffic import is_of_calls
from luthier.core.stream import CallPiece, Ended, Failed, Piece, Served, Started, StreamEvent, TextRequest
from luthier.features.serving import service as serving
from luthier.features.serving.completion_stream import CompletionStream
from luthier.features.serving.models import Routed
from luthier.platform.home.context import Context

ME = Caller()
ROUTED = Routed("named", "tiny", Served(path="/x", sha256="0"))


class Writer:
    """Stands in for the process that answers: tells its events from a thread of its own."""

    def __init__(self, *events: StreamEvent) -> None:
        self.events, self.num_cancelled = events, 0

    def ask(self, _: Served, __: TextRequest, hear: Callable[[StreamEvent], None], **___: Any) -> Callable[[], None]:
        threading.Thread(target=lambda: [hear(event) for event in self.events]).start()

        def cancel() -> None:
            self.num_cancelled += 1

        return cancel


def writer(home: Context, monkeypatch: pytest.MonkeyPatch, *events: StreamEvent) -> Writer:
    made = Writer(*events)
    monkeypatch.setattr(home.inference_client, "ask", made.ask)
    return made


def used(home: Context) -> list[tuple[int, int]]:
    return [(day.num_prompt_tokens, day.num_new_tokens) for day in home.usage.list(ME.project_id, since="2000-01-01")]


def test_events_come_in_order_and_are_charged_once(home: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    events = (Started(num_prompt_tokens=3), Piece(text="a", num_new_tokens=1), Ended(reason="stop", num_new_tokens=2))
    writer(home, monkeypatch, *events)

    async def follow() -> list[StreamEvent | None]:
        stream = CompletionStream(home, ME, [TextRequest(text="x")])
        await stream.begin(lambda: ROUTED)
        heard = [await stream.next() for _ in events]
        await stream.charge()
        await stream.leave()
        assert (stream.answer.choices[0].text, stream.first_at > 0) == ("a", True)
        return heard

    assert asyncio.run(follow()) == list(events)
    assert used(home) == [(3, 2)]


def test_who_stops_reading_stops_the_model_and_pays_for_what_was_written(
    home: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = writer(home, monkeypatch, Started(num_prompt_tokens=3), Piece(text="a", num_new_tokens=1))

    async def follow() -> None:
        stream = CompletionStream(home, ME, [TextRequest(text="x")])

        async def read() -> None:
            try:
                await stream.begin(lambda: ROUTED)
                while True:
                    await stream.next()
            finally:
                await stream.leave()

        reading = asyncio.create_task(read())
        while not stream.answer.num_new_tokens:
            await asyncio.sleep(0.01)
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
        while not used(home):
            await asyncio.sleep(0.01)

    asyncio.run(follow())
    assert made.num_cancelled == 1
    assert used(home) == [(3, 1)]


def test_a_client_that_has_gone_is_told(home: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    writer(home, monkeypatch)

    async def follow() -> None:
        stream = CompletionStream(home, ME, [TextRequest(text="x")], hears_pieces=False)
        await stream.begin(lambda: ROUTED)

        async def receive() -> dict[str, str]:
            return {"type": "http.disconnect"}

        await stream.watch(receive)
        assert await stream.next() is None
        await stream.leave()

    asyncio.run(follow())
    assert used(home) == []


def test_what_refuses_the_ask_is_raised(home: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    def ask(*_: Any, **__: Any) -> None:
        raise BusyError("full", expected="room", do="wait")

    monkeypatch.setattr(home.inference_client, "ask", ask)
    with pytest.raises(BusyError):
        asyncio.run(CompletionStream(home, ME, [TextRequest(text="x")]).begin(lambda: ROUTED))


@pytest.mark.parametrize("is_late", [False, True])
def test_where_one_prompt_fails_the_others_are_not_answered_for_nobody(
    home: Context, monkeypatch: pytest.MonkeyPatch, is_late: bool
) -> None:
    cancelled, heard = list[str](), dict[str, Callable[[StreamEvent], None]]()

    def ask(_: Served, request: TextRequest, hear: Callable[[StreamEvent], None], **__: Any) -> Callable[[], None]:
        heard[str(request.text)] = hear
        if request.text == ("short" if is_late else "long"):
            heard["long"](Failed.of(OverlongError("too long", expected="less", do="shorten it")))
        return lambda: cancelled.append(str(request.text))

    monkeypatch.setattr(home.inference_client, "ask", ask)
    monkeypatch.setattr(serving, "route", lambda *_: ROUTED)
    with pytest.raises(OverlongError, match="too long"):
        serving.complete(home, ME, "named", [TextRequest(text="long"), TextRequest(text="short")])
    # What was sent before is cancelled; what was not is not sent any more.
    assert "short" in cancelled if is_late else list(heard) == ["long"]


@pytest.mark.parametrize("said", ["I look it up.", ""])
def test_what_an_answer_says_beside_its_calls_is_logged_with_them(
    said: str, home: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = CallPiece(index=0, call_id="c1", name="price", arguments='{"wood": "maple"}')
    events = (
        Started(num_prompt_tokens=3),
        Piece(text=said, num_new_tokens=1),
        Piece(text="", calls=(call,), num_new_tokens=8),
        Ended(reason="tool_calls", num_new_tokens=9),
    )
    writer(home, monkeypatch, *events)

    async def follow() -> str:
        stream = CompletionStream(home, ME, [TextRequest(text="x")])
        await stream.begin(lambda: ROUTED)
        for _ in events:
            await stream.next()
        words = stream._words()
        await stream.leave()
        assert words is not None
        return words[1]

    logged = asyncio.run(follow())
    function = {"name": "price", "arguments": '{"wood": "maple"}'}
    calls = [{"id": "c1", "type": "function", "function": function}]
    assert json.loads(logged) == ({"content": said} if said else {}) | {"tool_calls": calls}
    assert is_of_calls(logged)
