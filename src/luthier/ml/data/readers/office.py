"""Word documents, PowerPoint presentations and books (EPUB), by markitdown (which uses mammoth and python-pptx).

Tables of contents of Word documents are left out. A paragraph belongs to one where its style is named `toc 1` to
`toc 9` or `TOC Heading` (Word writes these names in every language), where it is in a block of the gallery "Table of
Contents", or in a TOC field (ECMA-376 part 1, 17.16.5.68).
"""

from __future__ import annotations

import io
import re
import zipfile
from pathlib import Path
from typing import Any, Final

from markitdown import StreamInfo
from markitdown.converters import DocxConverter, EpubConverter, PptxConverter

from luthier.ml.data.readers.document import Document, Section
from luthier.ml.data.readers.markdown import PLAIN, sections_of, tidy

_DOCUMENT: Final = "word/document.xml"
_STYLES: Final = "word/styles.xml"
_W: Final = "{http://schemas.openxmlformats.org/wordprocessingml/2006/main}"
_NAME: Final = re.compile(r"toc (?:[1-9]|heading)|table of contents", re.IGNORECASE)
_ID: Final = re.compile(r"TOC(?:[1-9]|Heading)")
_FIELD: Final = re.compile(r"\s*TOC(?:\s|$)")
_MAX_SHOWN: Final = 60
_SLIDE: Final = re.compile(r"<!-- Slide number: (\d+) -->")


def without_contents(path: Path) -> tuple[io.BytesIO | None, str]:
    """Take the tables of contents out of a Word document.

    Args:
        path: the .docx file; it is not changed.

    Returns:
        The document without them in memory, and a note that names what was left out; None and "" where it has none.
    """
    from lxml import etree

    with zipfile.ZipFile(path) as archive:
        names = set(archive.namelist())
        if _DOCUMENT not in names:
            return None, ""
        data = archive.read(_DOCUMENT)
        # A quick look at the bytes: parsing costs much more, and most documents have no contents.
        if b"TOC" not in data and b"Table of Contents" not in data and b"pStyle" not in data:
            return None, ""
        # The document is untrusted: no entities, no network, no external DTD.
        parser = etree.XMLParser(resolve_entities=False, no_network=True, load_dtd=False)
        document = etree.fromstring(data, parser)
        styles = _styles(etree.fromstring(archive.read(_STYLES), parser)) if _STYLES in names else set()
        paragraphs = _paragraphs(document, styles)
        if not paragraphs:
            return None, ""
        texts = [text for paragraph in paragraphs if (text := _text(paragraph))]
        for paragraph in paragraphs:
            _remove(paragraph)
        changed = etree.tostring(document, xml_declaration=True, encoding="UTF-8", standalone=True)
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as copy:
            for entry in archive.infolist():
                copy.writestr(entry.filename, changed if entry.filename == _DOCUMENT else archive.read(entry))
    out.seek(0)
    shown = f", from {_short(texts[0])} to {_short(texts[-1])}" if texts else ""
    return out, f"a table of contents was left out: {len(texts):,} lines{shown}"


def _styles(styles: Any) -> set[str]:
    """The ids of the styles that a table of contents has; in other languages than English ids differ, names do not."""
    found = set()
    for style in styles.iter(f"{_W}style"):
        name = style.find(f"{_W}name")
        if name is not None and _NAME.fullmatch(name.get(f"{_W}val") or ""):
            found.add(style.get(f"{_W}styleId"))
    return found


def _paragraphs(document: Any, styles: set[str]) -> list[Any]:
    """The paragraphs of tables of contents, in order."""
    inside = set()
    for block in document.iter(f"{_W}sdt"):
        gallery = block.find(f"{_W}sdtPr/{_W}docPartObj/{_W}docPartGallery")
        if gallery is not None and gallery.get(f"{_W}val") == "Table of Contents":
            inside.update(block.iter(f"{_W}p"))
    fields: list[bool] = []  # open fields, the innermost last: whether each is a table of contents
    found, by_field = [], []
    for paragraph in document.iter(f"{_W}p"):
        in_field = any(fields)
        for node in paragraph.iter(f"{_W}fldChar", f"{_W}instrText", f"{_W}fldSimple"):
            if node.tag == f"{_W}instrText" and fields and _FIELD.match(node.text or ""):
                fields[-1] = in_field = True
            elif node.tag == f"{_W}fldSimple" and _FIELD.match(node.get(f"{_W}instr") or ""):
                in_field = True
            elif node.get(f"{_W}fldCharType") == "begin":
                fields.append(False)
            elif node.get(f"{_W}fldCharType") == "end" and fields:
                fields.pop()
        style = paragraph.find(f"{_W}pPr/{_W}pStyle")
        name = "" if style is None else style.get(f"{_W}val") or ""
        if paragraph in inside or name in styles or _ID.fullmatch(name):
            found.append(paragraph)
        elif in_field:
            by_field.append(paragraph)
    if any(fields):  # a field that never ends would take all the rest with it
        return found
    wanted = {*found, *by_field}
    return [paragraph for paragraph in document.iter(f"{_W}p") if paragraph in wanted]


def _text(paragraph: Any) -> str:
    parts = (" " if node.tag == f"{_W}tab" else node.text or "" for node in paragraph.iter(f"{_W}t", f"{_W}tab"))
    return " ".join("".join(parts).split())


def _remove(paragraph: Any) -> None:
    """Take a paragraph out; in a table's cell, which needs one, leave it without its runs."""
    parent = paragraph.getparent()
    if parent.tag == f"{_W}tc" and len(parent.findall(f"{_W}p")) == 1:
        for node in list(paragraph):
            paragraph.remove(node)
    else:
        parent.remove(paragraph)


def _short(text: str) -> str:
    return repr(text if len(text) <= _MAX_SHOWN else text[: _MAX_SHOWN - 1] + "…")


def read_docx(path: Path) -> Document:
    """A section a heading; tables as Markdown. Headers, footers and comments are not read, and tables of contents are
    left out, which a warning says.
    """
    changed, note = without_contents(path)
    with path.open("rb") if changed is None else changed as file:
        found = DocxConverter().convert(file, StreamInfo(extension=".docx"), **PLAIN)
    text, warnings = tidy(found.markdown)
    return Document(tuple(sections_of(text)), (*warnings, note) if note else warnings)


def read_pptx(path: Path) -> Document:
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


def read_epub(path: Path) -> Document:
    """A section a heading, in reading order; title, authors and the like stand first."""
    with path.open("rb") as file:
        found = EpubConverter().convert(file, StreamInfo(extension=".epub"), **PLAIN)
    text, warnings = tidy(found.markdown)
    return Document(tuple(sections_of(text)), warnings)
