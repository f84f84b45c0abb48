"""Which rows a model may be evaluated on: those that it was trained on are found, refused, and kept out of the examples
in a prompt; of a file that its run has divided itself, those are taken that it has kept back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from luthier.core.dataset import Example
from luthier.core.errors import DataError, LeakageError
from luthier.core.text.counted import counted
from luthier.features.generation.engines import is_address
from luthier.features.models.names import find_model
from luthier.features.planning.data_sources import recipe_of
from luthier.features.planning.evaluation_plan import rows_of_run
from luthier.features.planning.training_data import load_splits, rows_memory
from luthier.ml.data.files.sequences import chained
from luthier.platform.home.context import Context

if TYPE_CHECKING:
    from luthier.ml.data.rows.formats import LoadedFile


def check_leakage(
    context: Context, systems: Sequence[str], held_out: Sequence[Example], *, allowed: bool
) -> tuple[int, int]:
    """The number of held-out rows in the training rows of the runs: whole rows, and matching prompts.

    Args:
        context: of the home.
        systems: names; those that are no run have no training rows.
        held_out: the rows that are to be evaluated.
        allowed: whether whole rows may be among the training rows.

    Raises:
        LeakageError: whole rows are, and they may not.
        ConflictError: the rows of a run have changed since its training.
    """
    return refuse_leakage(training_rows(context, systems), held_out, allowed)


def training_rows(context: Context, systems: Sequence[str]) -> Sequence[Example]:
    """The rows that the runs among the systems were trained on, as far as their files are still there, unchanged."""
    runs = (find_model(context, name).run_id for name in systems if not is_address(name))
    # dict.fromkeys: two names of one run, such as its checkpoints, have the same rows.
    return chained(*(rows_of_run(context, run_id) for run_id in dict.fromkeys(runs) if run_id is not None))


def learned_rows(
    context: Context, systems: Sequence[str], held_out: Sequence[Example], allow_leakage: bool
) -> tuple[Sequence[Example], tuple[int, int]]:
    """The training rows of the candidate, otherwise those of the other runs; and what `refuse_leakage` returns for all.

    Not both: the rows of an earlier run are often a subset of those of the candidate and would count twice.
    """
    own, others = (training_rows(context, names) for names in (systems[:1], systems[1:]))
    # For all runs: a compared run that was trained on held-out rows also invalidates the comparison.
    return own or others, refuse_leakage(chained(own, others), held_out, allow_leakage)


def refuse_leakage(seen: Sequence[Example], held_out: Sequence[Example], allowed: bool) -> tuple[int, int]:
    """The number of held-out rows among the rows of a training, and of those that share a prompt with one.

    Raises:
        LeakageError: whole rows are among them, and `allowed` is false.
    """
    from luthier.ml.data.split.split import leaked_ids

    found = leaked_ids(seen, held_out)
    if found.exact and not allowed:
        raise LeakageError(
            f"{len(found.exact):,} of {len(held_out):,} held-out rows are in the training rows of the run",
            expected="rows that the model was not trained on",
            do="take them out, or allow them (--allow-leakage, on the page its checkbox): the verdict notes it",
            problems=found.exact,
        )
    return len(found.exact), len(found.same_prompt)


def not_held_out(pool: Sequence[Example], held_out: Sequence[Example]) -> tuple[Example, ...]:
    """Rows for few-shot examples: no evaluated row, and none with the prompt of one.

    Raises:
        DataError: all rows of the file are evaluated rows.
    """
    from luthier.ml.data.split.split import leaked_ids

    # Arguments swapped compared with `refuse_leakage`: here rows of the pool are excluded.
    found = leaked_ids(held_out, pool)
    barred = {f"{p.file}:{p.line}" for p in (*found.exact, *found.same_prompt)}
    left = tuple(e for e in pool if e.id not in barred)
    if not left:
        raise DataError(
            "all rows of the few-shot file are held-out rows",
            expected="rows that are not evaluated",
            do="pass the training rows to --few-shot-from",
        )
    return left


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
