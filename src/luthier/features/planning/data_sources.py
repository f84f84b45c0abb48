"""Where the rows of a recipe come from: remote sources are downloaded, several sources are mixed, weights are applied.

All that reads rows reads files. So a remote source becomes a file of the home's cache, a list of sources one file of
rows (`ml.data.rows.mixture`), and the plan records revision, digests and the place of each source in it. Both are made
again from the same sources where the cache was deleted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from luthier.core.data_sources import (
    SourceFile,
    SourcePlan,
    SourceRecipe,
    is_pattern,
    is_remote,
    names_of,
    pinned_paths,
    source_place,
)
from luthier.core.dataset import Example, Split
from luthier.core.errors import DataError, RecipeError
from luthier.core.plan import Plan
from luthier.core.recipe import Recipe
from luthier.features.planning.data_cache import make_room
from luthier.features.planning.pattern_files import files_of_plan
from luthier.ml.data.files.sequences import selected
from luthier.platform.home.context import Context

if TYPE_CHECKING:
    from luthier.ml.data.files.spill import Spill
    from luthier.ml.data.rows.formats import LoadedFile
    from luthier.ml.data.rows.mixture import SourceOfRows
    from luthier.ml.data.rows.prompt_rows import PromptRule

_SPLITS: Final[Mapping[str, Split]] = {
    "train": "train",
    "validation": "validation",
    "held_out": "held_out",
    "replay.file": "replay",
    "replay.held_out": "replay_held_out",
}


@dataclass(slots=True)
class LocatedRows:
    """A recipe whose rows are files of this machine.

    Attributes:
        recipe: with the path of one file for each split.
        columns: field of the shape -> column, of the files of `sources`; None where the names in the file are those of
            the shape. They may differ from `data.columns`.
        sources: of the splits that are remote or of several sources.
        prompts: how training and validation rows that end with a prompt are taken; None refuses them.
    """

    recipe: Recipe
    columns: dict[str, dict[str, str] | None] = field(default_factory=dict)
    sources: dict[Split, tuple[SourcePlan, ...]] = field(default_factory=dict)
    prompts: PromptRule | None = None

    def mapping(self, key: str) -> dict[str, str] | None:
        """The columns to read the file of a key of `DataRecipe.files` with."""
        data = self.recipe.data
        own = data.replay.map if key.startswith("replay.") and data.replay is not None else data.map
        return self.columns.get(key, own)


def located(
    context: Context,
    recipe: Recipe,
    base_dir: Path,
    spill: Spill | None = None,
    before: Sequence[SourcePlan] = (),
) -> LocatedRows:
    """The recipe with its remote sources downloaded and its list of sources mixed; as it is where it has none.

    Args:
        context: The home.
        recipe: What is asked.
        base_dir: From which its relative paths count.
        spill: The budget of memory, and where rows beyond it go.
        before: Sources of the plan of a run that is resumed or looked into: files that match a pattern since are not
            read.

    Raises:
        NotFoundError: No such file, dataset or split.
        RequestError: A malformed name.
        DataSourceError: A source cannot be fetched.
        DataError: Wrong rows, or sources that cannot be mixed.
    """
    data, made = recipe.data, LocatedRows(recipe, prompts=_prompt_rule(recipe))
    asked = data.listed() | {
        key: (SourceRecipe(path=path),)
        for key, path in data.files().items()
        if (is_remote(path) or is_pattern(path)) and key in _SPLITS
    }
    if data.streaming:  # read while the run trains, in place of before it
        asked.pop("train", None)
    paths: dict[str, str] = {}
    for key, sources in asked.items():
        mapping = made.mapping(key)
        # General rows need not have the field that keeps rows of the task together.
        group_by = None if key.startswith("replay.") else recipe.data.group_by
        known = {one.name: one.files for one in before if one.split == _SPLITS[key]}
        prompts = made.prompts if key in ("train", "validation") else None
        path, own, found = _as_file(context, key, sources, mapping, (base_dir, group_by, spill, prompts), known)
        paths[key] = str(path)
        made.columns[key] = own
        made.sources[_SPLITS[key]] = found
    if paths:
        changed = data.with_files(paths)
        made.recipe = recipe.model_copy(update={"data": changed})
    return made


def own_groups(
    context: Context,
    recipe: Recipe,
    base_dir: Path,
    seed: int,
    spill: Spill | None,
    before: Sequence[SourcePlan],
) -> str | None:
    """The field that keeps rows of one document together in a new run: the one of its recipe, else one that rows have.

    Only where shares of the training rows are taken out, and rows name their document: a held-out row beside a training
    row of the same passage would say little. The field is stored with the plan, so that the shares stay what they are.

    Args:
        context: The home.
        recipe: What is asked.
        base_dir: From which its relative paths count.
        seed: Of the split.
        spill: The budget of memory, and where rows beyond it go.
        before: As of `located`.
    """
    from luthier.ml.data.files.source import open_source
    from luthier.ml.data.rows.rows import read_rows
    from luthier.ml.data.rows.shapes import GROUP
    from luthier.ml.data.split.own_groups import own_group_field

    data = recipe.data
    validation, held_out = (one if isinstance(one, float) else 0.0 for one in (data.validation, data.held_out))
    if data.group_by is not None or data.streaming or GROUP in (data.map or {}) or not validation + held_out:
        return data.group_by
    train = located(context, recipe, base_dir, spill, before).recipe.data.train
    assert isinstance(train, str)  # a list of sources is one file by now
    rows = read_rows(open_source(base_dir / train))
    return own_group_field(rows, validation=validation, held_out=held_out, seed=seed)


def _as_file(
    context: Context,
    key: str,
    sources: Sequence[SourceRecipe],
    mapping: dict[str, str] | None,
    how: tuple[Path, str | None, Spill | None, PromptRule | None],
    known: Mapping[str, Sequence[SourceFile]],
) -> tuple[Path, dict[str, str] | None, tuple[SourcePlan, ...]]:
    """One file that holds the sources of a split, the columns to read it with, and what a plan says of it.

    how: the folder of relative paths, the field that keeps rows together, the budget of memory, and how rows that end
    with a prompt are taken.
    known: the files that a plan has of each source; empty for those that there are now.
    """
    from luthier.ml.data.rows.mixture import SourceOfRows, mix
    from luthier.ml.data.rows.shapes import GROUP

    base_dir, group_by, spill, prompts = how
    names, read, revisions = names_of(sources), [], []
    shared = {name for name, num in Counter(Path(one.path).name for one in sources).items() if num > 1}
    for name, source in zip(names, sources, strict=True):
        files, revision = _files_of(context, source.path, base_dir, name, shared, known.get(name, ()))
        columns = source.columns if source.columns is not None else mapping
        read.append(SourceOfRows(name, files, columns, source.fraction, source.rows))
        revisions.append(revision)
    if len(sources) == 1 and _is_plain(sources[0]) and len(read[0].files) == 1:
        path = read[0].files[0][0]
        only = _single(_SPLITS[key], names[0], sources[0], revisions[0], path)
        if is_pattern(only.path):
            only = only.model_copy(update={"files": _named_below(read[0].files, only.files)})
        return path, mapping, (only,)
    group = group_by or (mapping or {}).get(GROUP)
    mixtures = context.settings.mixtures_folder
    mixture = mix(_without_group(read), mixtures, group_by=group, spill=spill, prompts=prompts)
    make_room(context, newest=mixture.path)
    found = tuple(
        SourcePlan(
            split=_SPLITS[key],
            name=name,
            path=source.path,
            revision=revision,
            files=_named_below(own.files, mixed.files) if is_pattern(source.path) else mixed.files,
            first_row=mixed.first_row,
            num_rows=mixed.num_rows,
            weight=source.weight,
        )
        for name, source, revision, own, mixed in zip(names, sources, revisions, read, mixture.sources, strict=True)
    )
    columns = mixture.mapping
    if group is not None and GROUP in (mapping or {}):
        columns = (columns or {}) | {GROUP: group}
    return mixture.path, columns, found


def _named_below(read: Sequence[tuple[Path, str]], files: Sequence[SourceFile]) -> tuple[SourceFile, ...]:
    """The files of a pattern by their paths below its folder: those of two folders may have one name."""
    # Messages call several files by the name of the source, too, which has no slash.
    below = [shown if len(read) == 1 else shown.partition("/")[2] for _, shown in read]
    return tuple(file.model_copy(update={"name": name}) for file, name in zip(files, below, strict=True))


def _prompt_rule(recipe: Recipe) -> PromptRule | None:
    """Objectives that draw answers learn none of the rows'; all others need one in each row."""
    from luthier.ml.data.rows.prompt_rows import PromptRule
    from luthier.ml.training.objectives.rules import rules_of

    asked = recipe.objective
    if asked is None or "num_samples" not in rules_of(asked.name).settings:
        return None
    from luthier.ml.evaluation.rewards import need_answers

    return PromptRule(needs_reference=need_answers(asked.rewards or ()))


def refuse_unanswered(held_out: Sequence[Example]) -> None:
    """Raise DataError where held-out rows were cut from training rows that have no answer to compare with."""
    without = [one for one in held_out if not one.has_answer]
    if without:
        raise DataError(
            f"{len(without):,} of {len(held_out):,} held-out rows end with a prompt, such as {without[0].id}",
            expected="an answer in every held-out row: an evaluation compares with it",
            do="name a file with answers in data.held_out, give the rows a field reference, or remove data.held_out",
        )


def refuse_mixed(train: LoadedFile, other: LoadedFile) -> None:
    """Raise RecipeError where one file holds plain text and the other one does not."""
    if train.shape != other.shape:
        raise RecipeError(
            f"{train.file} holds {train.shape} rows, {other.file} {other.shape} rows",
            expected="plain text in all files or in none",
            do="give all splits the same kind of rows",
        )


def _is_plain(source: SourceRecipe) -> bool:
    """Whether a source is nothing but a path."""
    return source == SourceRecipe(path=source.path)


def _without_group(read: Sequence[SourceOfRows]) -> list[SourceOfRows]:
    """The sources with columns of shapes alone: the field that keeps rows together is named for all of them."""
    from luthier.ml.data.rows.shapes import GROUP

    return [
        replace(one, columns={name: column for name, column in (one.columns or {}).items() if name != GROUP} or None)
        for one in read
    ]


def _files_of(
    context: Context, path: str, base_dir: Path, name: str, shared: Collection[str], known: Sequence[SourceFile]
) -> tuple[tuple[tuple[Path, str], ...], str | None]:
    """The files of a source, each with what messages call it, and the revision of a remote one.

    shared: names of files that several sources have; messages call these by their paths.
    known: those that a plan has; of a pattern no others are read.
    """
    from luthier.ml.data.files.patterns import matching_files
    from luthier.ml.data.remote.cache import fetch

    if is_pattern(path):
        found = files_of_plan(context, base_dir / path, matching_files(base_dir / path), known)
        return tuple((file, f"{name}/{shown}" if len(found) > 1 else shown) for file, shown in found), None
    if not is_remote(path):
        file = base_dir / path
        return ((file, path if file.name in shared else file.name),), None
    fetched = fetch(path, context.settings.remote_data_folder, context.progress)
    if not fetched.was_there:
        make_room(context, newest=fetched.files[0].path)
    # Shards of different sources often have the same names.
    is_one = len(fetched.files) == 1
    return tuple((one.path, one.name if is_one else f"{name}/{one.name}") for one in fetched.files), fetched.revision


def _single(split: Split, name: str, source: SourceRecipe, revision: str | None, path: Path) -> SourcePlan:
    """A source of one file, which is read as it is. How many rows it has is known once it is read."""
    from luthier.core.ids import sha256_file

    file = SourceFile(name=path.name, sha256=sha256_file(path), num_bytes=path.stat().st_size, num_rows=0)
    return SourcePlan(
        split=split, name=name, path=source.path, revision=revision, files=(file,), first_row=1, num_rows=0
    )


def counted(sources: Sequence[SourcePlan], num_rows: int) -> tuple[SourcePlan, ...]:
    """The sources of a split, with the number of rows of a file that was read as it is.

    Args:
        sources: of a split.
        num_rows: of its file.
    """
    if len(sources) != 1 or sources[0].num_rows:
        return tuple(sources)
    file = sources[0].files[0].model_copy(update={"num_rows": num_rows})
    return (sources[0].model_copy(update={"num_rows": num_rows, "files": (file,)}),)


def weighted(
    examples: Sequence[Example], sources: Sequence[SourcePlan], seed: int
) -> tuple[Sequence[Example], tuple[SourcePlan, ...]]:
    """The training rows of an epoch, and the sources with the number of their rows in it.

    With weights, an epoch has as many rows as there are, shared out by the weights to the row (largest remainder). A
    source with fewer rows than its share is repeated; of one with more, the rows that are used are drawn once, by the
    seed, and are the same in every epoch. Without weights each row counts once.

    Args:
        examples: of all sources, after other splits were taken out.
        sources: of the training rows.
        seed: of the draw.

    Raises:
        DataError: A source with a weight has no row left.
    """
    places = np.fromiter((source_place(sources, one.id) for one in examples), dtype=np.int64, count=len(examples))
    there = np.bincount(places, minlength=len(sources))
    weights = [one.weight for one in sources]
    if weights[0] is None:
        counts = there
    else:
        for one, num in zip(sources, there.tolist(), strict=True):
            if not num:
                raise DataError(
                    f"source {one.name} has weight {one.weight:g} and no training row left",
                    expected="at least one row that is neither validation nor held-out",
                    do="leave the source out, or take a smaller share of the rows out for validation and held-out",
                )
        counts = _shares(len(examples), np.asarray(weights, dtype=np.float64))
        chosen = [
            _drawn(np.flatnonzero(places == place), int(num), seed, place) for place, num in enumerate(counts.tolist())
        ]
        examples = selected(examples, np.sort(np.concatenate(chosen), kind="stable"))
    found = tuple(
        one.model_copy(update={"num_epoch_rows": int(num)}) for one, num in zip(sources, counts.tolist(), strict=True)
    )
    return examples, found


def _shares(total: int, weights: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """`total` shared out by weights to whole numbers that add up to it: the largest remainders are rounded up."""
    exact = total * weights / weights.sum()
    counts: npt.NDArray[np.int64] = np.floor(exact).astype(np.int64)
    # Stable, so that equal remainders are settled by the order of the sources.
    order = np.argsort(-(exact - counts), kind="stable")
    counts[order[: total - int(counts.sum())]] += 1
    return counts


def _drawn(positions: npt.NDArray[np.int64], num: int, seed: int, place: int) -> npt.NDArray[np.int64]:
    """`num` of the positions: each as often as it fits, and the rest in an order that depends on the seed alone."""
    whole, rest = divmod(num, len(positions))
    # The raw stream of Philox is stable over versions of NumPy; the key holds seed and source.
    random = np.random.Philox(key=np.array([seed, 1_000_003 + place], dtype=np.uint64)).random_raw(len(positions))
    order = np.argsort(random, kind="stable")
    return np.concatenate([np.repeat(positions, whole), positions[order[:rest]]])


def recipe_of(plan: Plan) -> Recipe:
    """The recipe of a run, with datasets of the hub at the commits that its plan has recorded."""
    pinned, recipe = pinned_paths(plan.recipe.data.files(), plan.data.sources), plan.recipe
    if pinned:
        recipe = recipe.model_copy(update={"data": recipe.data.with_files(pinned)})
    asked, head = recipe.objective, plan.objective.task_head
    is_unnamed = plan.data.stream is not None and asked is not None and asked.classes is None
    if is_unnamed and asked is not None and head is not None and head.labels and not head.label_counts:
        # Of a run that began when the classes were those of the first rows, without counts of all. Read from all rows
        # they may have another order, and so be other outputs than those that were trained.
        recipe = recipe.model_copy(update={"objective": asked.model_copy(update={"classes": head.labels})})
    return recipe
