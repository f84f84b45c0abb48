"""What a task head learns: the classes or numbers of the training rows.

Of streamed rows the numbers are those of the first rows. The classes are those of all rows where these are files of
this machine, which are read once for it; of remote rows the recipe names them, since a class that nobody knows of would
end the run hours after its start.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from luthier.core.dataset import Example, Split
from luthier.core.errors import DataError, RecipeError
from luthier.core.ids import sha256_document
from luthier.core.ports import Progress
from luthier.core.recipe import ObjectiveRecipe, Recipe
from luthier.core.task_head import SEARCH_KINDS, TaskHead, TaskHeadKind

if TYPE_CHECKING:
    from luthier.features.planning.streamed_rows import StreamedRows
    from luthier.features.planning.training_data import Part
    from luthier.ml.data.tokenise.heads import FittedHead

_MAX_KEPT: Final = 4
_MAX_ANSWERS: Final = 100_000
"""Different answers of rows that are to have labels."""
_counted: Final[dict[str, Counter[str]]] = {}
"""Answers of streams that this process has read, by what decides them."""


def fitted_head(
    recipe: Recipe,
    splits: Mapping[Split, Sequence[Example]],
    model_path: str,
    stream: StreamedRows | None,
    progress: Progress,
) -> FittedHead | None:
    """What a task head learns; None for objectives that write.

    Args:
        recipe: what is asked.
        splits: the rows; of training rows that are streamed the first.
        model_path: of the base model.
        stream: the training rows where they are streamed.
        progress: shows the reading of streamed labels.

    Raises:
        DataError: rows that the head cannot learn from.
        RecipeError: the classes of a remote stream are not named.
    """
    from luthier.ml.training.objectives.rules import rules_of

    kind = rules_of(recipe.objective.name).task_head if recipe.objective else None
    if recipe.objective is None or kind is None:
        return None
    from luthier.ml.data.tokenise.heads import fit_task_head
    from luthier.ml.data.tokenise.search import search_head
    from luthier.ml.inference.models.structure import read_structure

    width = read_structure(model_path).hidden_size
    if kind in SEARCH_KINDS:
        return search_head(recipe.objective, () if stream is not None else splits["train"], width)
    if stream is not None:
        return streamed_head(kind, recipe.objective, splits, width, stream, progress)
    multi_label, classes = recipe.objective.multi_label or False, recipe.objective.classes or ()
    return fit_task_head(kind, splits, width, multi_label=multi_label, classes=classes)


def streamed_head(
    kind: TaskHeadKind,
    asked: ObjectiveRecipe,
    splits: Mapping[Split, Sequence[Example]],
    width: int,
    stream: StreamedRows,
    progress: Progress,
) -> FittedHead:
    """The classes of streamed rows, or the range of numbers of the first of them.

    Args:
        kind: classify or regress.
        asked: the objective.
        splits: the first training rows, and the other splits.
        width: of the model's hidden states.
        stream: the training rows.
        progress: shows the reading of labels.

    Raises:
        DataError: a row has no answer or one that is no number, or all rows that were read have one class or number;
            for classes all rows of files are read, else the first rows.
        RecipeError: several labels are asked for, and no answer has several; remote rows, and no `classes`.
    """
    from luthier.ml.data.tokenise.heads import fit_task_head

    num, multi_label, classes = len(splits["train"]), asked.multi_label or False, asked.classes or ()
    answers: Mapping[str, int] | None = None
    if kind == "classify":
        if not classes and not stream.is_local:
            raise RecipeError(
                "objective classify on streamed remote rows, whose classes are known once all rows were read",
                expected="the list of all classes, or rows of this machine, which are read once before the run",
                do="set objective.classes: [...]; `luthier data fetch` downloads the rows, to be named as files",
            )
        answers = _first_answers(splits["train"]) if classes else answers_of(stream, progress)
    try:
        found = fit_task_head(kind, splits, width, multi_label=multi_label, classes=classes, answers=answers)
    except DataError as error:
        if answers is not None and not classes:
            raise
        raise DataError(
            f"of the first {num:,} rows of the stream: {error.came}",
            expected=error.expected,
            do=error.do,
            problems=error.problems,
        ) from error
    if kind == "classify" and not classes:
        note = f"the classes are those of all {sum((answers or {}).values()):,} rows, which were read for it"
        return replace(found, notes=(note, *found.notes))
    if kind == "classify":
        note = "the classes are those of objective.classes; a row of another class is left out and counted"
        # Counts of some rows would pass for counts of all.
        return replace(found, head=found.head.model_copy(update={"label_counts": ()}), notes=(note, *found.notes))
    return replace(found, notes=(f"mean, deviation and range are those of the first {num:,} rows", *found.notes))


def answers_of(stream: StreamedRows, progress: Progress) -> Counter[str]:
    """Each answer of all streamed rows with its number of rows, without rows of other splits.

    They are read once in this process: a form plans the same rows again and again.

    Args:
        stream: The rows.
        progress: Shows the reading.

    Raises:
        DataError: A row that cannot be read, has another shape or no answer; or more different answers than labels.
    """
    shapes = [[one.shape, dict(one.mapping)] for one in stream.shapes]
    key = sha256_document([stream.digest, shapes, sorted(stream.left_out)])
    if key not in _counted:
        for oldest in list(_counted)[: len(_counted) + 1 - _MAX_KEPT]:
            del _counted[oldest]
        _counted[key] = _read_answers(stream, progress)
    return _counted[key]


def _read_answers(stream: StreamedRows, progress: Progress) -> Counter[str]:
    from luthier.ml.data.stream.reading import all_records
    from luthier.ml.data.stream.rows import mapped
    from luthier.ml.data.text.normalise import content_key

    found = Counter[str]()
    shards = [shard for lane in stream.lanes for shard in lane]
    with progress.task("Reading labels", total=None, unit="rows") as task:
        for record in all_records(shards, stream.selections):
            task.advance()
            example = mapped(record, stream.shapes[record.source])
            if stream.left_out and content_key(example) in stream.left_out:
                continue
            if example.prompt is None or not (example.reference or "").strip():
                raise DataError(
                    f"row {example.id} of a streamed source has no label in words, or no prompt",
                    expected="a prompt and a label in every row",
                    do="give the row its label, or take it out",
                )
            found[example.reference or ""] += 1
            if len(found) > _MAX_ANSWERS:
                raise DataError(
                    f"the first {sum(found.values()):,} streamed rows have {len(found):,} different answers",
                    expected=f"labels: at most {_MAX_ANSWERS:,} different ones",
                    do="check data.columns: is the label in the column that is read as answer?",
                )
    return found


def _first_answers(examples: Sequence[Example]) -> Counter[str]:
    return Counter(example.reference or "" for example in examples)


def with_known_classes(parts: dict[Split, Part], head: TaskHead | None) -> dict[Split, Part]:
    """The splits without validation rows of a class that no training row has: their loss would be infinite.

    Held-out rows of such a class stay: they count as wrong.
    """
    if head is None or head.kind in SEARCH_KINDS or "validation" not in parts:
        return parts
    from luthier.ml.data.tokenise.heads import of_known_classes

    part = parts.pop("validation")
    kept = of_known_classes(part.examples, head)
    return parts | ({"validation": replace(part, examples=kept)} if kept else {})
