"""Word documents, PowerPoint presentations and books (EPUB), by markitdown (which uses mammoth and python-pptx)."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path
from typing import Final

from markitdown import StreamInfo
from markitdown.converters import DocxConverter, EpubConverter, PptxConverter

from luthier.core.errors import DataError
from luthier.core.text.counted import counted
from luthier.ml.data.readers.document import Document, Section
from luthier.ml.data.readers.docx_markup import prepared
from luthier.ml.data.readers.html_tables import WholeRows
from luthier.ml.data.readers.markdown import PLAIN, sections_of, tidy

_SLIDE: Final = re.compile(r"<!-- Slide number: (\d+) -->")
_NOTE: Final = re.compile(r"\[\[(\d+)\]\]\(#(?:foot|end)note-\d+\)")
_BACK: Final = re.compile(r" ?\[↑\]\(#(?:foot|end)note-ref-\d+\)")
_TITLE_BREAK: Final = re.compile(r"(?m)^(# .*?)\x0b")
_DIAGRAM: Final = "{http://schemas.openxmlformats.org/drawingml/2006/diagram}relIds"
_COMMENTS: Final = re.compile(r"ppt/comments/\w+\.xml")
_ENCRYPTION: Final = "META-INF/encryption.xml"
_ENCRYPTED: Final = re.compile(rb"<(?:\w+:)?CipherReference\s[^>]*?\bURI=[\"']([^\"']+)")


def read_docx(path: Path) -> Document:
    """A section a heading; tables as Markdown, footnotes and endnotes at the end.

    Headers, footers, comments and tables of contents are left out, which warnings say.
    """
    changed, notes = prepared(path)
    converter = DocxConverter()
    converter._html_converter = WholeRows()
    with path.open("rb") if changed is None else changed as file:
        found = converter.convert(file, StreamInfo(extension=".docx"), **PLAIN)
    text, warnings = tidy(_BACK.sub("", _NOTE.sub(r"[\1]", found.markdown)))
    return Document(tuple(sections_of(text)), (*warnings, *notes))


def read_pptx(path: Path) -> Document:
    """Sections by slide, whose number is the page; its title is the heading, notes have a separate heading."""
    with path.open("rb") as file:
        found = PptxConverter().convert(file, StreamInfo(extension=".pptx"), **PLAIN)
    text, warnings = tidy(_with_line_ends(found.markdown))
    pieces = _SLIDE.split(text)
    sections: list[Section] = []
    # split() with a group alternates text and number; what is before the first slide is empty.
    for number, slide in zip(pieces[1::2], pieces[2::2], strict=True):
        sections += sections_of(slide.strip(), page=int(number))
    return Document(tuple(sections), (*warnings, *_unread_slides(path)))


def _with_line_ends(text: str) -> str:
    """Line breaks inside of paragraphs, which python-pptx gives as vertical tabs, as line ends; in titles as blanks."""
    while (changed := _TITLE_BREAK.sub(r"\1 ", text)) != text:
        text = changed
    return text.replace("\x0b", "\n")


def _unread_slides(path: Path) -> list[str]:
    from pptx import Presentation

    slides = list(enumerate(Presentation(str(path)).slides, start=1))
    hidden = [number for number, slide in slides if slide._element.get("show") in ("0", "false")]
    drawn = [number for number, slide in slides if next(slide._element.iter(_DIAGRAM), None) is not None]
    notes = ((hidden, "hidden slides were read"), (drawn, "diagrams (SmartArt) were not read, on slides"))
    found = [f"{said}: {', '.join(map(str, numbers))}" for numbers, said in notes if numbers]
    return [*found, *([f"{counted(num, 'comment')} not read"] if (num := _num_comments(path)) else [])]


def _num_comments(path: Path) -> int:
    from lxml import etree

    # The document is untrusted: no entities, no network, no external DTD.
    parser = etree.XMLParser(resolve_entities=False, no_network=True, load_dtd=False)
    with zipfile.ZipFile(path) as archive:
        parts = [archive.read(name) for name in archive.namelist() if _COMMENTS.fullmatch(name)]
    return sum(1 for part in parts for _ in etree.fromstring(part, parser).iter("{*}cm"))


def read_epub(path: Path) -> Document:
    """A section a heading, in reading order; title, authors and the like come first.

    Raises:
        DataError: its chapters are encrypted.
    """
    _check_open(path)
    converter = EpubConverter()
    converter._html_converter = WholeRows()
    with path.open("rb") as file:
        found = converter.convert(file, StreamInfo(extension=".epub"), **PLAIN)
    text, warnings = tidy(found.markdown)
    return Document(tuple(sections_of(text)), warnings)


def _check_open(path: Path) -> None:
    """Raise DataError where chapters are encrypted (DRM): their bytes would be read as letters. Fonts often are."""
    with zipfile.ZipFile(path) as archive:
        listed = archive.read(_ENCRYPTION) if _ENCRYPTION in archive.namelist() else b""
    locked = [name for name in _ENCRYPTED.findall(listed) if name.lower().endswith((b".xhtml", b".html", b".htm"))]
    if locked:
        raise DataError(
            f"encrypted chapters (DRM): {len(locked):,}",
            expected="a book without copy protection",
            do="get it without copy protection, or leave it out",
        )
