"""The rows of a recipe: read, split, checked and tokenised, with replayed rows and memorisation probes.

Recipes that differ in nothing that rows depend on, as the trials of a study do, share the result. Replay mixes general
rows into training, and keeps others to measure forgetting. Memorisation probes are planted among the
training rows (`added_rows`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from luthier.core.conversation import AS_THEY_ARE, OptedTurns
from luthier.core.data_sources import SourcePlan, is_pattern
from luthier.core.dataset import DatasetProfile, Example, Split, TokenisedExample, profile_tokens
from luthier.core.ids import sha256_document
from luthier.core.recipe import Recipe
from luthier.core.system.libraries import import_libraries
from luthier.core.task_head import SEARCH_KINDS
from luthier.features.planning.added_rows import load_replay, planted, refuse_cut_canaries, split_seed
from luthier.features.planning.data_sources import (
    LocatedRows,
    counted,
    located,
    own_groups,
    refuse_mixed,
    refuse_unanswered,
    weighted,
)
from luthier.features.planning.streamed_objectives import check_streamed_shape
from luthier.features.planning.streamed_rows import PreparedStream, StreamedRows, load_stream, tokenise_sample
from luthier.features.planning.task_heads import fitted_head, with_known_classes
from luthier.features.planning.tokenising import learning_of, tokenising_workers
from luthier.ml.data.files.sequences import chained, changed, selected
from luthier.platform.home.context import Context

if TYPE_CHECKING:
    from luthier.core.records.base_model import LocalModel
    from luthier.core.task_head import TaskHead
    from luthier.ml.data.files.spill import Spill
    from luthier.ml.data.rows.formats import LoadedFile
    from luthier.ml.data.tokenise.heads import FittedHead
    from luthier.ml.data.tokenise.token_store import Units
    from luthier.ml.data.tokenise.tokenised_rows import Tokenised
    from luthier.ml.inference.models.templates.chat_template import ChatTemplate


@dataclass(frozen=True, slots=True)
class Part:
    """The examples of one split, and the file they came from.

    Attributes:
        source: The file as it was read.
        path: Where it is.
        examples: Those of the split.
        planted: Canaries with them.
        sources: Where the rows of the file come from, of remote and of several sources; not of rows that were cut from
            the training rows.
        stream: Of rows that are streamed; `examples` are then the first of them.
    """

    source: LoadedFile
    path: Path
    examples: Sequence[Example]
    planted: Sequence[Example] = ()
    sources: tuple[SourcePlan, ...] = ()
    stream: StreamedRows | None = None


def load_splits(
    context: Context,
    recipe: Recipe,
    base_dir: Path,
    spill: Spill | None = None,
    before: Sequence[SourcePlan] = (),
) -> dict[Split, Part]:
    """Read the files that the recipe names and take out of the training rows what it asks for as fractions.

    Remote sources are downloaded first, several sources are mixed (`data_sources`). Of training rows that are streamed
    the first ones are read (`streamed_rows`).

    Args:
        context: The home.
        recipe: What is asked.
        base_dir: From which its relative paths count.
        spill: The budget of memory, and where rows beyond it go; None keeps all of them in memory.
        before: Sources of the plan of a run that is resumed or looked into; of streamed ones and of patterns its files
            are read.
    """
    from luthier.ml.data.rows.formats import load_file
    from luthier.ml.data.rows.rows import part_of
    from luthier.ml.data.split.split import split_by_fraction
    from luthier.ml.planning.resolve_objective import check_shape

    rows = located(context, recipe, base_dir, spill, before)
    recipe = rows.recipe
    named: dict[Split, Any] = {"validation": recipe.data.validation, "held_out": recipe.data.held_out}
    asked: dict[Split, str | float | None] = named  # lists of sources are files by now
    if recipe.data.streaming:
        return _with_stream(context, rows, base_dir, asked, spill or rows_memory(context), before)
    assert isinstance(recipe.data.train, str)
    train_path = base_dir / recipe.data.train
    of_train = rows.mapping("train"), recipe.data.group_by
    train = load_file(train_path, mapping=of_train[0], group_by=of_train[1], spill=spill, prompts=rows.prompts)
    check_shape(recipe.objective, train.shape)
    fractions = {split: value for split, value in asked.items() if isinstance(value, float)}
    parts: dict[Split, Sequence[Example]] = {"train": train.examples}
    if fractions:
        from luthier.ml.data.provenance import OWN_GROUPS
        from luthier.ml.data.split.own_groups import group_note

        train = replace(train, shape_reason=train.shape_reason + group_note(recipe.data.group_by))
        parts = dict(
            split_by_fraction(
                train.examples,
                validation=fractions.get("validation", 0.0),
                held_out=fractions.get("held_out", 0.0),
                seed=split_seed(recipe),
                joins_equal=recipe.data.group_by in OWN_GROUPS,
            )
        )
        refuse_unanswered(parts.get("held_out", ()))
    if recipe.data.part is not None:
        parts["train"] = part_of(parts["train"], recipe.data.part)
    sources = rows.sources.get("train", ())
    if len(sources) > 1:  # after the splits: rows that are repeated stay on the side of training
        parts["train"], sources = weighted(parts["train"], sources, split_seed(recipe))
    found = {split: Part(train, train_path, examples) for split, examples in parts.items() if examples}
    found["train"] = replace(found["train"], sources=counted(sources, train.num_rows))
    if recipe.data.canaries is not None:
        found["train"] = replace(found["train"], planted=planted(recipe, train.shape, len(parts["train"])))
    found |= _load_judging(rows, base_dir, asked, train, spill)
    for split, part in load_replay(rows, base_dir, spill).items():
        found[split] = Part(*part, sources=counted(rows.sources.get(split, ()), part[0].num_rows))
    return found


def _load_judging(
    rows: LocatedRows,
    base_dir: Path,
    asked: Mapping[Split, str | float | None],
    train: LoadedFile,
    spill: Spill | None,
) -> dict[Split, Part]:
    """The splits that have their own files."""
    from luthier.ml.data.rows.formats import load_file
    from luthier.ml.planning.resolve_objective import check_shape

    recipe, found = rows.recipe, dict[Split, Part]()
    for split, value in asked.items():
        if isinstance(value, str):
            path = base_dir / value
            how = rows.mapping(split), rows.prompts if split == "validation" else None
            group_by = recipe.data.group_by
            loaded = load_file(path, mapping=how[0], group_by=group_by, spill=spill, prompts=how[1])
            if loaded.shape == "text" or train.shape == "text":
                refuse_mixed(train, loaded)
            elif split == "validation":
                check_shape(recipe.objective, loaded.shape)
            of_split = counted(rows.sources.get(split, ()), loaded.num_rows)
            found[split] = Part(loaded, path, loaded.examples, sources=of_split)
    return found


def _with_stream(
    context: Context,
    rows: LocatedRows,
    base_dir: Path,
    asked: Mapping[Split, str | float | None],
    spill: Spill,
    before: Sequence[SourcePlan],
) -> dict[Split, Part]:
    """The first of the streamed training rows, and the other splits as a whole."""
    from luthier.ml.planning.resolve_objective import check_shape

    train, path, sources, stream = load_stream(context, rows.recipe, base_dir, spill.memory_bytes, before)
    check_shape(rows.recipe.objective, train.shape)
    check_streamed_shape(rows.recipe, train.shape)
    found = _load_judging(rows, base_dir, asked, train, spill)
    stream = stream.without({split: part.examples for split, part in found.items()})
    parts: dict[Split, Part] = {"train": Part(train, path, train.examples, sources=sources, stream=stream)}
    return parts | found


def rows_memory(context: Context) -> Spill:
    """The memory that the rows of a run may take, and where rows beyond it go."""
    from luthier.ml.data.files.spill import Spill

    settings = context.settings
    return Spill(settings.data_memory_bytes or None, settings.scratch_folder)


_NOT_OF_ROWS: Final[dict[str, bool | set[str]]] = {
    **dict.fromkeys(("method", "budget", "tracking", "evaluation"), True),
    "training": {
        "learning_rate", "epochs", "global_batch_size", "global_batch_tokens", "schedule", "num_threads",
        "min_lr_ratio", "warmup_fraction", "warmup_steps", "weight_decay", "validate_every_steps",
        "early_stopping_patience",
    },
}  # fmt: skip
"""What rows do not depend on. All else may change them: what is missing here only costs that they are read again."""
_MAX_KEPT: Final = 4


@dataclass(frozen=True)
class PreparedSplit:
    """One split, ready: the examples that are left and their tokens, in the same order, then those of canaries.

    Attributes:
        profile: Counts and digests of the rows.
        examples: Those that were not dropped.
        tokenised: The rows of all examples one after another: one of each, or chosen and rejected of preference pairs.
        rows_per_unit: How many of them the objective looks at side by side.
        is_packed: Whether texts are packed into blocks; `tokenised` then holds the pieces, block after block.
        row_counts: Rows of each example, where the template needs one for each answer of a conversation; pieces of
            each block; else empty.
        sources: As those of its `Part`.
        stream: Of rows that are streamed: what steps read; all else is of the first rows.

    Examples and rows are tuples, or sequences in files where they are larger than memory.
    """

    profile: DatasetProfile
    examples: Sequence[Example]
    tokenised: Sequence[TokenisedExample]
    rows_per_unit: int = 1
    is_packed: bool = False
    row_counts: Sequence[int] = ()
    sources: tuple[SourcePlan, ...] = ()
    stream: PreparedStream | None = None

    @cached_property
    def units(self) -> Units:
        """The rows that an objective looks at side by side; KTO takes the two sides of a pair one by one."""
        from luthier.ml.data.tokenise.token_store import Units

        return Units(self.tokenised, self.rows_per_unit, self.row_counts)

    @cached_property
    def good_examples(self) -> Sequence[Example]:
        """Those that show an answer as it should be: all but completions that are not wanted, and rows without one.

        A row that weights of sources repeat is here once: examples in a prompt are different ones.
        """
        import numpy as np

        are_good = (example.is_wanted is not False and example.has_answer for example in self.examples)
        wanted = np.fromiter(are_good, dtype=bool)
        if any(source.weight is not None for source in self.sources):
            # Rows are in the order of the file, so the repeated ones follow one another.
            ids = [example.id for example in self.examples]
            wanted &= np.array([True, *(one != before for before, one in pairwise(ids))][: len(ids)], dtype=bool)
        found = selected(self.examples, np.flatnonzero(wanted))
        return tuple(found) if isinstance(self.examples, tuple) else found


@dataclass(frozen=True, slots=True)
class TrainingData:
    """Base model, template and rows of a recipe. room_tokens: of a held-out row. task_head: where rows train one."""

    model: LocalModel
    template: ChatTemplate
    splits: dict[Split, PreparedSplit]
    room_tokens: int
    task_head: FittedHead | None = None


class TrainingDataLoader:
    """Prepared rows, cached for the next recipe that needs the same. Not thread-safe."""

    def __init__(self) -> None:
        self._kept: dict[str, TrainingData] = {}
        self._grouped: dict[str, str | None] = {}

    def grouped(self, context: Context, recipe: Recipe, base_dir: Path, before: Sequence[SourcePlan]) -> Recipe:
        """The recipe of a new run with the group that its rows name, which its plan keeps; looked for once."""
        key = sha256_document([recipe.data.model_dump(mode="json"), str(base_dir), split_seed(recipe)])
        if key not in self._grouped:
            self._grouped[key] = own_groups(context, recipe, base_dir, split_seed(recipe), rows_memory(context), before)
        return recipe.model_copy(update={"data": recipe.data.model_copy(update={"group_by": self._grouped[key]})})

    def of(self, context: Context, recipe: Recipe, base_dir: Path, before: Sequence[SourcePlan] = ()) -> TrainingData:
        """The rows of a recipe; files that changed since they were read are not read again.

        before: as for `load_splits`.

        Raises:
            NotFoundError, ModelSourceError: No such model or file, or one that cannot be fetched.
            RecipeError: Names of matrices or template options that the model does not have.
            DataError: Wrong rows. OverlongError: rows over the length.
            TemplateError: A loss mask cannot be proved.
        """
        from luthier.ml.planning import resolve

        # Of a stream the first rows are read again: other settings decide how many, and what is refused.
        document = recipe.model_dump(mode="json", exclude=None if recipe.data.streaming else _NOT_OF_ROWS)
        # what a method puts before each row takes room from it
        # Measured from a limit that no row reaches: the number depends on the method alone, so the key needs no model.
        asked = {"recipe": document, "base_dir": str(base_dir), "room": resolve.room_tokens(recipe, _FAR)}
        if before and (recipe.data.streaming or any(map(is_pattern, recipe.data.files().values()))):
            asked["before"] = [one.model_dump(mode="json") for one in before]
        key = sha256_document(asked)
        if key not in self._kept:
            # Dicts keep their order of insertion, so the first keys are the oldest. Deleted before the new rows are
            # made: both together could exceed memory.
            for oldest in list(self._kept)[: len(self._kept) + 1 - _MAX_KEPT]:
                del self._kept[oldest]
            self._kept[key] = _made(context, recipe, base_dir, before)
        return self._kept[key]


_FAR: Final = 1 << 40
_SAMPLED_ROWS: Final = 100


def _made(context: Context, recipe: Recipe, base_dir: Path, before: Sequence[SourcePlan]) -> TrainingData:
    # Before a model is fetched and the libraries are loaded that compute with it: a wrong column is found here.
    spill = rows_memory(context)
    parts = load_splits(context, recipe, base_dir, spill, before)
    import_libraries()
    from luthier.features.recipes.checks import check_modules
    from luthier.features.recipes.template_options import check_options_are_read
    from luthier.ml.inference.models import sources
    from luthier.ml.inference.models.structure import read_structure
    from luthier.ml.inference.models.templates.chat_template import ChatTemplate
    from luthier.ml.planning import resolve

    model = sources.pull(recipe.base_model, context.home, context.progress)
    method = recipe.method
    if method is not None and not (method.targets is None and method.modules_to_save is None):
        check_modules(recipe, read_structure(model.path))
    template = ChatTemplate.load(model.path, recipe.data.template or "auto", options=recipe.data.template_options)
    check_options_are_read(recipe.data.template_options or (), template, recipe.base_model)
    room = resolve.room_tokens(recipe, model.context_length_tokens)
    examples = {split: part.examples for split, part in parts.items()}
    head = fitted_head(context, recipe, examples, model.path, parts["train"].stream)
    task_head = None if head is None else head.head
    max_length = resolve.max_length_tokens(recipe, model.context_length_tokens, task_head)
    parts = with_known_classes(parts, task_head)
    splits = {
        split: tokenise(context, split, part, template, recipe, max_length, room, task_head, spill=spill)
        for split, part in parts.items()
    }
    return TrainingData(model, template, splits, room, head)


def tokenise(
    context: Context,
    split: Split,
    part: Part,
    template: ChatTemplate,
    recipe: Recipe,
    max_length_tokens: int,
    room_tokens: int,
    task_head: TaskHead | None = None,
    spill: Spill | None = None,
) -> PreparedSplit:
    """Tokens and profile of one split.

    Held-out rows are evaluated, not trained, so they may fill the whole context; they are never truncated, since a cut
    answer cannot be compared: where the recipe says truncate, a held-out row over the context is dropped and counted.

    Args:
        context: of the home.
        split: its name.
        part: its rows.
        template: of the base model.
        recipe: the request.
        max_length_tokens: of a trained row.
        room_tokens: of a held-out row: the context without what comes before it.
        task_head: that the rows train in place of text; None for text.
        spill: the budget of memory, and where rows beyond it go; None keeps all in memory.
    """
    from luthier.ml.data.tokenise.tokenised_cache import TokenisedCache
    from luthier.ml.inference.engine_prompts import example_rewriter
    from luthier.ml.planning import resolve
    from luthier.ml.planning.resolve_objective import check_shape
    from luthier.ml.training.objectives.rules import rules_of

    if resolve.fills_blocks(recipe):
        check_shape(recipe.objective, part.source.shape)
        return _packed(context, split, part, template, room_tokens if "held_out" in split else max_length_tokens, spill)
    overlong = (recipe.training.overlong if recipe.training else None) or "error"
    if split in ("held_out", "replay_held_out"):
        max_length_tokens = room_tokens
        overlong = "drop" if overlong == "truncate" else overlong
    if part.stream is not None:
        return _sampled(part, part.stream, template, recipe, max_length_tokens, task_head)
    if (opted := OptedTurns.of(recipe.data)) != AS_THEY_ARE:
        rewrite = example_rewriter(opted, template)
        examples, planted = (changed(rows, lambda _, row: rewrite(row)) for rows in (part.examples, part.planted))
        part = replace(part, examples=examples, planted=planted)
    cache = TokenisedCache(context.settings.tokenised_folder, context.settings.tokenised_cache_bytes)
    made: Tokenised = cache.tokenise_all(
        chained(part.examples, part.planted),
        template,
        max_length_tokens=max_length_tokens,
        overlong=overlong,
        progress=context.progress,
        learning=learning_of(recipe, split, task_head),
        spill=spill,
        start_workers=partial(tokenising_workers, context, part.examples),
    )
    refuse_cut_canaries(made)
    rules = rules_of(recipe.objective.name if recipe.objective else "sft")
    # A unit of embeddings has as many texts as its rows name: a hard negative is a third one.
    rows_per_unit = made.rows_per_example if rules.task_head == "embed" or split == "held_out" else rules.rows_per_unit
    counts: dict[str, Any] = profile_tokens(made.examples, rows_per_example=rows_per_unit, row_counts=made.row_counts)
    profile = DatasetProfile(
        split=split,
        file=str(part.path),
        sha256=part.source.sha256,
        shape=part.source.shape,
        shape_reason=part.source.shape_reason,
        num_rows=len(part.examples),
        num_dropped=len(made.dropped_ids),
        dropped_ids=made.dropped_ids,
        num_truncated=len(made.truncated_ids),
        truncated_ids=made.truncated_ids,
        **counts,
    )
    tokenised, examples = _marked(split, part, made, task_head), _examples_left(part, made)
    return PreparedSplit(profile, examples, tokenised, rows_per_unit, row_counts=made.row_counts, sources=part.sources)


def _sampled(
    part: Part,
    stream: StreamedRows,
    template: ChatTemplate,
    recipe: Recipe,
    max_length_tokens: int,
    head: TaskHead | None,
) -> PreparedSplit:
    """The first rows of a stream, with what reads the others."""
    learning = learning_of(recipe, "train", head)
    head = None if head is not None and head.kind in SEARCH_KINDS else head  # which learn of no targets
    made = tokenise_sample(recipe, stream, part.source, template, learning, max_length_tokens, head)
    return PreparedSplit(
        made.profile,
        made.examples,
        made.tokenised,
        made.rows_per_unit,
        row_counts=made.row_counts,
        sources=part.sources,
        stream=made.stream,
    )


def _examples_left(part: Part, made: Tokenised) -> Sequence[Example]:
    """The examples that are left of a part. Canaries are trained and counted, but no rows of it, and never shown."""
    import numpy as np

    kept = np.asarray(made.kept, dtype=np.int64)
    found = selected(part.examples, kept[kept < len(part.examples)])
    return tuple(found) if isinstance(found, list) else found


def _marked(split: Split, part: Part, made: Tokenised, head: TaskHead | None) -> Sequence[TokenisedExample]:
    """The rows with what travels with them: that they are replayed, or what a task head should give for them."""
    from luthier.ml.data.tokenise.heads import with_targets

    if split == "replay":  # the loss of task and of replayed rows is reported apart
        return changed(made.examples, lambda _, row: replace(row, is_replayed=True))
    if head is not None and head.kind not in SEARCH_KINDS and split in ("train", "validation"):
        return with_targets(_examples_left(part, made), made.examples, head)
    return made.examples


def _packed(
    context: Context, split: Split, part: Part, template: ChatTemplate, block_tokens: int, spill: Spill | None
) -> PreparedSplit:
    """Texts of any length in blocks: the counts are of blocks, the examples are the texts as they came."""
    from luthier.ml.data.tokenise.packing import pack_texts

    packed = pack_texts(chained(part.examples, part.planted), template, block_tokens, context.progress, spill)
    num_blocks = packed.profile.num_blocks
    counts: dict[str, Any] = profile_tokens(packed.rows)
    counts |= {"num_examples": num_blocks, "mean_tokens": counts["num_tokens"] / num_blocks}
    profile = DatasetProfile(
        split=split,
        file=str(part.path),
        sha256=part.source.sha256,
        shape=part.source.shape,
        shape_reason=part.source.shape_reason,
        num_rows=len(part.examples),
        num_dropped=0,
        packed=packed.profile,
        **counts,
    )
    rows = packed.rows
    if split == "replay":
        rows = changed(rows, lambda _, row: replace(row, is_replayed=True))
    examples = tuple(part.examples) if isinstance(part.examples, list) else part.examples
    return PreparedSplit(profile, examples, rows, is_packed=True, row_counts=packed.row_counts, sources=part.sources)
