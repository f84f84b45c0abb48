"""What a tuned model has to beat, in an evaluation: fitted, evaluated next to the models, and on parts of the rows."""

from __future__ import annotations

import time
from collections.abc import Hashable, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from luthier.core.dataset import Example
from luthier.core.evaluation import Verdict
from luthier.core.evaluation_plan import MetricName
from luthier.core.ports import Progress
from luthier.core.text.written_numbers import marks_note, number_marks
from luthier.features.evaluations.label_scores import LIKELIEST_LABEL, LabelledRows, likeliest_label, untrained_base
from luthier.features.evaluations.prompted import Prompted, as_systems, draws_together, prompts_that_fit
from luthier.features.evaluations.systems import answers_as_sets, search_kind, search_systems
from luthier.features.generation.engines import EnginePool
from luthier.features.models.resolve import Candidate, system_under_test
from luthier.features.recipes.checks import have_text_answers
from luthier.platform.home.context import Context

if TYPE_CHECKING:
    from luthier.ml.baselines.predict import BaselineSet
    from luthier.ml.evaluation.compare import Judged, SystemUnderTest
    from luthier.ml.evaluation.metrics.protocol import MetricDefinition
    from luthier.ml.evaluation.metrics.reference_based import NormalisedAbsoluteError
    from luthier.ml.evaluation.row_groups import RowGroups


def fit_baselines(
    context: Context,
    train: Sequence[Example],
    examples: Sequence[Example],
    metrics: Sequence[MetricName],
    base_model: Path,
) -> BaselineSet:
    """What answers without a language model, where texts are evaluated and there are rows to fit it on.

    Args:
        context: The home.
        train: The rows to fit on.
        examples: The rows to answer.
        metrics: What is measured.
        base_model: The folder of the model whose token vectors find the nearest rows.
    """
    from luthier.ml.baselines.predict import BaselineSet, predict
    from luthier.ml.evaluation.metrics.registry import as_definitions
    from luthier.ml.inference.models.token_table import token_table

    looks_at_text = any(metric.needs == "text" for metric in as_definitions(metrics))
    if not looks_at_text or not have_text_answers(examples):
        return BaselineSet()
    if not train:
        return BaselineSet(left_out=(NO_TRAINING_ROWS,))
    return predict(train, examples, progress=context.progress, embeddings=token_table(base_model))


NO_TRAINING_ROWS: Final = "no baselines: no training rows are known to fit them on (luthier eval: --few-shot-from FILE)"
"""Why there are none in an evaluation of models that no run of this home has made."""
AS_SETS: Final = "Labels of a row are compared as a set: their order, case, spaces and repetitions do not count."
"""A note on evaluations of heads that give several labels."""


class Together(NamedTuple):
    """Candidates and baselines, evaluated on the same rows.

    Attributes:
        candidates: with the one whose prompt was searched for.
        by_candidate: the system of each candidate.
        systems: all of them, the last candidate last.
        judged: the figures, draws of examples as one system.
        notes: of the search for a prompt, the rows and the baselines.
        left_out: baselines and ways to use the base that do not fit, each with the reason.
    """

    candidates: tuple[Candidate, ...]
    by_candidate: tuple[SystemUnderTest, ...]
    systems: tuple[SystemUnderTest, ...]
    judged: Judged
    notes: tuple[str, ...]
    left_out: tuple[str, ...]


def judged_together(
    context: Context,
    pool: EnginePool,
    candidates: Sequence[Candidate],
    shown: Prompted,
    baselines: BaselineSet,
    rows: LabelledRows,
    metrics: tuple[Sequence[MetricName], Sequence[MetricDefinition]],
    limits: tuple[int | None, int | None],
) -> Together:
    """Evaluate all candidates and baselines, a prompt that is searched for before, and the base's likeliest label.

    Where a candidate searches documents, all are evaluated by how they order them.

    Args:
        context: of the home.
        pool: opens the engines, one model in memory at a time.
        candidates: the evaluated one last.
        shown: ways to prompt a candidate.
        baselines: fitted on the training rows.
        rows: the evaluated rows, and training rows if they are known; their labels, if they have some.
        metrics: those that were requested, and further ones.
        limits: most tokens of an answer, and of a thought before it; None takes them from the rows.
    """
    from luthier.ml.baselines.predict import as_system
    from luthier.ml.evaluation.compare import judge_in_full
    from luthier.ml.evaluation.metrics.registry import as_definitions

    start = time.perf_counter()
    definitions, of_numbers = _with_distances(as_definitions([*metrics[0], *metrics[1]]), rows.train, rows.examples)
    if (kind := search_kind(candidates)) is not None:
        ordered = search_systems(kind, candidates, pool, rows.examples, rows.train)
        # Seed 0: bootstrap intervals of a repeated evaluation are the same to the last digit.
        clusters = _clusters(rows, ordered.systems[0])
        judged = judge_in_full(
            ordered.systems, metrics=definitions, seed=0, progress=context.progress, clusters=clusters
        )
        own = ordered.systems
        return Together(tuple(candidates), own, own, judged, ordered.notes, ordered.left_out)

    def build(candidate: Candidate) -> SystemUnderTest:
        engine = pool.engine(candidate)
        return system_under_test(candidate, engine, rows.examples, limits[0], max_thinking_tokens=limits[1])

    searched, of_search = _searched(context, pool, candidates, shown, metrics[0], limits)
    every, of_prompts = prompts_that_fit((*candidates[:-1], *searched, candidates[-1]), build)
    systems, draws = as_systems(every, shown.draws, build)
    by_candidate, left_out = tuple(systems), (*baselines.left_out, *of_prompts)
    # Before the last system, which is the one that is judged.
    systems[-1:-1] = [as_system(one, systems[-1]) for one in baselines.predictions]
    if rows.labels and (place := untrained_base(every)) is not None:
        choice, why = likeliest_label(rows, every[place], pool.engine(every[place]), systems[place])
        if choice is None:
            left_out = (*left_out, f"{every[place].name}, {LIKELIEST_LABEL}: {why}")
        else:
            # Behind its model, which is still loaded then.
            systems.insert(place + 1, choice)
    systems, definitions, of_sets = _as_sets(candidates, systems, definitions)
    clusters = _clusters(rows, systems[0])
    judged = judge_in_full(systems, metrics=definitions, seed=0, progress=context.progress, clusters=clusters)
    judged = draws_together(judged, draws, definitions, clusters)
    slow = slow_note(baselines, baselines.seconds + time.perf_counter() - start)
    notes = (*of_search, *of_sets, *of_numbers, *baselines.notes, *slow)
    return Together(every, by_candidate, tuple(systems), judged, notes, left_out)


def _clusters(rows: LabelledRows, system: SystemUnderTest) -> list[Hashable] | None:
    """The group of each row that a system answers; None where every row counts by itself."""
    return None if rows.groups is None else rows.groups.clusters(system.row_ids)


_NUM_LOOKED_AT: Final = 20_000
"""Training rows by which it is decided how numbers are written, equally spaced."""


def _with_distances(
    metrics: list[MetricDefinition], train: Sequence[Example], examples: Sequence[Example]
) -> tuple[list[MetricDefinition], tuple[str, ...]]:
    """The metrics, with how far numbers are off where the answers are numbers, and a note on how these are read.

    Few numbers are equal to the digit: by exact match alone, a regression that is always near would be no alternative.
    """
    from luthier.ml.baselines.numbers import are_numbers
    from luthier.ml.evaluation.metrics.reference_based import NormalisedAbsoluteError

    is_asked = any(isinstance(one, NormalisedAbsoluteError) for one in metrics)
    if not have_text_answers(examples) or all(one.needs != "text" for one in metrics):
        return metrics, ()
    if not is_asked and not are_numbers([one.reference or "" for one in examples]):
        return metrics, ()
    distance, note = _distance(train, examples)
    found: list[MetricDefinition] = [distance if isinstance(one, NormalisedAbsoluteError) else one for one in metrics]
    found += [] if is_asked else [distance]
    return found, (f"{note[0].upper()}{note[1:]}.",) if note else ()


def _distance(train: Sequence[Example], examples: Sequence[Example]) -> tuple[NormalisedAbsoluteError, str]:
    """How far numbers are off, by the marks that all rows write, and a clause on these."""
    from luthier.ml.evaluation.metrics.reference_based import NormalisedAbsoluteError

    some = islice(train, 0, None, max(1, len(train) // _NUM_LOOKED_AT))
    answers = [one.reference for one in (*some, *examples) if one.reference is not None]
    marks = number_marks(answers)
    return NormalisedAbsoluteError(marks), marks_note(answers, marks)


def _as_sets(
    candidates: Sequence[Candidate], systems: list[SystemUnderTest], metrics: list[MetricDefinition]
) -> tuple[list[SystemUnderTest], list[MetricDefinition], tuple[str, ...]]:
    """Systems and metrics that compare labels of a row as a set where a head gives several, with the note on it."""
    from luthier.ml.evaluation.metrics.classification import Labelling, MacroF1

    canonical = answers_as_sets(candidates)
    if canonical is None:
        return systems, metrics, ()
    # A set of labels is one class, in however many ways rows write it.
    of_sets: list[MetricDefinition] = [
        replace(one, labelling=Labelling(tuple(dict.fromkeys(map(canonical, one.labelling.labels)))))
        if isinstance(one, MacroF1)
        else one
        for one in metrics
    ]
    return [replace(one, canonical=canonical) for one in systems], of_sets, (AS_SETS,)


def _searched(
    context: Context,
    pool: EnginePool,
    candidates: Sequence[Candidate],
    shown: Prompted,
    metrics: Sequence[MetricName],
    limits: tuple[int | None, int | None],
) -> tuple[tuple[Candidate, ...], tuple[str, ...]]:
    """The candidate that a search for a prompt finds, if there is a search and it finds one, and notes on it."""
    if shown.base is None or shown.search is None:
        return (), ()
    from luthier.features.evaluations.prompt_search import found_prompt, open_reflector

    reflector_of = partial(open_reflector, context, pool)
    found, notes = found_prompt(
        shown.base,
        shown.search,
        pool.engine,
        metrics,
        limits,
        reflector_of,
        progress=context.progress,
        canonical=answers_as_sets(candidates),
    )
    return (() if found is None else (found,)), notes


def _allowed_seconds(seconds: float) -> float:
    """What all baselines together may take: 10 s, or a twentieth of the evaluation, which has taken so long."""
    return max(10.0, 0.05 * seconds)


def slow_note(baselines: BaselineSet, seconds: float) -> tuple[str, ...]:
    """A note where baselines took more than they may.

    How many rows each of them sees is fixed, so that it answers the same on every machine; a slow one takes longer.
    """
    if baselines.seconds <= _allowed_seconds(seconds):
        return ()
    slowest = max(baselines.predictions, key=lambda one: one.seconds)
    return (
        f"Baselines without a language model took {baselines.seconds:.0f} s, {slowest.seconds:.0f} s of them "
        f"{slowest.name}: more than 10 s and 5% of the evaluation.",
    )


def with_learning_curve(
    verdict: Verdict | None,
    train: Sequence[Example],
    examples: Sequence[Example],
    baselines: BaselineSet,
    seconds: float,
    progress: Progress,
    candidates: Sequence[Candidate],
    groups: RowGroups | None = None,
) -> Verdict | None:
    """The verdict, and whether more rows would help, where baselines were fitted and it rests on texts.

    Args:
        verdict: None stays None.
        train: the training rows.
        examples: the evaluated rows.
        baselines: what was fitted on the training rows.
        seconds: that the evaluation has taken so far.
        progress: shows the fits.
        candidates: that were evaluated; a head among them that gives several labels has answers compared as sets.
        groups: that evaluated rows share, which the intervals count; None where no two rows share one.
    """
    from luthier.ml.baselines.learning_curve import learning_curve
    from luthier.ml.evaluation.metrics.reference_based import NormalisedAbsoluteError
    from luthier.ml.evaluation.metrics.registry import as_definitions

    if verdict is None or not baselines.predictions:
        return verdict
    metric = as_definitions([verdict.metric])[0]
    if isinstance(metric, NormalisedAbsoluteError):
        metric, _ = _distance(train, examples)
    if metric.needs != "text":
        return verdict
    left = _allowed_seconds(seconds) - baselines.seconds
    sets = answers_as_sets(candidates)
    clusters = None if groups is None else groups.clusters([one.id for one in examples])
    curve = learning_curve(
        train, examples, baselines, metric, seconds=left, progress=progress, canonical=sets, clusters=clusters
    )
    return verdict.model_copy(update={"learning_curve": curve})
