"""Word documents, by markitdown (which uses mammoth)."""

from __future__ import annotations

from pathlib import Path

from markitdown import StreamInfo
from markitdown.converters import DocxConverter

from luthier.ml.data.readers.document import Document
from luthier.ml.data.readers.docx_contents import without_contents
from luthier.ml.data.readers.markdown import sections_of
from luthier.ml.data.readers.office import PLAIN, tidy


def read(path: Path) -> Document:
    """A section a heading; tables as Markdown. Headers, footers and comments are not read, and tables of contents are
    left out, which a warning says.
    """
    changed, note = without_contents(path)
    with path.open("rb") if changed is None else changed as file:
        found = DocxConverter().convert(file, StreamInfo(extension=".docx"), **PLAIN)
    text, warnings = tidy(found.markdown)
    return Document(tuple(sections_of(text)), (*warnings, note) if note else warnings)
