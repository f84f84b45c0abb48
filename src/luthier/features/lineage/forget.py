"""Use cases: a row is removed from future training, and its words from all else that a home keeps, where that can be.

`preview_forget` shows what would change; `forget_row` does it:

newest versions that hold it -> versions without it -> review, feedback and other texts -> audit log -> what is left
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.core.access import Caller
from luthier.core.dataset import Row
from luthier.core.errors import LuthierError, RequestError
from luthier.core.ids import sha256_bytes
from luthier.core.ports import track
from luthier.core.records.traffic import Feedback
from luthier.core.text.counted import counted
from luthier.features.datasets import service as dataset_versions
from luthier.features.datasets.store import Dataset, DatasetVersion
from luthier.features.feedback.review import review_id_of
from luthier.features.lineage.other_texts import (
    Found,
    TextMatches,
    find_other_texts,
    find_stored,
    forget_others,
    forget_stored,
)
from luthier.features.lineage.rows import RowLineage, checked_row, is_the_row, row_lineage
from luthier.platform.audit_log import service as audit_log
from luthier.platform.home.context import Context

if TYPE_CHECKING:
    from luthier.ml.data.rows.rows import Record


@dataclass(frozen=True, slots=True)
class Forgotten:
    """What was done to forget a row, and what is left.

    Attributes:
        lineage: Where the row was before.
        versions: The new dataset versions without the row, each with the number of rows removed.
        num_reviews: Items that were removed from the review queue.
        num_feedback: Feedback whose correction and comment were removed.
        left: What still contains the row, or may, and what else was left out of a version; a sentence each.
        stored: What held it besides, what was done with it, and what keeps it.
    """

    lineage: RowLineage
    versions: tuple[tuple[DatasetVersion, int], ...]
    num_reviews: int
    num_feedback: int
    left: tuple[str, ...]
    stored: tuple[TextMatches, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """The document of `luthier data forget --json`."""
        return {
            "versions": [
                {"dataset_id": one.dataset_id, "version": one.number, "num_removed": num} for one, num in self.versions
            ],
            "num_reviews": self.num_reviews,
            "num_feedback": self.num_feedback,
            "stored": [one.as_json() for one in self.stored],
            "left": list(self.left),
            "lineage": self.lineage.as_json(),
        }


@dataclass(frozen=True, slots=True)
class VersionWithRow:
    """A version of a dataset that holds the row.

    Attributes:
        dataset: The dataset.
        version: The version.
        num_rows: How many of its rows match.
        is_all: Whether every row matches.
    """

    dataset: Dataset
    version: DatasetVersion
    num_rows: int
    is_all: bool = False


@dataclass(frozen=True, slots=True)
class UnreadVersion:
    """A version of a dataset that may hold the row.

    Attributes:
        dataset: The dataset.
        version: The version.
        num_rows: How many of its rows cannot be read; None where its file cannot be read.
    """

    dataset: Dataset
    version: DatasetVersion
    num_rows: int | None


@dataclass(frozen=True, slots=True)
class ForgetPreview:
    """What holds a row, and what forgetting it would change.

    Attributes:
        lineage: The runs that were given it, with what was made of them.
        newest: Newest versions of datasets that hold it: each would get a next version without it.
        earlier: Earlier versions that hold it. They would keep it until their dataset is removed.
        unread: Versions that may hold it.
        num_reviews: Items that would be removed from the review queue.
        num_feedback: Feedback whose correction and comment would be removed.
        others: What else holds it, and what would be done with it.
    """

    lineage: RowLineage
    newest: tuple[VersionWithRow, ...]
    earlier: tuple[VersionWithRow, ...]
    unread: tuple[UnreadVersion, ...]
    num_reviews: int
    num_feedback: int
    others: Found = field(default_factory=Found)

    @property
    def changes_anything(self) -> bool:
        """Whether there is anything to remove."""
        is_stored = any(one.action != "kept" for one in self.others.stored)
        return bool(self.newest or self.num_reviews or self.num_feedback or is_stored)

    @property
    def is_found(self) -> bool:
        """Whether anything holds the row, or was given it."""
        return self.changes_anything or bool(
            self.earlier or self.lineage.files or self.lineage.saw or self.others.stored
        )

    def as_json(self) -> dict[str, Any]:
        """The document of `luthier data forget --json` without `--yes`."""
        return self.lineage.as_json() | {
            "versions": [_version_json(one) for one in self.newest],
            "earlier_versions": [_version_json(one) for one in self.earlier],
            "unread_versions": [
                {"dataset_id": one.dataset.dataset_id, "version": one.version.number, "num_rows": one.num_rows}
                for one in self.unread
            ],
            "num_reviews": self.num_reviews,
            "num_feedback": self.num_feedback,
            "stored": [one.as_json() for one in self.others.stored],
            "unsearched": list(self.others.unread),
        }


def preview_forget(context: Context, caller: Caller, row: str) -> ForgetPreview:
    """What holds a row, in all versions of all datasets, and what `forget_row` would change. Nothing is changed.

    Args:
        context: The home.
        caller: Whose project it is.
        row: As `row_lineage` takes it.

    Raises:
        RequestError: Fewer than 8 characters.
    """
    wanted = checked_row(row)
    newest, earlier, unread = _versions_with(context, caller, wanted)
    feedback = context.feedback.list(caller.project_id)
    return ForgetPreview(
        lineage=row_lineage(context, caller, wanted),
        newest=tuple(newest),
        earlier=tuple(earlier),
        unread=tuple(unread),
        num_reviews=sum(_is_of(item, wanted) for item in context.review_items.list(caller.project_id)),
        num_feedback=sum(_without_words(given, wanted) != given for given in feedback),
        others=find_other_texts(context, caller, wanted),
    )


def forget_row(context: Context, caller: Caller, row: str) -> Forgotten:
    """Make versions without a row of all datasets whose newest version holds it, and remove it elsewhere.

    Items of the review queue that hold it are removed. Feedback that holds it, or is on the exchange with this id,
    loses its correction and its comment; its thumb and its score stay, as they say nothing of the row. So do the
    figures of evaluations and panels, whose texts are blanked, and the times and sizes of logged requests. What is
    stored only so that it is not computed again, or since a client asked for it, is deleted.

    What a model has learned cannot be taken out of its weights: `left` names the models to train again or to remove.
    Versions are never changed, so earlier ones keep the row until their dataset is removed. The audit log gets a digest
    of the words, not the words.

    Args:
        context: The home.
        caller: Whose project it is.
        row: As `row_lineage` takes it.

    Raises:
        RequestError: Fewer than 8 characters, or every row of a dataset would be removed.
        ConflictError: Somebody else has added a version meanwhile to a dataset that holds it. Nothing was changed.
    """
    wanted = checked_row(row)
    # Before any change: afterwards the newest versions would not show where the row was.
    lineage = row_lineage(context, caller, wanted)
    holding, unread, searched, counts = _holding(context, caller, wanted)
    # Of the others only earlier versions can hold it. They are searched, too: they would keep it in silence.
    held = {newest.dataset_id for newest, _, _ in holding}
    _, earlier, may_hold = _versions_with(context, caller, wanted, without=held, known=counts)
    # Files first: to write them takes long, and a transaction is short. A full project forgets, too: no quota counts.
    files = [
        dataset_versions.keep_rows(
            context, caller, _remaining_lines(path, wanted), f"{Path(newest.filename).stem}.jsonl", is_result=True
        )
        for newest, path, _ in track(context.progress, "Writing rows", holding, "datasets")
    ]
    stored = find_stored(context, caller, wanted)
    made = list[tuple[DatasetVersion, int]]()
    with context.database.transaction():
        unread += _not_searched(context, caller, searched)
        for file, (newest, _, found) in zip(files, holding, strict=True):
            left_out = f", {counted(found.num_lost, 'unreadable row')} left out" if found.num_lost else ""
            version = dataset_versions.add_version(
                context,
                caller,
                newest.dataset_id,
                file,
                origin="repair",
                parent=newest.number,
                note=f"{counted(found.num_removed, 'row')} forgotten{left_out}",
                details={"num_forgotten": found.num_removed, "num_unreadable": found.num_lost},
                is_next=True,
            )
            if found.num_lost:
                unread.append(
                    f"{found.num_lost:,} of these are not in version {version.number} of {newest.dataset_id}: they "
                    "cannot be written as JSONL"
                )
            made.append((version, found.num_removed))
        reviews = [item for item in context.review_items.list(caller.project_id) if _is_of(item, wanted)]
        # Items are removed for good: they are copies of traffic, and no version depends on them.
        for item in reviews:
            context.review_items.remove(item.review_id, caller.project_id)
        num_feedback = context.feedback.change_each(caller.project_id, lambda given: _without_words(given, wanted))
        kept = forget_stored(context, stored, wanted)
        # The log is append-only: the words themselves would survive there forever.
        digest = sha256_bytes(wanted.encode())
        document: dict[str, Any] = {"row_sha256": digest, "datasets": [one.dataset_id for one, _ in made]}
        document |= {"num_reviews": len(reviews), "num_feedback": num_feedback, "num_stored": len(stored) - len(kept)}
        audit_log.record(context, caller, "row.forgotten", digest[:12], document)
    others = forget_others(context, caller, wanted, stored, kept)
    unread += [*(one.sentence for one in others.stored if one.action == "kept"), *others.unread]
    left = (*_left(lineage, made), *_left_earlier(earlier, may_hold, searched), *unread)
    return Forgotten(lineage, tuple(made), len(reviews), num_feedback, left, others.stored)


def _version_json(one: VersionWithRow) -> dict[str, Any]:
    return {"dataset_id": one.dataset.dataset_id, "version": one.version.number, "num_rows": one.num_rows}


_Content = tuple[str, str]
"""Digest and format of a file, which several versions may share."""


@dataclass(frozen=True, slots=True)
class _Counts:
    """The records of a file.

    Attributes:
        num_removed: Rows that match.
        num_kept: Others that stay, as lines of JSONL.
        num_lost: Others that cannot be read and have no line of JSONL, so that they do not stay.
        num_unknown: All that cannot be read.
    """

    num_removed: int
    num_kept: int
    num_lost: int
    num_unknown: int


def _content_of(version: DatasetVersion) -> _Content:
    return version.sha256, Path(version.filename).suffix


def _versions_with(
    context: Context,
    caller: Caller,
    wanted: str,
    *,
    without: Collection[str] = (),
    known: Mapping[_Content, _Counts] | None = None,
) -> tuple[list[VersionWithRow], list[VersionWithRow], list[UnreadVersion]]:
    """The newest and the earlier versions that hold a row, and those that may.

    Args:
        context: The home.
        caller: Whose project it is.
        wanted: The row.
        without: Datasets that are left out.
        known: Files that were read before.
    """
    newest, earlier, unread = list[VersionWithRow](), list[VersionWithRow](), list[UnreadVersion]()
    # Versions share files: each is read once.
    found_in = dict(known or {})
    datasets = dataset_versions.list_datasets(context, caller)
    for dataset, _ in track(context.progress, "Searching all versions", datasets, "datasets"):
        if dataset.dataset_id in without:
            continue
        versions = dataset_versions.show_dataset(context, caller, dataset.dataset_id)[1]
        for version in versions:
            key = _content_of(version)
            try:
                if key not in found_in:
                    path = dataset_versions.path_of(context, caller, version)
                    found_in[key] = _counts_of(path, wanted)
                found = found_in[key]
            except LuthierError:
                unread.append(UnreadVersion(dataset, version, None))
                continue
            if found.num_removed:
                holding = newest if version.number == versions[0].number else earlier
                holding.append(VersionWithRow(dataset, version, found.num_removed, is_all=not found.num_kept))
            if found.num_unknown:
                unread.append(UnreadVersion(dataset, version, found.num_unknown))
    return newest, earlier, unread


_Holding = tuple[DatasetVersion, Path, _Counts]
"""A version that holds the row, and its file."""


def _holding(
    context: Context, caller: Caller, wanted: str
) -> tuple[list[_Holding], list[str], dict[str, int], dict[_Content, _Counts]]:
    """The newest versions that hold a row, notes on unknown ones, which were searched, and what was counted in each.

    Nothing is written.
    """
    holding, unread, searched = list[_Holding](), list[str](), dict[str, int]()
    counts = dict[_Content, _Counts]()
    datasets = dataset_versions.list_datasets(context, caller)
    for dataset, newest in track(context.progress, "Searching the newest versions", datasets, "datasets"):
        searched[dataset.dataset_id] = newest.number
        path = dataset_versions.path_of(context, caller, newest)
        if (key := _content_of(newest)) not in counts:
            counts[key] = _counts_of(path, wanted)
        found = counts[key]
        # All datasets are checked before the first new version is made.
        if found.num_removed and not found.num_kept:
            raise RequestError(
                f"every row of the dataset {dataset.name!r} matches",
                expected="words that only this row contains",
                do="give more of it, or remove the dataset",
            )
        if found.num_removed:
            holding.append((newest, path, found))
        if found.num_unknown:
            unread.append(
                f"{counted(found.num_unknown, 'row')} of {newest.dataset_id} version {newest.number} cannot be "
                "read, and may hold it: look at them with `luthier data audit`"
            )
    return holding, unread, searched, counts


def _not_searched(context: Context, caller: Caller, searched: dict[str, int]) -> list[str]:
    """Notes on versions that were added while the others were searched."""
    found = dataset_versions.list_datasets(context, caller)
    return [
        f"version {newest.number} of {newest.dataset_id} was added in the meantime, and may contain it: forget the "
        "row again"
        for dataset, newest in found
        if searched.get(dataset.dataset_id) != newest.number
    ]


def _is_of(item: Any, wanted: str) -> bool:
    return is_the_row(item.model_dump(mode="json"), wanted)


def _without_words(given: Feedback, wanted: str) -> Feedback | None:
    """Feedback without what people wrote in it, where that holds the row; None where nothing else was given.

    An author is who wrote it, and part of what names it: feedback of an author whose name holds the row is removed.
    """
    if is_the_row({"author": given.author}, wanted):
        return None
    # Ids as a whole: the first characters of one are those of all.
    is_named = wanted in (given.exchange_id, given.feedback_id, review_id_of(given))
    if not is_named and not is_the_row({"texts": [given.correction, given.comment]}, wanted):
        return given
    has_rating = given.thumb is not None or given.score is not None
    return given.model_copy(update={"correction": None, "comment": ""}) if has_rating else None


def _records(path: Path, wanted: str) -> Iterator[tuple[Record, bool]]:
    """The records of a file, and whether each is a row that matches."""
    from luthier.ml.data.files.source import open_source
    from luthier.ml.data.rows.rows import read_records

    for record in read_records(open_source(path)):
        yield record, isinstance(record.item, Row) and is_the_row(record.item.fields, wanted)


def _counts_of(path: Path, wanted: str) -> _Counts:
    num_removed, num_kept, num_lost, num_unknown = 0, 0, 0, 0
    for record, is_removed in _records(path, wanted):
        num_removed += is_removed
        num_kept += not is_removed and record.raw is not None
        num_lost += not is_removed and record.raw is None
        num_unknown += not isinstance(record.item, Row)
    return _Counts(num_removed, num_kept, num_lost, num_unknown)


def _remaining_lines(path: Path, wanted: str) -> Iterator[bytes]:
    """The lines of a file as JSONL, without the rows that match; read while they are written, as files may be large."""
    for record, is_removed in _records(path, wanted):
        # `raw` is the original line of a JSONL file, so rows that stay keep their bytes, unreadable ones too.
        if not is_removed and record.raw is not None:
            yield record.raw + b"\n"


def _left(lineage: RowLineage, made: list[tuple[DatasetVersion, int]]) -> Iterator[str]:
    for one in lineage.saw:
        if one.learned:
            now = [name for name, is_now in one.deployments if is_now]
            where = f", which answers as {', '.join(now)} now" if now else ""
            yield f"run {one.run_id} has learned it{where}: train again without it, then remove it"
    for version, _ in made:
        yield f"versions 1 to {version.number - 1} of {version.dataset_id} keep it: versions are never changed"
    files = [one.file for one in lineage.files if one.dataset is None]
    yield from (f"the file {file} keeps it: it belongs to no dataset" for file in files)
    yield from (f"run {run_id} is not known: a file of its rows is missing or changed" for run_id in lineage.unknown)
    yield from (
        f"the file {bad.file} has {len(bad.lines):,} rows that cannot be read and may hold it"
        for bad in lineage.unreadable
    )


def _left_earlier(
    earlier: list[VersionWithRow], may_hold: list[UnreadVersion], searched: Mapping[str, int]
) -> Iterator[str]:
    """Earlier versions of datasets that were not changed. searched: the newest version of each dataset."""
    for one in earlier:
        yield f"version {one.version.number} of {one.version.dataset_id} keeps it: versions are never changed"
    for other in may_hold:
        number, dataset_id = other.version.number, other.version.dataset_id
        if searched.get(dataset_id) != number:
            what = "cannot be read" if other.num_rows is None else f"has {counted(other.num_rows, 'unreadable row')}"
            yield f"version {number} of {dataset_id} {what}, and may hold it"
