"""Use case: a row is removed from future training, and its words from the review and from stored feedback.

newest versions that hold it -> versions without it -> review items and feedback -> audit log -> what is left
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier.core.access import Caller
from luthier.core.dataset import Row
from luthier.core.errors import RequestError
from luthier.core.ids import sha256_bytes
from luthier.core.records.traffic import Feedback
from luthier.core.text.counted import counted
from luthier.features.datasets import service as dataset_versions
from luthier.features.datasets.store import DatasetVersion
from luthier.features.feedback.review import review_id_of
from luthier.features.lineage.rows import RowLineage, checked_row, is_the_row, row_lineage
from luthier.platform.audit_log import service as audit_log
from luthier.platform.home.context import Context


@dataclass(frozen=True, slots=True)
class Forgotten:
    """What was done to forget a row, and what is left.

    Attributes:
        lineage: Where the row was before.
        versions: The new dataset versions without the row, each with the number of rows removed.
        num_reviews: Items that were removed from the review queue.
        num_feedback: Feedback whose correction and comment were removed.
        left: What still contains the row, or may, and what else was left out of a version; a sentence each.
    """

    lineage: RowLineage
    versions: tuple[tuple[DatasetVersion, int], ...]
    num_reviews: int
    num_feedback: int
    left: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """The document of `luthier data forget --json`."""
        return {
            "versions": [
                {"dataset_id": one.dataset_id, "version": one.number, "num_removed": num} for one, num in self.versions
            ],
            "num_reviews": self.num_reviews,
            "num_feedback": self.num_feedback,
            "left": list(self.left),
            "lineage": self.lineage.as_json(),
        }


def forget_row(context: Context, caller: Caller, row: str) -> Forgotten:
    """Make versions without a row of all datasets whose newest version holds it, and remove it elsewhere.

    Items of the review queue that hold it are removed. Feedback that holds it, or is on the exchange with this id,
    loses its correction and its comment; its thumb and its score stay, as they say nothing of the row.

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
    holding, unread, searched = _holding(context, caller, wanted)
    # Files first: to write them takes long, and a transaction is short. A full project forgets, too: no quota counts.
    files = [
        dataset_versions.keep_rows(context, caller, iter(kept), f"{Path(newest.filename).stem}.jsonl", is_result=True)
        for newest, kept, _, _ in holding
    ]
    made = list[tuple[DatasetVersion, int]]()
    with context.database.transaction():
        unread += _not_searched(context, caller, searched)
        for file, (newest, _, num_removed, num_lost) in zip(files, holding, strict=True):
            left_out = f", {counted(num_lost, 'unreadable row')} left out" if num_lost else ""
            version = dataset_versions.add_version(
                context,
                caller,
                newest.dataset_id,
                file,
                origin="repair",
                parent=newest.number,
                note=f"{counted(num_removed, 'row')} forgotten{left_out}",
                details={"num_forgotten": num_removed, "num_unreadable": num_lost},
                is_next=True,
            )
            if num_lost:
                unread.append(
                    f"{num_lost:,} of these are not in version {version.number} of {newest.dataset_id}: they cannot be "
                    "written as JSONL"
                )
            made.append((version, num_removed))
        reviews = [item for item in context.review_items.list(caller.project_id) if _is_of(item, wanted)]
        # Items are removed for good: they are copies of traffic, and no version depends on them.
        for item in reviews:
            context.review_items.remove(item.review_id, caller.project_id)
        num_feedback = context.feedback.change_each(caller.project_id, lambda given: _without_words(given, wanted))
        # The log is append-only: the words themselves would survive there for ever.
        digest = sha256_bytes(wanted.encode())
        counts = {"num_reviews": len(reviews), "num_feedback": num_feedback}
        document = {"row_sha256": digest, "datasets": [one.dataset_id for one, _ in made]} | counts
        audit_log.record(context, caller, "row.forgotten", digest[:12], document)
    return Forgotten(lineage, tuple(made), len(reviews), num_feedback, (*_left(lineage, made), *unread))


_Holding = tuple[DatasetVersion, list[bytes], int, int]
"""A version that holds the row, the lines to keep of it, and how many are removed, and lost as unreadable."""


def _holding(context: Context, caller: Caller, wanted: str) -> tuple[list[_Holding], list[str], dict[str, int]]:
    """The newest versions that contain a row, notes on unknown ones, and which were searched. Nothing is written."""
    holding, unread, searched = list[_Holding](), list[str](), dict[str, int]()
    for dataset, newest in dataset_versions.list_datasets(context, caller):
        searched[dataset.dataset_id] = newest.number
        path = dataset_versions.path_of(context, caller, newest)
        kept, num_removed, num_lost, num_unknown = _without(path, wanted)
        # All datasets are checked before the first new version is made.
        if num_removed and not kept:
            raise RequestError(
                f"every row of the dataset {dataset.name!r} matches",
                expected="words that only this row contains",
                do="give more of it, or remove the dataset",
            )
        if num_removed:
            holding.append((newest, kept, num_removed, num_lost))
        if num_unknown:
            unread.append(
                f"{counted(num_unknown, 'row')} of {newest.dataset_id} version {newest.number} cannot be read, and may "
                "hold it: look at them with `luthier data audit`"
            )
    return holding, unread, searched


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


def _without(path: Path, wanted: str) -> tuple[list[bytes], int, int, int]:
    """A file without the rows that match.

    Returns:
        The lines that stay, as JSONL; how many rows match; how many cannot be read and have no line of JSONL, so that
        they do not stay; how many cannot be read at all, those included.
    """
    from luthier.ml.data.files.source import open_source
    from luthier.ml.data.rows.rows import read_records

    kept, num_removed, num_lost, num_unknown = [], 0, 0, 0
    for record in read_records(open_source(path)):
        if isinstance(record.item, Row) and is_the_row(record.item.fields, wanted):
            num_removed += 1
            continue
        num_unknown += not isinstance(record.item, Row)
        # `raw` is the original line of a JSONL file, so rows that stay keep their bytes, unreadable ones too.
        if record.raw is None:
            num_lost += 1
        else:
            kept.append(record.raw + b"\n")
    return kept, num_removed, num_lost, num_unknown


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
