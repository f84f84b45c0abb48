"""The number of rows for a budget: first evaluated rows, then equally many training examples for each candidate.

A few rows are evaluated with every candidate, and a few steps are trained, before sizes are chosen: so they are
measured on this machine.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from luthier.core.dataset import Example
from luthier.core.errors import RequestError
from luthier.core.estimate import Estimate
from luthier.core.records.base_model import LocalModel
from luthier.core.workflows.pipeline import SystemKind
from luthier.features.models.prompts import with_few_shot, with_nearest
from luthier.features.models.resolve import Candidate, find_candidate, open_engine, system_under_test
from luthier.features.planning.budgets import BudgetTooSmallError
from luthier.features.planning.probes import NUM_STEPS
from luthier.features.planning.service import prepare
from luthier.features.workflows.model_comparison.answers import Rows, instructed, record_choice, record_with
from luthier.ml.evaluation.sampling import choose_samples
from luthier.platform.home.context import Context

if TYPE_CHECKING:
    from luthier.features.evaluations.label_scores import LabelledRows
    from luthier.features.workflows.model_comparison.request import ModelComparisonRequest
    from luthier.ml.inference.transformers_engine import TransformersEngine

NUM_PROBED: Final = 8
"""Rows that each contender answers before sizes are chosen."""
NUM_CHOSEN: Final = 4
"""Of these the rows whose likeliest label is looked for, which reads each once a label."""

LEAST_JUDGED, LEAST_TRAINED, MOST_EPOCHS = 20, 64, 3.0
KEPT_BACK: Final = 0.1
"""Unplanned share of the budget: predictions have errors."""

_MAX_FOR_JUDGING: Final = 0.5
_LOADINGS: Final = 6
"""How often a contender's weights are loaded: to be asked in each way, to be trained, and to be asked again."""

_JUDGING_ERRS_BY: Final = 1.5
_MAX_FOR_PROBES: Final = 0.1
"""Share of the budget for all probes; if they would take more, the planner's forecast is used."""


class ModelComparisonTooSmallError(BudgetTooSmallError):
    """A budget below the minimum of a comparison. needed_hours: the minimum."""

    needed_hours = 0.0


@dataclass(frozen=True, slots=True)
class Pace:
    """The speed of one candidate.

    Attributes:
        label: Name of the candidate.
        training: Hours of one epoch of all rows.
        judging: Seconds per row, by kind of system.
        loading_seconds: Time to load it once.
        is_probed: Whether the hours are based on real steps on this machine.
    """

    label: str
    training: Estimate
    judging: dict[SystemKind, float]
    loading_seconds: float
    is_probed: bool = True

    @property
    def row_seconds(self) -> float:
        """Time to evaluate one row in all ways; tuned is as fast as without examples."""
        return sum(self.judging.values()) + self.judging["zero-shot"]


@dataclass(frozen=True, slots=True)
class Sizes:
    """Numbers of evaluated rows and training examples. planned: hours of everything, including those already spent."""

    num_judged: int
    num_examples: int
    planned: Estimate


def choose_sizes(
    paces: Sequence[Pace], *, num_rows: int, num_held_out: int, most_judged: int, hours: float, spent_hours: float
) -> Sizes:
    """Choose the numbers of evaluated rows and training examples.

    Args:
        paces: Speeds of all candidates.
        num_rows: Available training rows.
        num_held_out: Available held-out rows.
        most_judged: Maximum number of evaluated rows.
        hours: The whole budget.
        spent_hours: Hours spent on measuring the speeds.

    Raises:
        ModelComparisonTooSmallError: Even the minimum does not fit; it has the hours needed.
    """
    row_seconds = sum(pace.row_seconds for pace in paces)
    fixed = sum(pace.loading_seconds for pace in paces) * _LOADINGS
    # `training` is for one epoch over all rows.
    example_seconds = sum(pace.training.value for pace in paces) * 3600 / num_rows
    there = min(num_held_out, most_judged)
    # Small files lower the minimum to their number of rows.
    least_judged, least_trained = min(LEAST_JUDGED, there), min(LEAST_TRAINED, num_rows)
    left = (hours * (1 - KEPT_BACK) - spent_hours) * 3600 - fixed
    # Evaluation takes at most half, and less if the shortest training would not fit otherwise.
    for_judging = min(left * _MAX_FOR_JUDGING, left - least_trained * example_seconds)
    num_judged = max(least_judged, min(there, int(for_judging / row_seconds)))
    num_examples = min(int((left - num_judged * row_seconds) / example_seconds), round(MOST_EPOCHS * num_rows))
    if num_examples < least_trained:
        least = (fixed + least_judged * row_seconds + least_trained * example_seconds) / 3600
        raise too_small(hours, (least + spent_hours) / (1 - KEPT_BACK), paces, least_judged, least_trained)
    judging = Estimate(value=1, low=1 / _JUDGING_ERRS_BY, high=_JUDGING_ERRS_BY).times(
        (num_judged * row_seconds + fixed) / 3600
    )
    planned = judging.plus(Estimate(value=spent_hours, low=spent_hours, high=spent_hours))
    for pace in paces:
        planned = planned.plus(pace.training.times(num_examples / num_rows))
    return Sizes(num_judged, num_examples, planned)


def too_small(
    hours: float, needed: float, paces: Sequence[Pace], least_judged: int, least_trained: int
) -> ModelComparisonTooSmallError:
    """The error for a budget that is too small for these candidates.

    Args:
        hours: The budget.
        needed: Hours that the smallest comparison should take.
        paces: How fast each candidate trains and answers.
        least_judged: Rows that each is evaluated on at least.
        least_trained: Examples that each is trained on at least.
    """
    names = ", ".join(pace.label for pace in paces)
    shown = f"{needed * 1.05:.2g}"  # rounding to two digits may have lowered it
    error = ModelComparisonTooSmallError(
        f"a budget of {hours:.3g} h for {names}: {least_trained} examples trained and {least_judged} rows evaluated "
        f"with each should take {shown} h",
        expected=f"at least {shown} h",
        do="give it more hours, fewer models or smaller ones",
    )
    error.needed_hours = needed * 1.05
    return error


def paces_of(
    context: Context,
    request: ModelComparisonRequest,
    models: Sequence[LocalModel],
    labels: Sequence[str],
    rows: Rows,
    train_file: Path,
    num_shots: int,
    labelled: LabelledRows | None,
) -> list[Pace]:
    """Measure the speed of each candidate.

    A request that the forecast alone shows to be impossible is rejected before any model is loaded.

    Args:
        context: of the home.
        request: what is compared, within which budget.
        models: the base models that are compared.
        labels: their names in the table, in the same order.
        rows: of training and evaluation.
        train_file: all training rows.
        num_shots: examples in the prompt of the prompted systems.
        labelled: the held-out rows, where their answers are labels; otherwise None.

    Raises:
        RequestError: a candidate does not fit on this machine.
        BudgetTooSmallError: the budget is below the minimum of a comparison.
    """
    from luthier.features.planning.quotes import quote_of

    recipes = [request.recipe(model.name, train_file) for model in models]
    prepared = [prepare(context, recipe, base_dir=Path()) for recipe in recipes]
    quotes = [quote_of(context, one) for one in prepared]
    for label, quote in zip(labels, quotes, strict=True):
        if not quote.prediction.fits:
            needs = quote.prediction.peak_memory.total_bytes.value / 1e9
            raise RequestError(
                f"{label} does not fit into the memory of {quote.prediction.device.title}: it takes {needs:.3g} GB",
                expected="contenders that can be tuned on this machine",
                do="leave it out, or tune with --method qlora",
            )
    share = min(1.0, LEAST_TRAINED / len(rows.train))
    # Only for the text of the error; nothing is evaluated or loaded yet.
    cheapest = [Pace(label, q.prediction.hours, {}, 0.0) for label, q in zip(labels, quotes, strict=True)]
    least = sum(quote.prediction.hours.low for quote in quotes) * share
    if least > request.hours:
        raise too_small(request.hours, least, cheapest, min(LEAST_JUDGED, len(rows.held_out)), LEAST_TRAINED)
    if request.is_probed:
        # Each candidate gets an equal part of the probing time.
        most = request.hours * _MAX_FOR_PROBES / len(models)
        quotes = [
            quote_of(context, one, is_probed=True)
            if NUM_STEPS * quote.prediction.step_seconds.value / 3600 <= most
            else quote
            for one, quote in zip(prepared, quotes, strict=True)
        ]
    found = []
    with context.progress.task("Measuring the speed", len(models), "models") as task:
        for label, model, quote in zip(labels, models, quotes, strict=True):
            judging, loading = _judging_pace(context, request, model, rows, num_shots, labelled)
            found.append(Pace(label, quote.prediction.hours, judging, loading, quote.prediction.calibrated))
            task.advance()
    return found


def _may_choose(labels: LabelledRows, base: Candidate, engine: TransformersEngine, few: Sequence[Example]) -> bool:
    """Whether the likeliest label is scored at all, even on the fewest evaluated rows."""
    tokens = [row.num_tokens for row in system_under_test(base, engine, few, 1).tokenised]
    least = min(LEAST_JUDGED, len(labels.examples))
    return not labels.why_not_scored(sum(tokens) * least // len(tokens))


def _choice_seconds(
    context: Context,
    engine: TransformersEngine,
    base: Candidate,
    labels: LabelledRows,
    few: Sequence[Example],
    request: ModelComparisonRequest,
) -> float:
    """Seconds a row to find the likeliest label. few: the rows to measure on."""
    from luthier.features.evaluations.label_scores import label_choice

    rows = replace(labels, examples=tuple(few))
    choice = label_choice(rows, base, engine, system_under_test(base, engine, few, request.max_new_tokens))
    return record_choice(choice, context.progress).write_seconds / len(few)


def _judging_pace(
    context: Context,
    request: ModelComparisonRequest,
    model: LocalModel,
    rows: Rows,
    num_shots: int,
    labels: LabelledRows | None,
) -> tuple[dict[SystemKind, float], float]:
    """Seconds a row by kind, and seconds that loading takes; asked of a few rows."""
    bare = choose_samples(rows.held_out, NUM_PROBED)
    few = instructed(bare, request.instruction or "")
    base = find_candidate(context, model.name)
    systems: dict[SystemKind, Candidate] = {"zero-shot": base}
    if num_shots:
        systems["few-shot"] = with_few_shot(base, rows.train, num_shots, request.seed, held_out=rows.held_out)
        if (nearest := with_nearest(base, rows.train, num_shots, held_out=rows.held_out)) is not None:
            systems["few-shot-nearest"] = replace(nearest, instruction=request.instruction or "")
    # Loading is timed separately: it is paid once per system, the rest once per row.
    began = time.perf_counter()
    engine = open_engine(base)
    loading, found = time.perf_counter() - began, {}
    try:
        for kind, candidate in systems.items():
            asked = bare if kind == "few-shot-nearest" else few
            recorded = record_with(engine, candidate, asked, request.max_new_tokens, context.progress)
            found[kind] = (recorded.write_seconds + recorded.score_seconds) / len(few)
        if labels is not None and _may_choose(labels, base, engine, few):
            # What does not fit with a label is left out again when it is evaluated, and the result says why.
            with suppress(RequestError):
                found["likeliest-label"] = _choice_seconds(context, engine, base, labels, few[:NUM_CHOSEN], request)
    finally:
        engine.close()
    return found, loading
