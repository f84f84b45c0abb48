"""Documents to rows: in parallel, in a fixed order, from where a killed run stopped, whatever single files do.

documents.find_documents     what there is, and what is left out
    |
worker_pool                  processes that may crash, hang or burst
    |  ingest_worker         signature -> reader -> chunks -> one part a document
    |
joined in order              OUTPUT, and OUTPUT.ingest.json with each document's fate
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal

from luthier.core.errors import DataError, RequestError, RowProblem, StorageFullError
from luthier.core.json_limits import json_utf8
from luthier.core.ports import Progress
from luthier.core.system.disk_full import disk_full_explained
from luthier.core.system.file_lock import file_lock
from luthier.ml.data.documents.chunk import check_sizes
from luthier.ml.data.documents.documents import FoundDocument, SkippedFile, find_documents
from luthier.ml.data.documents.ingest_part import IngestSettings
from luthier.ml.data.files.worker_pool import Answer, WorkerPool
from luthier.ml.data.readers.table import CONVERT_FIRST, READERS
from luthier.ml.data.rows.outputs import check_free, check_outputs, publish

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
) -> Ingestion:
    """Read all documents in `places` into the JSONL file `output`: rows {"text", "provenance"}.

    The bytes of the output depend on the documents and settings alone, not on workers or interruptions. Documents that
    an interrupted run has read are taken from its parts; `is_fresh` throws these away. A document that crashes its
    reader, takes longer than `timeout_seconds` or more than `memory_bytes`, is named as failed and the rest goes on.

    Args:
        num_workers: processes that read, at least 1.
        timeout_seconds: for one document.
        force: replace an output that exists; one with the same bytes, which an interrupted run has left, needs none.
        readers: extension -> `module:function`.
        memory_bytes: address space of one worker.

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
    told = outcome_path(output)
    check_outputs([output, told], places)
    # Parts are what an interrupted run has left, which may have published its output already: that is compared later.
    if is_fresh or not any(parts.glob("*.part")):
        check_free([output, told], force=force)
    found, skipped = find_documents(places, kinds=kinds, leave_out=(output, told, parts))
    with file_lock(parts / "lock", what=f"the output {output}", timeout_seconds=0):
        if is_fresh:
            _discard(parts)
        answers = _read_all(found, parts, settings, readers, num_workers, timeout_seconds, memory_bytes, progress)
        documents = tuple(_document(one, answer) for one, answer in zip(found, answers, strict=True))
        done = Ingestion(documents, tuple(skipped))
        if not done.num_rows:
            shutil.rmtree(parts)
            raise _no_rows(done)
        rows, outcome = parts / "rows", parts / "outcome"
        try:
            with disk_full_explained(output, expected="room for the rows twice"):
                _join([parts / answer["part"] for answer in answers if "part" in answer], rows)
                outcome.write_bytes(json_utf8(done.as_json(), indent=2) + b"\n")
                publish({rows: output, outcome: told}, force=force)
        finally:
            for made in (rows, outcome):
                made.unlink(missing_ok=True)
        shutil.rmtree(parts)
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
                    f"no room left in {parts.parent}", expected="room for the rows twice", do="free some, run it again"
                )
            answers[places[job]] = answer
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


def _discard(parts: Path) -> None:
    for part in parts.glob("*.part*"):
        part.unlink()


def _no_rows(done: Ingestion) -> DataError:
    problems = [RowProblem(one.file, 0, "", "", one.reason or "no text") for one in done.failed]
    problems += [RowProblem(one.name, 0, "", "", one.reason) for one in done.skipped]
    return DataError(
        f"no rows: {len(done.documents):,} documents, none of them could be read",
        expected=f"documents with text ({', '.join(sorted(READERS))})",
        do="see the reason of each file",
        problems=problems,
    )
