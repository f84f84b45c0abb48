"""What a task head learns: the classes or numbers of the training rows.

Of streamed rows they are those of the first rows, classes those of the validation rows, too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from luthier.core.dataset import Example, Split
from luthier.core.errors import DataError
from luthier.core.recipe import Recipe
from luthier.core.task_head import SEARCH_KINDS, TaskHead, TaskHeadKind
from luthier.ml.data.files.sequences import chained

if TYPE_CHECKING:
    from luthier.features.planning.training_data import Part
    from luthier.ml.data.tokenise.heads import FittedHead


def fitted_head(
    recipe: Recipe, splits: Mapping[Split, Sequence[Example]], model_path: str, *, is_streamed: bool
) -> FittedHead | None:
    """What a task head learns; None for objectives that write.

    Args:
        recipe: what is asked.
        splits: the rows; of training rows that are streamed the first.
        model_path: of the base model.
        is_streamed: whether training rows are streamed.
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
        return search_head(recipe.objective, () if is_streamed else splits["train"], width)
    fit = streamed_head if is_streamed else fit_task_head
    return fit(kind, splits, width, multi_label=recipe.objective.multi_label or False)


def streamed_head(
    kind: TaskHeadKind, splits: Mapping[Split, Sequence[Example]], width: int, *, multi_label: bool
) -> FittedHead:
    """The classes or the range of numbers of streamed rows, by the first of them.

    Args:
        kind: classify or regress.
        splits: the first training rows, and the other splits.
        width: of the model's hidden states.
        multi_label: whether an answer may have several labels.

    Raises:
        DataError: among the first rows, one has no answer or an answer that is no number, or all have one class or
            number.
        RecipeError: several labels are asked for, and no answer has several.
    """
    from luthier.ml.data.tokenise.heads import fit_task_head

    num, validation = len(splits["train"]), splits.get("validation", ())
    read = dict(splits)
    if kind == "classify":
        read["train"] = chained(splits["train"], validation)
    try:
        found = fit_task_head(kind, read, width, multi_label=multi_label)
    except DataError as error:
        raise DataError(
            f"of the first {num:,} rows of the stream{_and(kind, validation)}: {error.came}",
            expected=error.expected,
            do=error.do,
            problems=error.problems,
        ) from error
    if kind == "classify":
        note = (
            f"the classes are those of the first {num:,} rows{_and(kind, validation)}; a row of another class ends the "
            "run: begin a source with a row of each class, or have each among the validation rows"
        )
        # Counts of some rows would pass for counts of all.
        head = found.head.model_copy(update={"label_counts": ()})
    else:
        note, head = f"mean, deviation and range are those of the first {num:,} rows", found.head
    return replace(found, head=head, notes=(note, *found.notes))


def _and(kind: TaskHeadKind, validation: Sequence[Example]) -> str:
    return f" and of {len(validation):,} validation rows" if kind == "classify" and validation else ""


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
