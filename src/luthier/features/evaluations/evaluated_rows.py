"""Evaluated rows: which belong together, by the field that a run's recipe or the split of its rows names, how many runs
were evaluated on them before, and what is said of them beside the figures."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from luthier.core.access import DEFAULT_PROJECT
from luthier.core.dataset import Example, Row
from luthier.core.evaluation import Evaluation, Verdict
from luthier.core.plan import Plan
from luthier.features.models.names import find_model
from luthier.platform.home.context import Context

if TYPE_CHECKING:
    from luthier.ml.evaluation.row_groups import RowGroups

BY_PROVENANCE: Final = "provenance.file"
"""What a split groups by where it is not asked: the document that a row names itself, or the passage."""


def grouping_of(plan: Plan) -> str | None:
    """The field whose equal values stay on one side of a run's rows, as its recipe or their split says; else None."""
    split = plan.data.split
    return plan.recipe.data.group_by or (None if split is None else split.grouped_by)


def grouping_of_model(context: Context, name: str) -> str | None:
    """The same of the run that has made a model; None for a model that no run has made.

    Raises:
        NotFoundError: no such model or run.
    """
    run_id = find_model(context, name).run_id
    return None if run_id is None else grouping_of(context.runs.plan(run_id))


def groups_of(
    examples: Sequence[Example], file: Path | None, grouped_by: str | None, train: Sequence[Example] = ()
) -> RowGroups | None:
    """The groups of evaluated rows; None where no two rows share one.

    Args:
        examples: the rows.
        file: that they were read from; None where it is not known.
        grouped_by: its field with the group, where the rows do not carry it; None for none. A file without that field
            has no groups.
        train: the training rows, as far as they are known.
    """
    from luthier.ml.data.tokenise.packing import piece_of
    from luthier.ml.evaluation.row_groups import row_groups

    without = {piece_of(one.id) for one in examples if one.group is None}
    if grouped_by is None or file is None or not without or not file.is_file():
        return row_groups(examples, piece_of, train=train)
    return row_groups(examples, piece_of, _named_in(file, grouped_by, without), train)


def group_names(examples: Sequence[Example], file: Path, grouped_by: str) -> dict[str, str]:
    """The group of each row of a file, by id: its own, or that of its field; rows without one are left out.

    Args:
        examples: the rows, as they were read from the file.
        file: the file.
        grouped_by: its field with the group.
    """
    found = {one.id: one.group for one in examples if one.group is not None}
    without = {one.id for one in examples if one.group is None}
    return found | _named_in(file, grouped_by, without) if without else found


def _named_in(file: Path, grouped_by: str, row_ids: Collection[str]) -> dict[str, str]:
    """The groups of some rows of a file, by id; rows without one are left out."""
    from luthier.ml.data.files.source import open_source
    from luthier.ml.data.provenance import PROVENANCE
    from luthier.ml.data.rows.rows import read_rows
    from luthier.ml.data.split.split_request import group_of

    # A split that has grouped by itself names parts of the provenance, and not a field.
    field = None if grouped_by.startswith(f"{PROVENANCE}.") else grouped_by
    found: dict[str, str] = {}
    for row in read_rows(open_source(file)):
        if isinstance(row, Row) and row.id in row_ids and (group := group_of(row.fields, field)) is not None:
            found[row.id] = group
    return found


def notes_on(notes: Sequence[str], num_leaked: int, words: Verdict | None, groups: RowGroups | None) -> tuple[str, ...]:
    """How rows were read and count; what a verdict has among its caveats is left out.

    Args:
        notes: how the rows were read.
        num_leaked: rows that a run among the systems was trained on.
        words: the verdict; None where there is none.
        groups: that rows share; None where no two rows share one.
    """
    from luthier.ml.evaluation.verdict_text import LEAKED, held_out_rows

    found = []
    if num_leaked and words is None:
        are = "is" if num_leaked == 1 else "are"
        found.append(f"{held_out_rows(num_leaked)} {are} {LEAKED}, so the figures are too good.")
    found += notes
    if groups is not None and (words is None or not groups.are_few):
        found.append(groups.sentence)
    return tuple(found)


MIN_EARLIER_RUNS: Final = 3
"""Other runs on the same rows from which on a verdict says so: of four runs that gain nothing, one
is called better in one of ten cases."""


def with_earlier_runs(context: Context, evaluation: Evaluation) -> Evaluation:
    """The evaluation of a run with a caveat where several other runs of its project were evaluated on the same file.

    Args:
        context: of the home.
        evaluation: one without a run, or without a verdict, stays as it is.
    """
    words, run_id = evaluation.verdict, evaluation.run_id
    if words is None or run_id is None:
        return evaluation
    project_id = context.runs.project_of(run_id) or DEFAULT_PROJECT
    num = context.evaluations.num_runs_on(evaluation.held_out_sha256, project_id=project_id, other_than=run_id)
    if num < MIN_EARLIER_RUNS:
        return evaluation
    said = (
        f"{num:,} other runs were evaluated on the held-out rows of this file before: of several runs the best one is "
        "ahead partly by luck, and rows that none of them was evaluated on show how far."
    )
    words = words.model_copy(update={"caveats": (*words.caveats, said)})
    return evaluation.model_copy(update={"verdict": words})
