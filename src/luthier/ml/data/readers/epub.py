"""Books (EPUB), by markitdown."""

from __future__ import annotations

from pathlib import Path

from markitdown import StreamInfo
from markitdown.converters import EpubConverter

from luthier.ml.data.readers.document import Document
from luthier.ml.data.readers.markdown import PLAIN, sections_of, tidy


def read(path: Path) -> Document:
    """A section a heading, in reading order; title, authors and the like stand first."""
    with path.open("rb") as file:
        found = EpubConverter().convert(file, StreamInfo(extension=".epub"), **PLAIN)
    text, warnings = tidy(found.markdown)
    return Document(tuple(sections_of(text)), warnings)
