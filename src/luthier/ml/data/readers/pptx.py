"""PowerPoint presentations, by markitdown (which uses python-pptx)."""

from __future__ import annotations

import re
from pathlib import Path

from markitdown import StreamInfo
from markitdown.converters import PptxConverter

from luthier.ml.data.readers.document import Document, Section
from luthier.ml.data.readers.markdown import PLAIN, sections_of, tidy

_SLIDE = re.compile(r"<!-- Slide number: (\d+) -->")


def read(path: Path) -> Document:
    """Sections by slide, whose number is the page; its title is the heading, notes have a separate heading."""
    with path.open("rb") as file:
        found = PptxConverter().convert(file, StreamInfo(extension=".pptx"), **PLAIN)
    text, warnings = tidy(found.markdown)
    pieces = _SLIDE.split(text)
    sections: list[Section] = []
    # split() with a group alternates text and number; what is before the first slide is empty.
    for number, slide in zip(pieces[1::2], pieces[2::2], strict=True):
        sections += sections_of(slide.strip(), page=int(number))
    return Document(tuple(sections), warnings)
