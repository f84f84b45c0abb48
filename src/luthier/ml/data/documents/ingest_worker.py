"""The child process of an ingest: reads one document after the other into parts on the disk (see `worker_pool`).

A part holds the rows of one document until all documents are done; a killed ingest continues from its parts. It is a
file named by the digest of all that its rows depend on: the document's name and bytes, the settings, and the versions
of what reads it. Its first line is a header, the rest are the rows as the output will have them.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from itertools import groupby
from pathlib import Path
from typing import Any

from luthier.core.child_process.channel import Channel
from luthier.core.errors import DataError, first_line
from luthier.core.ids import sha256_bytes, sha256_document, sha256_file
from luthier.core.system.files import is_disk_full, replace_file
from luthier.ml.data import readers
from luthier.ml.data.documents.chunk import Chunk, CountTokens, chunk, count_words
from luthier.ml.data.files import cell_text, sheet_markup
from luthier.ml.data.provenance import PROVENANCE
from luthier.ml.data.readers.document import Document, Section, check_signature, load_reader, well_formed
from luthier.ml.data.rows.outputs import json_line

_FORMAT = 2
_LIBRARIES = ("markitdown", "trafilatura", "pypdfium2", "openpyxl", "mammoth", "python-pptx", "striprtf", "xlrd")


@dataclass(frozen=True, slots=True)
class IngestSettings:
    """What the rows depend on in addition to the documents.

    Attributes:
        chunk_tokens: most tokens (or words) of a row.
        overlap_tokens: most tokens that a row repeats from the one before.
        licence: of the documents, for the provenance; None where it is not known.
        tokenizer: folder of the model whose tokens are counted, None for words.
        tokenizer_sha256: hex digest of its tokenizer.json; None for words.
    """

    chunk_tokens: int
    overlap_tokens: int
    licence: str | None
    tokenizer: str | None
    tokenizer_sha256: str | None


@dataclass(frozen=True, slots=True)
class PartHeader:
    """What is known of the rows of one document.

    Attributes:
        sha256: hex digest of the document's bytes.
        reader: `module:function` that read it.
        num_rows: rows of the document.
        num_tokens: tokens (or words) of all rows.
        warnings: what the reader noticed.
        body_sha256: hex digest of the rows.
    """

    sha256: str
    reader: str
    num_rows: int
    num_tokens: int
    warnings: tuple[str, ...]
    body_sha256: str


def part_name(name: str, sha256: str, reader: str, settings: IngestSettings) -> str:
    """The name of the part of a document: a digest of all that decides what is in it.

    Args:
        name: of the document, below the folder that is read.
        sha256: digest of the document.
        reader: as `module:function`; its code counts, too.
        settings: lengths of chunks, tokenizer and licence.
    """
    depends_on = {
        "format": _FORMAT,
        "name": name,
        "sha256": sha256,
        "reader": reader,
        "code": _code_sha256(reader.partition(":")[0]),
        "chunk": [settings.chunk_tokens, settings.overlap_tokens],
        "licence": settings.licence,
        "tokenizer": settings.tokenizer_sha256,
        "libraries": {library: version(library) for library in _LIBRARIES},
    }
    return f"{sha256_document(depends_on)}.part"


@cache
def _code_sha256(module: str) -> str:
    """Hex digest of what makes rows of a document: the reader's module, and all of our readers and what cuts texts."""
    # Files rather than a version: a checkout is changed between two ingests without getting another one, and so are the
    # readers of others.
    own = (Path(__file__).parent, Path(readers.__file__).parent)
    files = {file for folder in own for file in folder.glob("*.py")}
    files |= {Path(one.__file__) for one in (cell_text, sheet_markup) if one.__file__}  # what reads cells of workbooks
    spec = find_spec(module)
    if spec is not None and spec.origin is not None and Path(spec.origin).is_file():
        files.add(Path(spec.origin))
    return sha256_document(sorted([file.name, sha256_file(file)] for file in files))


def write_part(
    path: Path, rows: Sequence[Mapping[str, Any]], *, sha256: str, reader: str, num_tokens: int, warnings: Sequence[str]
) -> PartHeader:
    """Write a part so that it is either whole or not there.

    Args:
        path: of the part.
        rows: the chunks of the document, as rows.
        sha256: digest of the document.
        reader: that has read it, as `module:function`.
        num_tokens: of all rows.
        warnings: of the reader.

    Returns:
        The header, which has the digest of the rows.
    """
    body = b"".join(json_line(row) + b"\n" for row in rows)
    header = PartHeader(sha256, reader, len(rows), num_tokens, tuple(warnings), sha256_bytes(body))
    # No fsync: a part that a power cut leaves incomplete fails its digest in read_part, and is read again.
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(json.dumps(header_json(header)).encode() + b"\n")
            file.write(body)
        replace_file(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return header


def read_part(path: Path) -> PartHeader | None:
    """The header of a part that is there and whole, else None."""
    try:
        first, body = path.read_bytes().split(b"\n", 1)
        document = json.loads(first)
        header = PartHeader(**{**document, "warnings": tuple(document["warnings"])})
    except (OSError, ValueError, TypeError, KeyError):  # not there, or cut short when the power went
        return None
    return header if sha256_bytes(body) == header.body_sha256 else None


def header_json(header: PartHeader) -> dict[str, Any]:
    """The header as a JSON document."""
    return {
        "sha256": header.sha256,
        "reader": header.reader,
        "num_rows": header.num_rows,
        "num_tokens": header.num_tokens,
        "warnings": list(header.warnings),
        "body_sha256": header.body_sha256,
    }


_SENTENCE_ENDS = tuple('.!?…。！？:;"”»)')


def rows_of(
    document: Document, settings: IngestSettings, count_tokens: CountTokens, provenance: dict[str, Any]
) -> tuple[list[dict[str, Any]], int, list[str]]:
    """Cut a document into rows. Neighbouring sections with the same headings are one text.

    A chunk that goes over pages names the page on which it begins.

    Args:
        document: as its reader returned it.
        settings: sizes of the chunks.
        count_tokens: tokens of each of several texts.
        provenance: goes into every row, with page, section and chunk set.

    Returns:
        The rows, their tokens in all, and warnings as sentences.
    """
    rows: list[dict[str, Any]] = []
    num_tokens = num_cut = num_left_out = 0
    for headings, group in groupby(document.sections, key=lambda section: section.headings):
        text, pages = _joined(list(group))
        chunks = chunk(
            text,
            count_tokens=count_tokens,
            max_tokens=settings.chunk_tokens,
            overlap_tokens=settings.overlap_tokens,
            headings=headings,
        )
        for part in chunks:
            where = {"page": _page(pages, part), "section": " > ".join(headings) or None}
            rows.append({"text": part.text, PROVENANCE: {**provenance, **where, "chunk": len(rows)}})
            num_tokens += part.num_tokens
            num_cut += part.is_cut
            num_left_out += part.num_headings_left_out > 0
    notes = []
    if num_cut:
        notes.append(f"{num_cut:,} chunks contain parts of a sentence that is longer than a chunk")
    if num_left_out:
        notes.append(f"{num_left_out:,} chunks have no outer headings, which took more than half of them")
    return rows, num_tokens, notes


def _joined(sections: list[Section]) -> tuple[str, list[tuple[int, int | None]]]:
    """One text, and the offset at which each page begins; a sentence that continues on the next page stays whole."""
    text, pages = "", []
    for section in sections:
        body = section.text.strip("\n")
        if text:
            # A lower-case beginning after a line without an end of a sentence: the page break cut the sentence.
            goes_on = body[:1].islower() and not text.rstrip().endswith(_SENTENCE_ENDS)
            text += " " if goes_on and section.page is not None else "\n\n"
        pages.append((len(text), section.page))
        text += body
    return text, pages


def _page(pages: list[tuple[int, int | None]], part: Chunk) -> int | None:
    # The last page that begins at or before the chunk.
    return next(page for start, page in reversed(pages) if start <= part.start)


class _Reader:
    def __init__(self, parts: Path, settings: IngestSettings) -> None:
        self._parts, self._settings = parts, settings
        self._count: CountTokens = count_words
        if settings.tokenizer is not None:
            from luthier.ml.inference.models.token_counter import token_counter

            self._count = token_counter(Path(settings.tokenizer))

    def answer(self, job: dict[str, str]) -> dict[str, Any]:
        """Read one document: {"part", "is_reused", "header"}, or {"failed": reason}."""
        try:
            return self._read(Path(job["path"]), job["name"], job["reader"])
        # Passed on: the channel reports it as the worker's memory limit, not as a fault of the reader.
        except MemoryError:
            raise
        except DataError as error:
            return {"failed": f"{error.came}; {error.do}"}
        except OSError as error:
            is_full = is_disk_full(error)
            return {"failed": f"cannot be read: {error.strerror or error}", "is_disk_full": is_full}
        except RecursionError:
            return {"failed": "nested too deep to be read"}
        except Exception as error:  # noqa: BLE001 - one broken file never stops the rest
            said = first_line(error, "")[:200]
            return {"failed": f"its reader {job['reader']} failed: {type(error).__name__}: {said}"}

    def _read(self, path: Path, name: str, reader: str) -> dict[str, Any]:
        before = path.stat()
        sha256 = sha256_file(path)
        part = self._parts / part_name(name, sha256, reader, self._settings)
        # The part's name holds the document's digest, so a part that exists is of exactly these bytes and settings.
        if (header := read_part(part)) is not None:
            return {"part": part.name, "is_reused": True, "header": header_json(header)}
        check_signature(path)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", UserWarning)
            document = well_formed(load_reader(reader)(path))
        after = path.stat()
        # The digest was computed before the reading: rows of other bytes would carry it.
        if (before.st_mtime_ns, before.st_size) != (after.st_mtime_ns, after.st_size):
            raise DataError("it changed while it was read", expected="a file at rest", do="run the ingest again")
        provenance = {
            "file": name,
            "page": None,
            "section": None,
            "sha256": sha256,
            "licence": self._settings.licence,
            "chunk": 0,
            "reader": reader.partition(":")[0].rpartition(".")[2],
        }
        rows, num_tokens, notes = rows_of(document, self._settings, self._count, provenance)
        if not rows:
            raise DataError("no text in it", expected="a document with text", do="check its content")
        said = [str(one.message) for one in caught if issubclass(one.category, UserWarning)]
        kept = dict.fromkeys([*document.warnings, *said, *notes])
        header = write_part(part, rows, sha256=sha256, reader=reader, num_tokens=num_tokens, warnings=tuple(kept))
        return {"part": part.name, "is_reused": False, "header": header_json(header)}


def read_documents(document: dict[str, Any], channel: Channel) -> None:
    """Answer jobs in a child process until there are no more.

    Args:
        document: `parts` (a folder) and `settings` (of `IngestSettings`).
        channel: of the child process.
    """
    reader = _Reader(Path(document["parts"]), IngestSettings(**document["settings"]))
    channel.emit("ready")
    channel.serve(reader.answer)
