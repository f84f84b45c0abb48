"""OpenDocument texts and presentations (.odt, .odp): headings, lists, tables, footnotes and speaker notes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

from luthier.core.text.counted import counted
from luthier.ml.data.files.open_document import DRAW, OFFICE, PRESENTATION, STYLE, SVG, TABLE, TEXT, content, plain_text
from luthier.ml.data.readers.document import Document, Section
from luthier.ml.data.readers.outline import Paragraph, markdown_table, sections_by_headings

_MAX_CELLS: Final = 100_000
_INDEXES: Final = frozenset(
    f"{TEXT}{name}"
    for name in (
        *("table-of-content", "illustration-index", "table-index", "object-index", "user-index", "alphabetical-index"),
        "bibliography",
    )
)
_NAMES: Final = {
    "deleted passage": "deleted passages",
    "comment": "comments",
    "picture": "pictures: only their alternative texts",
    "chart or object": "charts or objects",
    "index": "tables of contents or indexes",
}


def read_odt(path: Path) -> Document:
    """A section a heading; tables as Markdown, footnotes and endnotes at the end.

    Headers, footers, comments, deleted passages and tables of contents are left out, which warnings say.

    Raises:
        DataError: the file is damaged, or protected by a password.
    """
    reader = _Reader()
    body = next(content(path).iter(f"{OFFICE}text"), None)
    paragraphs = [] if body is None else list(reader.blocks(body))
    paragraphs += [Paragraph(text) for text in reader.notes]
    margins = content(path, "styles.xml").iter(f"{STYLE}header", f"{STYLE}footer")
    num_margins = sum(any(text.strip() for text in one.itertext()) for one in margins)
    warnings = [*reader.warnings()]
    if num_margins:
        warnings.append(f"{counted(num_margins, 'header or footer', 'headers or footers')} not read")
    return Document(tuple(sections_by_headings(paragraphs)), tuple(warnings))


def read_odp(path: Path) -> Document:
    """Sections by slide, whose number is the page; its title is the heading, notes have a separate heading.

    Raises:
        DataError: the file is damaged, or protected by a password.
    """
    reader = _Reader()
    sections: list[Section] = []
    hidden = []
    root = content(path)
    styles = {style.get(f"{STYLE}name"): style for style in root.iter(f"{STYLE}style")}
    for number, page in enumerate(root.iter(f"{DRAW}page"), start=1):
        paragraphs: list[Paragraph] = []
        for child in page:
            if child.tag == f"{PRESENTATION}notes":
                continue
            is_title = child.get(f"{PRESENTATION}class") in ("title", "subtitle") and not paragraphs
            found = list(reader.blocks([child]))
            if is_title and found:
                paragraphs.append(Paragraph(" ".join(one.text for one in found), 1))
            else:
                paragraphs += [Paragraph(one.text) for one in found]
        notes = [
            one
            for element in page.iterchildren(f"{PRESENTATION}notes")
            for frame in element
            if frame.get(f"{PRESENTATION}class") == "notes"
            for one in reader.blocks([frame])
        ]
        if any(one.text.strip() for one in notes):
            paragraphs += [Paragraph("Notes", 3), *(Paragraph(one.text) for one in notes)]
        sections += sections_by_headings(paragraphs, page=number)
        style = styles.get(page.get(f"{DRAW}style-name"))
        if style is not None and any(
            one.get(f"{PRESENTATION}visibility") == "hidden" for one in style.iter(f"{STYLE}drawing-page-properties")
        ):
            hidden.append(str(number))
    warnings = [f"hidden slides were read: {', '.join(hidden)}"] if hidden else []
    return Document(tuple(sections), (*warnings, *reader.warnings()))


class _Reader:
    """Walks the elements of a document; keeps its notes, and counts what it does not read."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self._num_unread: Counter[str] = Counter()

    def warnings(self) -> Iterator[str]:
        """What was not read."""
        for one, many in _NAMES.items():
            if num := self._num_unread[one]:
                yield f"{num:,} {many} were read" if one == "picture" else f"{counted(num, one, many)} not read"

    def blocks(self, elements: Iterable[Any]) -> Iterator[Paragraph]:
        """Paragraphs and tables of elements, and inside of them, in their order."""
        for child in elements:
            if not isinstance(child.tag, str):
                continue
            if child.tag == f"{TEXT}h":
                yield Paragraph(self._text(child), max(1, int(child.get(f"{TEXT}outline-level", "1"))))
            elif child.tag == f"{TEXT}p":
                yield Paragraph(self._text(child))
            elif child.tag == f"{TEXT}list":
                if items := "\n".join(self._items(child, 0)):
                    yield Paragraph(items)
            elif child.tag == f"{TABLE}table":
                yield Paragraph(markdown_table(list(self._rows(child))))
            elif (text := self._inside(child)) is not None:
                yield Paragraph(text)
            else:
                yield from self.blocks(child)

    def _items(self, element: Any, depth: int) -> Iterator[str]:
        for item in element.iterchildren(f"{TEXT}list-item", f"{TEXT}list-header"):
            mark = "- "
            for child in item:
                if child.tag == f"{TEXT}list":
                    yield from self._items(child, depth + 1)
                elif child.tag in (f"{TEXT}p", f"{TEXT}h") and (text := self._text(child)).strip():
                    yield f"{'  ' * depth}{mark}{text}"
                    mark = "  "  # further paragraphs of the same item

    def _rows(self, table: Any) -> Iterator[list[str]]:
        num_cells = 0
        for row in table.iter(f"{TABLE}table-row"):
            if next(row.iterancestors(f"{TABLE}table")) is not table:
                continue  # of a table inside of a cell, which the text of the cell holds
            cells: list[str] = []
            for cell in row.iterchildren(f"{TABLE}table-cell", f"{TABLE}covered-table-cell"):
                text = " ".join(one.text for one in self.blocks(cell))
                repeated = int(cell.get(f"{TABLE}number-columns-repeated", "1"))
                num_cells += repeated
                if num_cells > _MAX_CELLS:
                    return
                cells += [text] * repeated
            yield cells

    def _text(self, element: Any) -> str:
        return plain_text(element, lambda child: self._inside(child) or "")

    def _inside(self, element: Any) -> str | None:
        """The text of what is beside the text of a paragraph; None where its children are read as any other."""
        if element.tag == f"{TEXT}note":
            label = element.findtext(f"{TEXT}note-citation") or str(len(self.notes) + 1)
            body = next(element.iterchildren(f"{TEXT}note-body"), None)
            place = len(self.notes)
            self.notes.append("")  # notes inside of it come after it
            text = " ".join(one.text for one in self.blocks(body)) if body is not None else ""
            self.notes[place] = f"[{label}] {text}"
            return f"[{label}]"
        if element.tag == f"{TEXT}tracked-changes":
            self._num_unread["deleted passage"] += sum(1 for _ in element.iter(f"{TEXT}deletion"))
            return ""
        if element.tag == f"{OFFICE}annotation":
            self._num_unread["comment"] += 1
            return ""
        if element.tag in _INDEXES:
            self._num_unread["index"] += 1
            return ""
        if element.tag == f"{DRAW}frame":
            return self._frame(element)
        if element.tag in (f"{OFFICE}forms", f"{TEXT}sequence-decls", f"{OFFICE}annotation-end", f"{TEXT}ruby-text"):
            return ""
        if element.tag.startswith(DRAW) and element.tag != f"{DRAW}text-box":
            # A shape, a group of them, a hyperlink around one: what text they have.
            return "\n".join(one.text for one in self.blocks(element) if one.text.strip())
        return None

    def _frame(self, frame: Any) -> str:
        """The text box or table of a frame, or the description of its picture."""
        boxes = list(frame.iterchildren(f"{DRAW}text-box", f"{TABLE}table"))
        if boxes:
            found: list[Paragraph] = []
            for box in boxes:
                found += self.blocks([box] if box.tag == f"{TABLE}table" else box)
            return "\n\n".join(one.text for one in found if one.text.strip())
        if next(frame.iterchildren(f"{DRAW}object", f"{DRAW}object-ole"), None) is not None:
            self._num_unread["chart or object"] += 1
        elif next(frame.iterchildren(f"{DRAW}image"), None) is not None:
            self._num_unread["picture"] += 1
        names = (frame.findtext(f"{SVG}desc"), frame.findtext(f"{SVG}title"))
        return next((text.strip() for text in names if text and text.strip()), "")
