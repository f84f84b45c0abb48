"""Concurrent streamed answers from a server with OpenAI's API, as server-sent events.

Every answer is a task of an event loop in a separate thread: cancelling it closes its connection, which stops the
server. All events go into one queue, which `poll` reads.

A request is retried only before its first event: later a retry would produce another answer.
"""

from __future__ import annotations

import asyncio
import logging
import os
import queue
import random
import time
from collections.abc import Callable, Coroutine, Hashable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import httpx2

from luthier.core.errors import LuthierError, RequestError, WorkError
from luthier.core.ports import KeyedEvent
from luthier.core.stream import Ended, Failed, Piece, Served, Started, TextRequest
from luthier.core.system.process_setup import start_daemon
from luthier.ml.inference.engine_prompts import CallsInText, check_one_prompt
from luthier.ml.inference.engine_wrappers import is_passing, pause_seconds
from luthier.ml.inference.openai.chunks import ChunkReader, async_event_stream_lines
from luthier.ml.inference.openai.messages import (
    auth_headers,
    bad_answer,
    error_of,
    server_words,
    stream_body,
    stream_path,
    truncation,
    without_key,
)
from luthier.ml.inference.thoughts import Thinking

log = logging.getLogger("luthier.engines")

DEFAULT_REQUESTS: Final = 32
NUM_ATTEMPTS: Final = 4
_CONNECT_SECONDS: Final = 15.0
_CLOSE_SECONDS: Final = 10.0
_MAX_LINE: Final = 1 << 24


@dataclass(slots=True, eq=False)
class _Ask:
    """A request in progress.

    Attributes:
        futures: one per choice.
    """

    key: Hashable
    asked: TextRequest
    model: str
    num_open: int
    calls: Callable[[], CallsInText] | None
    extra: dict[str, Any]
    thinking: Thinking | None = None
    has_started: bool = False
    futures: list[Future[None]] = field(default_factory=list)


class OpenAIStreamEngine:
    """A model of an OpenAI-compatible server, and its other models as adapters by name.

    Args:
        url: including the version.
        model: its name on the server.
        api_key: never appears in messages.
        most_answers: maximum concurrent answers.
        timeout_seconds: maximum silence.
        first_pause_seconds: pause before the second attempt; doubled with each further one.
        extra: additional fields of every request, for servers with extensions.
        num_bytes: reported as the memory of the model; 0 for a model on another machine.
        socket_path: the socket in the file system where the server listens; None for the host and port of `url`.
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        api_key: str | None = None,
        most_answers: int = DEFAULT_REQUESTS,
        timeout_seconds: float = 300.0,
        first_pause_seconds: float = 0.5,
        extra: Mapping[str, Any] | None = None,
        num_bytes: int = 0,
        socket_path: Path | None = None,
    ) -> None:
        self._url, self._model, self._key = url.rstrip("/"), model, (api_key or "").strip()
        self._most_answers, self._first_pause = most_answers, first_pause_seconds
        self._extra, self._num_bytes = dict(extra or {}), num_bytes
        self._limit_name = "max_tokens"  # newer models of OpenAI reject it; detected from the first rejection
        self._adapters: dict[str, str] = {}
        self._asks: dict[Hashable, _Ask] = {}
        # The only object that both threads use, besides the futures; `_asks` belongs to the caller's thread.
        self._inbox: queue.SimpleQueue[tuple[_Ask, Started | Piece | Ended | Failed]] = queue.SimpleQueue()
        # A few more than answers: cancelled requests close their connection only after the loop has run.
        limits = httpx2.Limits(max_connections=most_answers + 16, max_keepalive_connections=most_answers)
        self._client = httpx2.AsyncClient(
            headers=auth_headers(self._key),
            timeout=httpx2.Timeout(timeout_seconds, connect=min(_CONNECT_SECONDS, timeout_seconds)),
            limits=limits,
            # Without its own transport the client follows the proxies of the environment.
            transport=None if socket_path is None else httpx2.AsyncHTTPTransport(uds=str(socket_path), limits=limits),
        )
        self._loop: asyncio.AbstractEventLoop | None = asyncio.new_event_loop()
        self._thread = start_daemon(self._loop.run_forever, "openai-stream")

    @property
    def keys(self) -> set[Hashable]:
        """The keys of the requests in progress."""
        return set(self._asks)

    @property
    def num_bytes(self) -> int:
        """The value given to the constructor."""
        return self._num_bytes

    def load_adapter(self, name: str, path: str) -> None:
        """Use `name` for the server's model `path`; a missing model is detected at the first request."""
        self._adapters[name] = path

    def unload_adapter(self, name: str) -> None:
        """Forget the name."""
        self._adapters.pop(name, None)

    def ask(
        self,
        key: Hashable,
        request: TextRequest,
        adapter: str | None,
        *,
        calls: Callable[[], CallsInText] | None = None,
        extra: Mapping[str, Any] | None = None,
        thinking: Thinking | None = None,
    ) -> bool:
        """Start generating; false if the maximum number of answers is in progress.

        Requests that the server rejects produce `Failed`.

        Args:
            key: identifies the request in events and `cancel`.
            request: the request.
            adapter: name of a loaded adapter; None for the model itself.
            calls: created per choice; parses tool calls from its text.
            extra: added to the body of this request.
            thinking: the format of reasoning in the text of each choice.

        Raises:
            RequestError: the engine is closed, or the adapter is unknown.
        """
        loop = self._check_open()
        if adapter is not None and adapter not in self._adapters:
            raise RequestError(
                f"adapter {adapter!r}",
                expected=f"one of {', '.join(sorted(self._adapters)) or 'none: no adapter is loaded'}",
                do="load the adapter before the request",
            )
        check_one_prompt(request)
        num_open = sum(ask.num_open for ask in self._asks.values())
        if self._asks and num_open + request.num_choices > self._most_answers:
            return False
        model = self._model if adapter is None else self._adapters[adapter]
        ask = _Ask(key, request, model, request.num_choices, calls, self._extra | dict(extra or {}), thinking)
        self._asks[key] = ask
        for choice in range(request.num_choices):
            ask.futures.append(_run(loop, self._write(ask, choice)))
        return True

    def cancel(self, key: Hashable) -> None:
        """Cancel this request and close its connections."""
        if (ask := self._asks.pop(key, None)) is not None:
            for future in ask.futures:
                future.cancel()

    def poll(self, wait_seconds: float) -> list[KeyedEvent]:
        """The events since the last call; waits at most that long if there are none."""
        self._check_open()
        events: list[KeyedEvent] = []
        until = time.monotonic() + wait_seconds
        # Events of cancelled requests are dropped, so one `get` may yield none.
        while self._asks and not events:
            try:
                events += self._heard(*self._inbox.get(timeout=max(0.0, until - time.monotonic())))
            except queue.Empty:
                break
        while not self._inbox.empty():
            events += self._heard(*self._inbox.get_nowait())
        return events

    def close(self) -> None:
        """Close all connections."""
        loop, self._loop = self._loop, None
        if loop is None:
            return
        for key in list(self._asks):
            self.cancel(key)
        # The client belongs to the loop: it is closed there, before the loop stops.
        closing = _run(loop, _closed(self._client))
        try:
            closing.result(_CLOSE_SECONDS)
        except TimeoutError:
            # Stopped anyway: remaining connections end with the loop.
            log.warning("connections to %s did not close within %.0f s", self._url, _CLOSE_SECONDS)
        finally:
            # The only loop method that is safe to call from another thread.
            loop.call_soon_threadsafe(loop.stop)
            self._thread.join(_CLOSE_SECONDS)
            if not self._thread.is_alive():  # a running loop cannot be closed
                loop.close()

    def _check_open(self) -> asyncio.AbstractEventLoop:
        if self._loop is None:
            raise RequestError("a closed engine", expected="an open one", do="open the engine again")
        return self._loop

    def _heard(self, ask: _Ask, event: Started | Piece | Ended | Failed) -> list[KeyedEvent]:
        if self._asks.get(ask.key) is not ask:
            return []  # cancelled or already failed
        if isinstance(event, Started):
            if ask.has_started:
                return []
            ask.has_started = True
        elif isinstance(event, Failed):
            self.cancel(ask.key)
        elif isinstance(event, Ended):
            ask.num_open -= 1
            if not ask.num_open:
                del self._asks[ask.key]
        return [(ask.key, event)]

    async def _write(self, ask: _Ask, choice: int) -> None:
        """Stream one choice, including retries; every error becomes an event."""
        try:
            await self._try(ask, choice)
        except LuthierError as error:
            self._inbox.put((ask, Failed.of(error)))
        except Exception as error:  # noqa: BLE001 - the others continue
            self._inbox.put((ask, Failed(error=self._lost(f"{type(error).__name__}: {error}", 1).as_json())))

    async def _try(self, ask: _Ask, choice: int) -> None:
        attempt = 1
        while True:
            retry_after = None
            # A new reader per attempt: a failed attempt may have left state.
            calls = None if ask.calls is None else ask.calls()
            reader = ChunkReader(ask.asked, choice, calls, ask.thinking)
            path = stream_path(ask.asked)
            limit_name = self._limit_name if path == "chat/completions" else "max_tokens"
            body = stream_body(ask.asked, ask.model, choice, limit_name) | ask.extra | truncation(ask.asked.sampling)
            if ask.thinking is not None:
                body[limit_name] += ask.thinking.max_tokens
            thinks = ask.thinking is not None and ask.thinking.form is not None and not ask.thinking.form.prompt_closes
            if thinks or (calls is not None and calls.for_stops is not None):
                # The server would stop within reasoning and calls, too: the reader finds stop texts of the answer.
                body.pop("stop", None)
            has_begun = False
            try:
                async with self._client.stream("POST", f"{self._url}/{path}", json=body) as response:
                    if response.status_code == httpx2.codes.OK:
                        has_begun = True
                        await self._read(response, ask, reader)
                        return
                    await response.aread()
                    words = server_words(response, self._key)
                    if "max_completion_tokens" in words and limit_name == "max_tokens" and path == "chat/completions":
                        self._limit_name = "max_completion_tokens"
                        continue
                    if not is_passing(response.status_code):
                        raise error_of(response, words, self._url, ask.model)
                    last, retry_after = f"HTTP {response.status_code}: {words}", response.headers.get("Retry-After")
            except (httpx2.HTTPError, httpx2.InvalidURL) as error:
                last = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
                # After the first byte a retry would append another answer.
                if has_begun or not isinstance(error, httpx2.TransportError):
                    raise self._lost(last, attempt, has_begun=has_begun) from error
            # Jitter only spreads requests over time; it decides nothing that is written.
            pause = pause_seconds(attempt, retry_after, self._first_pause, random.random())  # noqa: S311
            if attempt == NUM_ATTEMPTS or pause is None:
                raise self._lost(last, attempt)
            attempt += 1
            await asyncio.sleep(pause)

    async def _read(self, response: httpx2.Response, ask: _Ask, reader: ChunkReader) -> None:
        """Events as they arrive, to the end of the stream.

        Raises:
            WorkError: an event is malformed or truncated.
        """
        ids = ask.asked.token_ids
        num_prompt_tokens = 0 if ids is None else len(ids)
        self._inbox.put((ask, Started(num_prompt_tokens=num_prompt_tokens, num_dropped=ask.asked.num_dropped)))
        line = ""
        try:
            async for line in async_event_stream_lines(response):
                if len(line) > _MAX_LINE:
                    raise ValueError(f"has a line of {len(line):,} characters")
                # Server-sent events: comments, event names and blank lines are irrelevant here.
                data = line.removeprefix("data:").strip() if line.startswith("data:") else ""
                if data == "[DONE]":
                    break
                for piece in reader.read(data) if data else ():
                    self._inbox.put((ask, piece))
                # Leaving the loop closes the connection, which stops the server.
                if reader.found_stop:
                    break
            for event in reader.end():
                self._inbox.put((ask, event))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            words = str(error) if isinstance(error, ValueError) else f"cannot be read ({type(error).__name__})"
            raise bad_answer(self._url, words, without_key(line[:200], self._key)) from error

    def _lost(self, last: str, num_attempts: int, *, has_begun: bool = False) -> WorkError:
        last = without_key(last, self._key)
        how = "broke off in the middle" if has_begun else f"gave no answer, tried {num_attempts} times; the last"
        return WorkError(
            f"{self._url} {how}: {last}",
            expected="a whole answer of an OpenAI-compatible server",
            do="check that the server runs at this address and is not overloaded, then ask again",
        )


def open_stream_engine(served: Served) -> OpenAIStreamEngine:
    """The engine for `served.path`: `http(s)://host:port/v1#MODEL`. The key is that of LUTHIER_SERVE_API_KEY.

    Raises:
        RequestError: the address names no host or no model.
    """
    parts = urlsplit(served.path)
    if parts.scheme not in ("http", "https") or not parts.hostname or not parts.fragment:
        raise RequestError(
            f"the address {served.path!r}",
            expected="http(s)://host:port/v1#MODEL",
            do="write the model after a #, as the server calls it",
        )
    return OpenAIStreamEngine(
        parts._replace(fragment="").geturl(), parts.fragment, api_key=os.environ.get("LUTHIER_SERVE_API_KEY")
    )


def _run(loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, None]) -> Future[None]:
    return asyncio.run_coroutine_threadsafe(work, loop)


async def _closed(client: httpx2.AsyncClient) -> None:
    # Cancelled tasks close their connections first.
    others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    await asyncio.gather(*others, return_exceptions=True)
    await client.aclose()
