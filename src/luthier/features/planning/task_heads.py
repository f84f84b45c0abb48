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
from luthier.core.errors import DataError, ModelSourceError, RecipeError
from luthier.core.published_head import OwnEmbedding, OwnReranker, is_reranker, own_reranker
from luthier.core.recipe import ObjectiveRecipe, Recipe
from luthier.core.task_head import SEARCH_KINDS, TaskHead, TaskHeadKind, has_head_file, is_task_model
from luthier.core.text.counted import counted
from luthier.features.planning.stream_labels import StreamLabels
from luthier.platform.home.context import Context

if TYPE_CHECKING:
    from luthier.features.planning.streamed_rows import StreamedRows
    from luthier.features.planning.training_data import Part
    from luthier.ml.data.tokenise.heads import FittedHead

_NUM_NAMED: Final = 5


def fitted_head(
    context: Context,
    recipe: Recipe,
    splits: Mapping[Split, Sequence[Example]],
    model_path: str,
    stream: StreamedRows | None,
) -> FittedHead | None:
    """What a task head learns; None for objectives that write.

    Args:
        context: of the home, which stores the labels of streamed rows.
        recipe: what is asked.
        splits: the rows; of training rows that are streamed the first.
        model_path: of the base model.
        stream: the training rows where they are streamed.

    Raises:
        DataError: rows that the head cannot learn from.
        RecipeError: the classes of a remote stream are not named, or text is to be learned by a base that writes none.
    """
    from luthier.ml.training.objectives.rules import rules_of

    kind = rules_of(recipe.objective.name).task_head if recipe.objective else None
    if recipe.objective is None or kind is None:
        _refuse_base_without_output(recipe, model_path)
        return None
    from luthier.ml.data.tokenise.heads import fit_task_head
    from luthier.ml.data.tokenise.search import search_head
    from luthier.ml.inference.models.structure import read_structure

    width = read_structure(model_path).hidden_size
    if kind in SEARCH_KINDS:
        own, end_text, notes = _made_by_base(kind, model_path)
        if own is not None and own.max_tokens is not None:
            asked = (recipe.training.max_length_tokens if recipe.training else None) or 0
            # Behind each text of a row is the slot. Training on longer texts teaches to read them.
            own = replace(own, max_tokens=max(own.max_tokens, asked - 1))
        scores, pairs = _scored_by_base(kind, model_path)
        rows = () if stream is not None else splits["train"]
        fitted = search_head(recipe.objective, rows, width, own=own, end_text=end_text, scores=scores)
        notes += pairs
        return replace(fitted, notes=(*notes, *fitted.notes))
    if stream is not None:
        labels = StreamLabels(context.settings.labels_folder, context.progress)
        return streamed_head(kind, recipe.objective, splits, width, stream, labels)
    multi_label, classes = recipe.objective.multi_label or False, recipe.objective.classes or ()
    found = fit_task_head(kind, splits, width, multi_label=multi_label, classes=classes)
    return _with_weights(found, len(splits["train"])) if recipe.objective.class_weights == "balanced" else found


def _refuse_base_without_output(recipe: Recipe, model_path: str) -> None:
    """Text is learned by an output layer, which some embedding models and rerankers are published without; a reranker
    that has one is compared and served by its score."""
    if is_task_model(model_path) and not has_head_file(model_path):
        is_own = is_reranker(model_path)
        what = "a published reranker" if is_own else "an embedding model without an output layer"
        raise RecipeError(
            f"base_model {recipe.base_model}, {what}, for "
            f"objective {'sft' if recipe.objective is None else recipe.objective.name}",
            expected="a base model that writes text; this one trains with objective embed, rank, classify or regress",
            do="name the language model that it was made of, or another objective",
        )


def _made_by_base(kind: TaskHeadKind, model_path: str) -> tuple[OwnEmbedding | None, str, tuple[str, ...]]:
    """How the base model makes vectors by its own files, what its tokenizer puts behind every text, and notes."""
    from luthier.ml.inference.models.loading import load_tokenizer
    from luthier.ml.inference.models.own_embedding import own_embedding, own_ending

    if kind != "embed":  # a reranker reads pairs
        return None, "", ()
    end_text = own_ending(load_tokenizer(model_path))
    try:
        return own_embedding(model_path), end_text, ()
    except ModelSourceError as error:
        # A run trains vectors of its own: it needs those of the base for nothing but its defaults.
        return None, end_text, (f"{error.came}, which are not computed here: pooling and prompts are the usual ones",)


def _scored_by_base(kind: TaskHeadKind, model_path: str) -> tuple[OwnReranker | None, tuple[str, ...]]:
    """How the base model scores a pair by its own files, and a note on it; None where it is no published reranker."""
    from luthier.ml.inference.models.loading import load_tokenizer
    from luthier.ml.inference.models.own_reranker import describe_own_pairs

    if kind != "rank" or has_head_file(model_path):
        return None, ()
    try:
        scores = own_reranker(model_path)
    except ModelSourceError as error:
        return None, (f"{error.came}: the head starts at zero, and pairs are turns of a conversation",)
    return scores, () if scores is None else (describe_own_pairs(load_tokenizer(model_path), scores),)


def _with_weights(found: FittedHead, num_rows: int) -> FittedHead:
    """The head with what its weights need, and a note on the classes that have none, where there are some."""
    head = found.head.model_copy(update={"num_rows": num_rows if found.head.is_multi_label else 0})
    found = replace(found, head=head)
    none = [label for label, count in zip(head.labels, head.label_counts, strict=True) if not count]
    if not none:
        return found
    more = f" and {len(none) - _NUM_NAMED:,} more" if len(none) > _NUM_NAMED else ""
    shown = f"{counted(len(none), 'class', 'classes')} without training rows ({', '.join(none[:_NUM_NAMED])}{more})"
    of_others = f"the {len(head.labels) - len(none):,} with rows have equal weight"
    note = f"objective.class_weights balanced: weight 0 for {shown}; {of_others}"
    if head.is_multi_label:
        # Their rows all say no, which has to be learned: of weight 0 they could be given to any row.
        note = f"objective.class_weights balanced: weight 1 for {shown}, which no row can raise"
    return replace(found, notes=(*found.notes, note))


def streamed_head(
    kind: TaskHeadKind,
    asked: ObjectiveRecipe,
    splits: Mapping[Split, Sequence[Example]],
    width: int,
    stream: StreamedRows,
    labels: StreamLabels,
) -> FittedHead:
    """The classes of streamed rows, or the range of numbers of the first of them.

    Args:
        kind: classify or regress.
        asked: the objective.
        splits: the first training rows, and the other splits.
        width: of the model's hidden states.
        stream: the training rows.
        labels: reads those of all rows.

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
        answers = _first_answers(splits["train"]) if classes else labels.of(stream)
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
