"""An attempt of a job that imports rows from elsewhere: look up, download, read, make a version.

What has arrived of a download is in the folder of the job, so an attempt after a kill or an error continues it; of a
failed job it stays for a week. Where the source is as it was when the dataset was last made of it, nothing is made.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Self

from luthier.core.access import Caller
from luthier.core.data_sources import default_name
from luthier.core.errors import (
    DataError,
    DataSourceError,
    FileQuotaError,
    LuthierError,
    StorageFullError,
    UnreachableError,
    library_words_hidden,
)
from luthier.core.ids import sha256_file
from luthier.core.ports import SilentTask
from luthier.core.system.download import RemoteSource
from luthier.features.datasets import service as dataset_versions
from luthier.features.datasets.imports import (
    ImportOrder,
    RemoteOrder,
    fitting_columns,
    forget_abandoned,
    forget_work,
    work_folder,
)
from luthier.features.datasets.remote_imports import SOURCE, look_up_allowed, page_of, source_of
from luthier.features.datasets.remote_rows import GatheredRows, gather, is_stored_as_one_file
from luthier.features.datasets.store import DatasetVersion
from luthier.ml.data.remote.cache import FetchedSource, fetch_found
from luthier.platform.files import service as files
from luthier.platform.home.context import Context
from luthier.platform.http.path_redaction import home_paths, redact_paths
from luthier.platform.jobs.attempt import exit_on_sigterm, report_step
from luthier.platform.jobs.records import Job
from luthier.platform.processes.process import Outcome

_PART: Final = "remote"
_REPORT_SECONDS: Final = 1.0
_STEP_BYTES: Final = 1 << 20
_MAX_LISTED: Final = 100
_LOOKED_AT: Final = 1_000
_UNSURE: Final = ("ETag W/", "changed ")
"""Beginnings of revisions that two contents may share: there, digests are compared."""


class _Report:
    """Progress as events of the job, with figures that its page shows as a bar."""

    def __init__(self, context: Context, job: Job) -> None:
        self._context, self._job = context, job
        self._began, self._reported_at, self._number, self._step = time.monotonic(), 0.0, 0, 0
        self._figures: dict[str, float | None] = {"done": 0.0, "total": 0.0, "made": 0.0, "seconds_left": None}

    def task(self, title: str, total: float | None, unit: str, done: float = 0) -> _Download:
        """The download: `fetch_found` counts its bytes."""
        assert unit == "bytes"
        return _Download(self, title, total, done)

    def stage(self, message: str) -> None:
        """A part of the work begins."""
        self._append(message)

    def downloaded(self, done: float, total: float | None, seconds_left: float | None) -> None:
        """So many bytes are there."""
        self._figures |= {"done": done, "total": total or 0.0, "seconds_left": seconds_left}
        if (step := int(done) // _STEP_BYTES) != self._step:
            self._step = step
            # A crash after progress is not one of those that end a job.
            report_step(self._context, self._job, step)
        if self._is_due(done == total):
            self._append(f"Downloading: {done:,.0f}{f' of {total:,.0f}' if total else ''} bytes")

    def read(self, num_rows: int) -> None:
        """So many rows were read."""
        self._figures |= {"made": float(num_rows), "seconds_left": None}
        if self._is_due(False):
            self._append(f"Reading rows: {num_rows:,}")

    def _is_due(self, is_last: bool) -> bool:
        return is_last or time.monotonic() - self._reported_at >= _REPORT_SECONDS

    def _append(self, message: str) -> None:
        self._reported_at = now = time.monotonic()
        self._number += 1
        figures = self._figures | {"seconds": round(now - self._began, 1)}
        # A database that is unreachable for a moment does not end the work.
        with contextlib.suppress(LuthierError):
            code = f"progress-{self._job.attempt}-{self._number}"
            self._context.job_events.append(self._job.job_id, code, message, data=figures)


class _Download(SilentTask):
    """The bytes of a download. The time that is left follows from the pace of this attempt."""

    def __init__(self, report: _Report, title: str, total: float | None, done: float) -> None:
        self._report, self._title, self._total, self._done, self._there = report, title, total, done, done
        self._began = time.monotonic()

    def advance(self, amount: float = 1) -> None:
        """Count."""
        self._done += amount
        arrived, seconds = self._done - self._there, time.monotonic() - self._began
        left = None if not self._total or arrived <= 0 else (self._total - self._done) * seconds / arrived
        self._report.downloaded(self._done, self._total, left)

    def __enter__(self) -> Self:
        self._report.stage(self._title)
        return self


def carry_out(context: Context, job: Job, order: ImportOrder, source: RemoteOrder) -> Outcome:
    """Import the rows. What a person has to correct is an outcome, too.

    Raises:
        StorageFullError: The disk is full; the job is tried again.
        UnreachableError: The source or the database cannot be reached; the job is tried again.
    """
    work = work_folder(context, job)
    forget_abandoned(context)
    made = _made_by(context, job)
    if made is not None:  # the attempt before died between its work and its last word
        forget_work(context, job)
        return Outcome(status="succeeded", found=_found(context, job.project_id, made, made.details[SOURCE]))
    try:
        with exit_on_sigterm(), library_words_hidden():
            found = _imported(context, job, order, source)
    except SystemExit:
        # Stopped: what has arrived stays, so that the next attempt continues. Of a cancelled job nothing stays.
        if context.jobs.get(job.job_id).wish == "cancel":
            forget_work(context, job)
        return Outcome(status="paused")
    except (StorageFullError, UnreachableError):
        raise  # no fault of the job: it is tried again
    except LuthierError as error:
        # A download is continued with the job, also once there is room for its rows; rows that are wrong stay wrong.
        if not isinstance(error, DataSourceError | FileQuotaError):
            shutil.rmtree(work, ignore_errors=True)
        return Outcome(status="failed", error=redact_paths(error.as_json(), home_paths(context)))
    forget_work(context, job)
    return Outcome(status="succeeded", found=found)


def _imported(context: Context, job: Job, order: ImportOrder, source: RemoteOrder) -> dict[str, Any]:
    report, work = _Report(context, job), work_folder(context, job)
    report.stage(f"Looking up {source.shown}")
    found = look_up_allowed(context.settings, source.address)
    before = _made_before(context, job, order, source)
    # Two addresses that differ in their queries are one here, and their revisions may be equal.
    if before is not None and source.shown == source.address and _is_same(found, before):
        return _found(context, job.project_id, before, before.details[SOURCE], is_unchanged=True)
    _check_quota(context, job, source, found, before)
    limit = context.settings.max_file_bytes
    fetched = fetch_found(source.address, found, work / "download", report, max_bytes=limit)
    report.stage("Reading rows")
    output = work / f"{default_name(source.shown)}.jsonl"
    rows = gather([(one.path, one.name) for one in fetched.files], source, output, max_bytes=limit, report=report.read)
    _check_mapping(rows, source)
    origin = _origin(source, found, fetched, rows)
    if before is not None and sha256_file(rows.path) == before.sha256:
        return _found(context, job.project_id, before, origin, is_unchanged=True)
    report.stage(f"Creating a version of {rows.num_rows:,} rows")
    made = _make(context, job, order, source, rows, origin)
    # Known here; of a large file the look at it would take until after this process has ended.
    context.datasets.learn_num_rows(made.file_id, rows.num_records)
    return _found(context, job.project_id, made.model_copy(update={"num_rows": rows.num_records}), origin)


def _check_quota(
    context: Context, job: Job, source: RemoteOrder, found: RemoteSource, before: DatasetVersion | None
) -> None:
    """Refuse, before it is downloaded, what the files of the project have no room for.

    The size is known of a single file that is kept as it is. Of others it is known once they are written, and at least
    one byte is needed. Rows that may equal those of the version before need no room.

    Args:
        context: The home.
        job: The import.
        source: What is imported.
        found: What the source has.
        before: The version that was made of the same source; None where there is none.

    Raises:
        FileQuotaError: The files of the project would take more than they may.
    """
    size = (found.num_bytes if is_stored_as_one_file(source, len(found.files)) else None) or 1
    if before is None or (size > 1 and size != before.num_bytes):
        context.files.check_room(job.project_id, size)


def _origin(source: RemoteOrder, found: RemoteSource, fetched: FetchedSource, rows: GatheredRows) -> dict[str, Any]:
    """What a version keeps of where it comes from."""
    kept = [
        {
            "name": one.name,
            "sha256": one.sha256,
            "num_bytes": one.num_bytes,
            "num_rows": read.num_rows,
            "note": read.note,
        }
        for one, read in zip(fetched.files, rows.files, strict=True)
    ]
    about: dict[str, Any] = {
        "address": source.shown,
        "has_query": source.shown != source.address,
        "revision": fetched.revision,
        "pinned": found.pinned.partition("?")[0],
        "licence": found.licence,
        "fetched_at": int(time.time()),
        "num_bytes": sum(one.num_bytes for one in fetched.files),
        "num_files": len(kept),
        "files": kept[:_MAX_LISTED],
        "num_source_rows": rows.num_source_rows,
        "num_unreadable": sum(one.num_unreadable for one in rows.files),
        "selection": source.selection,
    }
    return about | {"page": page_of(about)}


def _check_mapping(rows: GatheredRows, source: RemoteOrder) -> None:
    wrong = [column for column in source.columns.values() if column not in (source.kept_columns or rows.columns)]
    if wrong:
        raise DataError(
            f"no column {wrong[0]!r} in {source.shown}",
            expected=f"one of {', '.join(map(repr, (source.kept_columns or rows.columns)[:20]))}",
            do="name a column of the source",
        )


def _is_same(found: RemoteSource, before: DatasetVersion) -> bool:
    """Whether a source is known to be as it was, without a download."""
    if not found.revision or found.revision.startswith(_UNSURE):
        return False
    return bool(before.details[SOURCE]["revision"] == found.revision)


def _made_before(context: Context, job: Job, order: ImportOrder, source: RemoteOrder) -> DatasetVersion | None:
    """The newest version of the dataset that was imported from the same address in the same way."""
    if not order.dataset_id:
        return None
    for version in context.datasets.versions(order.dataset_id):
        known = source_of(version)
        is_same = known is not None and (known["address"], known["selection"]) == (source.shown, source.selection)
        if is_same and version.details.get("job") != job.job_id:
            return version
    return None


def _made_by(context: Context, job: Job) -> DatasetVersion | None:
    """What an earlier attempt of the job has made."""
    own = {"job": job.job_id, "part": _PART}
    for _, version in context.datasets.all_versions(job.project_id, _LOOKED_AT):
        if own.items() <= version.details.items():
            return version
    return None


def _make(
    context: Context, job: Job, order: ImportOrder, source: RemoteOrder, rows: GatheredRows, origin: Mapping[str, Any]
) -> DatasetVersion:
    caller = Caller(project_id=job.project_id, name=order.author)
    details = {"job": job.job_id, "part": _PART, SOURCE: dict(origin)}
    file = files.add_file(context, job.project_id, rows.path, filename=_filename(rows), purpose="fine-tune")
    try:
        if not order.dataset_id:
            name = dataset_versions.free_name(context, job.project_id, order.name)
            return dataset_versions.create_dataset(
                context, caller, name, file, origin="import", note=order.note, details=details, columns=source.columns
            )[1]
        newest = dataset_versions.get_version(context, caller, order.dataset_id)
        return dataset_versions.add_version(
            context,
            caller,
            order.dataset_id,
            file,
            origin="import",
            parent=newest.number,
            note=order.note,
            details=details,
            columns=source.columns or fitting_columns(context, caller, newest, file),
        )
    except BaseException:
        files.delete_file(context, job.project_id, file.file_id)
        raise


def _filename(rows: GatheredRows) -> str:
    return Path(rows.files[0].name).name if rows.is_as_it_was else rows.path.name


def _found(
    context: Context, project_id: str, version: DatasetVersion, origin: Mapping[str, Any], *, is_unchanged: bool = False
) -> dict[str, Any]:
    """What is kept with the job."""
    dataset = context.datasets.get(project_id, version.dataset_id)
    made = {
        "dataset_id": version.dataset_id,
        "version": version.number,
        "name": dataset.name,
        "kind": "rows",
        "num_rows": version.num_rows,
    }
    listed = [
        {
            "name": one["name"],
            "status": "rows",
            "reason": "",
            "num_rows": one["num_rows"],
            "warnings": [one["note"]] if one["note"] else [],
        }
        for one in origin["files"]
    ]
    return {
        "datasets": [made],
        "files": listed,
        "num_files": origin["num_files"],
        "num_left_out": 0,
        "unit": "",
        "is_unchanged": is_unchanged,
        SOURCE: dict(origin),
    }
