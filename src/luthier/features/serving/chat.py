"""Use case: talk with a model, or with two at once, each of which remembers its own answers.

A model is one of this machine, asked by way of the process that holds models, or one behind a server's address.
"""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from luthier.core.conversation import Conversation, Message
from luthier.core.errors import LuthierError, error_from
from luthier.core.stream import Ended, Failed, Piece, Sampling, Served, Started, StreamEvent, TextRequest
from luthier.features.serving.loaded import EngineChoice, choose_model
from luthier.platform.home.context import Context

OnEvent = Callable[[StreamEvent], None]
_LOOK_SECONDS = 0.08
_MIN_SECONDS = 0.01
_ADDRESS = ("http://", "https://")


class ChatClient(Protocol):
    """A model to chat with."""

    @property
    def name(self) -> str:
        """What it is called on the screen."""
        ...

    def begin(self, request: TextRequest, hear: OnEvent) -> Callable[[], None]:
        """Have a text written; `hear` is given its events from another thread. Returns what cancels it."""
        ...


@dataclass(slots=True)
class Reply:
    """What one model has answered so far.

    Attributes:
        name: Of the model.
        text: The answer.
        reasoning: The thought before it.
        num_prompt_tokens: Of the whole conversation; 0 where the server does not say it.
        num_new_tokens: Written so far.
        reason: Why it has ended, `stopped` after an interrupt; None while it is being written.
        first_seconds: Until the first piece; None before that.
        seconds: Until the last event.
        error: Why it failed.
        has_started: Whether the model has taken the prompt up.
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
        """Of the new tokens after the first; None where there are too few, or too little time, to say."""
        if self.first_seconds is None or self.num_new_tokens < 2:
            return None
        seconds = self.seconds - self.first_seconds
        # Without the first token, whose time is that of reading the prompt.
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
        """Take one event in."""
        self.seconds = seconds
        if isinstance(event, Started):
            self.has_started, self.num_prompt_tokens = True, event.num_prompt_tokens
        elif isinstance(event, Failed):
            self.error = error_from(event.error)
        elif isinstance(event, Piece):
            # A remote model tells no start of its own; its first piece is one.
            self.has_started, self.text = True, self.text + event.text
            self.reasoning += event.reasoning
            self.num_new_tokens = max(self.num_new_tokens, event.num_new_tokens)
            if self.first_seconds is None:
                self.first_seconds = seconds
        elif isinstance(event, Ended):
            self.num_new_tokens, self.reason = event.num_new_tokens, event.reason


@dataclass(slots=True)
class Turn:
    """A question and what each model has answered."""

    question: str
    replies: list[Reply]


@dataclass(slots=True)
class Chat:
    """A conversation with one model or several. system: what stands before it all."""

    clients: Sequence[ChatClient]
    system: str | None = None
    sampling: Sampling = field(default_factory=Sampling)
    max_new_tokens: int = 512
    turns: list[Turn] = field(default_factory=list)

    def ask(self, question: str, show: Callable[[list[Reply]], None]) -> Turn:
        """Ask all, and wait for the last; show: called now and then with what there is so far.

        An interrupt ends the answers where they are. A model that fails is asked the next question as if this one had
        never been.
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
                # Those that had ended already keep their reason.
                reply.reason = reply.reason or "stopped"
        finally:
            for cancel in cancels:
                cancel()
        show(replies)
        turn = Turn(question, replies)
        self.turns.append(turn)
        return turn

    def undo(self) -> Turn | None:
        """Forget the last question; None where there is none."""
        return self.turns.pop() if self.turns else None

    def _request(self, number: int, question: str) -> TextRequest:
        messages = [Message(role="system", content=self.system)] if self.system else []
        for turn in self.turns:
            reply = turn.replies[number]
            # Templates want turns to alternate, so a question without an answer is left out as well.
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
    """A model of this machine, in the process that holds models."""

    context: Context
    name: str
    served: Served

    def begin(self, request: TextRequest, hear: OnEvent) -> Callable[[], None]:
        """As of `ChatClient`. Raises WorkError where it cannot be asked now."""
        from luthier.features.serving.service import as_trained

        served, asked = as_trained(self.served, request)
        return self.context.inference_client.ask(served, asked, hear)


def open_chat_client(context: Context, name: str, engine: EngineChoice = "auto") -> ChatClient:
    """Who answers to a name: a model as `choose_model` knows it, or an address such as http://host:8520/v1#MODEL.

    Raises what `choose_model` raises, or RequestError and WorkError for an address.
    """
    if name.lower().startswith(_ADDRESS):
        from luthier.features.serving.remote_chat import open_remote_chat_client

        return open_remote_chat_client(name)
    return LocalChatClient(context, name, choose_model(context, name, engine))


def _event_handler(number: int, heard: queue.SimpleQueue[tuple[int, StreamEvent]]) -> OnEvent:
    return lambda event: heard.put((number, event))


def _waiting(heard: queue.SimpleQueue[tuple[int, StreamEvent]]) -> list[tuple[int, StreamEvent]]:
    """What has come; waits for a moment where nothing has."""
    found = []
    try:
        found.append(heard.get(timeout=_LOOK_SECONDS))
        while True:
            found.append(heard.get_nowait())
    except queue.Empty:
        return found
