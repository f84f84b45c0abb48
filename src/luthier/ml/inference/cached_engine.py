"""An engine that forwards only requests it has no cached answer for, and counts requests, tokens and seconds.

The key of a request is a digest over who answers (weights or address) and the whole prompt with its limit, temperature
and seed. Behind an address the weights may change under one name without the key changing: that is for the name to say.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from luthier.core.digest import sha256_document
from luthier.core.errors import OverlongError
from luthier.core.ports import Engine, Generation, Progress, Prompt

Keep = Callable[[Prompt, Generation], None]


class ResultCache(Protocol):
    """Where generations are kept by key: `store.generations.GenerationStore`, or a double of it."""

    def find(self, keys: Sequence[str]) -> dict[str, Generation]: ...
    def keep(self, new: Mapping[str, Generation], *, engine: str) -> None: ...


@dataclass(frozen=True, slots=True)
class Usage:
    """What was requested in this process. What came from the cache is counted apart.

    Attributes:
        num_requests: answered by the engine.
        num_prompt_tokens: prompt tokens of these.
        num_new_tokens: tokens written for these.
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
    """Sends to the engine only prompts without a cached answer; the engine is opened when it is first needed.

    Args:
        cache: where answers are kept.
        name: who answers, as provenance names it.
        identity: what decides the answers beside the prompt, JSON values only: equal identities must mean equal
            answers.
        open_engine: gets a function to call with each answer as it comes; an engine that cannot may ignore it, and then
            its answers are kept when a whole call has ended.
    """

    def __init__(
        self, open_engine: Callable[[Keep], Engine], cache: ResultCache, *, name: str, identity: Mapping[str, Any]
    ) -> None:
        self._open, self._cache, self.name, self._identity = open_engine, cache, name, dict(identity)
        self._engine: Engine | None = None
        self._usage: dict[str, int] = {}
        self._seconds = 0.0
        self._known: dict[str, Generation] = {}

    @property
    def usage(self) -> Usage:
        """What was asked so far."""
        return Usage(seconds=self._seconds, **self._usage)

    def key(self, prompt: Prompt) -> str:
        """The digest under which the answer to a prompt is kept."""
        # Answers that were kept before there were schemas and budgets of thoughts stay known.
        unset = {name for name in ("json_schema", "max_thinking_tokens") if getattr(prompt, name) is None}
        return sha256_document({"engine": self._identity, "prompt": prompt.model_dump(mode="json", exclude=unset)})

    def generate_each(self, prompts: Sequence[Prompt], progress: Progress) -> list[Generation | OverlongError]:
        """One answer a prompt, in order; an error in place of an answer where a prompt is over the context.

        Equal prompts are sent once. Answers are kept even where another prompt of the call fails. Errors of the engine
        pass through, except for OverlongError.
        """
        keys = [self.key(prompt) for prompt in prompts]
        # A dict by key keeps the first place of each prompt and drops its repetitions.
        by_key = dict(zip(keys, prompts, strict=True))
        found: dict[str, Generation | OverlongError] = dict(self._cache.find(list(by_key)))
        for generation in found.values():
            self._count("cached_", generation)
        self._ask({key: prompt for key, prompt in by_key.items() if key not in found}, found, progress)
        return [found[key] for key in keys]

    def close(self) -> None:
        """Close the engine, where it was opened."""
        if self._engine is not None:
            self._engine.close()
            self._engine = None

    def _ask(
        self, missing: Mapping[str, Prompt], found: dict[str, Generation | OverlongError], progress: Progress
    ) -> None:
        """Ask for what is missing; where one of several is over the context, ask for each half, to find out which."""
        if not missing:
            return
        start = time.monotonic()
        # What this call alone has answered (`_keep`): an earlier call's answers must not count as found again.
        self._known = {}
        try:
            if self._engine is None:
                self._engine = self._open(self._keep)
            written = self._engine.generate(list(missing.values()), progress)
        except OverlongError as error:
            # What was answered before the error is kept, and not asked again.
            found.update(self._known)
            rest = [key for key in missing if key not in found]
            # With one prompt left, the error is that prompt's; with more, the engine does not say whose it is.
            if len(rest) == 1:
                found[rest[0]] = error
                self._usage["num_overlong"] = self._usage.get("num_overlong", 0) + 1
                return
        else:
            # Engines that report each answer as it comes have stored those already (`_keep`).
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
        # Stored before it is counted: a crash after this line loses no answer that was paid for.
        self._cache.keep({key: generation}, engine=self.name)
        self._known[key] = generation
        self._count("", generation)

    def _count(self, kind: str, generation: Generation | OverlongError) -> None:
        if isinstance(generation, Generation):
            tokens = (("prompt_tokens", generation.num_prompt_tokens), ("new_tokens", generation.num_new_tokens))
            for what, number in (("requests", 1), *tokens):
                name = f"num_{kind}{what}"
                self._usage[name] = self._usage.get(name, 0) + number
