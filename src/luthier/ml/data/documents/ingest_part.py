"""The rows of one document on the disk, until all documents are done: what a killed ingest continues from.

A part is a file named by the digest of all that its rows depend on: the document's name and bytes, the settings, and
what reads it (code and versions). Its first line is a header, the rest are the rows as the output will have them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from luthier.core.digest import sha256_bytes, sha256_document, sha256_file
from luthier.ml.data import readers
from luthier.ml.data.rows.write_rows import json_line

_FORMAT = 2
_LIBRARIES = ("markitdown", "trafilatura", "pypdfium2", "openpyxl", "mammoth", "python-pptx")


@dataclass(frozen=True, slots=True)
class IngestSettings:
    """What the rows depend on, besides the documents.

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
    """The name of the part of a document."""
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
    spec = find_spec(module)
    if spec is not None and spec.origin is not None and Path(spec.origin).is_file():
        files.add(Path(spec.origin))
    return sha256_document(sorted([file.name, sha256_file(file)] for file in files))


def write_part(
    path: Path, rows: Sequence[Mapping[str, Any]], *, sha256: str, reader: str, num_tokens: int, warnings: Sequence[str]
) -> PartHeader:
    """Write a part so that it is either whole or not there."""
    body = b"".join(json_line(row) + b"\n" for row in rows)
    header = PartHeader(sha256, reader, len(rows), num_tokens, tuple(warnings), sha256_bytes(body))
    # No fsync: a part that a power cut leaves incomplete fails its digest in read_part, and is read again.
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(json.dumps(header_json(header)).encode() + b"\n")
            file.write(body)
        temporary.replace(path)
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
