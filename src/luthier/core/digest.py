"""SHA-256 of bytes, files and documents: the name under which a thing is known to be unchanged."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from luthier.core.json_limits import json_utf8


def sha256_bytes(data: bytes) -> str:
    """Hex digest of bytes."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """Hex digest of a file's content, read in blocks (constant memory)."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def canonical_json(document: Any) -> str:
    """JSON with sorted keys and no spaces, which UTF-8 can hold: equal documents give equal text."""
    return _canonical(document).decode()


def sha256_document(document: Any) -> str:
    """Hex digest of a JSON document, independent of the order of its keys."""
    return sha256_bytes(_canonical(document))


def _canonical(document: Any) -> bytes:
    # allow_nan=False: NaN is no JSON, and never equal to itself, so a document with it has no digest.
    return json_utf8(document, sort_keys=True, separators=(",", ":"), allow_nan=False)
