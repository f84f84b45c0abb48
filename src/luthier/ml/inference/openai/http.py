"""Inference through any server with OpenAI's HTTP API: hosted services, vLLM, llama.cpp's server and others.

API reference of OpenAI: "Create chat completion", "Create completion". Nothing is streamed.

prompts -> a queue -> worker threads, each with its own retries -> answers, restored to their order
"""

from __future__ import annotations

import queue
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import httpx2

from luthier.core.dataset import TokenisedExample
from luthier.core.errors import BusyError, LuthierError, RequestError, WorkError
from luthier.core.ports import Generation, Progress, Prompt, Score
from luthier.core.system.process_setup import start_daemon
from luthier.ml.inference.engine_wrappers import is_passing, pause_seconds
from luthier.ml.inference.openai.messages import (
    auth_headers,
    bad_answer,
    error_of,
    generation_of,
    message_documents,
    response_format,
    server_words,
    without_key,
)

DEFAULT_CONCURRENCY: Final = 8
DEFAULT_TIMEOUT_SECONDS: Final = 300.0
NUM_ATTEMPTS: Final = 6
_SILENT_SECONDS: Final = 600.0
"""After so long without any response of the server, a request that has failed is not sent again."""
_CONNECT_SECONDS: Final = 15.0
_FORM: Final = "response_format"

Keep = Callable[[Prompt, Generation], None]
# Path, body and token limit of a request; the parameter name of the limit is inserted when it is sent.
_Body = tuple[str, dict[str, Any], int]
_Ask = Callable[[str, dict[str, Any], int, threading.Event, Callable[[str], None]], Generation]


class OpenAIHttpEngine:
    """A model behind an OpenAI-compatible server.

    Args:
        url: including the version, such as http://127.0.0.1:8000/v1.
        model: its name on the server.
        api_key: sent as a bearer token; it never appears in messages of this engine.
        concurrency: maximum concurrent requests.
        timeout_seconds: of one attempt.
        first_pause_seconds: pause before the second attempt; doubled with each further one.
        keep: called in the caller's thread with every answer as it arrives, so that paid answers survive the failure of
            others.

    Attributes:
        url, model: as given, without a slash at the end of the address.
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        api_key: str | None = None,
        concurrency: int = DEFAULT_CONCURRENCY,
        timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS,
        first_pause_seconds: float = 0.5,
        keep: Keep | None = None,
    ) -> None:
        if concurrency < 1 or timeout_seconds <= 0:
            raise RequestError(
                f"concurrency={concurrency}, timeout_seconds={timeout_seconds}",
                expected="at least one request at a time, and some time for it",
                do="correct the two",
            )
        self.url, self.model, self._key = url.rstrip("/"), model, (api_key or "").strip()
        self._concurrency, self._first_pause, self._keep = concurrency, first_pause_seconds, keep
        # Newer models of OpenAI reject the old name of the limit; detected from the first rejection.
        # Set by several threads without a lock: all set the same value, and a stale read costs one rejected request.
        self._limit_name = "max_tokens"
        self._heard_at = time.monotonic()  # when the server answered last, with any status
        self._keeps_form = True  # until a server reports that it does not support `response_format`
        # As many connections as threads, so that none waits for another.
        self._client: httpx2.Client | None = httpx2.Client(
            headers=auth_headers(self._key),
            timeout=httpx2.Timeout(timeout_seconds, connect=min(_CONNECT_SECONDS, timeout_seconds)),
            limits=httpx2.Limits(max_connections=concurrency, max_keepalive_connections=concurrency),
        )

    @property
    def name(self) -> str:
        """`openai_http`, the name in the table of engines."""
        return "openai_http"

    def generate(self, prompts: Sequence[Prompt], progress: Progress) -> list[Generation]:
        """One generation per prompt, in order.

        Busy servers (408, 409, 429, 5xx) and broken connections are retried up to six times, with exponential back-off
        or the delay that the server requests (Retry-After, at most five minutes), until it has been silent for ten
        minutes, whatever the request. A cut by the server's content filter counts as `stop`. If a server rejects
        `response_format`, later requests omit it.

        Raises:
            NotFoundError: no such model or address.
            OverlongError: a prompt exceeds the context.
            RequestError: the server rejects the request otherwise (key, parameters).
            WorkError: no usable answer after all attempts.
        """
        self._check_open()
        self._heard_at = time.monotonic()
        bodies = [self.request_of(prompt, number) for number, prompt in enumerate(prompts)]
        work = _Work(bodies, min(self._concurrency, len(bodies)), self._ask)
        found: dict[int, Generation] = {}
        failure: BaseException | None = None
        try:
            with progress.task("Writing answers", len(prompts), "answers") as task:
                # After a failure no new requests are sent, but running ones, which will be billed, are awaited.
                for number, came in work.results():
                    if isinstance(came, str):
                        task.note(came)
                    elif isinstance(came, BaseException):
                        failure = failure or came
                    else:
                        found[number] = came
                        if self._keep is not None:
                            self._keep(prompts[number], came)
                        task.advance()
                if failure is not None:
                    raise failure
        finally:
            work.stop.set()
        return [found[number] for number in range(len(prompts))]

    def score(self, examples: Sequence[TokenisedExample], progress: Progress) -> list[Score]:  # noqa: ARG002
        """Not supported: this API does not return likelihoods of given tokens.

        Raises:
            RequestError: always.
        """
        raise RequestError(
            f"likelihoods of {len(examples):,} rows from {self.url}",
            expected="an engine that gives them: servers of this API write text, and state no likelihood of given text",
            do="score with the model on this machine: name a base model, a folder or a run",
        )

    def close(self) -> None:
        """Close the connections. The engine cannot be used afterwards."""
        client, self._client = self._client, None
        if client is not None:
            client.close()

    def _check_open(self) -> httpx2.Client:
        if self._client is None:
            raise RequestError("a closed engine", expected="an open one", do="open the engine again")
        return self._client

    def sent(self, prompt: Prompt) -> tuple[str, dict[str, Any]]:
        """Path and body of a request as the server takes it, by what its rejections have shown so far."""
        path, body, limit = self.request_of(prompt, 0)
        if not self._keeps_form:
            body.pop(_FORM, None)
        return path, {**body, self._limit_name if path == "chat/completions" else "max_tokens": limit}

    def request_of(self, prompt: Prompt, number: int) -> _Body:
        """Path, body and token limit of a request.

        Raises:
            RequestError: it has both conversation and text or neither, no new token, or a negative temperature.
        """
        prompt.check(number)
        body: dict[str, Any] = {"model": self.model, "temperature": prompt.temperature, "seed": prompt.seed}
        if prompt.json_schema is not None:
            body[_FORM] = response_format(prompt.json_schema)
        if prompt.conversation is None:
            return "completions", {**body, "prompt": prompt.text}, prompt.max_new_tokens
        body["messages"] = message_documents(prompt.conversation.messages)
        if prompt.conversation.tools:
            body["tools"] = list(prompt.conversation.tools)
        return "chat/completions", body, prompt.max_new_tokens + (prompt.max_thinking_tokens or 0)

    def _ask(
        self, path: str, body: dict[str, Any], limit: int, stop: threading.Event, say: Callable[[str], None]
    ) -> Generation:
        """Send one request, retrying until it is answered or has failed permanently."""
        attempt, last = 1, ""
        while True:
            limit_name = self._limit_name if path == "chat/completions" else "max_tokens"
            retry_after = None
            # Another thread may have detected it while this request waited.
            if not self._keeps_form:
                body.pop(_FORM, None)
            try:
                response = self._check_open().post(f"{self.url}/{path}", json={**body, limit_name: limit})
            except httpx2.TransportError as error:
                last = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
                # Errors of the request or the address: a retry cannot help.
                if isinstance(error, httpx2.LocalProtocolError | httpx2.UnsupportedProtocol):
                    raise self._no_answer(last, attempt) from error
            except (httpx2.HTTPError, httpx2.InvalidURL, UnicodeError) as error:
                raise self._no_answer(f"{type(error).__name__}: {error}", attempt) from error
            else:
                self._heard_at = time.monotonic()
                if response.status_code == httpx2.codes.OK:
                    return self._read(response, path, limit)
                words = server_words(response, self._key)
                # A rejection that names the new parameter: sent again immediately, not counted as an attempt.
                if "max_completion_tokens" in words and limit_name == "max_tokens" and path == "chat/completions":
                    self._limit_name = "max_completion_tokens"
                    continue
                if _FORM in body and _FORM in words and not is_passing(response.status_code):
                    self._keeps_form = False
                    continue
                if not is_passing(response.status_code):
                    raise error_of(response, words, self.url, self.model)
                last, retry_after = f"HTTP {response.status_code}: {words}", response.headers.get("Retry-After")
            # Jitter only spreads requests over time; it does not affect results.
            pause = pause_seconds(attempt, retry_after, self._first_pause, random.random())  # noqa: S311
            is_silent = time.monotonic() - self._heard_at >= _SILENT_SECONDS
            if attempt == NUM_ATTEMPTS or pause is None or is_silent:
                raise self._no_answer(last, attempt, retry_after if pause is None else None)
            if pause >= 1:
                say(f"waits {pause:.0f} s: {last[:60]}")
            attempt += 1
            # Waits on the event instead of `sleep`, so that a failure elsewhere ends all pauses.
            if stop.wait(pause):
                raise self._no_answer(f"{last} (another request has failed)", attempt)

    def _read(self, response: httpx2.Response, path: str, limit: int) -> Generation:
        try:
            return generation_of(response.json(), limit, is_chat=path == "chat/completions")
        except ValueError as error:
            raise bad_answer(self.url, str(error), server_words(response, self._key)) from error

    def _no_answer(self, last: str, num_attempts: int, retry_after: str | None = None) -> LuthierError:
        last = without_key(last, self._key)
        asks = f", and requests a wait of {retry_after} s" if retry_after else ""
        return WorkError(
            f"{self.url} gave no answer, tried {num_attempts} times{asks}; the last: {last}",
            expected="an answer of an OpenAI-compatible server",
            do="check that the server runs at this address and is not overloaded, then start again: "
            "what was answered so far is not asked again",
        )


class _Work:
    """Requests on worker threads. When `stop` is set, no new request is started and pauses end."""

    def __init__(self, bodies: Sequence[_Body], num_threads: int, ask: _Ask) -> None:
        self.stop = threading.Event()
        self._bodies, self._ask, self._num_threads = bodies, ask, num_threads
        self._todo: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._done: queue.SimpleQueue[tuple[int, Generation | BaseException | str | None]] = queue.SimpleQueue()
        for number in range(len(bodies)):
            self._todo.put(number)

    def results(self) -> Iterator[tuple[int, Generation | BaseException | str]]:
        """Yields the request number and its result, or a text to show; ends when all threads have finished."""
        # Daemon threads, so that an interrupted program need not wait for a slow server.
        num_working = 0
        for _ in range(self._num_threads):
            try:
                start_daemon(self._run, "openai-request")
            except BusyError:
                # Fewer threads do the same work, but at least one is needed.
                if not num_working:
                    raise
                break
            num_working += 1
        while num_working:
            number, came = self._done.get()
            if came is None:
                num_working -= 1
            else:
                yield number, came

    def _run(self) -> None:
        while not self.stop.is_set():
            try:
                number = self._todo.get_nowait()
            except queue.Empty:
                break
            try:
                self._done.put((number, self._ask(*self._bodies[number], self.stop, self._say)))
            except BaseException as error:  # noqa: BLE001 - raised again in the caller's thread
                self._done.put((number, error))
                self.stop.set()
        # Every thread ends with this marker, so that `results` knows when all have finished.
        self._done.put((-1, None))

    def _say(self, words: str) -> None:
        self._done.put((-1, words))
