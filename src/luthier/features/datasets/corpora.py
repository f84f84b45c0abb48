"""Corpora: the documents that answers may cite, as texts by name."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Final

from luthier.core.errors import DataError, NotFoundError, RowProblem
from luthier.core.ports import Progress, SilentProgress
from luthier.core.system.scratch_folders import scratch_folder

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
    from luthier.ml.data.documents.ingest_part import IngestSettings

    # Chunks of a million words, no overlap: a document becomes one row, and no sentence comes twice.
    settings = IngestSettings(_MANY_WORDS, 0, licence=None, tokenizer=None, tokenizer_sha256=None)
    with scratch_folder(Path(tempfile.gettempdir()), "luthier-corpus-") as folder:
        rows = folder / "corpus.jsonl"
        # One worker: a suite runs beside other jobs, and a corpus is read once.
        done = ingest([path], rows, settings=settings, num_workers=1, progress=progress or SilentProgress())
        # A line of 0 stands for the file as a whole.
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
                f"{len(missing):,} files of the corpus {path} were not read",
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
            f"{len(problems):,} rows of the corpus {path} have no text" if problems else f"no rows in {path}",
            expected="rows with a field `text`, as `luthier data ingest` writes them",
            do="correct the file, or name the folder of the documents",
            problems=problems,
        )
    return {name: "\n\n".join(texts) for name, texts in parts.items()}
