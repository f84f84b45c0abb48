"""The answers of compared systems, stored in files, and the rows that fit into the context of all of them.

One system at a time is in memory; its answers and likelihoods go to a file. At the end `evaluate.compare` gets an
engine for each that only reads its file, so that intervals and differences are paired over the rows as usual. A row
that is too long for one candidate is left out for all.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from luthier.core.dataset import Example, Row, Shape, TokenisedExample
from luthier.core.errors import ConflictError, DataError, LeakageError, RequestError
from luthier.core.evaluation_plan import MetricName
from luthier.core.frozen_model import FrozenModel
from luthier.core.ports import Generation, Progress, Prompt, Score
from luthier.core.records.base_model import LocalModel
from luthier.core.workflows.pipeline import ModelComparisonSpec, SystemKind
from luthier.features.models.prompts import with_few_shot, with_nearest
from luthier.features.models.resolve import (
    Candidate,
    TemplatedEngine,
    find_candidate,
    open_engine,
    system_under_test,
    tuned,
)
from luthier.platform.home.context import Context

if TYPE_CHECKING:
    from luthier.features.evaluations.label_scores import LabelledRows
    from luthier.ml.evaluation.compare import SystemUnderTest
    from luthier.ml.inference.models.templates.chat_template import ChatTemplate
    from luthier.ml.inference.transformers_engine import TransformersEngine

_OPENING_ROLES = ("system", "developer")


class Recorded(FrozenModel):
    """The results of one system for the evaluated rows, in their order.

    Attributes:
        name: Name of the system.
        generations: The answers; empty for plain text, which is only scored.
        scores: Likelihoods of the rows' own answers.
        write_seconds: Time of all answers together.
        score_seconds: Time of all scores together.
    """

    name: str
    generations: tuple[Generation, ...]
    scores: tuple[Score, ...]
    write_seconds: float
    score_seconds: float


@dataclass(frozen=True, slots=True)
class ComparisonRows:
    """The rows of a comparison, read again. shots are chosen from `pool`, none of whose prompts is evaluated."""

    pool: Sequence[Example]
    judged: Sequence[Example]


def read_material(spec: ModelComparisonSpec) -> ComparisonRows:
    """The rows stored by the comparison.

    Raises:
        NotFoundError: a stored file is missing.
        DataError: a stored file cannot be read.
    """
    from luthier.ml.data.rows.formats import load_file

    pool = load_file(Path(spec.train_file), mapping=spec.map).examples
    return ComparisonRows(pool, load_file(Path(spec.judged_file), mapping=spec.map).examples)


def instructed(examples: Sequence[Example], instruction: str) -> tuple[Example, ...]:
    """The examples with an instruction before their first question; those with their own system message keep it.

    The instruction is in the user turn, as some templates have no system message: so it is the same for every model.
    """
    if not instruction:
        return tuple(examples)
    return tuple(_instructed(example, instruction) for example in examples)


def _instructed(example: Example, instruction: str) -> Example:
    messages = () if example.conversation is None else example.conversation.messages
    first = next((n for n, message in enumerate(messages) if message.role == "user"), None)
    # A row with its own system prompt already explains the task.
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
    """A candidate in one way of prompting.

    Args:
        context: of the home.
        spec: of the comparison.
        number: of the model among those that are compared.
        kind: the way of prompting.
        material: the rows.
        adapter_path: the result of its training, for `tuned`.

    Raises:
        ConflictError: the rows have no examples to retrieve any more.
    """
    contender = spec.contenders[number]
    base = find_candidate(context, contender.model)
    if kind == "tuned":
        return tuned(f"{contender.label} tuned", base, adapter_path)
    base = replace(base, name=contender.label)
    if kind == "few-shot-nearest":
        nearest = nearest_of(spec, base, material)
        if nearest is None:
            raise ConflictError(
                f"{base.name} cannot be evaluated with the nearest examples: the rows hold none, or no words",
                expected="the same rows as before",
                do="the files of the comparison were changed: start a new one",
            )
        return nearest
    if kind != "few-shot":
        return base
    # The evaluated rows are passed so that none of them becomes an example.
    return with_few_shot(base, material.pool, spec.few_shot, spec.seed, held_out=material.judged)


def nearest_of(spec: ModelComparisonSpec, base: Candidate, material: ComparisonRows) -> Candidate | None:
    """A contender with the nearest examples in its prompts; None where it is not asked so.

    The instruction is its own and not part of the rows: its words would make examples near that only share these.
    """
    found = with_nearest(base, material.pool, spec.few_shot, held_out=material.judged)
    return None if found is None else replace(found, instruction=spec.instruction)


def rows_for(spec: ModelComparisonSpec, kind: SystemKind, material: ComparisonRows) -> Sequence[Example]:
    """The judged rows as a system of this kind sees them: a tuned model knows the task without an instruction."""
    has_own = kind in ("tuned", "few-shot-nearest")
    return material.judged if has_own else instructed(material.judged, spec.instruction)


def record(
    candidate: Candidate, spec: ModelComparisonSpec, kind: SystemKind, material: ComparisonRows, progress: Progress
) -> Recorded:
    """Load, ask and score one system.

    Args:
        candidate: the model with its prompts.
        spec: of the comparison.
        kind: the way of prompting.
        material: the rows.
        progress: shows the work.

    Raises:
        ConflictError: it cannot answer with its likeliest label (`why_no_choice`).
    """
    engine = open_engine(candidate)
    try:
        if kind == "likeliest-label":
            return record_choice(_choice(candidate, engine, spec, material), progress)
        return record_with(engine, candidate, rows_for(spec, kind, material), spec.max_new_tokens, progress)
    # One model in memory at a time: the next candidate may need all of it.
    finally:
        engine.close()


def record_with(
    engine: TransformersEngine,
    candidate: Candidate,
    examples: Sequence[Example],
    max_new_tokens: int,
    progress: Progress,
) -> Recorded:
    """Generate answers and score with an open engine.

    Args:
        engine: of the candidate.
        candidate: the model with its prompts.
        examples: the rows.
        max_new_tokens: of an answer.
        progress: shows the work.
    """
    return record_system(system_under_test(candidate, engine, examples, max_new_tokens), progress)


def record_system(system: SystemUnderTest, progress: Progress) -> Recorded:
    """Generate answers and score with the engine of a system."""
    from luthier.ml.evaluation.systems import Titled

    titled = Titled(progress, system.name)
    began = time.perf_counter()
    # Timed separately from scoring: only generation counts for the cost of an answer.
    generations = system.engine.generate(system.prompts, titled) if system.prompts else []
    written = time.perf_counter()
    scores = system.scores(titled)
    return Recorded(
        name=system.name,
        generations=tuple(generations),
        scores=tuple(scores),
        write_seconds=written - began,
        score_seconds=time.perf_counter() - written,
    )


def record_choice(system: SystemUnderTest, progress: Progress) -> Recorded:
    """Ask a model that answers with its likeliest label."""
    from luthier.ml.evaluation.systems import Titled

    began = time.perf_counter()
    generations = tuple(system.engine.generate(system.prompts, Titled(progress, system.name)))
    took = time.perf_counter() - began
    return Recorded(name=system.name, generations=generations, scores=(), write_seconds=took, score_seconds=0.0)


def labelled_rows(
    metrics: Sequence[MetricName], primary: str, judged: Sequence[Example], train: Sequence[Example]
) -> LabelledRows | None:
    """The evaluated rows with the labels that their answers are; None where they are none, or no answers decide.

    Args:
        metrics: that are evaluated.
        primary: the metric of the verdict.
        judged: the evaluated rows.
        train: the training rows.
    """
    from luthier.features.evaluations.label_scores import LabelledRows
    from luthier.features.recipes.checks import label_metrics
    from luthier.ml.evaluation.metrics.registry import as_definitions

    found = label_metrics(metrics, judged, train)
    if not found or as_definitions([primary])[0].needs != "text":
        return None
    return LabelledRows(tuple(name for one in found for name in one.labelling.labels), tuple(judged), train, None)


def _labelled(spec: ModelComparisonSpec, material: ComparisonRows) -> LabelledRows | None:
    return labelled_rows(spec.metrics, spec.primary, rows_for(spec, "likeliest-label", material), material.pool)


def _likeliest(
    candidate: Candidate, engine: TemplatedEngine, spec: ModelComparisonSpec, material: ComparisonRows
) -> tuple[SystemUnderTest | None, str]:
    """A model that answers with its likeliest label, or why it does not. engine: of the candidate."""
    from luthier.features.evaluations.label_scores import likeliest_label

    rows = _labelled(spec, material)
    if rows is None:
        return None, "the answers are not labels"
    beside = system_under_test(candidate, engine, rows.examples, spec.max_new_tokens)
    return likeliest_label(rows, candidate, engine, beside)


def why_no_choice(candidate: Candidate, spec: ModelComparisonSpec, material: ComparisonRows) -> str:
    """Why a model is not scored by its likeliest label; empty where it is. Loads no model."""
    # The check needs the chat template alone; an engine without results takes the place of the model.
    nothing = Recorded(name=candidate.name, generations=(), scores=(), write_seconds=0.0, score_seconds=0.0)
    engine = ReplayEngine(nothing, candidate.chat_template())
    return _likeliest(candidate, engine, spec, material)[1]


def choices_left_out(
    candidates: Sequence[Candidate], spec: ModelComparisonSpec, material: ComparisonRows
) -> tuple[str, ...]:
    """Why models are not scored by their likeliest label, where answers are labels: each name with its reason."""
    from luthier.features.evaluations.label_scores import LIKELIEST_LABEL

    if _labelled(spec, material) is None:
        return ()
    reasons = [(one.name, why_no_choice(one, spec, material)) for one in candidates]
    return tuple(f"{name}, {LIKELIEST_LABEL}: {why}" for name, why in reasons if why)


def _choice(
    candidate: Candidate, engine: TemplatedEngine, spec: ModelComparisonSpec, material: ComparisonRows
) -> SystemUnderTest:
    system, why = _likeliest(candidate, engine, spec, material)
    if system is None:
        raise ConflictError(
            f"{candidate.name} cannot answer with its likeliest label: {why}",
            expected="the same rows as before",
            do="the files of the comparison were changed: start a new one",
        )
    return system


class ReplayEngine:
    """An engine that replays the recorded results of a system. template: the template of its model."""

    def __init__(self, recorded: Recorded, template: ChatTemplate) -> None:
        self._recorded, self.template = recorded, template

    @property
    def name(self) -> str:
        """States that nothing is computed."""
        return f"what {self._recorded.name} has written"

    def generate(self, prompts: Sequence[Prompt], progress: Progress) -> list[Generation]:  # noqa: ARG002
        """The stored answers.

        Raises:
            ConflictError: they belong to other prompts.
        """
        # Rows are matched by position, so a different number means that the files have changed since.
        self._check(len(prompts), len(self._recorded.generations))
        return list(self._recorded.generations)

    def score(self, examples: Sequence[TokenisedExample], progress: Progress) -> list[Score]:  # noqa: ARG002
        """The stored likelihoods.

        Raises:
            ConflictError: they belong to other rows.
        """
        self._check(len(examples), len(self._recorded.scores))
        return list(self._recorded.scores)

    def close(self) -> None:
        """Does nothing: no resource is open."""

    def _check(self, asked: int, kept: int) -> None:
        if asked != kept:
            raise ConflictError(
                f"{kept} answers of {self._recorded.name} are stored, {asked} rows are requested",
                expected="the same rows as before",
                do="the files of the comparison were changed: start a new one",
            )


def replayed(
    candidate: Candidate, spec: ModelComparisonSpec, kind: SystemKind, material: ComparisonRows, recorded: Recorded
) -> SystemUnderTest:
    """A system for `evaluate.compare` that only reads its stored results.

    Args:
        candidate: the model with its prompts.
        spec: of the comparison.
        kind: the way of prompting.
        material: the rows.
        recorded: its answers and likelihoods.
    """
    engine = ReplayEngine(recorded, candidate.chat_template())
    if kind == "likeliest-label":
        return replace(_choice(candidate, engine, spec, material), engine=engine)
    return system_under_test(candidate, engine, rows_for(spec, kind, material), spec.max_new_tokens)


_ANSWERED: Final[tuple[Shape, ...]] = ("chat", "prompt_completion", "alpaca", "sharegpt", "text")
MIN_NEW_TOKENS: Final = 16
"""Minimum room for an answer after an evaluated row."""


@dataclass(frozen=True, slots=True)
class Rows:
    """The rows that fit into the context of all candidates.

    Attributes:
        train: Training rows.
        held_out: Rows for the evaluation.
        shape: Format of the training rows.
        num_train: Rows of the training file.
        num_held_out: Rows of the held-out file.
        num_too_long: Rows left out of both, as they do not fit into the context of a candidate.
        num_same_prompt: Held-out rows with the prompt of a training row, but another answer.
    """

    train: tuple[Example, ...]
    held_out: tuple[Example, ...]
    shape: Shape
    num_train: int
    num_held_out: int
    num_too_long: int
    num_same_prompt: int


def read_rows_of(
    context: Context,
    models: Sequence[LocalModel],
    data: Path,
    held_out: Path,
    *,
    mapping: Mapping[str, str] | None,
    instruction: str,
) -> Rows:
    """Read and check both files, and leave out rows that do not fit into the context of some model.

    Args:
        context: of the home.
        models: that the rows are for.
        data: file of the training rows.
        held_out: file of the held-out rows.
        mapping: which column is which field; None where the files show it.
        instruction: put before each prompt; empty for none.

    Raises:
        NotFoundError: no such file.
        DataError: rows are wrong, or none is left.
        LeakageError: held-out rows are among the training rows.
        RequestError: the rows are of a kind without comparable answers.
    """
    from luthier.ml.data.rows.formats import load_file
    from luthier.ml.data.split.split import leaked_ids

    fields = dict(mapping) if mapping else None
    train, judged = load_file(data, mapping=fields), load_file(held_out, mapping=fields)
    for loaded in (train, judged):
        if loaded.shape not in _ANSWERED or (loaded.shape == "text") != (train.shape == "text"):
            raise RequestError(
                f"{loaded.file} holds {loaded.shape} rows",
                expected="rows with a prompt and an answer in both files, or plain text in both",
                do="give rows of one of these kinds; preference pairs are evaluated by `luthier train`",
            )
    leaked = leaked_ids(train.examples, judged.examples)
    if leaked.exact:
        raise LeakageError(
            f"{len(leaked.exact):,} of {judged.num_rows:,} held-out rows are in the training rows",
            expected="rows that no contender is trained on",
            do="take them out, for example with: luthier data repair DATA --against HELD_OUT",
            problems=leaked.exact,
        )
    # Collected over all models first: differences are paired, so every system has to answer the same rows.
    too_long: tuple[set[str], set[str]] = (set(), set())
    for model in models:
        too_long[0].update(_too_long(context, model, train.examples, model.context_length_tokens))
        fit = {example.id for example in rows_that_fit(context, model, judged.examples, instruction=instruction)}
        # Each model has its own tokenizer, so a row is left out if it is too long for any of them.
        too_long[1].update(example.id for example in judged.examples if example.id not in fit)
    kept = [
        tuple(e for e in loaded.examples if e.id not in out)
        for loaded, out in zip((train, judged), too_long, strict=True)
    ]
    if not all(kept):
        raise DataError(
            f"no row of {data if not kept[0] else held_out} fits into the context of every contender",
            expected="rows that fit into the context of each",
            do="cut the rows, or leave out the model with the shortest context",
        )
    num_too_long = train.num_rows + judged.num_rows - len(kept[0]) - len(kept[1])
    counts = (train.num_rows, judged.num_rows, num_too_long, len(leaked.same_prompt))
    return Rows(kept[0], kept[1], train.shape, *counts)


def rows_that_fit(
    context: Context, model: LocalModel, examples: Sequence[Example], *, instruction: str
) -> tuple[Example, ...]:
    """The rows that fit into a model's context, with the instruction before them and room for an answer."""
    is_text = any(example.text is not None for example in examples)
    # Plain text is only scored, so it needs no room for an answer.
    room = model.context_length_tokens - (0 if is_text else MIN_NEW_TOKENS)
    dropped = set(_too_long(context, model, instructed(examples, instruction), room))
    return tuple(example for example in examples if example.id not in dropped)


def _too_long(context: Context, model: LocalModel, examples: Sequence[Example], most_tokens: int) -> tuple[str, ...]:
    """The ids of the examples longer than this limit in tokens of the model."""
    from luthier.ml.data.tokenise.tokenised_cache import TokenisedCache
    from luthier.ml.inference.models.templates.chat_template import ChatTemplate

    cache = TokenisedCache(context.settings.tokenised_folder, context.settings.tokenised_cache_bytes)
    template = ChatTemplate.load(model.path, "auto")
    made = cache.tokenise_all(
        examples, template, max_length_tokens=most_tokens, overlong="drop", progress=context.progress
    )
    return made.dropped_ids


def write_chosen(source: Path, chosen: Sequence[Example], target: Path) -> None:
    """Write the rows from which these examples were read, unchanged."""
    from luthier.ml.data.files.source import open_source
    from luthier.ml.data.rows.outputs import write_rows
    from luthier.ml.data.rows.rows import read_rows

    # The raw rows are written, not the examples, so that unused columns are preserved.
    ids = {example.id for example in chosen}
    rows = (row for row in read_rows(open_source(source)) if isinstance(row, Row) and row.id in ids)
    # values that are not JSON (a date of a Parquet file) are not in any field used for training
    write_rows((json.loads(json.dumps(row.fields, default=str)) for row in rows), target)
