"""Held-out rows that a model was trained on: found, refused, and kept out of the examples in a prompt."""

from __future__ import annotations

from collections.abc import Sequence

from luthier.core.dataset import Example
from luthier.core.errors import DataError, LeakageError
from luthier.features.generation.engines import is_address
from luthier.features.models.names import find_model
from luthier.features.planning.evaluation_plan import rows_of_run
from luthier.ml.data.files.sequences import chained
from luthier.platform.home.context import Context


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
