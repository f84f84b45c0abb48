"""The rows that a run has kept back from training, where the file that it has divided itself is evaluated again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from luthier.core.text.counted import counted
from luthier.features.models.names import find_model
from luthier.features.planning.data_sources import recipe_of
from luthier.features.planning.training_data import load_splits, rows_memory
from luthier.platform.home.context import Context

if TYPE_CHECKING:
    from luthier.ml.data.rows.formats import LoadedFile


def held_out_of_run(context: Context, system: str, loaded: LoadedFile) -> tuple[LoadedFile, tuple[str, ...]]:
    """The rows of a file that are evaluated, and a note where these are not all of them.

    A run whose recipe takes a share of its training file as held-out rows (`data.held_out: 0.1`) was trained on the
    others. So of that file its held-out rows are evaluated, by the columns that it has read; else the file as it is.

    Args:
        context: The home.
        system: The evaluated model, by its name.
        loaded: The file.

    Raises:
        NotFoundError: No such model or run.
        DataError: The rows of the run cannot be read.
    """
    run_id = find_model(context, system).run_id
    plan = None if run_id is None else context.runs.plan(run_id)
    if plan is None or plan.data.held_out is None or not isinstance(plan.recipe.data.held_out, float):
        return loaded, ()
    is_own = plan.data.held_out.sha256 == loaded.sha256 and not plan.data.sources and plan.data.stream is None
    # A run whose own file is gone has no rows to check the evaluated ones against: the check of leakage refuses it.
    if not is_own or not Path(plan.data.held_out.file).is_file():
        return loaded, ()
    part = load_splits(context, recipe_of(plan), Path(), rows_memory(context)).get("held_out")
    if part is None or part.source.sha256 != loaded.sha256:
        return loaded, ()
    num = len(part.examples)
    note = (
        f"Of this file {counted(num, 'row is', 'rows are')} evaluated, which run {run_id} has kept back: it was "
        "trained on the others."
    )
    return replace(part.source, examples=part.examples, num_rows=num), (note,)
