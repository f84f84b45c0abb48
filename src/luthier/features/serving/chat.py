"""Use case: chat with a model, or with two at once, on this machine or behind an OpenAI-compatible server.

Each model keeps its own history. Models of this machine run in the engine process.

Sources: OpenAI's API reference, "Create chat completion", "Chat completion chunk", "List models".
"""

from __future__ import annotations

import json
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import httpx2

from luthier.core.conversation import Conversation, Message
from luthier.core.defaults import CHAT_TOKENS
from luthier.core.errors import LuthierError, RequestError, WorkError, error_from
from luthier.core.stream import Ended, Failed, Piece, Sampling, Served, Started, StreamEvent, TextRequest
from luthier.core.system.process_setup import start_daemon
from luthier.features.generation.engines import api_key, parse_address
from luthier.features.serving.loaded import EngineChoice, choose_model, show_deployment_note
from luthier.features.serving.models import fastest
from luthier.features.serving.service import as_loaded, as_trained, refuse_head
from luthier.ml.inference.openai.chunks import event_stream_lines
from luthier.ml.inference.openai.messages import server_words, without_key
from luthier.platform.home.context import Context

OnEvent = Callable[[StreamEvent], None]
_LOOK_SECONDS = 0.08
_MIN_SECONDS = 0.01
_ADDRESS = ("http://", "https://")


class ChatClient(Protocol):
    """A model to chat with."""

    @property
    def name(self) -> str:
        """Its display name."""
        ...

    def begin(self, request: TextRequest, hear: OnEvent) -> Callable[[], None]:
        """Generate a text; `hear` is called with its events from another thread. Returns a function that cancels it."""
        ...


@dataclass(slots=True)
class Reply:
    """The answer of one model so far.

    Attributes:
        name: Of the model.
        text: The answer.
        reasoning: The reasoning before it.
        num_prompt_tokens: Of the whole conversation; 0 if the server does not report it.
        num_new_tokens: Generated so far.
        reason: The finish reason, `stopped` after an interrupt; None while it is generated.
        first_seconds: Time to the first piece; None before that.
        seconds: Time to the last event.
        error: Why it failed.
        has_started: Whether the model has started on the prompt.
    """

    name: str
    text: str = ""
    reasoning: str = ""
    num_prompt_tokens: int = 0
    num_new_tokens: int = 0
    reason: str | None = None
    first_seconds: float | None = None
    seconds: float = 0.0
    error: LuthierError | None = None
    has_started: bool = False

    @property
    def has_ended(self) -> bool:
        """Whether nothing more will come."""
        return self.reason is not None or self.error is not None

    @property
    def tokens_per_second(self) -> float | None:
        """Tokens per second after the first token; None if there are too few tokens or too little time."""
        if self.first_seconds is None or self.num_new_tokens < 2:
            return None
        seconds = self.seconds - self.first_seconds
        # Without the first token, whose time includes prefill.
        return (self.num_new_tokens - 1) / seconds if seconds >= _MIN_SECONDS else None

    def as_json(self) -> dict[str, Any]:
        """The document of one answer."""
        return {
            "model": self.name,
            "text": self.text,
            "finish_reason": self.reason,
            "prompt_tokens": self.num_prompt_tokens,
            "new_tokens": self.num_new_tokens,
            "first_seconds": None if self.first_seconds is None else round(self.first_seconds, 4),
            "seconds": round(self.seconds, 4),
            "error": None if self.error is None else self.error.as_json(),
        } | ({"reasoning": self.reasoning} if self.reasoning else {})

    def hear(self, event: StreamEvent, seconds: float) -> None:
        """Apply one event."""
        self.seconds = seconds
        if isinstance(event, Started):
            self.has_started, self.num_prompt_tokens = True, event.num_prompt_tokens
        elif isinstance(event, Failed):
            self.error = error_from(event.error)
        elif isinstance(event, Piece):
            # A remote model reports no start; its first piece counts as one.
            self.has_started, self.text = True, self.text + event.text
            self.reasoning += event.reasoning
            self.num_new_tokens = max(self.num_new_tokens, event.num_new_tokens)
            if self.first_seconds is None:
                self.first_seconds = seconds
        elif isinstance(event, Ended):
            self.num_new_tokens, self.reason = event.num_new_tokens, event.reason


@dataclass(slots=True)
class Turn:
    """A question and the answers of all models."""

    question: str
    replies: list[Reply]


@dataclass(slots=True)
class Chat:
    """A conversation with one or several models.

    Attributes:
        clients: the models that answer.
        system: the system prompt; None for none.
        sampling: how they sample.
        max_new_tokens: tokens of an answer at most.
        turns: the conversation so far.
    """

    clients: Sequence[ChatClient]
    system: str | None = None
    sampling: Sampling = field(default_factory=Sampling)
    max_new_tokens: int = CHAT_TOKENS
    turns: list[Turn] = field(default_factory=list)

    def ask(self, question: str, show: Callable[[list[Reply]], None]) -> Turn:
        """Ask all models and wait for the last; show: called periodically with the answers so far.

        An interrupt stops the answers. For a model that fails, this question is not part of its history.
        """
        heard: queue.SimpleQueue[tuple[int, StreamEvent]] = queue.SimpleQueue()
        replies = [Reply(client.name) for client in self.clients]
        began, cancels = time.monotonic(), list[Callable[[], None]]()
        try:
            for number, client in enumerate(self.clients):
                try:
                    # Events come from other threads: the queue brings them to this one, which alone changes the
                    # replies.
                    cancels.append(client.begin(self._request(number, question), _event_handler(number, heard)))
                except LuthierError as error:
                    replies[number].error = error
            while not all(reply.has_ended for reply in replies):
                show(replies)
                for number, event in _waiting(heard):
                    replies[number].hear(event, time.monotonic() - began)
        except KeyboardInterrupt:
            for reply in replies:
                # Answers that had already ended keep their reason.
                reply.reason = reply.reason or "stopped"
        finally:
            for cancel in cancels:
                cancel()
        show(replies)
        turn = Turn(question, replies)
        self.turns.append(turn)
        return turn

    def undo(self) -> Turn | None:
        """Remove the last question and return it; None if there is none."""
        return self.turns.pop() if self.turns else None

    def _request(self, number: int, question: str) -> TextRequest:
        messages = [Message(role="system", content=self.system)] if self.system else []
        for turn in self.turns:
            reply = turn.replies[number]
            # Templates require alternating turns, so a question without an answer is omitted as well.
            if reply.error is None and reply.text:
                messages.append(Message(role="user", content=turn.question))
                messages.append(Message(role="assistant", content=reply.text))
        messages.append(Message(role="user", content=question))
        return TextRequest(
            conversation=Conversation(messages=tuple(messages)),
            sampling=self.sampling,
            max_new_tokens=self.max_new_tokens,
            max_thinking_tokens=None,
        )


@dataclass(frozen=True, slots=True)
class LocalChatClient:
    """A model of this machine, in the engine process.

    Attributes:
        context: the home.
        name: as it was asked for.
        served: the model in loadable form.
    """

    context: Context
    name: str
    served: Served

    def begin(self, request: TextRequest, hear: OnEvent) -> Callable[[], None]:
        """As of `ChatClient`.

        Raises:
            WorkError: it cannot be asked now.
        """
        client = self.context.inference_client
        pick = client.pick(self.served, [request])
        _, asked = as_trained(pick.served, request)
        return client.ask_picked(pick, asked, hear, as_loaded=as_loaded)


def open_chat_client(context: Context, name: str, engine: EngineChoice = "auto") -> ChatClient:
    """The client for a name: a model, or an address such as http://host:8520/v1#MODEL.

    Args:
        context: of the home.
        name: as the user types it.
        engine: that runs the model; `auto` chooses by format and machine.

    Raises:
        NotFoundError: no such model, run or adapter.
        RequestError: the engine cannot run the model or is not installed, or the address cannot be one.
        ConflictError: a run has no result, or an export is damaged or unverified.
        ModelSourceError: a base model could not be fetched.
        WorkError: the server of an address does not answer.
    """
    if name.lower().startswith(_ADDRESS):
        return open_remote_chat_client(name)
    show_deployment_note(context, name)
    served = choose_model(context, name, engine)
    refuse_head(name, served)
    if engine == "auto":
        # Only one that is there: nobody waits minutes for a first question.
        served = fastest(context, served)
    return LocalChatClient(context, name, served)


def _event_handler(number: int, heard: queue.SimpleQueue[tuple[int, StreamEvent]]) -> OnEvent:
    return lambda event: heard.put((number, event))


def _waiting(heard: queue.SimpleQueue[tuple[int, StreamEvent]]) -> list[tuple[int, StreamEvent]]:
    """The events received; waits briefly if there are none."""
    found = []
    try:
        found.append(heard.get(timeout=_LOOK_SECONDS))
        while True:
            found.append(heard.get_nowait())
    except queue.Empty:
        return found


OWN_KEY: Final = "LUTHIER_API_KEY"
_TIMEOUT: Final = httpx2.Timeout(300.0, connect=15.0)
_REASONS: Final = {"stop": "stop", "length": "length", "tool_calls": "tool_calls", "content_filter": "stop"}


@dataclass(frozen=True, slots=True)
class RemoteChatClient:
    """A model of a server.

    Attributes:
        url: of the API, including the version.
        name: of the model there.
        key: API key; empty for none.
    """

    url: str
    name: str
    key: str = field(default="", repr=False)

    def begin(self, request: TextRequest, hear: Callable[[StreamEvent], None]) -> Callable[[], None]:
        """Continue a conversation; returns a function that cancels it. Errors are reported as `Failed`.

        Raises:
            BusyError: The system cannot start more threads; no event follows.
        """
        has_gone = threading.Event()

        def work() -> None:
            try:
                for event in self._events(request, has_gone):
                    hear(event)
            except LuthierError as error:
                hear(Failed.of(error))
            except (httpx2.HTTPError, httpx2.InvalidURL, httpx2.StreamError, ValueError) as error:
                hear(Failed(error=_no_answer(self.url, f"{type(error).__name__}: {error}", self.key).as_json()))
            # An unexpected chunk. The listener waits for a last event, so this thread must not end without one.
            except (AttributeError, KeyError, TypeError) as error:
                words = f"a part of its answer has another form than a chat completion chunk ({error})"
                hear(Failed(error=_no_answer(self.url, words, self.key).as_json()))

        start_daemon(work, "remote")
        return has_gone.set

    def _events(self, request: TextRequest, has_gone: threading.Event) -> Iterator[StreamEvent]:
        num_pieces, usage, reason = 0, dict[str, Any](), None
        with (
            httpx2.Client(headers=_headers(self.key), timeout=_TIMEOUT) as client,
            client.stream("POST", f"{self.url}/chat/completions", json=self._body(request)) as response,
        ):
            if response.status_code != httpx2.codes.OK:
                response.read()
                raise _refused(response, self.url, self.key)
            for line in event_stream_lines(response):
                if has_gone.is_set():
                    return
                chunk = _chunk(line)
                if chunk is None:
                    continue
                if "error" in chunk:
                    raise _no_answer(self.url, json.dumps(chunk["error"]), self.key)
                usage = chunk.get("usage") or usage
                # The last chunk of a stream carries usage and an empty list of choices.
                for choice in (chunk.get("choices") or [])[:1]:
                    reason = choice.get("finish_reason") or reason
                    delta = choice.get("delta") or {}
                    # vLLM and DeepSeek use the field reasoning_content, others reasoning.
                    text, thought = delta.get("content"), delta.get("reasoning_content") or delta.get("reasoning")
                    if text or thought:
                        num_pieces += 1
                        yield Piece(text=str(text or ""), num_new_tokens=num_pieces, reasoning=str(thought or ""))
        # A connection that closes early ends the iteration like a complete answer: only finish_reason distinguishes
        # them.
        if reason is None:
            raise _no_answer(self.url, "the answer broke off", self.key)
        num_new = usage.get("completion_tokens")
        ended: Any = _REASONS.get(str(reason), "stop")
        # A server that ignores include_usage leaves only the number of pieces, an approximation.
        yield Ended(reason=ended, num_new_tokens=num_new if isinstance(num_new, int) else num_pieces)

    def _body(self, request: TextRequest) -> dict[str, Any]:
        messages = () if request.conversation is None else request.conversation.messages
        return {
            "model": self.name,
            "messages": [{"role": message.role, "content": message.content} for message in messages],
            "temperature": request.sampling.temperature,
            "seed": request.sampling.seed,
            "max_tokens": request.max_new_tokens,
            "stream": True,
            "stream_options": {"include_usage": True},
        }


def open_remote_chat_client(address: str) -> RemoteChatClient:
    """The model that an address names after `#`, or the only model of the server.

    The key comes from the environment: LUTHIER_API_KEY, or OPENAI_API_KEY over https or to this machine.

    Raises:
        RequestError: The address is invalid, or the server has several models and none is named.
        WorkError: The server does not answer.
    """
    if "#" in address:
        url, model = parse_address(address)
        return RemoteChatClient(url, model, api_key(url, os.environ, own=OWN_KEY) or "")
    url, _ = parse_address(f"{address}#any")
    key = api_key(url, os.environ, own=OWN_KEY) or ""
    models = _models(url, key)
    if len(models) != 1:
        raise RequestError(
            f"{url} has {len(models)} models: {', '.join(models[:20]) or 'none'}",
            expected="the name of one of them after the address",
            do=f"write for example: {url}#{models[0] if models else 'MODEL'}",
        )
    return RemoteChatClient(url, models[0], key)


def _models(url: str, key: str) -> list[str]:
    try:
        response = httpx2.get(f"{url}/models", headers=_headers(key), timeout=_TIMEOUT)
        if response.status_code != httpx2.codes.OK:
            raise _refused(response, url, key)
        return [str(one["id"]) for one in response.json()["data"]]
    except (httpx2.HTTPError, httpx2.InvalidURL, ValueError, KeyError, TypeError) as error:
        raise _no_answer(url, f"{type(error).__name__}: {error}", key) from error


def _chunk(line: str) -> dict[str, Any] | None:
    """The JSON object of a data line of server-sent events; None for other lines. Raises ValueError for other data."""
    data = line.removeprefix("data:").strip() if line.startswith("data:") else ""
    if not data or data == "[DONE]":
        return None
    found = json.loads(data)
    if not isinstance(found, dict):
        raise ValueError(f"a part of its answer is not a JSON object: {data[:200]}")
    return found


def _headers(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"} if key.isascii() and key.isprintable() and key else {}


def _refused(response: httpx2.Response, url: str, key: str) -> LuthierError:
    words = server_words(response, key)
    needs_key = response.status_code in (401, 403)
    return RequestError(
        f"{url} refuses with HTTP {response.status_code}: {words}",
        expected="a key that this server accepts" if needs_key else "an answer",
        do=f"set {OWN_KEY} (or OPENAI_API_KEY, which is sent over https and to this machine only)"
        if needs_key
        else "correct what it names: the address, the model behind the #, or the question",
    )


def _no_answer(url: str, words: str, key: str) -> WorkError:
    return WorkError(
        f"{url} gave no answer: {without_key(words, key)}",
        expected="a server that speaks OpenAI's API",
        do="check that it runs at this address, then ask again",
    )
