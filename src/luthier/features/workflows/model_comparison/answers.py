"""What systems of a showdown have written, kept in files, so that all are judged together without any model loaded.

One system at a time holds its weights; its answers and likelihoods go to a file. At the end `evaluate.compare` gets an
engine for each that only reads its file, so that intervals and differences are paired over the rows as ever.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from luthier.core.dataset import Example, TokenisedExample
from luthier.core.errors import ConflictError
from luthier.core.frozen_model import FrozenModel
from luthier.core.ports import Generation, Progress, Prompt, Score
from luthier.core.workflows.model_comparison import ModelComparisonSpec, SystemKind
from luthier.features.models.resolve import (
    Candidate,
    find_candidate,
    open_engine,
    system_under_test,
    tuned,
    with_few_shot,
)
from luthier.platform.home.context import Context

if TYPE_CHECKING:
    from luthier.ml.evaluation.compare import SystemUnderTest
    from luthier.ml.inference.models.chat_template import ChatTemplate
    from luthier.ml.inference.transformers_engine import TransformersEngine

_OPENING_ROLES = ("system", "developer")


class Recorded(FrozenModel):
    """What one system did with the judged rows, in their order.

    Attributes:
        name: Of the system.
        generations: Its answers; empty for plain text, which is only scored.
        scores: Likelihoods of the rows' own answers.
        write_seconds: Of all answers together.
        score_seconds: Of all scores together.
    """

    name: str
    generations: tuple[Generation, ...]
    scores: tuple[Score, ...]
    write_seconds: float
    score_seconds: float


@dataclass(frozen=True, slots=True)
class ComparisonRows:
    """The rows of a showdown, read again. shots are chosen from `pool`, none of whose prompts is judged."""

    pool: tuple[Example, ...]
    judged: tuple[Example, ...]


def read_material(spec: ModelComparisonSpec) -> ComparisonRows:
    """The rows as the showdown keeps them. Raises DataError, NotFoundError."""
    from luthier.ml.data.rows.formats import load_file

    pool = load_file(Path(spec.train_file), mapping=spec.map).examples
    return ComparisonRows(pool, load_file(Path(spec.judged_file), mapping=spec.map).examples)


def instructed(examples: Sequence[Example], instruction: str) -> tuple[Example, ...]:
    """The examples with an instruction before their first question; those with a system message of their own keep it.

    It stands in the user's turn, since some templates know no system message: so it is the same for every model.
    """
    if not instruction:
        return tuple(examples)
    return tuple(_instructed(example, instruction) for example in examples)


def _instructed(example: Example, instruction: str) -> Example:
    messages = () if example.conversation is None else example.conversation.messages
    first = next((n for n, message in enumerate(messages) if message.role == "user"), None)
    # A row with its own system prompt explains the task already.
    if example.conversation is None or first is None or messages[0].role in _OPENING_ROLES:
        return example
    told = messages[first].model_copy(update={"content": f"{instruction}\n\n{messages[first].content or ''}"})
    changed = (*messages[:first], told, *messages[first + 1 :])
    return example.model_copy(update={"conversation": example.conversation.model_copy(update={"messages": changed})})


def candidate_of(
    context: Context,
    spec: ModelComparisonSpec,
    number: int,
    kind: SystemKind,
    material: ComparisonRows,
    adapter_path: str = "",
) -> Candidate:
    """A contender as it is asked. adapter_path: what its training has made, for `tuned`."""
    contender = spec.contenders[number]
    base = find_candidate(context, contender.model)
    if kind == "tuned":
        return tuned(f"{contender.label} tuned", base, adapter_path)
    base = replace(base, name=contender.label)
    if kind == "zero-shot":
        return base
    # The judged rows are passed so that none of them becomes an example.
    return with_few_shot(base, material.pool, spec.few_shot, spec.seed, held_out=material.judged)


def rows_for(spec: ModelComparisonSpec, kind: SystemKind, material: ComparisonRows) -> tuple[Example, ...]:
    """The judged rows as a system of this kind sees them: who is tuned knows the task without being told."""
    return material.judged if kind == "tuned" else instructed(material.judged, spec.instruction)


def record(candidate: Candidate, examples: Sequence[Example], max_new_tokens: int, progress: Progress) -> Recorded:
    """Load, ask and score one system."""
    engine = open_engine(candidate)
    try:
        return record_with(engine, candidate, examples, max_new_tokens, progress)
    finally:
        engine.close()


def record_with(
    engine: TransformersEngine,
    candidate: Candidate,
    examples: Sequence[Example],
    max_new_tokens: int,
    progress: Progress,
) -> Recorded:
    """Ask and score one system with an engine that is open already."""
    from luthier.ml.evaluation.systems import Titled

    system = system_under_test(candidate, engine, examples, max_new_tokens)
    titled = Titled(progress, system.name)
    began = time.perf_counter()
    # Timed apart from scoring: only writing answers counts for what an answer costs.
    generations = engine.generate(system.prompts, titled) if system.prompts else []
    written = time.perf_counter()
    scores = system.scores(titled)
    return Recorded(
        name=system.name,
        generations=tuple(generations),
        scores=tuple(scores),
        write_seconds=written - began,
        score_seconds=time.perf_counter() - written,
    )


class ReplayEngine:
    """Gives back what a system has done, as if it did it now. template: of the model that did."""

    def __init__(self, recorded: Recorded, template: ChatTemplate) -> None:
        self._recorded, self.template = recorded, template

    @property
    def name(self) -> str:
        """Says that nothing is computed."""
        return f"what {self._recorded.name} has written"

    def generate(self, prompts: Sequence[Prompt], progress: Progress) -> list[Generation]:  # noqa: ARG002
        """The kept answers. Raises ConflictError where they are of other prompts."""
        self._check(len(prompts), len(self._recorded.generations))
        return list(self._recorded.generations)

    def score(self, examples: Sequence[TokenisedExample], progress: Progress) -> list[Score]:  # noqa: ARG002
        """The kept likelihoods. Raises ConflictError where they are of other rows."""
        self._check(len(examples), len(self._recorded.scores))
        return list(self._recorded.scores)

    def close(self) -> None:
        """Nothing is open."""

    def _check(self, asked: int, kept: int) -> None:
        if asked != kept:
            raise ConflictError(
                f"{kept} answers are kept of {self._recorded.name}, {asked} rows are asked",
                expected="the rows that it was asked with",
                do="the files of the showdown were changed: begin a new one",
            )


def replayed(
    candidate: Candidate, recorded: Recorded, examples: Sequence[Example], max_new_tokens: int
) -> SystemUnderTest:
    """A system as `evaluate.compare` takes it, which only reads what it did."""
    engine = ReplayEngine(recorded, candidate.chat_template())
    return system_under_test(candidate, engine, examples, max_new_tokens)
