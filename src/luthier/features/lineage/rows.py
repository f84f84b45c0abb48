"""Use case: which models saw a row.

files of runs (train, validation, held-out, replay), each read once -> rows that match -> runs -> what was made of them

This is for the right to be forgotten, and for tracing where an answer comes from.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from luthier.core.access import Caller
from luthier.core.dataset import DatasetProfile, Row
from luthier.core.errors import DataError, LuthierError, RequestError, RowProblem
from luthier.core.ids import is_id
from luthier.core.plan import Plan
from luthier.features.datasets.remote_imports import imported_version, short_source
from luthier.features.model_cards.service import rows_by_digest
from luthier.features.planning.service import profiles
from luthier.features.serving.targets import EXPORT
from luthier.platform.home.context import Context

MIN_CHARACTERS: Final = 8
_MAX_RUNS: Final = 100_000
_LEARNED: Final = ("train", "replay")
_IDS: Final = ("exchange_id", "review_id", "panel_id")


@dataclass(frozen=True, slots=True)
class RowIn:
    """A file that contains the row.

    Attributes:
        sha256: The digest of the file.
        file: Its path.
        lines: The lines of the row, from 1 on.
        dataset: `ID version N` of the dataset version, if it is one.
        origin: The address and revision that this version was imported from, if it was.
    """

    sha256: str
    file: str
    lines: tuple[int, ...]
    dataset: str | None = None
    origin: str | None = None


@dataclass(frozen=True, slots=True)
class Saw:
    """A run that was given the row.

    Attributes:
        run_id: The run.
        splits: The splits that contained the row.
        learned: Whether it was in training rows (of the task or general), from which the run learns.
        through: The earlier run that had learned the row, where this run continues from its outcome.
        models: Tuned models made of the run.
        exports: Exports made of it.
        deployments: Names that ever routed to any of these, and whether they do now.
    """

    run_id: str
    splits: tuple[str, ...]
    learned: bool
    through: str | None = None
    models: tuple[str, ...] = ()
    exports: tuple[str, ...] = ()
    deployments: tuple[tuple[str, bool], ...] = ()


@dataclass(frozen=True, slots=True)
class UnreadableRows:
    """Rows of a file that cannot be read, and so may hold the row.

    Attributes:
        file: Its path.
        lines: Their lines, from 1 on.
    """

    file: str
    lines: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class RowLineage:
    """All that is known of a row.

    Attributes:
        row: The text or id that was searched for.
        files: Files that contain it.
        saw: Runs that were given it, oldest first.
        unknown: Runs with a missing or changed file.
        num_runs: Runs that were searched.
        num_files: Files that were searched.
        unreadable: Rows of these files that could not be read.
    """

    row: str
    files: tuple[RowIn, ...]
    saw: tuple[Saw, ...]
    unknown: tuple[str, ...]
    num_runs: int
    num_files: int
    unreadable: tuple[UnreadableRows, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """The document of `luthier lineage --row --json`."""
        return asdict(self)


@dataclass(slots=True)
class _Search:
    """Files by their digest, each read once: the lines that match, None where a file is missing or has changed."""

    row: str
    found: dict[str, tuple[int, ...] | None] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    unreadable: dict[str, tuple[int, ...]] = field(default_factory=dict)

    def lines(self, profile: DatasetProfile) -> tuple[int, ...] | None:
        # By digest: runs share files, and each is read once however many runs used it.
        if profile.sha256 not in self.found:
            self.names[profile.sha256] = profile.file
            rows = _rows_of(Path(profile.file), profile.sha256)
            self.found[profile.sha256] = None
            if rows is not None:
                read = [one for one in rows if isinstance(one, Row)]
                self.found[profile.sha256] = tuple(one.line for one in read if is_the_row(one.fields, self.row))
                if bad := tuple(one.line for one in rows if isinstance(one, RowProblem)):
                    self.unreadable[profile.file] = bad
        return self.found[profile.sha256]


def row_lineage(context: Context, caller: Caller, row: str) -> RowLineage:
    """Which runs of the project were given a row, and what was made of them.

    A run that continues from the merged outcome of another, or learns from it as its teacher, has what that one has
    learned. Every file that a run of the project has used is read once. Words that were masked before they were stored
    are not found.

    Args:
        context: The home.
        caller: Whose project it is.
        row: The id of an exchange or of a review, or at least 8 characters of the row; both are compared after
            normalisation (case, white space, Unicode form).

    Raises:
        RequestError: Fewer than 8 characters.
    """
    wanted = checked_row(row)
    records = list(context.runs.of_project(caller.project_id, limit=_MAX_RUNS))
    plans = {record.run_id: context.runs.plan(record.run_id) for record in records}
    search, given, unknown = _Search(wanted), dict[str, tuple[str, ...]](), []
    with context.progress.task("Searching the rows of runs", len(plans), "runs") as task:
        for run_id, plan in plans.items():
            # Train, validation, held-out and both replay files; a run has not all of them.
            used = [one for one in profiles(plan.data) if one is not None]
            lines = {profile.split: search.lines(profile) for profile in used}
            # None is "could not be read", which is not the same as "has no such row" (an empty tuple).
            if None in lines.values():
                unknown.append(run_id)
            given[run_id] = _splits_with(context, plan, used, {split: at for split, at in lines.items() if at})
            task.advance()
    return RowLineage(
        row=wanted,
        files=tuple(_files(context, caller, search)),
        saw=tuple(_with_heirs(context, caller, plans, given)),
        unknown=tuple(unknown),
        num_runs=len(plans),
        num_files=len(search.found),
        unreadable=tuple(UnreadableRows(file, lines) for file, lines in search.unreadable.items()),
    )


def checked_row(row: str) -> str:
    """What a row is looked for by.

    Raises:
        RequestError: Too few characters.
    """
    wanted = row.strip()
    if len(wanted) < MIN_CHARACTERS:
        raise RequestError(
            f"a row by {wanted!r}",
            expected=f"at least {MIN_CHARACTERS} characters of it, or the id of its exchange or review",
            do="give more of it: fewer would match rows of everybody",
        )
    return wanted


def is_the_row(fields: Mapping[str, Any], wanted: str) -> bool:
    """Whether fields of a row hold the words, or carry the id; a number, such as that of a customer, as a whole."""
    from luthier.ml.data.text.normalise import normalised

    if wanted in (fields.get(name) for name in _IDS):
        return True
    # Same normalisation on both sides: case, blanks and Unicode form of a request seldom match the row exactly.
    words = normalised(wanted)
    return any(
        words in normalised(value) if isinstance(value, str) else wanted == str(value)
        for value in _values(dict(fields))
    )


def parents_of(plan: Plan) -> list[str]:
    """The runs whose outcome a run has learned from.

    The one that is or was merged into its base, its teacher, and the models that graded its answers.
    """
    from luthier.ml.export.bundle.provenance import read_origin

    folder = Path(plan.base_model.path)
    # A merged export names its run; used as a base model, it leads back to it. The outcome of a full fine-tuning is in
    # the folder of its run.
    found = [*read_origin(folder).run_ids, *folder.parts]
    for asked in (plan.objective.teacher, *(plan.objective.judges or ())):
        if asked is not None:
            found.append(asked.name.removeprefix("teacher "))
            # A checkpoint has a name of its own: its files are in the folder of its run.
            found += [part for path in (asked.path, asked.adapter_path) if path for part in Path(path).parts]
    return list(dict.fromkeys(one for one in found if is_id(one, "run")))


def _splits_with(
    context: Context, plan: Plan, used: list[DatasetProfile], lines: dict[str, tuple[int, ...]]
) -> tuple[str, ...]:
    """The splits that hold the row. A file that was split by fractions, or used in part, is split again to know it.

    Weights of sources use it in part, too: of a source with more rows than its share some are never trained on.
    """
    if not lines:
        return ()
    by_split = {one.split: one for one in used}
    # Splits cut from one file by fractions share its digest, so the file alone does not show the side of a row.
    is_in_part = plan.data.part is not None or any(one.weight is not None for one in plan.data.sources)
    # Of a stream only the first rows could be read again: whoever was given the file counts as having seen the row.
    shares_file = plan.data.stream is None and (len({one.sha256 for one in used}) < len(used) or is_in_part)
    taken = _lines_by_split(context, plan) if shares_file else {}
    found = []
    for split, matching in lines.items():
        # Rows left out as overlong or unusable were never shown to the model.
        dropped = {_line_of(one) for one in by_split[split].dropped_ids}  # type: ignore[index]
        own = set(matching) - dropped
        if split in taken:
            own &= taken[split]
        if own:
            found.append(split)
    return tuple(found)


def _lines_by_split(context: Context, plan: Plan) -> dict[str, set[int]]:
    from luthier.features.planning.data_sources import recipe_of
    from luthier.features.planning.training_data import load_splits

    try:
        # The files of the plan: with one that matches a pattern since, lines would be those of another file.
        parts = load_splits(context, recipe_of(plan), Path(), before=plan.data.sources)
    except LuthierError:  # it was readable a moment ago: too much is better than too little
        return {}
    return {split: {_line_of(example.id) for example in part.examples} for split, part in parts.items()}


def _line_of(row_id: str) -> int:
    return int(row_id.rsplit(":", 1)[-1])


def _rows_of(path: Path, sha256: str) -> list[Row | RowProblem] | None:
    from luthier.core.ids import sha256_file
    from luthier.ml.data.files.source import open_source
    from luthier.ml.data.rows.rows import read_rows

    try:
        # The digest of the plan: a file with other content says nothing about what the run has seen.
        if not path.is_file() or sha256_file(path) != sha256:
            return None
        return list(read_rows(open_source(path)))
    except (OSError, DataError):
        return None


def _values(value: Any) -> Iterator[str | int | float]:
    """Texts and numbers, however deep."""
    if isinstance(value, float) and value.is_integer():
        yield int(value)  # columns of numbers with gaps are read as fractions
    elif isinstance(value, str | int | float) and not isinstance(value, bool):
        yield value
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from _values(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _values(inner)


def _files(context: Context, caller: Caller, search: _Search) -> Iterator[RowIn]:
    matching = {sha256: lines for sha256, lines in search.found.items() if lines}
    known = rows_by_digest(context, caller, list(matching))
    for sha256, lines in matching.items():
        of = known.get(sha256)
        name = None if of is None else f"{of[0].dataset_id} version {of[1].number}"
        origin = None if of is None else short_source(imported_version(context, caller, of[1])) or None
        yield RowIn(sha256, search.names[sha256], lines, name, origin)


def _with_heirs(
    context: Context, caller: Caller, plans: Mapping[str, Plan], given: Mapping[str, tuple[str, ...]]
) -> list[Saw]:
    """The runs that were given the row, and those that began from one that has learned it, oldest first."""
    found: dict[str, Saw] = {}
    # Oldest first, so that a parent is decided before the runs that began from it, over any number of generations.
    for run_id in reversed(list(plans)):
        splits = given[run_id]
        learned = any(split in _LEARNED for split in splits)
        through = next((one for one in parents_of(plans[run_id]) if one in found and found[one].learned), None)
        if splits or through is not None:
            found[run_id] = Saw(run_id, splits, learned or through is not None, through)
    return [_carried(context, caller, one) for one in found.values()]


def _carried(context: Context, caller: Caller, saw: Saw) -> Saw:
    models = [one.model_id for one in context.tuned_models.list(caller.project_id) if one.run_id == saw.run_id]
    exports = [one.export_id for one in context.exports.list(caller.project_id) if one.source in (saw.run_id, *models)]
    targets = {saw.run_id, *models, *(f"{EXPORT}{one}" for one in exports)}
    deployments = []
    for one in context.deployments.list(caller.project_id):
        revisions = context.deployments.revisions(one.deployment_id)
        if any(share.target in targets for revision in revisions for share in revision.shares):
            deployments.append((one.name, any(share.target in targets for share in one.revision.shares)))
    return replace(saw, models=tuple(models), exports=tuple(exports), deployments=tuple(deployments))
