"""Word documents, by markitdown (which uses mammoth)."""

from __future__ import annotations

from pathlib import Path

from markitdown import StreamInfo
from markitdown.converters import DocxConverter

from luthier.data.readers.document import Document
from luthier.data.readers.markdown import sections_of
from luthier.data.readers.office import PLAIN, tidy


def read(path: Path) -> Document:
    """A section a heading; tables as Markdown. Headers, footers and comments are not read."""
    with path.open("rb") as file:
        found = DocxConverter().convert(file, StreamInfo(extension=".docx"), **PLAIN)
    text, warnings = tidy(found.markdown)
    return Document(tuple(sections_of(text)), warnings)
