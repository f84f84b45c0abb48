"""What each contender of a showdown takes on this machine, found out on a few rows and a few steps."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from luthier.core.errors import RequestError
from luthier.core.records.base_model import LocalModel
from luthier.core.workflows.showdown import SystemKind
from luthier.features.evaluations.service import choose_samples
from luthier.features.models.resolve import Candidate, find_candidate, open_engine, with_few_shot
from luthier.features.planning.probes import NUM_STEPS
from luthier.features.planning.service import prepare
from luthier.features.workflows.model_comparison.answers import instructed, record_with
from luthier.features.workflows.model_comparison.request import ShowdownRequest
from luthier.features.workflows.model_comparison.rows import Rows
from luthier.features.workflows.model_comparison.sizes import LEAST_JUDGED, LEAST_TRAINED, NUM_PROBED, Pace, too_small
from luthier.platform.home.context import Context

_MAX_FOR_PROBES: Final = 0.1
"""Share of the budget that probes may take in all; where they would take more, the planner is believed as it is."""


def paces_of(
    context: Context,
    request: ShowdownRequest,
    models: Sequence[LocalModel],
    labels: Sequence[str],
    rows: Rows,
    train_file: Path,
    num_shots: int,
) -> list[Pace]:
    """What each contender takes. What cannot be, by the price alone, is refused before any model is loaded.

    train_file: all training rows. Raises RequestError (a contender does not fit), BudgetTooSmallError.
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
    cheapest = [Pace(label, q.prediction.hours, {}, 0.0) for label, q in zip(labels, quotes, strict=True)]
    least = sum(quote.prediction.hours.low for quote in quotes) * share
    if least > request.hours:
        raise too_small(request.hours, least, cheapest, min(LEAST_JUDGED, len(rows.held_out)), LEAST_TRAINED)
    if request.is_probed:
        most = request.hours * _MAX_FOR_PROBES / len(models)
        quotes = [
            quote_of(context, one, is_probed=True)
            if NUM_STEPS * quote.prediction.step_seconds.value / 3600 <= most
            else quote
            for one, quote in zip(prepared, quotes, strict=True)
        ]
    found = []
    with context.progress.task("Finding the pace", len(models), "models") as task:
        for label, model, quote in zip(labels, models, quotes, strict=True):
            judging, loading = _judging_pace(context, request, model, rows, num_shots)
            found.append(Pace(label, quote.prediction.hours, judging, loading, quote.prediction.calibrated))
            task.advance()
    return found


def _judging_pace(
    context: Context, request: ShowdownRequest, model: LocalModel, rows: Rows, num_shots: int
) -> tuple[dict[SystemKind, float], float]:
    """Seconds a row by kind, and seconds that loading takes; asked of a few rows."""
    few = instructed(choose_samples(rows.held_out, NUM_PROBED), request.instruction)
    base = find_candidate(context, model.name)
    systems: dict[SystemKind, Candidate] = {"zero-shot": base}
    if num_shots:
        systems["few-shot"] = with_few_shot(base, rows.train, num_shots, request.seed, held_out=rows.held_out)
    began = time.perf_counter()
    engine = open_engine(base)
    loading, found = time.perf_counter() - began, {}
    try:
        for kind, candidate in systems.items():
            recorded = record_with(engine, candidate, few, request.max_new_tokens, context.progress)
            found[kind] = (recorded.write_seconds + recorded.score_seconds) / len(few)
    finally:
        engine.close()
    return found, loading
