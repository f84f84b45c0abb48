"""Wrappers around engines: a result cache, complete answers from a streaming engine, and back-off before a retry.

The cached engine forwards only requests that are not in the cache, and counts requests, tokens and seconds. The cache
key is a digest over the model (weights or address) and the whole prompt with its limit, temperature and seed. If the
weights behind an address change, the key changes only if the model name does.

A request is retried after exponential back-off with jitter, or after the delay that the server requests.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Final, Protocol

from luthier.core.dataset import TokenisedExample
from luthier.core.errors import OverlongError, RequestError, WorkError
from luthier.core.ids import sha256_document
from luthier.core.ports import Engine, Generation, Progress, Prompt, Score, StreamEngine
from luthier.core.stream import (
    CallPiece,
    Ended,
    Failed,
    Piece,
    Sampling,
    Started,
    StreamEvent,
    TextRequest,
    joined_calls,
)

Keep = Callable[[Prompt, Generation], None]


class ResultCache(Protocol):
    """A store of generations by key: `GenerationStore`, or a test double."""

    def find(self, keys: Sequence[str]) -> dict[str, Generation]: ...
    def keep(self, new: Mapping[str, Generation], *, engine: str) -> None: ...


@dataclass(frozen=True, slots=True)
class Usage:
    """Usage in this process. Cached answers are counted separately.

    Attributes:
        num_requests: answered by the engine.
        num_prompt_tokens: prompt tokens of these.
        num_new_tokens: tokens generated for these requests.
        num_cached_requests: answered from the cache; equal prompts of one call count once.
        num_cached_prompt_tokens: prompt tokens of these.
        num_cached_new_tokens: tokens of their answers.
        num_overlong: prompts that did not fit into the context.
        seconds: wall-clock time in the engine, including its loading.
    """

    num_requests: int = 0
    num_prompt_tokens: int = 0
    num_new_tokens: int = 0
    num_cached_requests: int = 0
    num_cached_prompt_tokens: int = 0
    num_cached_new_tokens: int = 0
    num_overlong: int = 0
    seconds: float = 0.0


class CachedEngine:
    """Sends only prompts without a cached answer to the engine, which is opened on first use.

    Args:
        cache: stores the answers.
        name: the answering model, as recorded in provenance.
        identity: everything except the prompt that determines the answers, as JSON values: equal identities must mean
            equal answers.
        open_engine: receives a callback for each answer as it arrives. An engine may ignore it; its answers are then
            stored when the whole call has ended.
        first_counts: whether the answer that is stored first is used by all processes: where two ask the same question
            at once, and the model may answer each of them otherwise.
    """

    def __init__(
        self,
        open_engine: Callable[[Keep], Engine],
        cache: ResultCache,
        *,
        name: str,
        identity: Mapping[str, Any],
        first_counts: bool = False,
    ) -> None:
        self._first_counts = first_counts
        self._open, self._cache, self.name, self._identity = open_engine, cache, name, dict(identity)
        self._engine: Engine | None = None
        self._usage: dict[str, int] = {}
        self._seconds = 0.0
        self._known: dict[str, Generation] = {}

    @property
    def usage(self) -> Usage:
        """The usage so far."""
        return Usage(seconds=self._seconds, **self._usage)

    def key(self, prompt: Prompt) -> str:
        """The cache key of a prompt."""
        # Keys from before schemas and reasoning budgets existed remain valid.
        unset = {name for name in ("json_schema", "max_thinking_tokens") if getattr(prompt, name) is None}
        document: dict[str, Any] = {"engine": self._identity, "prompt": prompt.model_dump(mode="json", exclude=unset)}
        has_tools = prompt.conversation is not None and bool(prompt.conversation.tools)
        if has_tools and self._identity.get("engine") == "transformers":
            # Answers from before this engine took calls out of the text have them there, or have lost their marks.
            document["has_calls_apart"] = True
        return sha256_document(document)

    def generate_each(self, prompts: Sequence[Prompt], progress: Progress) -> list[Generation | OverlongError]:
        """One answer per prompt, in order; an error in place of the answer if a prompt exceeds the context.

        Equal prompts are sent once. Answers are stored even if another prompt of the call fails. Errors of the engine
        propagate, except OverlongError.
        """
        keys = [self.key(prompt) for prompt in prompts]
        # A dict by key keeps the first occurrence of each prompt.
        by_key = dict(zip(keys, prompts, strict=True))
        found: dict[str, Generation | OverlongError] = dict(self._cache.find(list(by_key)))
        for generation in found.values():
            self._count("cached_", generation)
        self._ask({key: prompt for key, prompt in by_key.items() if key not in found}, found, progress)
        return [found[key] for key in keys]

    def close(self) -> None:
        """Close the engine if it was opened."""
        if self._engine is not None:
            self._engine.close()
            self._engine = None

    def _ask(
        self, missing: Mapping[str, Prompt], found: dict[str, Generation | OverlongError], progress: Progress
    ) -> None:
        """Request the missing answers; if one of several prompts exceeds the context, bisect to find it."""
        if not missing:
            return
        start = time.monotonic()
        # Only answers of this call (`_keep`): those of an earlier call must not count as cache hits again.
        self._known = {}
        try:
            if self._engine is None:
                self._engine = self._open(self._keep)
            written = self._engine.generate(list(missing.values()), progress)
        except OverlongError as error:
            # Answers from before the error are stored and not requested again.
            found.update(self._known)
            rest = [key for key in missing if key not in found]
            # With one prompt left, the error belongs to it; with more, the engine does not say which.
            if len(rest) == 1:
                found[rest[0]] = error
                self._usage["num_overlong"] = self._usage.get("num_overlong", 0) + 1
                return
        else:
            # Engines that report each answer as it arrives have already stored them (`_keep`).
            new = {key: made for key, made in zip(missing, written, strict=True) if key not in self._known}
            self._cache.keep(new, engine=self.name)
            for made in new.values():
                self._count("", made)
            found.update(self._known | new)
            return
        finally:
            self._seconds += time.monotonic() - start
        # Outside of the `try`, so that the seconds of each half are counted once.
        for half in (rest[: len(rest) // 2], rest[len(rest) // 2 :]):
            self._ask({key: missing[key] for key in half}, found, progress)

    def _keep(self, prompt: Prompt, generation: Generation) -> None:
        key = self.key(prompt)
        # Stored before it is counted: a crash after this line loses no paid answer.
        self._cache.keep({key: generation}, engine=self.name)
        stored = self._cache.find([key]) if self._first_counts else {}
        self._known[key] = stored.get(key, generation)
        self._count("", generation)

    def _count(self, kind: str, generation: Generation | OverlongError) -> None:
        if isinstance(generation, Generation):
            tokens = (("prompt_tokens", generation.num_prompt_tokens), ("new_tokens", generation.num_new_tokens))
            for what, number in (("requests", 1), *tokens):
                name = f"num_{kind}{what}"
                self._usage[name] = self._usage.get(name, 0) + number


class CachedJudge:
    """A cached engine as one that writes, under the name of the judge. It gives no likelihoods."""

    def __init__(self, cached: CachedEngine, name: str) -> None:
        self._cached, self.name = cached, name

    def generate(self, prompts: Sequence[Prompt], progress: Progress) -> list[Generation]:
        """One generation a prompt, in order. Raises OverlongError where one is over the context, when all are done."""
        made = self._cached.generate_each(prompts, progress)
        # Raised after all were generated: the finished answers are in the cache and not paid for again.
        for one in made:
            if isinstance(one, OverlongError):
                raise one
        return [one for one in made if isinstance(one, Generation)]

    def score(self, examples: Sequence[TokenisedExample], progress: Progress) -> list[Score]:  # noqa: ARG002
        """A judge answers in text.

        Raises:
            RequestError: Always: a judge answers in text.
        """
        raise RequestError(
            f"likelihoods of {len(examples):,} rows from the judge {self.name}",
            expected="questions with text answers",
            do="judge likelihoods with the models themselves",
        )

    def close(self) -> None:
        """Let go of the weights, where they were loaded."""
        self._cached.close()


class StreamedAnswer:
    """Puts the events of one request together as a generation."""

    def __init__(self) -> None:
        self._text = self._thought = ""
        self._calls: list[CallPiece] = []
        self.num_prompt_tokens = 0

    def hear(self, event: StreamEvent) -> Generation | None:
        """Take the next event; the generation with the last one. A failure is the caller's matter."""
        if isinstance(event, Started):
            self.num_prompt_tokens = event.num_prompt_tokens
        elif isinstance(event, Piece):
            self._text += event.text
            self._thought += event.reasoning
            self._calls += event.calls
        elif isinstance(event, Ended):
            return Generation(
                text=self._text,
                # A remote server counts the prompt at the end only; local engines know it at the start.
                num_prompt_tokens=event.num_prompt_tokens or self.num_prompt_tokens,
                num_new_tokens=event.num_new_tokens,
                finish_reason="length" if event.reason == "length" else "stop",
                reasoning=self._thought or None,
                num_thinking_tokens=event.num_thinking_tokens,
                ends_in_thought=event.ends_in_thought,
                token_ids=event.token_ids,
                tool_calls=joined_calls(self._calls),
            )
        return None


_WAIT_SECONDS: Final = 0.2


def generate_by_streaming(
    engine: StreamEngine,
    prompts: Sequence[Prompt],
    progress: Progress,
    *,
    adapter: str | None = None,
    returns_token_ids: bool = False,
) -> list[Generation]:
    """One generation per prompt, in order, with as many in flight as the engine has room for.

    The first error cancels all others.

    Args:
        engine: generates the answers.
        prompts: conversations or texts with their limits.
        progress: advanced by each answer.
        adapter: a loaded adapter; None for the base.
        returns_token_ids: whether generations include token ids, if the engine returns them.

    Raises:
        RequestError, OverlongError, TemplateError: a prompt that cannot be rendered.
        WorkError: an answer failed; the message contains the number of its prompt.
    """
    requests = [text_request(prompt, number, returns_token_ids) for number, prompt in enumerate(prompts)]
    waiting = deque(range(len(requests)))
    answers = [StreamedAnswer() for _ in requests]
    found: dict[int, Generation] = {}
    keys = [("generate", number) for number in range(len(requests))]
    try:
        with progress.task("Writing answers", len(requests), "answers") as task:
            while len(found) < len(requests):
                # As many as there is room for, in order; false means "retry after the next poll".
                while waiting and engine.ask(keys[waiting[0]], requests[waiting[0]], adapter):
                    waiting.popleft()
                for key, event in engine.poll(_WAIT_SECONDS):
                    assert isinstance(key, tuple)
                    number = key[1]
                    if isinstance(event, Failed):
                        raise _failed(number, event)
                    if (made := answers[number].hear(event)) is not None:
                        found[number] = made
                        task.advance()
    finally:
        # Also after an error: the engine must not continue without a reader.
        for key in keys:
            engine.cancel(key)
    return [found[number] for number in range(len(requests))]


def text_request(prompt: Prompt, number: int, returns_token_ids: bool = False) -> TextRequest:
    """A prompt as an engine that streams takes it.

    Args:
        prompt: A conversation or a text with its limits.
        number: Its place among the prompts of a call, from 0, for the error.
        returns_token_ids: Whether the end of the answer holds its token ids.

    Raises:
        RequestError: It has neither or both of the two, or impossible limits.
    """
    prompt.check(number)
    return TextRequest(
        conversation=prompt.conversation,
        text=prompt.text,
        max_new_tokens=prompt.max_new_tokens,
        json_schema=prompt.json_schema,
        max_thinking_tokens=prompt.max_thinking_tokens,
        sampling=Sampling(temperature=prompt.temperature, seed=prompt.seed),
        returns_token_ids=returns_token_ids,
    )


def _failed(number: int, event: Failed) -> WorkError:
    error = event.error
    return WorkError(
        f"prompt {number + 1}: {error.get('came', error)}",
        expected=str(error.get("expected", "an answer")),
        do=str(error.get("do", "ask again")),
    )


MAX_PAUSE_SECONDS: Final = 60.0
MAX_RETRY_AFTER_SECONDS: Final = 300.0


def is_passing(status: int) -> bool:
    """Whether a request with this HTTP status may be retried: time-outs, conflicts, rate limits, server errors."""
    return status in (408, 409, 429) or status >= 500


def pause_seconds(attempt: int, retry_after: str | None, first: float, draw: float) -> float | None:
    """Seconds to wait before the next attempt.

    Args:
        attempt: number of the failed attempt, from 1.
        retry_after: the header of that name, seconds or a date (RFC 9110, 10.2.3); an unreadable one is ignored.
            Without it the pause is first * 2^(attempt - 1), at most 60 seconds.
        first: seconds before the second attempt.
        draw: random number from 0 to 1, which shortens the pause by up to half.

    Returns:
        None if the server requests more than five minutes.
    """
    if (asked := _asked_seconds(retry_after)) is not None:
        return asked if asked <= MAX_RETRY_AFTER_SECONDS else None
    # Jitter only shortens: the cap holds, and clients that failed together do not come back together.
    return min(first * 2.0 ** (attempt - 1), MAX_PAUSE_SECONDS) * (1 - draw / 2)


def _asked_seconds(header: str | None) -> float | None:
    if header is None:
        return None
    text = header.strip()
    # `isdigit` alone accepts digits of other scripts and superscripts, which `float` may not.
    if text.isascii() and text.replace(".", "", 1).isdigit():
        return float(text)
    try:
        when = parsedate_to_datetime(text)
    except (ValueError, OverflowError):
        return None
    if when.tzinfo is None:
        # A date without a zone ("-0000" gives none): HTTP dates are in UTC.
        when = when.replace(tzinfo=UTC)
    return max(0.0, (when - datetime.now(UTC)).total_seconds())
