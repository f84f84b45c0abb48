"""Documents: converted to rows, or read as a corpus of texts by name that answers may cite."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from luthier.core.errors import DataError, ModelSourceError, NotFoundError, RequestError, RowProblem
from luthier.core.ports import Progress, SilentProgress
from luthier.core.records.base_model import DEFAULT_BASE_MODEL
from luthier.core.system.files import scratch_folder
from luthier.core.system.process_setup import num_usable_cores
from luthier.core.text.counted import counted
from luthier.platform.home.context import Context

if TYPE_CHECKING:
    from luthier.core.records.base_model import LocalModel
    from luthier.ml.data.documents.ingest import IngestedDocument, Ingestion


@dataclass(frozen=True, slots=True)
class IngestOutcome:
    """What was made of documents.

    Attributes:
        output: The file of rows.
        outcome: The file with what became of each document.
        unit: What lengths are counted in.
        ingestion: Counts of documents and rows.
    """

    output: Path
    outcome: Path
    unit: str
    ingestion: Ingestion

    def as_json(self) -> dict[str, Any]:
        """The document of `luthier data ingest --json`."""
        return {
            "output": str(self.output),
            "outcome": str(self.outcome),
            "unit": self.unit,
            "num_reused": self.ingestion.num_reused,
            **self.ingestion.as_json(),
        }


def ingest(
    context: Context,
    places: Sequence[Path],
    output: Path,
    *,
    model: str | None = None,
    chunk_tokens: int = 512,
    overlap_tokens: int = 64,
    licence: str | None = None,
    num_workers: int | None = None,
    timeout_seconds: float = 120.0,
    is_fresh: bool = False,
    force: bool = False,
    on_document: Callable[[IngestedDocument], None] = lambda _: None,
) -> IngestOutcome:
    """Read documents into rows of text with their provenance.

    Args:
        context: The home.
        places: Folders and files.
        output: The JSONL file of the rows.
        model: The base model whose tokens are counted; pulled where it is missing. None takes the default base model
            where it is on this machine, else words are counted.
        chunk_tokens: The longest row.
        overlap_tokens: How much of a row the next one repeats.
        licence: The licence that the rows are marked with.
        num_workers: Processes that read; None for one a CPU.
        timeout_seconds: The limit for one document.
        is_fresh: As `ml.data.documents.ingest.ingest` has it.
        force: As there.
        on_document: As there.

    Raises:
        RequestError: No documents were named, or an option is out of its range.
        NotFoundError: No such file, folder or model.
        ConflictError: The output exists.
        DataError: There is not one row.
        StorageFullError: The disk is full.
        ModelSourceError: The model cannot be fetched.
    """
    if not places:
        raise RequestError("no documents named", expected="at least one folder or file", do="name what to read")
    from luthier.ml.data.documents.ingest import ingest as ingest_documents
    from luthier.ml.data.documents.ingest import outcome_path
    from luthier.ml.data.documents.ingest_worker import IngestSettings
    from luthier.ml.inference.models.token_counter import tokenizer_digest

    local, unit = _counted_in(context, model)
    settings = IngestSettings(
        chunk_tokens=chunk_tokens,
        overlap_tokens=overlap_tokens,
        licence=licence,
        tokenizer=local.path if local else None,
        # Part of the settings' identity: an interrupted ingest continues only with the tokenizer it began with.
        tokenizer_sha256=tokenizer_digest(Path(local.path)) if local else None,
    )
    done = ingest_documents(
        places,
        output,
        settings=settings,
        num_workers=num_workers if num_workers is not None else num_usable_cores(),
        progress=context.progress,
        timeout_seconds=timeout_seconds,
        is_fresh=is_fresh,
        force=force,
        on_document=on_document,
    )
    return IngestOutcome(output, outcome_path(output), unit, done)


def _counted_in(context: Context, model: str | None) -> tuple[LocalModel | None, str]:
    from luthier.ml.inference.models import sources

    if model is not None:
        local = sources.pull(model, context.home, context.progress)
        return local, f"tokens of {local.name}"
    try:
        found = sources.find(DEFAULT_BASE_MODEL, context.home)
    except ModelSourceError:  # damaged, which only matters to its users
        found = None
    if found is None:
        return None, f"words, as no model was given (and {DEFAULT_BASE_MODEL} is not on this machine)"
    return found, f"tokens of {found.name}, as no other model was given"


_ROWS: Final = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".tab", ".parquet", ".gz")
_LEFT_OUT: Final = ("hidden", "same file")
_MANY_WORDS: Final = 1_000_000


def read_corpus(path: Path, progress: Progress | None = None) -> dict[str, str]:
    """The texts of a folder of documents, of one document, or of a file of rows with `text`, by name.

    Documents are read as `luthier data ingest` does, each by a child process. Rows of one source are one document.
    Every document has to be read: what is missing would make citations of it look invented.

    Raises:
        NotFoundError: no such path.
        DataError: a file that cannot be read or is no document, or no text at all.
    """
    if not path.exists():
        raise NotFoundError(f"no corpus {path}", expected="a folder or a file", do="correct `corpus` in the suite")
    if path.is_file() and path.suffix.lower() in _ROWS:
        return _by_source(path)
    from luthier.ml.data.documents.ingest import ingest
    from luthier.ml.data.documents.ingest_worker import IngestSettings

    # Chunks of a million words, no overlap: a document becomes one row, and no sentence comes twice.
    settings = IngestSettings(_MANY_WORDS, 0, licence=None, tokenizer=None, tokenizer_sha256=None)
    with scratch_folder(Path(tempfile.gettempdir()), "luthier-corpus-") as folder:
        rows = folder / "corpus.jsonl"
        # One worker: a suite runs next to other jobs, and a corpus is read once.
        done = ingest([path], rows, settings=settings, num_workers=1, progress=progress or SilentProgress())
        # Line 0 means the file as a whole.
        missing = [RowProblem(one.file, 0, "", "", one.reason or "was not read") for one in done.failed]
        missing += [RowProblem(s.name, 0, "", "", s.reason) for s in done.skipped if s.kind not in _LEFT_OUT]
        missing += [
            RowProblem(one.file, 0, "", "", "no text")
            for one in done.documents
            # Scans without a text layer give nothing, and no error; citations of them would look invented.
            if one.status == "read" and not one.num_rows
        ]
        if missing:
            raise DataError(
                f"{counted(len(missing), 'file')} of the corpus {path} not read",
                expected="documents alone, all of them readable: what is missing would make citations look invented",
                do="convert them, or take them out of the folder",
                problems=missing,
            )
        return _by_source(rows)


def _by_source(path: Path) -> dict[str, str]:
    """The rows of a file, put together by the document that they name; a row that names none is its own."""
    from luthier.ml.data.files.source import open_source
    from luthier.ml.data.provenance import source_of
    from luthier.ml.data.rows.rows import read_rows

    parts: dict[str, list[str]] = {}
    problems: list[RowProblem] = []
    for row in read_rows(open_source(path)):
        if isinstance(row, RowProblem):
            problems.append(row)
        elif not isinstance(text := row.fields.get("text"), str) or not text.strip():
            problems.append(RowProblem(row.file, row.line, "text", repr(text)[:40], "no text"))
        else:
            # Rows of one document are joined again: a citation may span the border of two chunks.
            parts.setdefault(source_of(row.fields) or row.id, []).append(text)
    if problems or not parts:
        raise DataError(
            f"{counted(len(problems), 'row')} of the corpus {path} without text" if problems else f"no rows in {path}",
            expected="rows with a field `text`, as `luthier data ingest` writes them",
            do="correct the file, or name the folder of the documents",
            problems=problems,
        )
    return {name: "\n\n".join(texts) for name, texts in parts.items()}
