"""The narrow doors between layers: progress, events, engines and grading."""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, Protocol, Self, TypeVar, runtime_checkable

from pydantic import Field

from luthier.core.conversation import Conversation
from luthier.core.dataset import TokenisedExample
from luthier.core.defaults import NEW_TOKENS
from luthier.core.errors import RequestError
from luthier.core.events import Event
from luthier.core.frozen_model import FrozenModel, SparseModel
from luthier.core.pooling import PoolingRequest
from luthier.core.stream import Decoding, StreamEvent, TextRequest

_Item = TypeVar("_Item")

EventSink = Callable[[Event], None]

StopCheck = Callable[[], str | None]
"""Called between two pieces of work: why it must stop, as text; None while it may continue."""


class ProgressTask(Protocol):
    """One bar. `advance` by units done; `note` sets a short text next to it (a loss, a file name)."""

    def advance(self, amount: float = 1) -> None: ...
    def note(self, text: str) -> None: ...
    def __enter__(self) -> Self: ...
    def __exit__(self, kind: object, error: object, trace: object, /) -> None: ...


class Progress(Protocol):
    """Where long work shows how far it is. `total` None: not known in advance. `done`: already done at the start."""

    def task(self, title: str, total: float | None, unit: str, done: float = 0) -> ProgressTask: ...


class SilentTask:
    """Shows nothing; the base of tasks that show something of their own."""

    def advance(self, amount: float = 1) -> None:
        """Show nothing."""

    def note(self, text: str) -> None:
        """Show nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        return None


class SilentProgress:
    """Shows nothing."""

    def task(self, title: str, total: float | None, unit: str, done: float = 0) -> ProgressTask:  # noqa: ARG002
        """A task that shows nothing."""
        return SilentTask()


def track(progress: Progress, title: str, items: Collection[_Item], unit: str) -> Iterator[_Item]:
    """The items, each counted when the next one is taken."""
    with progress.task(title, len(items), unit) as task:
        for item in items:
            yield item
            task.advance()


THINKING_TOKENS: Final = 2048
"""The default budget of a thought."""


class Prompt(FrozenModel):
    """One request for text. Exactly one of `conversation` and `text` is set. temperature 0 is greedy.

    Engines that can keep a model to it do; a server that refuses it is called without it, so that the caller
    reads the answer without relying on it.

    Attributes:
        conversation: the turns to answer.
        text: plain text to continue.
        max_new_tokens: most tokens of the answer.
        temperature: 0 is greedy.
        seed: of the draws, where the temperature is above 0.
        json_schema: the answer is to be JSON of this schema.
        max_thinking_tokens: of a thought before the answer, in addition to `max_new_tokens` of the answer; 0: both
            share `max_new_tokens`; None: `THINKING_TOKENS` for a model that thinks, 0 for others. Never more than fits
            the context.
    """

    conversation: Conversation | None = None
    text: str | None = None
    max_new_tokens: int = NEW_TOKENS
    temperature: float = 0.0
    seed: int = 0
    json_schema: dict[str, Any] | None = None
    max_thinking_tokens: int | None = None

    def check(self, number: int) -> None:
        """Refuse a prompt that no engine can answer.

        Args:
            number: of the prompt among those of a call, from 0.

        Raises:
            RequestError: it has both conversation and text or neither, no new token, or a negative temperature.
        """
        if (self.conversation is None) == (self.text is None):
            raise RequestError(
                f"prompt {number + 1} has {'neither' if self.text is None else 'both'} conversation and text",
                expected="exactly one of the two",
                do="set one of them",
            )
        if self.max_new_tokens < 1 or self.temperature < 0:
            raise RequestError(
                f"prompt {number + 1} has max_new_tokens={self.max_new_tokens}, temperature={self.temperature}",
                expected="at least one new token, and a temperature of 0 (greedy) or more",
                do="correct the prompt",
            )


class Generation(SparseModel):
    """What an engine wrote: the answer without its thought, and without the end-of-turn token.

    Attributes:
        text: the answer.
        num_prompt_tokens: tokens of the prompt, template included.
        num_new_tokens: of thought and answer.
        finish_reason: `length`: cut off at a limit.
        reasoning: the thought; None where there is none.
        num_thinking_tokens: of the thought, its delimiters included; None where a server does not say it.
        ends_in_thought: the answer never began.
        token_ids: all new tokens, where the caller requests them from a local engine; never stored.
        tool_calls: calls of tools, in OpenAI's format, which are no part of the text.
    """

    text: str
    num_prompt_tokens: int
    num_new_tokens: int
    finish_reason: Literal["stop", "length"]
    reasoning: str | None = None
    num_thinking_tokens: int | None = 0
    ends_in_thought: bool = False
    token_ids: tuple[int, ...] | None = Field(default=None, exclude=True)
    tool_calls: tuple[dict[str, Any], ...] = ()
    later_fields = ("tool_calls",)


class Score(FrozenModel):
    """How well an engine predicts the learned tokens of one example.

    Attributes:
        nll_nats: total negative log-likelihood, in nats.
        num_tokens: learned tokens.
        num_correct: learned tokens that were the likeliest in their place.
    """

    nll_nats: float
    num_tokens: int
    num_correct: int


@dataclass(frozen=True, slots=True)
class Rollout:
    """One answer that a model wrote to the prompt of a row while it was trained.

    Attributes:
        row_id: the row.
        text: the answer without its thought and its calls of tools.
        num_new_tokens: of all of it.
        ended: by itself, not cut off.
        reasoning: the thought.
        tool_calls: in OpenAI's format.
    """

    row_id: str
    text: str
    num_new_tokens: int
    ended: bool
    reasoning: str | None = None
    tool_calls: tuple[dict[str, Any], ...] = ()


@dataclass(frozen=True, slots=True)
class Grade:
    """What an attempt is worth.

    Attributes:
        reward: the weighted sum of its parts.
        parts: each part by name, before it is weighted.
        is_ungraded: a grader gave no score: the reply of a model cannot be read, and the lowest one counts, or code has
            failed, and 0 counts.
    """

    reward: float
    parts: dict[str, float]
    is_ungraded: bool = False


Grading = Callable[[Sequence[Rollout]], list[Grade]]
"""Grades attempts, in order: what training needs from judging without knowing how it judges."""


@runtime_checkable
class Engine(Protocol):
    """Inference behind one door: text out, likelihoods out."""

    @property
    def name(self) -> str: ...

    def generate(self, prompts: Sequence[Prompt], progress: Progress) -> list[Generation]:
        """One generation a prompt, in the order of the prompts."""
        ...

    def score(self, examples: Sequence[TokenisedExample], progress: Progress) -> list[Score]:
        """One score an example, in order. The ids must come from this engine's own tokenizer."""
        ...

    def close(self) -> None: ...


KeyedEvent = tuple[Hashable, StreamEvent]
"""An event of the request with this key."""


@runtime_checkable
class StreamEngine(Protocol):
    """Writes many answers in parallel with one base and any number of adapters over it. Used by one thread only.

    `ask` raises RequestError, OverlongError or TemplateError for a request that cannot be written; what goes wrong with
    one request later comes as `Failed`. What `poll` raises ends the engine.
    """

    @property
    def keys(self) -> set[Hashable]:
        """The requests whose answers are being written."""
        ...

    @property
    def num_bytes(self) -> int:
        """Memory that weights and adapters take."""
        ...

    def load_adapter(self, name: str, path: str) -> None:
        """Make an adapter ready to be asked by `name`; nothing happens where it is."""
        ...

    def unload_adapter(self, name: str) -> None:
        """Release an unused adapter."""
        ...

    def ask(self, key: Hashable, request: TextRequest, adapter: str | None) -> bool:
        """Begin to write with the base or an adapter; false where there is no room now: ask again after a `poll`."""
        ...

    def cancel(self, key: Hashable) -> None:
        """Write no more of this request; nothing happens where it has ended."""
        ...

    def poll(self, wait_seconds: float) -> list[KeyedEvent]:
        """What has been written since the last call; computes, or waits at most that long for another to compute."""
        ...

    def close(self) -> None:
        """Release the weights; nothing can be written afterwards."""
        ...


Prepared = Any
"""A request as one engine has made it ready; of no use to another."""


@runtime_checkable
class PreparingEngine(Protocol):
    """What a `StreamEngine` may also be able to do: make requests ready in other threads than the one that writes.

    So a prompt that takes seconds to tokenise holds up no answer that is being written.
    """

    def prepare(self, request: TextRequest | PoolingRequest) -> Prepared:
        """The request, prepared for `ask`.

        From any thread, several in parallel; raises what `ask` raises for a request.
        """
        ...

    def admit(
        self, key: Hashable, prepared: Prepared, adapter: str | None, *, owner: str | None, may_exceed: bool
    ) -> bool:
        """As `ask`, of what `prepare` has made.

        Args:
            key: names the ask in the events that follow.
            prepared: the prompt as tokens, of `prepare`.
            adapter: the adapter that answers; None for the base.
            owner: whose ask it is; prompts of different owners take turns.
            may_exceed: a reserve of room may be used, which is kept for those without active requests while others
                fill all places.
        """
        ...


@runtime_checkable
class RestingEngine(Protocol):
    """What a `StreamEngine` may also be able to do: use the time without requests for what a request would wait for."""

    def rest(self) -> None:
        """Called about once a second while nothing is written, by the thread that writes; takes little time."""
        ...


@runtime_checkable
class SharingEngine(Protocol):
    """What a `StreamEngine` may also be able to do: leave cores to other engines of its process."""

    def share(self, num_cores: float) -> None:
        """Other engines of this process compute on so many cores while this one writes; 0 for none."""
        ...


@runtime_checkable
class CountingEngine(Protocol):
    """What a `PreparingEngine` may also be able to do: count the tokens of a prompt without a pass of the model."""

    def num_prompt_tokens(self, prepared: Prepared) -> int:
        """Tokens of a prompt that `prepare` has made, as `Started` reports them."""
        ...


@runtime_checkable
class DescribedEngine(Protocol):
    """What a `StreamEngine` may also be able to do: say how it writes."""

    @property
    def decoding(self) -> Decoding:
        """The path, and why no faster one is used."""
        ...


@runtime_checkable
class PoolingEngine(Protocol):
    """What a `StreamEngine` may also be able to do: send inputs through the model once; `poll` tells `Pooled`."""

    def ask_pooling(self, key: Hashable, request: PoolingRequest, adapter: str | None) -> bool:
        """As `ask`, for vectors and for what a task head gives."""
        ...
