"""Plain text."""

from __future__ import annotations

from pathlib import Path

from luthier.ml.data.readers.decode import decode
from luthier.ml.data.readers.document import Document, Section


def read(path: Path) -> Document:
    """One section with all text.

    Raises:
        DataError: binary data.
    """
    text, warnings = decode(path.read_bytes())
    return Document((Section(text),), warnings)
