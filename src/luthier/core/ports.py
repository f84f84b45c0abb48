"""The narrow doors between layers: progress, events, engines and grading."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, Protocol, Self, runtime_checkable

from luthier.core.conversation import Conversation
from luthier.core.dataset import TokenisedExample
from luthier.core.events import Event
from luthier.core.frozen import Frozen

EventSink = Callable[[Event], None]


class ProgressTask(Protocol):
    """One bar. `advance` by units done; `note` sets a short text beside it (a loss, a file name)."""

    def advance(self, amount: float = 1) -> None: ...
    def note(self, text: str) -> None: ...
    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class Progress(Protocol):
    """Where long work shows how far it is. `total` None: not known in advance. `done`: already done at the start."""

    def task(self, title: str, total: float | None, unit: str, done: float = 0) -> ProgressTask: ...


class _SilentTask:
    def advance(self, amount: float = 1) -> None:
        """Show nothing."""

    def note(self, text: str) -> None:
        """Show nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None


class SilentProgress:
    """Shows nothing."""

    def task(self, title: str, total: float | None, unit: str, done: float = 0) -> ProgressTask:  # noqa: ARG002
        """A task that shows nothing."""
        return _SilentTask()


class Prompt(Frozen):
    """One request for text. Exactly one of `conversation` and `text` is set. temperature 0 is greedy."""

    conversation: Conversation | None = None
    text: str | None = None
    max_new_tokens: int = 128
    temperature: float = 0.0
    seed: int = 0


class Generation(Frozen):
    """What an engine wrote: without the end-of-turn token. `length`: cut off at max_new_tokens."""

    text: str
    num_prompt_tokens: int
    num_new_tokens: int
    finish_reason: Literal["stop", "length"]


class Score(Frozen):
    """How well an engine predicts the learned tokens of one example: total negative log-likelihood in nats."""

    nll_nats: float
    num_tokens: int
    num_correct: int


@dataclass(frozen=True, slots=True)
class Attempt:
    """One answer that a model wrote to the prompt of a row while it was trained. ended: by itself, not cut off."""

    row_id: str
    text: str
    num_new_tokens: int
    ended: bool


@dataclass(frozen=True, slots=True)
class Grade:
    """What an attempt is worth: `reward`, made of `parts` by name, each before it is weighted."""

    reward: float
    parts: dict[str, float]


Grading = Callable[[Sequence[Attempt]], list[Grade]]
"""Grades attempts, in order: what training asks of judging without knowing how it judges."""


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
