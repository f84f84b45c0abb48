"""Training rows that are streamed (`data.streaming`): pinned and sampled before a run, read while it trains.

Before the first step the files are listed, their revision or digest is pinned, and the first rows are read: they show
the shape, and plan and forecast are made of them. All else is known once it is read, so settings that need all rows
before that are refused.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from luthier.core.conversation import AS_THEY_ARE, OptedTurns
from luthier.core.data_sources import SourcePlan, SourceRecipe, is_pattern, is_remote, names_of
from luthier.core.data_stream import Bounds, StreamCounts, StreamPlan
from luthier.core.dataset import DatasetProfile, Example, Overlong, Split, TokenisedExample, profile_tokens
from luthier.core.errors import DataError, RecipeError
from luthier.core.ids import sha256_document
from luthier.core.plan import Plan
from luthier.core.ports import Progress
from luthier.core.recipe import Recipe
from luthier.core.task_head import SEARCH_KINDS, TaskHead
from luthier.features.planning.stream_sources import PinnedSource, pinned_source
from luthier.features.planning.streamed_objectives import refused_objective
from luthier.platform.home.context import Context

if TYPE_CHECKING:
    from luthier.ml.data.files.spill import Spill
    from luthier.ml.data.rows.formats import LoadedFile
    from luthier.ml.data.stream.reading import Selection, Shard
    from luthier.ml.data.stream.rows import RowTokeniser, SourceShape
    from luthier.ml.data.stream.sample import SourceSample
    from luthier.ml.data.stream.schedule import Divide, StreamSchedule
    from luthier.ml.data.tokenise.loss_mask import Learning
    from luthier.ml.inference.models.templates.chat_template import ChatTemplate

SHUFFLE_BUFFER: Final = 10_000
NUM_SAMPLED: Final = 1_000
_BATCHES_SAMPLED: Final = 1.25
"""As many steps at least, so that one is full although some rows are left out."""
_LEAST_SAMPLED: Final = 2
"""Of a source: of one row alone no spread is known."""
_USUAL_ROW_BYTES: Final = 1_000
_ALL_TOKENS: Final = 1 << 31


def refuse_with_stream(recipe: Recipe) -> None:
    """Raise RecipeError for settings that need all rows before the first step, which a stream does not have."""
    data, training = recipe.data, recipe.training
    objective = refused_objective(recipe)
    whole = "all rows before the first step"
    for came, is_there, needs, do in (
        ("data.validation as a fraction", isinstance(data.validation, float), whole, "name a file or a source"),
        ("data.held_out as a fraction", isinstance(data.held_out, float), whole, "name a file or a source"),
        ("data.subset", data.part is not None, whole, "remove it; training.max_steps says how much is trained"),
        ("data.group_by", data.group_by is not None, "a split of all rows", "remove it"),
        ("data.replay", data.replay is not None, whole, "name the general rows as a source with a weight"),
        ("data.canaries", data.canaries is not None, whole, "remove it"),
        *([] if objective is None else [(objective[0], True, *objective[1:])]),
        (
            "training.epochs",
            training is not None and training.epochs is not None,
            "the number of rows",
            "set training.max_steps in its place",
        ),
        (
            "data.shuffle_buffer with training.batch_order as_given",
            data.shuffle_buffer is not None and training is not None and training.order == "as_given",
            "another order",
            "remove one of the two",
        ),
        (
            "no training.on_overlong, or error,",
            training is None or training.overlong not in ("drop", "truncate"),
            "the length of every row",
            "set training.on_overlong: drop | truncate; what it does is counted",
        ),
    ):
        if is_there:
            raise RecipeError(
                f"{came} with data.streaming, which reads the rows while the run trains",
                expected=f"no setting that needs {needs}",
                do=f"{do}, or remove data.streaming",
            )


@dataclass(frozen=True, slots=True)
class StreamedRows:
    """Streamed rows, ready to be read.

    Attributes:
        lanes: the shards of each source; of all sources in one lane where there are no weights.
        weights: of the lanes; None where there is one.
        shapes: of the sources.
        sample: the first rows of each source, in the order of the sources.
        num_rows: of all files; None where it cannot be estimated.
        sizes: of all files in bytes; None where a server does not state them.
        buffer_size: of the shuffle buffer; 1 keeps the order of the files.
        memory_bytes: what its rows may take.
        left_out: content keys of validation and held-out rows.
        prompts: prompt keys of held-out rows, each with the numbers of these rows.
        selections: by source, of those of which a part is used.
        is_local: whether all files are on this machine.
        digest: of the files, and of the parts of them that are used.
    """

    lanes: tuple[tuple[Shard, ...], ...]
    weights: tuple[float, ...] | None
    shapes: tuple[SourceShape, ...]
    sample: tuple[SourceSample, ...]
    num_rows: Bounds | None
    sizes: tuple[int | None, ...]
    buffer_size: int
    memory_bytes: int
    left_out: frozenset[str] = frozenset()
    prompts: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    selections: Mapping[int, Selection] = field(default_factory=dict)
    is_local: bool = False
    digest: str = ""

    def without(self, splits: Mapping[Split, Sequence[Example]]) -> StreamedRows:
        """The same, which leaves out the rows of other splits, and knows the prompts of the held-out ones."""
        from luthier.ml.data.text.normalise import content_key, prompt_key

        prompts: dict[str, tuple[int, ...]] = {}
        for number, example in enumerate(splits.get("held_out", ())):
            if (key := prompt_key(example)) is not None:
                prompts[key] = (*prompts.get(key, ()), number)
        left_out = frozenset(content_key(example) for rows in splits.values() for example in rows)
        return replace(self, left_out=left_out, prompts=prompts)

    def all_examples(self, spill: Spill, progress: Progress) -> Sequence[Example]:
        """Every row once, without those of other splits, for what compares with all training rows.

        Rows that cannot be read, or have another shape, are passed over: they were never trained on.

        Args:
            spill: The budget of memory, and where rows beyond it go.
            progress: Shows the reading.

        Raises:
            DataError: A shard cannot be read.
            DataSourceError: It cannot be fetched.
            StorageFullError: The rows need more disk than there is.
        """
        from luthier.ml.data.rows.formats import example_writer
        from luthier.ml.data.stream.reading import all_records
        from luthier.ml.data.stream.rows import mapped
        from luthier.ml.data.text.normalise import content_key

        found = example_writer(spill)
        shards = [shard for lane in self.lanes for shard in lane]
        with progress.task("Reading streamed rows", total=None, unit="rows") as task:
            for record in all_records(shards, self.selections):
                task.advance()
                try:
                    example = mapped(record, self.shapes[record.source])
                except DataError:  # it ends a run that comes to it, so no step has trained on it
                    continue
                if not self.left_out or content_key(example) not in self.left_out:
                    found.append(example)
        return found.sequence()


@dataclass(frozen=True, slots=True)
class PreparedStream:
    """Streamed rows with all that decides their tokens.

    Attributes:
        rows: to be read.
        plan: what the sample shows.
        template: writes and encodes the rows.
        learning: what is learned of them.
        rewrite: changes the turns of an example; None leaves them.
        max_length_tokens: most tokens of a row.
        overlong: what is done with longer ones.
        head: that the rows train in place of text; None for text.
        leaves_out_classes: whether a row of a class that the head does not have is left out; else it ends the run.
    """

    rows: StreamedRows
    plan: StreamPlan
    template: ChatTemplate
    learning: Learning
    rewrite: Callable[[Example], Example] | None
    max_length_tokens: int
    overlong: Overlong
    head: TaskHead | None = None
    leaves_out_classes: bool = False

    def schedule(self, plan: Plan, divide: Divide, *, vocabulary_size: int, folder: Path | None) -> StreamSchedule:
        """The steps of a run.

        Args:
            plan: of the run.
            divide: cuts the examples of a step into micro-batches.
            vocabulary_size: tokens that the model has embeddings for.
            folder: where forked processes find the rows of a step; None where there are none.
        """
        from luthier.ml.data.stream.reading import RecordStream
        from luthier.ml.data.stream.schedule import StreamSchedule

        training, rows = plan.training, self.rows
        records = RecordStream(
            rows.lanes,
            rows.weights,
            seed=training.seed,
            buffer_size=1 if training.order == "as_given" else rows.buffer_size,
            memory_bytes=rows.memory_bytes,
            selections=rows.selections,
        )
        return StreamSchedule(
            records,
            self.tokeniser(vocabulary_size),
            num_steps=training.num_steps,
            num_steps_per_epoch=training.num_steps_per_epoch,
            global_batch_size=training.global_batch_size,
            order=training.order,
            seed=training.seed,
            divide=divide,
            folder=folder,
            has_epochs=plan.data.has_epochs,
        )

    def tokeniser(self, vocabulary_size: int) -> RowTokeniser:
        """Makes rows of records."""
        from luthier.ml.data.stream.rows import RowTokeniser

        return RowTokeniser(
            self.rows.shapes,
            self.template,
            learning=self.learning,
            rewrite=self.rewrite,
            max_length_tokens=self.max_length_tokens,
            overlong=self.overlong,
            vocabulary_size=vocabulary_size,
            left_out=self.rows.left_out,
            prompts=self.rows.prompts,
            head=self.head,
            leaves_out_classes=self.leaves_out_classes,
        )


def load_stream(
    context: Context, recipe: Recipe, base_dir: Path, memory_bytes: int, before: Sequence[SourcePlan] = ()
) -> tuple[LoadedFile, Path, tuple[SourcePlan, ...], StreamedRows]:
    """Pin the streamed sources of a recipe and read their first rows.

    Args:
        context: The home.
        recipe: What is asked.
        base_dir: From which its relative paths count.
        memory_bytes: What the rows of the shuffle buffer may take.
        before: Sources of the plan of a run that is resumed or looked into.

    Returns:
        The sample as a file, the place that plans name, the sources, and the rows.

    Raises:
        RecipeError: Settings that a stream cannot have.
        NotFoundError, DataSourceError: A source that is not there or cannot be listed.
        DataError: Wrong rows.
    """
    from luthier.ml.data.rows.formats import LoadedFile
    from luthier.ml.data.rows.mixture import common_shape
    from luthier.ml.data.stream.rows import mapped
    from luthier.ml.data.stream.sample import sample_source

    refuse_with_stream(recipe)
    data = recipe.data
    asked = data.train if isinstance(data.train, tuple) else (SourceRecipe(path=data.train),)
    names, listed = names_of(asked), {one.name: one for one in before if one.is_streamed}
    pinned = [
        pinned_source(context, number, name, source, base_dir, data.map, listed.get(name))
        for number, (name, source) in enumerate(zip(names, asked, strict=True))
    ]
    weights = tuple(one.weight for one in asked if one.weight is not None) or None
    sample = tuple(
        sample_source(one.plan.name, one.shards, one.sizes, one.columns, num, one.part)
        for one, num in zip(pinned, _sample_sizes(pinned, weights, _global_batch_size(recipe)), strict=True)
    )
    shapes = tuple(one.shape for one in sample)
    shape = common_shape(names, [one.shape for one in shapes])
    examples = tuple(mapped(record, one.shape) for one in sample for record in one.records)
    rows = StreamedRows(
        lanes=(tuple(one.shards for one in pinned) if weights else (tuple(s for one in pinned for s in one.shards),)),
        weights=weights,
        shapes=shapes,
        sample=sample,
        num_rows=_total([one.num_rows for one in sample]),
        sizes=tuple(size for one in pinned for size in one.sizes),
        buffer_size=data.shuffle_buffer or SHUFFLE_BUFFER,
        memory_bytes=memory_bytes,
        selections={
            number: selection
            for number, (one, shape) in enumerate(zip(pinned, shapes, strict=True))
            if (selection := one.part.selection(one.plan.name, shape)) is not None
        },
        is_local=not any(is_remote(one.path) for one in asked),
        digest=sha256_document([one.content for one in pinned]),
    )
    _refuse_open_length(recipe, rows.num_rows)
    _refuse_large_buffer(rows, recipe)
    sources = tuple(one.plan for one in pinned)
    only = sources[0] if _is_whole_file(asked) else None
    place = base_dir / asked[0].path if only else Path("+".join(names))
    digest = only.files[0].sha256 if only else sha256_document([one.content for one in pinned])
    reason = "; ".join(dict.fromkeys(one.reason for one in shapes))
    return LoadedFile(str(place), digest, shape, reason, len(examples), examples), place, sources, rows


def _is_whole_file(asked: Sequence[SourceRecipe]) -> bool:
    """Whether the rows are those of one file of this machine, by whose digest datasets and splits know them."""
    path = asked[0].path
    is_part = asked[0].fraction is not None or asked[0].rows is not None
    return len(asked) == 1 and not is_part and not is_remote(path) and not is_pattern(path)


def _global_batch_size(recipe: Recipe) -> int:
    from luthier.ml.planning import defaults

    return (recipe.training.global_batch_size if recipe.training else None) or defaults.GLOBAL_BATCH_SIZE[0]


def _sample_sizes(pinned: Sequence[PinnedSource], weights: Sequence[float] | None, batch_size: int) -> list[int]:
    """How many of the first rows of each source are read: as many as its share, by weights or else by bytes."""
    num = max(NUM_SAMPLED, math.ceil(_BATCHES_SAMPLED * batch_size))
    sizes = [size for one in pinned for size in one.sizes]
    shares = list(weights or [1.0] * len(pinned))
    if weights is None and None not in sizes:
        shares = [_used_bytes(one) for one in pinned]
    total = sum(shares) or 1.0
    return [max(_LEAST_SAMPLED, round(num * share / total)) for share in shares]


def _used_bytes(source: PinnedSource) -> float:
    """About what the used rows of a source take in its files, for its share of the first rows."""
    num_bytes = sum(size or 0 for size in source.sizes)
    if source.part.num_rows is not None:
        return float(min(num_bytes, source.part.num_rows * _USUAL_ROW_BYTES))
    return num_bytes * (source.part.fraction or 1.0)


def _total(found: Sequence[Bounds | None]) -> Bounds | None:
    known = [one for one in found if one is not None]
    return Bounds(sum(one.low for one in known), sum(one.high for one in known)) if len(known) == len(found) else None


def _refuse_open_length(recipe: Recipe, rows: Bounds | None) -> None:
    """Raise RecipeError where nothing says when the run ends."""
    if recipe.training is not None and recipe.training.max_steps is not None:
        return
    batch = _global_batch_size(recipe)
    epoch = "how many there are is not known"
    if recipe.training is not None and recipe.training.global_batch_tokens is not None:
        epoch = "the examples of a step follow from the tokens of the first rows"
    elif rows is not None:
        low, high = (-(-round(one) // batch) for one in rows)
        epoch = f"an epoch has about {low:,} to {high:,} steps of {batch:,} examples"
    raise RecipeError(
        "data.streaming without training.max_steps",
        expected=f"a number of steps: streamed rows are counted while they are read; {epoch}",
        do="set training.max_steps",
    )


def _refuse_large_buffer(rows: StreamedRows, recipe: Recipe) -> None:
    """Raise RecipeError for a shuffle buffer that cannot be held, by the size of the first rows."""
    if recipe.training is not None and recipe.training.order == "as_given":
        return
    sizes = [record.memory_bytes for one in rows.sample for record in one.records]
    mean = sum(sizes) / len(sizes)
    held = rows.buffer_size if rows.num_rows is None else min(rows.buffer_size, rows.num_rows.high)
    if mean * held <= rows.memory_bytes:
        return
    raise RecipeError(
        f"a shuffle buffer of {rows.buffer_size:,} rows of about {mean:,.0f} bytes, and {rows.memory_bytes:,} bytes of "
        "memory for rows",
        expected=f"at most {int(rows.memory_bytes / mean):,} rows",
        do="lower data.shuffle_buffer, or raise LUTHIER_DATA_MEMORY_BYTES",
    )


@dataclass(frozen=True, slots=True)
class TokenisedSample:
    """The sample of a stream as rows, and a profile of all rows that is estimated from it.

    Attributes:
        profile: of all rows.
        examples: those of the sample that are left.
        tokenised: the rows of these.
        rows_per_unit: rows of each where they are pairs or texts of a search; else 1.
        row_counts: rows of each where templates need several; else empty.
        stream: what reads all rows.
    """

    profile: DatasetProfile
    examples: tuple[Example, ...]
    tokenised: tuple[TokenisedExample, ...]
    rows_per_unit: int
    row_counts: tuple[int, ...]
    stream: PreparedStream


def tokenise_sample(
    recipe: Recipe,
    rows: StreamedRows,
    source: LoadedFile,
    template: ChatTemplate,
    learning: Learning,
    max_length_tokens: int,
    head: TaskHead | None = None,
) -> TokenisedSample:
    """Tokenise the first rows of a stream as all later ones will be.

    Args:
        recipe: What is asked.
        rows: Of the stream.
        source: The sample as a file.
        template: Writes and encodes the rows.
        learning: What is learned of them.
        max_length_tokens: Most tokens of a row.
        head: That the rows train in place of text; None for text.

    Raises:
        DataError: A row that cannot be trained on, or none that is left.
    """
    from luthier.ml.inference.engine_prompts import example_rewriter

    opted = OptedTurns.of(recipe.data)
    overlong: Overlong = (recipe.training.overlong if recipe.training else None) or "error"
    rewrite = None if opted == AS_THEY_ARE else example_rewriter(opted, template)
    is_given = recipe.training is not None and recipe.training.order == "as_given"
    counts = StreamCounts()
    plan = _stream_plan(rows, counts, is_given=is_given)
    names_classes = recipe.objective is not None and recipe.objective.classes is not None
    stream = PreparedStream(
        rows, plan, template, learning, rewrite, max_length_tokens, overlong, head, leaves_out_classes=names_classes
    )
    tokeniser = stream.tokeniser(_ALL_TOKENS)
    made = [tokeniser.unit(record) for one in rows.sample for record in one.records]
    kept = [one for one in made if one is not None]
    counts = tokeniser.counts
    if not kept:
        raise DataError(
            f"none of the first {counts.num_rows:,} streamed rows is left: {counts.summary}",
            expected="at least one row to train on",
            do="raise training.max_length_tokens, or use rows that are not validation or held-out rows",
        )
    row_counts = tuple(len(unit) for _, unit in kept)
    tokenised = tuple(row for _, unit in kept for row in unit)
    is_pair = learning.task_head in SEARCH_KINDS or tokenised[0].is_wanted is not None
    rows_per_unit = row_counts[0] if is_pair else 1
    counted_rows = () if is_pair or set(row_counts) == {1} else row_counts
    found: dict[str, Any] = profile_tokens(tokenised, rows_per_example=rows_per_unit, row_counts=counted_rows)
    scale = 1.0
    if rows.num_rows is not None:
        scale = (rows.num_rows.low + rows.num_rows.high) / 2 / counts.num_rows
    for name, value in found.items():
        if name.startswith("num_"):
            found[name] = round(value * scale)
    profile = DatasetProfile(
        split="train",
        file=source.file,
        sha256=source.sha256,
        shape=source.shape,
        shape_reason=source.shape_reason,
        num_rows=round(counts.num_rows * scale),
        num_dropped=0,
        **found,
    )
    stream = replace(stream, plan=_stream_plan(rows, counts, is_given=is_given))
    examples = tuple(example for example, _ in kept)
    return TokenisedSample(profile, examples, tokenised, rows_per_unit, counted_rows, stream)


def _stream_plan(rows: StreamedRows, counts: StreamCounts, *, is_given: bool) -> StreamPlan:
    from luthier.ml.evaluation.statistics.intervals import TAIL
    from luthier.ml.evaluation.statistics.resampling import share_ends

    num = max(1, counts.num_rows)
    sizes = [size for size in rows.sizes if size is not None]
    return StreamPlan(
        shuffle_buffer=1 if is_given else rows.buffer_size,
        num_shards=len(rows.sizes),
        num_bytes=sum(sizes) if len(sizes) == len(rows.sizes) else None,
        num_sampled=counts.num_rows,
        num_dropped=counts.num_dropped,
        num_truncated=counts.num_truncated,
        num_left_out=counts.num_left_out,
        dropped_fraction=Bounds(*share_ends(counts.num_dropped, num, TAIL)),
        truncated_fraction=Bounds(*share_ends(counts.num_truncated, num, TAIL)),
        num_rows=rows.num_rows,
    )
