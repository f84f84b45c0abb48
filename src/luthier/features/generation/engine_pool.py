"""Engines of systems that are judged one after another: one model in memory at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from luthier.core.dataset import TokenisedExample
from luthier.core.ports import Engine, Generation, Progress, Prompt, Score
from luthier.features.models.resolve import Candidate, TemplatedEngine, engine_key

if TYPE_CHECKING:
    from luthier.ml.inference.models.chat_template import ChatTemplate


@dataclass(frozen=True, slots=True)
class _Loaded:
    candidate: Candidate
    engine: Engine


class EnginePool:
    """Loads a model when it first writes or scores, and lets go of the one before.

    Systems of one base and adapter, such as a base with and without examples in its prompt, share an engine.
    """

    def __init__(self, open_engine: Callable[[Candidate], Engine]) -> None:
        self._open_engine = open_engine
        self._loaded: _Loaded | None = None
        self._notes: dict[str, None] = {}

    @property
    def notes(self) -> tuple[str, ...]:
        """What the engines that were closed so far had to say of how they worked."""
        return tuple(self._notes)

    def engine(self, candidate: Candidate) -> TemplatedEngine:
        """An engine that needs no memory until it is used.

        Raises:
            NotFoundError, ModelSourceError: no model or no adapter in its folder, before another system is judged.
        """
        from luthier.ml.inference.models.loading import check_adapter

        if candidate.adapter_path is not None:
            # Before anything is judged: a missing adapter of the last system must not surface after an hour.
            check_adapter(candidate.adapter_path)
        template = candidate.chat_template()
        # Without `auto`: a base by name and the base of a run, whose plan holds the kind, share an engine.
        return _Pooled(self, replace(candidate, template=template.kind), template)

    def load(self, candidate: Candidate) -> Engine:
        """The engine of a candidate, loaded; whatever was loaded for another one is closed first."""
        if self._loaded is None or engine_key(self._loaded.candidate) != engine_key(candidate):
            # Closed before the next is opened: two models at once may not fit into the memory.
            self.close()
            self._loaded = _Loaded(candidate, self._open_engine(candidate))
        return self._loaded.engine

    def close(self) -> None:
        """Let go of what is loaded."""
        loaded, self._loaded = self._loaded, None
        if loaded is not None:
            # A dict keeps the order and drops repeated notes.
            self._notes |= dict.fromkeys(getattr(loaded.engine, "notes", ()))
            loaded.engine.close()


class _Pooled:
    """One candidate's engine, by way of the pool."""

    def __init__(self, pool: EnginePool, candidate: Candidate, template: ChatTemplate) -> None:
        self._pool, self._candidate, self._template = pool, candidate, template

    @property
    def name(self) -> str:
        return self._pool.load(self._candidate).name

    @property
    def template(self) -> ChatTemplate:
        return self._template

    def generate(self, prompts: Sequence[Prompt], progress: Progress) -> list[Generation]:
        return self._pool.load(self._candidate).generate(prompts, progress)

    def score(self, examples: Sequence[TokenisedExample], progress: Progress) -> list[Score]:
        return self._pool.load(self._candidate).score(examples, progress)

    def close(self) -> None:
        self._pool.close()
