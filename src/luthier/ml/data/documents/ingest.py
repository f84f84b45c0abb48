"""Documents to rows: in parallel, in a fixed order, resumed where a killed run stopped, despite faults in single files.

find_documents               each document once, in a fixed order, and what is left out with its reason
    |
worker_pool                  processes that may crash, hang or run out of memory
    |  ingest_worker         signature -> reader -> chunks -> one part a document
    |
joined in order              OUTPUT, and OUTPUT.ingest.json with each document's fate
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from luthier.core.errors import DataError, NotFoundError, RequestError, RowProblem, StorageFullError
from luthier.core.json_limits import json_utf8
from luthier.core.ports import Progress
from luthier.core.system.files import disk_full_explained, file_lock, remove_locked
from luthier.core.text.counted import counted
from luthier.ml.data.documents.chunk import check_sizes
from luthier.ml.data.documents.ingest_worker import IngestSettings
from luthier.ml.data.files.worker_pool import Answer, WorkerPool
from luthier.ml.data.readers.document import CONVERT_FIRST, READERS
from luthier.ml.data.rows.outputs import check_free, check_outputs, publish


@dataclass(frozen=True, slots=True)
class FoundDocument:
    """A file to read.

    Attributes:
        path: where it is.
        name: its path relative to the folder given, with / between, as rows name it.
    """

    path: Path
    name: str


@dataclass(frozen=True, slots=True)
class SkippedFile:
    """A file or folder that is not read, and why.

    Attributes:
        name: its path relative to the folder given.
        kind: what it is left out as, the same for all of its sort.
        reason: why, for people.
    """

    name: str
    kind: str
    reason: str


@dataclass
class _Walk:
    base: Path
    roots: tuple[Path, ...]
    kinds: Collection[str]
    leave_out: Collection[Path]
    found: list[FoundDocument] = field(default_factory=list)
    skipped: list[SkippedFile] = field(default_factory=list)
    links: list[Path] = field(default_factory=list)
    seen: dict[tuple[int, int], str] = field(default_factory=dict)


def find_documents(
    places: Sequence[Path], *, kinds: Collection[str], leave_out: Collection[Path] = ()
) -> tuple[list[FoundDocument], list[SkippedFile]]:
    """The documents in the given folders and files, sorted by name, and all that is left out.

    A name is relative to the folder given; where several places are given, to the folder that holds all of them.
    A file is found once, even if several paths and links lead to it. Left out: hidden files and folders, links to
    folders (never followed), links that lead outside of the places or nowhere, pipes and devices, folders that cannot
    be read, files whose extension is not in `kinds`. Only the paths in `leave_out` (the caller's own) are not even
    listed. What a person named is read even where it is hidden or a link.

    Args:
        places: files and folders.
        kinds: extensions that are read, in lower case, with the dot.
        leave_out: paths that are skipped without being listed.

    Raises:
        NotFoundError: a place that is not there.
        DataError: a place that is neither file nor folder.
    """
    for place in places:
        if not place.exists():
            raise NotFoundError(f"no file or folder {place}", expected="documents to read", do="check the path")
        if not place.is_dir() and not place.is_file():
            raise DataError(
                f"{place} is a pipe or a device", expected="a file or a folder", do="write it to a file first"
            )
    roots = tuple(dict.fromkeys(place.resolve() for place in places))
    base = roots[0] if len(roots) == 1 and roots[0].is_dir() else Path(os.path.commonpath([r.parent for r in roots]))
    walk = _Walk(base, roots, kinds, {path.resolve() for path in leave_out})
    for root in sorted(roots):
        if root.is_dir():
            _walk_folder(walk, root)
        else:
            _take(walk, root)
    # Links come last: a file that is also reached directly is taken under its own name.
    for link in sorted(walk.links):
        _take_link(walk, link)
    return sorted(walk.found, key=lambda one: one.name), sorted(walk.skipped, key=lambda one: (one.kind, one.name))


def _walk_folder(walk: _Walk, top: Path) -> None:
    """All files below, without recursion: a tree may be deeper than Python's stack."""
    waiting = [top]
    while waiting:
        folder = waiting.pop()
        try:
            # Device and inode: the same folder under two names, or a mount that contains itself, is traversed once.
            identity = _identity(folder.stat())
            if identity in walk.seen:  # given twice, or a folder within another that was given, too
                continue
            walk.seen[identity] = _name(walk, folder)
            # scandir's order depends on the file system; the order of rows must not.
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError as error:
            walk.skipped.append(SkippedFile(_name(walk, folder), "unreadable", f"cannot be read: {error.strerror}"))
            continue
        for entry in entries:
            try:
                inner = _sort(walk, entry)
            except OSError as error:  # some file systems report the type of an entry only on access
                name = _name(walk, Path(entry.path))
                walk.skipped.append(SkippedFile(name, "unreadable", f"cannot be read: {error.strerror}"))
                continue
            if inner is not None:
                waiting.append(inner)


def _sort(walk: _Walk, entry: os.DirEntry[str]) -> Path | None:
    """Take, note or leave one entry; returns a folder to go into."""
    path = Path(entry.path)
    is_folder = entry.is_dir(follow_symlinks=False)
    if path in walk.leave_out:
        return None
    if entry.name.startswith((".", "~$")) and path not in walk.roots:
        reason = "a hidden folder" if is_folder else "a hidden file"
        walk.skipped.append(SkippedFile(_name(walk, path), "hidden", reason))
    elif entry.is_symlink():
        walk.links.append(path)
    elif is_folder:
        return path
    else:
        _take(walk, path)
    return None


def _take(walk: _Walk, path: Path, link: Path | None = None) -> None:
    name = _name(walk, link or path)
    if path in walk.leave_out:
        return
    try:
        status = path.stat()
    except OSError as error:
        walk.skipped.append(SkippedFile(name, "unreadable", f"cannot be read: {error.strerror}"))
        return
    suffix = (link or path).suffix.lower()
    if not stat.S_ISREG(status.st_mode):
        walk.skipped.append(SkippedFile(name, "special", "a pipe, socket or device"))
    elif (identity := _identity(status)) in walk.seen:
        if (first := walk.seen[identity]) != name:
            walk.skipped.append(SkippedFile(name, "same file", f"is the same file as {first}"))
    elif suffix not in walk.kinds:
        walk.skipped.append(SkippedFile(name, suffix or "no extension", "no reader for this kind of file"))
    else:
        walk.seen[identity] = name
        walk.found.append(FoundDocument(link or path, name))


def _take_link(walk: _Walk, link: Path) -> None:
    name = _name(walk, link)
    try:
        target = link.resolve(strict=True)
    except (OSError, RuntimeError):  # Python 3.11 and 3.12 raise RuntimeError for a loop
        walk.skipped.append(SkippedFile(name, "link", "a link that leads nowhere, or round in a circle"))
        return
    if target.is_dir():
        walk.skipped.append(SkippedFile(name, "link", "a link to a folder: not followed"))
    elif not any(root == target or root in target.parents for root in walk.roots):
        walk.skipped.append(SkippedFile(name, "link", "a link to a file outside of the folders given"))
    else:
        _take(walk, target, link)


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _name(walk: _Walk, path: Path) -> str:
    relative = os.path.relpath(path, walk.base).replace(os.sep, "/")
    # A file name may be any bytes; what is not UTF-8 cannot be written into rows.
    return relative.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def by_kind(skipped: Sequence[SkippedFile], num_names: int = 3) -> Iterator[tuple[str, int, tuple[str, ...]]]:
    """For each kind of what was left out: how many, and the first names; in order of kind."""
    kinds: dict[str, list[str]] = {}
    for one in skipped:
        kinds.setdefault(one.kind, []).append(one.name)
    for kind, names in sorted(kinds.items()):
        yield kind, len(names), tuple(names[:num_names])


MEMORY_BYTES: Final = 4 * 2**30
_WORKER: Final = "luthier.ml.data.documents.ingest_worker:read_documents"


@dataclass(frozen=True, slots=True)
class IngestedDocument:
    """The fate of one document.

    Attributes:
        file: name of the document.
        status: whether it was read.
        reason: why it was not read; None where it was.
        sha256: hex digest of its bytes; None where it was not read.
        num_rows: rows made of it.
        num_tokens: tokens (or words) of these rows.
        warnings: what the reader noticed, as sentences.
        is_reused: read by an earlier, interrupted run.
    """

    file: str
    status: Literal["read", "failed"]
    reason: str | None
    sha256: str | None
    num_rows: int
    num_tokens: int
    warnings: tuple[str, ...]
    is_reused: bool = False


@dataclass(frozen=True, slots=True)
class Ingestion:
    """Result of an ingest.

    Attributes:
        documents: in the order of their rows.
        skipped: files that are no documents.
    """

    documents: tuple[IngestedDocument, ...]
    skipped: tuple[SkippedFile, ...]

    @property
    def failed(self) -> tuple[IngestedDocument, ...]:
        """The documents that were not read."""
        return tuple(one for one in self.documents if one.status == "failed")

    @property
    def num_rows(self) -> int:
        """Rows in all."""
        return sum(one.num_rows for one in self.documents)

    @property
    def num_tokens(self) -> int:
        """Tokens (or words) in all rows, overlap and headings included."""
        return sum(one.num_tokens for one in self.documents)

    @property
    def num_reused(self) -> int:
        """How many documents an earlier, interrupted run had read."""
        return sum(one.is_reused for one in self.documents)

    def as_json(self) -> dict[str, Any]:
        """The same for equal documents and settings, however the run went."""
        return {
            "num_documents": len(self.documents),
            "num_failed": len(self.failed),
            "num_rows": self.num_rows,
            "num_tokens": self.num_tokens,
            "documents": [_document_json(one) for one in self.documents],
            "skipped": [asdict(one) for one in self.skipped],
        }


def _document_json(one: IngestedDocument) -> dict[str, Any]:
    document = {**asdict(one), "warnings": list(one.warnings)}
    del document["is_reused"]
    return document


def ingest(
    places: Sequence[Path],
    output: Path,
    *,
    settings: IngestSettings,
    num_workers: int,
    progress: Progress,
    timeout_seconds: float = 120.0,
    is_fresh: bool = False,
    force: bool = False,
    readers: Mapping[str, str] = READERS,
    memory_bytes: int = MEMORY_BYTES,
    on_document: Callable[[IngestedDocument], None] = lambda _: None,
) -> Ingestion:
    """Read all documents in `places` into the JSONL file `output`: rows {"text", "provenance"}.

    The bytes of the output depend on the documents and settings alone, not on workers or interruptions. Documents that
    an interrupted run has read are taken from its parts; `is_fresh` throws these away. A document that crashes its
    reader, takes longer than `timeout_seconds` or more than `memory_bytes`, is named as failed and the rest continues.

    Args:
        places: folders and files.
        output: the JSONL file.
        settings: how texts are cut into rows.
        num_workers: processes that read, at least 1.
        progress: shows the documents.
        timeout_seconds: for one document.
        is_fresh: read all documents again.
        force: replace an output that exists; one with the same bytes, which an interrupted run has left, needs none.
        readers: extension -> `module:function`.
        memory_bytes: address space of one worker.
        on_document: called with each document when it was read or has failed, in any order.

    Raises:
        NotFoundError: there is no such place.
        RequestError: sizes, number of workers or output are wrong.
        ConflictError: the output exists, or another process writes it.
        DataError: there are no rows at all.
        StorageFullError: the disk is full.
        WorkError: no worker can be started.
    """
    check_sizes(settings.chunk_tokens, settings.overlap_tokens)
    _check(output, num_workers, timeout_seconds)
    kinds = {*readers, *CONVERT_FIRST}
    parts = output.with_name(f".{output.name}.parts")
    outcome_file = outcome_path(output)
    check_outputs([output, outcome_file], places)
    # Parts are what an interrupted run has left, which may have published its output already: that is compared later.
    if is_fresh or not any(parts.glob("*.part")):
        check_free([output, outcome_file], force=force)
    found, skipped = find_documents(places, kinds=kinds, leave_out=(output, outcome_file, parts))
    lock = parts / "lock"
    with file_lock(lock, what=f"the output {output}", timeout_seconds=0):
        if is_fresh:
            _discard(parts)
        answers = _read_all(
            found, parts, settings, readers, num_workers, timeout_seconds, memory_bytes, progress, on_document
        )
        documents = tuple(_document(one, answer) for one, answer in zip(found, answers, strict=True))
        done = Ingestion(documents, tuple(skipped))
        if not done.num_rows:
            remove_locked(parts, lock)
            raise _no_rows(done)
        _write(done, [parts / answer["part"] for answer in answers if "part" in answer], parts, output, force=force)
        remove_locked(parts, lock)
    return done


def outcome_path(output: Path) -> Path:
    """Where the fate of each document is written."""
    return output.with_name(f"{output.name}.ingest.json")


def _check(output: Path, num_workers: int, timeout_seconds: float) -> None:
    if output.suffix != ".jsonl":
        raise RequestError(f"output {output}", expected="a file that ends in .jsonl", do="name it so")
    if num_workers < 1 or timeout_seconds <= 0:
        raise RequestError(
            f"{num_workers} workers, {timeout_seconds:g} s a document", expected="more than 0 of both", do="raise them"
        )


def _read_all(
    found: Sequence[FoundDocument],
    parts: Path,
    settings: IngestSettings,
    readers: Mapping[str, str],
    num_workers: int,
    timeout_seconds: float,
    memory_bytes: int,
    progress: Progress,
    on_document: Callable[[IngestedDocument], None],
) -> list[Answer]:
    # By position: workers end in any order, and the output follows the order of the documents.
    answers: list[Answer] = [{} for _ in found]
    jobs, places = [], []
    for place, one in enumerate(found):
        suffix = one.path.suffix.lower()
        if suffix in readers:
            jobs.append({"path": str(one.path.absolute()), "name": one.name, "reader": readers[suffix]})
            places.append(place)
        else:
            answers[place] = {"failed": f"{suffix} cannot be read; convert it first: {CONVERT_FIRST[suffix]}"}
            on_document(_document(one, answers[place]))
    pool = WorkerPool(
        _WORKER,
        {"parts": str(parts.absolute()), "settings": asdict(settings)},
        num_workers=num_workers,
        timeout_seconds=timeout_seconds,
        memory_bytes=memory_bytes,
    )
    with progress.task("Reading documents", len(jobs), "document") as task:

        def done(job: int, answer: Answer) -> None:
            if answer.get("is_disk_full"):
                raise StorageFullError(
                    f"no room left in {parts.parent}",
                    expected="room for the rows twice",
                    do="free some space, then run it again",
                )
            answers[places[job]] = answer
            on_document(_document(found[places[job]], answer))
            task.advance()
            task.note(jobs[job]["name"])

        pool.run(jobs, done)
    return answers


def _document(one: FoundDocument, answer: Answer) -> IngestedDocument:
    if "failed" in answer:
        return IngestedDocument(one.name, "failed", answer["failed"], None, 0, 0, ())
    header = answer["header"]
    return IngestedDocument(
        one.name,
        "read",
        None,
        header["sha256"],
        header["num_rows"],
        header["num_tokens"],
        tuple(header["warnings"]),
        answer["is_reused"],
    )


def _join(parts: Sequence[Path], joined: Path) -> None:
    with joined.open("wb") as file:
        for part in parts:
            with part.open("rb") as rows:
                # The first line of a part is its header.
                rows.readline()
                shutil.copyfileobj(rows, file)


def _write(done: Ingestion, found: Sequence[Path], parts: Path, output: Path, *, force: bool) -> None:
    """The rows of all parts, and the fate of each document."""
    rows, outcome = parts / "rows", parts / "outcome"
    try:
        with disk_full_explained(output, expected="room for the rows twice"):
            _join(found, rows)
            outcome.write_bytes(json_utf8(done.as_json(), indent=2) + b"\n")
            publish({rows: output, outcome: outcome_path(output)}, force=force)
    finally:
        for made in (rows, outcome):
            made.unlink(missing_ok=True)


def _discard(parts: Path) -> None:
    for part in parts.glob("*.part*"):
        part.unlink()


def _no_rows(done: Ingestion) -> DataError:
    problems = [RowProblem(one.file, 0, "", "", one.reason or "no text") for one in done.failed]
    problems += [RowProblem(one.name, 0, "", "", one.reason) for one in done.skipped]
    return DataError(
        f"no rows: of {counted(len(done.documents), 'document')} none could be read",
        expected=f"documents with text ({', '.join(sorted(READERS))})",
        do="see the reason of each file",
        problems=problems,
    )
