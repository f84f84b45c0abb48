"""An attempt of an import job: documents to passages, files of rows to datasets, with what became of each file.

The files of the project are laid out as folders, ZIP files are unpacked among them, files of rows are taken out, and
the rest is read as documents. A killed attempt is taken up where it stopped: documents that were read are kept.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Final

from luthier.core.access import Caller
from luthier.core.data_sources import WORKBOOK_SUFFIXES
from luthier.core.errors import DataError, LuthierError, StorageFullError, UnreachableError, library_words_hidden
from luthier.core.system.files import replace_text
from luthier.core.system.process_setup import num_usable_cores
from luthier.core.text.counted import counted
from luthier.features.datasets import service as dataset_versions
from luthier.features.datasets.conversations import find_exports
from luthier.features.datasets.documents import ingest
from luthier.features.datasets.imports import (
    OVERLAP_TOKENS,
    ImportOrder,
    forget_abandoned,
    forget_files,
    kind_of,
    order_of,
    work_folder,
)
from luthier.features.datasets.row_files import RowFile, grouped, read_row_file, write_group
from luthier.features.datasets.store import DatasetVersion
from luthier.ml.data.conversations.exports import convert
from luthier.ml.data.conversations.mbox import MAX_DOCUMENTS, write_mails
from luthier.ml.data.documents.archives import ARCHIVE_SUFFIX, Unpacking, unpack
from luthier.ml.data.documents.ingest import IngestedDocument
from luthier.platform.files import service as files
from luthier.platform.home.context import Context
from luthier.platform.http.path_redaction import home_paths, redact_paths
from luthier.platform.jobs.attempt import exit_on_sigterm
from luthier.platform.jobs.records import Job
from luthier.platform.processes.process import Outcome

MAX_LISTED: Final = 300
"""Files that the job notes one by one, those that were not read first; the rest is counted."""
_MAX_WARNED: Final = 100
_REPORT_SECONDS: Final = 1.0
_SECONDS_FOR_A_DOCUMENT: Final = 120.0


@dataclass
class _Report:
    """Progress as events of the job, with figures that its page shows as a bar."""

    context: Context
    job: Job
    total: int
    done: int = 0
    num_passages: int = 0
    num_warned: int = 0
    number: int = 0
    began: float = field(default_factory=time.monotonic)
    reported_at: float = 0.0

    def stage(self, message: str) -> None:
        """A part of the work begins."""
        self._append(message, None)

    def document(self, one: IngestedDocument) -> None:
        """A document was read, or could not be."""
        self.done += 1
        self.num_passages += one.num_rows
        if one.status == "failed" and self.num_warned < _MAX_WARNED:
            self.num_warned += 1
            code = f"file-{self.job.attempt}-{self.num_warned}"
            self.context.job_events.append(self.job.job_id, code, f"{one.file}: {one.reason}", level="warn")
        # At most one event a second: each is a row in the database, and pages read them all.
        now = time.monotonic()
        if now - self.reported_at >= _REPORT_SECONDS or self.done == self.total:
            self.reported_at = now
            self._counts((now - self.began) / self.done * (self.total - self.done))

    def _counts(self, seconds_left: float) -> None:
        files_word = f"{self.done:,} of {self.total:,} files, {self.num_passages:,} passages"
        figures: dict[str, float | None] = {
            "done": float(self.done),
            "total": float(self.total),
            "made": float(self.num_passages),
            "seconds_left": seconds_left,
        }
        self._append(f"Reading documents: {files_word}", figures)

    def _append(self, message: str, figures: dict[str, float | None] | None) -> None:
        self.number += 1
        code = f"progress-{self.job.attempt}-{self.number}"
        self.context.job_events.append(self.job.job_id, code, message, data=figures)


@dataclass
class _Import:
    """One attempt.

    Attributes:
        files: What became of each file so far.
        made: The datasets so far.
        unit: What lengths of passages are counted in.
        read_as_text: Of workbooks and mails that are read as documents, why they are no rows.
        notes: Of exports of conversations, who answers in the rows and what was left out.
        num_source_bytes: Of the files that are read, which are deleted once the datasets are made.
    """

    context: Context
    job: Job
    order: ImportOrder
    files: list[dict[str, Any]] = field(default_factory=list)
    made: list[dict[str, Any]] = field(default_factory=list)
    unit: str = ""
    read_as_text: dict[str, str] = field(default_factory=dict)
    notes: dict[str, list[str]] = field(default_factory=dict)
    num_source_bytes: int = 0

    @property
    def work(self) -> Path:
        """The folder of this job's files."""
        return work_folder(self.context, self.job)

    @property
    def caller(self) -> Caller:
        """Who ordered it, as the author of what is made."""
        return Caller(project_id=self.job.project_id, name=self.order.author)

    def note(self, name: str, status: str, reason: str = "", counts: Mapping[str, Any] | None = None) -> None:
        """Note what became of a file."""
        self.files.append({"name": name, "status": status, "reason": reason, **(counts or {})})

    def found(self) -> dict[str, Any]:
        """What is kept with the job."""
        # What needs attention first, since only the first MAX_LISTED files are stored.
        ranks = {"failed": 0, "skipped": 1}
        listed = sorted(self.files, key=lambda one: (ranks.get(one["status"], 2), one["name"]))
        bad = sum(one["status"] in ranks for one in self.files)
        return {
            "datasets": self.made,
            "files": listed[:MAX_LISTED],
            "num_files": len(self.files),
            "num_left_out": bad,
            "unit": self.unit,
        }


def carry_out(context: Context, job: Job) -> Outcome:
    """Read the files and make datasets of them. What a person has to correct is an outcome, too.

    Raises:
        StorageFullError: The disk is full; the job is tried again.
        UnreachableError: The database cannot be reached; the job is tried again.
    """
    if (order := order_of(job)).source is not None:
        from luthier.features.datasets import remote_import_job

        return remote_import_job.carry_out(context, job, order, order.source)
    forget_abandoned(context)
    done = _Import(context, job, order)
    if (found := _found_before(done)) is not None:  # the attempt before died between its work and its last word
        return _succeeded(done, found)
    try:
        with exit_on_sigterm(), library_words_hidden():
            _read_all(done)
    except SystemExit:
        # Stopped: what was read stays, so that the next attempt continues. Of a cancelled job nothing stays.
        _forget_layout(done)
        if context.jobs.get(job.job_id).wish == "cancel":
            forget_files(context, job)
            shutil.rmtree(done.work, ignore_errors=True)
        return Outcome(status="paused")
    except (StorageFullError, UnreachableError):
        raise  # no fault of the job: it is tried again
    except LuthierError as error:
        _forget_layout(done)
        return Outcome(status="failed", error=redact_paths(error.as_json(), home_paths(context)), found=done.found())
    _keep_found(done, done.found())
    return _succeeded(done, done.found())


def _forget_layout(done: _Import) -> None:
    """Remove the files that were laid out and unpacked, which each attempt does again; what was read of them stays."""
    for folder in (done.work / "documents", done.work / "tables"):
        shutil.rmtree(folder, ignore_errors=True)


def _succeeded(done: _Import, found: dict[str, Any]) -> Outcome:
    forget_files(done.context, done.job)
    shutil.rmtree(done.work, ignore_errors=True)
    return Outcome(status="succeeded", found=found)


def _found_place(done: _Import) -> Path:
    return done.work.with_name("found.json")


def _keep_found(done: _Import, found: dict[str, Any]) -> None:
    """Write down what was made, before the files that it was made from are deleted: an attempt after a kill has none.

    Raises:
        StorageFullError: The disk is full.
    """
    replace_text(_found_place(done), json.dumps(found))


def _found_before(done: _Import) -> dict[str, Any] | None:
    place = _found_place(done)
    found: dict[str, Any] | None = json.loads(place.read_text(encoding="utf-8")) if place.is_file() else None
    return found


def _read_all(done: _Import) -> None:
    documents, tables = done.work / "documents", done.work / "tables"
    for folder in (documents, tables):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    report = _Report(done.context, done.job, 0)
    report.stage(f"Laying out {counted(len(done.order.files), 'file')}")
    _lay_out(done, documents)
    row_files = [*_take_conversations(done, documents, tables, report), *_take_tables(done, documents, tables)]
    found = [path for path in sorted(documents.rglob("*")) if path.is_file()]
    readable = [path for path in found if kind_of(path.name) != "unknown"]
    for path in found:
        if path not in readable:
            suffix = path.suffix.lower() or "no ending"
            done.note(_name(path, documents), "skipped", f"{suffix}: not a supported kind of file")
            path.unlink()
    if readable:
        _read_documents(done, documents, _Report(done.context, done.job, len(readable)))
    _keep_rows(done, row_files)
    if not done.made:
        num = len(done.files)
        raise DataError(
            "the file could not be used" if num == 1 else f"none of the {num:,} files could be used",
            expected="at least one document with text, or one file of rows",
            do="see the reason next to each file, then add the corrected files",
        )


def _lay_out(done: _Import, documents: Path) -> None:
    """The files under the names that they came under; ZIP files as folders of what is in them."""
    unpacking = Unpacking()
    for one in done.order.files:
        stored = files.get_file(done.context, done.job.project_id, one.file_id)
        done.num_source_bytes += stored.num_bytes
        source = files.local_path(done.context, stored)
        target = _target(documents, one.name)
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.suffix.lower() == ARCHIVE_SUFFIX:
            try:
                unpack(source, target, _name(target, documents), unpacking)
            except DataError as error:
                done.note(_name(target, documents), "failed", f"{error.came}; {error.do}")
            continue
        try:
            # A link where the disk has them: gigabytes are not copied. The cached file is read-only.
            os.link(source, target)
        except OSError:
            shutil.copyfile(source, target)
    for skipped in unpacking.skipped:
        if skipped.kind != "hidden":
            done.note(skipped.name, "skipped", skipped.reason)


def _take_conversations(done: _Import, documents: Path, tables: Path, report: _Report) -> list[RowFile]:
    """Exports of conversations as files of rows. Mails of which nobody is known to answer stay as documents."""
    taken: list[RowFile] = []
    for number, one in enumerate(find_exports(documents)):
        name, target = "export" if one.name == "." else one.name, tables / f"conversations-{number}.jsonl"
        report.stage(f"Reading conversations: {name}")
        try:
            converted = convert(one.path, one.kind, name, target, done.order.assistants)
        except DataError as error:
            if one.kind == "mbox" and _as_documents(done, one.path, name, error):
                continue
            done.note(name, "failed", f"{error.came}; {error.do}")
        else:
            left_out = [f"left out, {what}: {num:,}" for what, num in converted.tally.all_left_out]
            if converted.unmatched:
                left_out.insert(0, f"chosen as who answers, and wrote nothing: {', '.join(converted.unmatched)}")
            done.notes[name] = [converted.tally.roles_summary(), *left_out]
            taken.append(read_row_file(target, name).at(target))
        for file in one.files:
            file.unlink()
    return taken


def _as_documents(done: _Import, archive: Path, name: str, error: DataError) -> bool:
    """Put the mails of an archive in its place, as documents; false where it has none."""
    folder = archive.with_name(f".{archive.name}")
    mails, num_left_out = write_mails(archive, folder)
    if not mails:
        shutil.rmtree(folder)
        return False
    archive.unlink()
    folder.rename(archive)
    why = f"read as documents and not as conversations: {error.came}; {error.do}"
    done.read_as_text |= {f"{name}/{mail.name}": why for mail in mails}
    if num_left_out:
        done.note(name, "skipped", f"{counted(num_left_out, 'mail')} too large, or beyond the first {MAX_DOCUMENTS:,}")
    return True


def _take_tables(done: _Import, documents: Path, tables: Path) -> list[RowFile]:
    """Files of rows, moved out of the documents. A workbook counts as one where its columns are recognised."""
    taken: list[RowFile] = []
    candidates = [path for path in sorted(documents.rglob("*")) if path.is_file() and kind_of(path.name) == "rows"]
    for number, path in enumerate(candidates):
        name, is_workbook = _name(path, documents), path.suffix.lower() in WORKBOOK_SUFFIXES
        try:
            found = read_row_file(path, name)
        except DataError as error:
            if not is_workbook:
                done.note(name, "failed", f"{error.came}; {error.do}")
                path.unlink()
            else:
                done.read_as_text[name] = f"read as a document, since it is not a table: {error.came}"
            continue
        if is_workbook and found.shape is None and _has_documents(documents, candidates):
            continue
        target = tables / f"{number}{files.suffix_of(path.name)}"
        path.rename(target)
        taken.append(found.at(target))
    return taken


def _has_documents(documents: Path, rows: Sequence[Path]) -> bool:
    return any(path.is_file() and path not in rows and kind_of(path.name) != "unknown" for path in documents.rglob("*"))


def _read_documents(done: _Import, documents: Path, report: _Report) -> None:
    output = done.work / "passages.jsonl"
    report.stage(f"Reading documents: 0 of {report.total:,} files")
    try:
        outcome = ingest(
            done.context,
            [documents],
            output,
            chunk_tokens=done.order.passage_tokens,
            overlap_tokens=OVERLAP_TOKENS,
            num_workers=min(num_usable_cores(), report.total),
            timeout_seconds=_SECONDS_FOR_A_DOCUMENT,
            force=True,
            on_document=report.document,
        )
    except DataError as error:
        for problem in error.problems:
            done.note(problem.file, "failed", problem.reason)
        if not error.problems:
            raise
        return
    done.unit = outcome.unit
    for one in outcome.ingestion.documents:
        if one.status == "failed":
            done.note(one.file, "failed", one.reason or "it could not be read")
        else:
            notes = [*filter(None, [done.read_as_text.get(one.file)]), *one.warnings]
            done.note(one.file, "converted", counts={"num_passages": one.num_rows, "warnings": notes[:5]})
    for skipped in outcome.ingestion.skipped:
        done.note(skipped.name, "skipped", skipped.reason)
    _keep_passages(done, output, outcome.ingestion.num_tokens)


def _keep_passages(done: _Import, output: Path, num_tokens: int) -> None:
    counts = {
        "num_documents": sum(one["status"] == "converted" for one in done.files),
        "num_left_out": sum(one["status"] in ("failed", "skipped") for one in done.files),
        "num_tokens": num_tokens,
        "unit": done.unit,
    }
    version = _make(done, output, "passages.jsonl", "passages", {"documents": counts}, done.order.dataset_id)
    done.made.append(_described(done, version, "passages"))


def _keep_rows(done: _Import, row_files: Sequence[RowFile]) -> None:
    """A dataset for each group of files with the same columns."""
    for part, path, group, why_alone in _parts(done, row_files):
        filename = path.name if len(group) > 1 or group[0].name in done.notes else PurePosixPath(group[0].name).name
        # Passages, if there are any, have the name that was chosen.
        dataset_id = done.order.dataset_id if not done.made else ""
        version = _make(done, path, filename, part, {"files": [one.name for one in group][:100]}, dataset_id)
        done.made.append(_described(done, version, "rows"))
        for one in group:
            left = [f"{counted(one.num_unreadable, 'row')} cannot be read, the first: {one.first_problem}"]
            alone = [why_alone] if why_alone else []
            warnings = [*done.notes.get(one.name, []), *(left if one.num_unreadable else []), *alone]
            done.note(one.name, "rows", counts={"num_rows": one.num_rows, "warnings": warnings})


def _parts(done: _Import, row_files: Sequence[RowFile]) -> Iterator[tuple[str, Path, Sequence[RowFile], str]]:
    """What becomes a dataset: its name among the parts of the job, its file, what came in it, why it is alone."""
    for number, group in enumerate(grouped(row_files), start=1):
        part, path = f"rows {number}", done.work / f"rows-{number}.jsonl"
        try:
            if len(group) > 1:
                write_group(group, path)
        except DataError as error:
            # Values that JSON does not have, such as images: each file stays as it is.
            for place, one in enumerate(group, start=1):
                yield f"{part}.{place}", one.path, [one], f"a separate dataset: {error.came}"
            continue
        yield part, path if len(group) > 1 else group[0].path, group, ""


def _make(
    done: _Import, path: Path, filename: str, part: str, details: dict[str, Any], dataset_id: str
) -> DatasetVersion:
    """A dataset or a version of a file; the one that a killed attempt has made, where there is one."""
    context, order = done.context, done.order
    own = {"job": done.job.job_id, "part": part}
    for _, version in context.datasets.all_versions(done.job.project_id, 200):
        if own.items() <= version.details.items():
            return version
    # A client brings them, though packed: a small ZIP file may hold many times the quota. What they come from goes.
    context.files.check_room(done.job.project_id, path.stat().st_size, freed_bytes=done.num_source_bytes)
    file = files.add_file(context, done.job.project_id, path, filename=filename, purpose="fine-tune", is_result=True)
    try:
        if dataset_id:
            newest = dataset_versions.get_version(context, done.caller, dataset_id)
            return dataset_versions.add_version(
                context,
                done.caller,
                dataset_id,
                file,
                origin="documents",
                parent=newest.number,
                note=order.note,
                details=own | details,
                columns={},
            )
        name = order.name or context.datasets.get(done.job.project_id, order.dataset_id).name
        suffix = "" if not done.made and not order.dataset_id else " rows"
        return dataset_versions.create_dataset(
            context,
            done.caller,
            dataset_versions.free_name(context, done.job.project_id, f"{name[:90]}{suffix}"),
            file,
            origin="documents",
            note=order.note,
            details=own | details,
        )[1]
    except BaseException:
        files.delete_file(context, done.job.project_id, file.file_id)
        raise


def _described(done: _Import, version: DatasetVersion, kind: str) -> dict[str, Any]:
    dataset = done.context.datasets.get(done.job.project_id, version.dataset_id)
    return {
        "dataset_id": version.dataset_id,
        "version": version.number,
        "name": dataset.name,
        "kind": kind,
        "num_rows": version.num_rows,
    }


def _target(documents: Path, name: str) -> Path:
    """Where a file is laid out, under its own name and folders where these are free."""
    target = documents.joinpath(*PurePosixPath(name).parts)
    # A file and a folder of one name, which no folder of a person holds but a form may.
    if any(parent.is_file() for parent in target.parents):
        target = documents / target.relative_to(documents).as_posix().replace("/", "_")
    return _free(target)


def _name(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix()


def _free(target: Path) -> Path:
    """The path, with a number where a file of that name came before."""
    number, free = 1, target
    while free.exists():
        number += 1
        free = target.with_name(f"{target.stem} ({number}){target.suffix}")
    return free
