"""The markup of Word documents, put right before mammoth reads it.

Tables of contents are left out. A paragraph belongs to one where its style is named `toc 1` to `toc 9` or `TOC Heading`
(Word writes these names in every language), where it is in a block of the gallery "Table of Contents", or in a TOC
field (ECMA-376 part 1, 17.16.5.68).

mammoth passes over elements that it does not know, and over the text in them: fields without parts (`fldSimple`), text
of another direction (`dir`, `bdo`), text with readings (`ruby`), and text boxes without an older form beside them.
Their text is moved to where it is read.
"""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from luthier.core.text.counted import counted
from luthier.core.text.names import shortened

_DOCUMENT: Final = "word/document.xml"
_STYLES: Final = "word/styles.xml"
_COMMENTS: Final = "word/comments.xml"
_RUNNING: Final = re.compile(r"word/(?:header|footer)\d*\.xml")
_NUM_SHOWN: Final = 3
_WITH_TEXT: Final = (_DOCUMENT, "word/footnotes.xml", "word/endnotes.xml")
_W: Final = "{http://schemas.openxmlformats.org/wordprocessingml/2006/main}"
_MC: Final = "{http://schemas.openxmlformats.org/markup-compatibility/2006}"
_UNREAD: Final = {
    "{http://schemas.openxmlformats.org/drawingml/2006/chart}chart": "chart",
    "{http://schemas.openxmlformats.org/drawingml/2006/diagram}relIds": "diagram",
    f"{_W}altChunk": "embedded document",
}
_NAME: Final = re.compile(r"toc (?:[1-9]|heading)|table of contents", re.IGNORECASE)
_ID: Final = re.compile(r"TOC(?:[1-9]|Heading)")
_FIELD: Final = re.compile(r"\s*TOC(?:\s|$)")
_MAX_SHOWN: Final = 60


def prepared(path: Path) -> tuple[io.BytesIO | None, tuple[str, ...]]:
    """A Word document with its text where mammoth reads it, and without tables of contents.

    Args:
        path: the .docx file; it is not changed.

    Returns:
        The document in memory, None where nothing has changed; and notes of what was left out.
    """
    from lxml import etree

    with zipfile.ZipFile(path) as archive:
        names = set(archive.namelist())
        if _DOCUMENT not in names:
            return None, ()
        # The document is untrusted: no entities, no network, no external DTD.
        parser = etree.XMLParser(resolve_entities=False, no_network=True, load_dtd=False)
        changed: dict[str, bytes] = {}
        notes: list[str] = []
        for part in _WITH_TEXT:
            if part not in names:
                continue
            root = etree.fromstring(archive.read(part), parser)
            left_out = ""
            if part == _DOCUMENT:
                styles = _styles(etree.fromstring(archive.read(_STYLES), parser)) if _STYLES in names else set()
                left_out = _without_contents(root, styles)
                notes += [*_unread(root), *_tracked(root), *([left_out] if left_out else [])]
            if _move_texts(root) or left_out:
                changed[part] = etree.tostring(root, xml_declaration=True, encoding="UTF-8", standalone=True)
        notes += _running_texts(archive, parser)
        if _COMMENTS in names:
            num = sum(1 for _ in etree.fromstring(archive.read(_COMMENTS), parser).iter(f"{_W}comment"))
            notes += [f"{counted(num, 'comment')} not read"] if num else []
        if not changed:
            return None, tuple(notes)
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as copy:
            for entry in archive.infolist():
                copy.writestr(entry.filename, changed.get(entry.filename) or archive.read(entry))
    out.seek(0)
    return out, tuple(notes)


def _running_texts(archive: zipfile.ZipFile, parser: Any) -> Iterator[str]:
    """What headers and footers say: it is on every page, and no part of the text. Page numbers alone are not named."""
    from lxml import etree

    found: dict[str, None] = {}  # each once: a document has one for first, odd and even pages
    for part in sorted(filter(_RUNNING.fullmatch, archive.namelist())):
        texts: dict[Any, list[str]] = {}  # by paragraph: those in text boxes are inside of others
        for node in etree.fromstring(archive.read(part), parser).iter(f"{_W}t", f"{_W}tab"):
            paragraph = next(node.iterancestors(f"{_W}p"), None)
            texts.setdefault(paragraph, []).append(" " if node.tag == f"{_W}tab" else node.text or "")
        lines = (" ".join("".join(parts).split()) for parts in texts.values())
        found |= {line: None for line in lines if any(letter.isalpha() for letter in line)}
    if found:
        shown = ", ".join(_short(line) for line in list(found)[:_NUM_SHOWN])
        more = f" and {len(found) - _NUM_SHOWN:,} more" if len(found) > _NUM_SHOWN else ""
        yield f"{counted(len(found), 'line')} of headers and footers not read: {shown}{more}"


def _unread(document: Any) -> Iterator[str]:
    """What has text that is not read."""
    for tag, noun in _UNREAD.items():
        num = sum(1 for _ in document.iter(tag))
        if num:
            yield f"{counted(num, noun)} not read"


def _tracked(document: Any) -> Iterator[str]:
    """What was changed with "track changes" on: read as the text is once all of it is accepted."""
    counts = [
        counted(num, noun)
        for tag, noun in ((f"{_W}ins", "insertion"), (f"{_W}del", "deletion"), (f"{_W}moveTo", "move"))
        if (num := sum(1 for node in document.iter(tag) if next(node.iter(f"{_W}t", f"{_W}delText"), None) is not None))
    ]
    if counts:
        yield f"tracked changes were read as accepted: {', '.join(counts)}"


def _move_texts(root: Any) -> bool:
    """Move text to where it is read; whether there was any."""
    is_changed = False
    for node in list(root.iter(f"{_W}fldSimple", f"{_W}dir", f"{_W}bdo", f"{_W}ruby", f"{_W}cr", f"{_W}ptab")):
        is_changed = True
        if node.tag == f"{_W}cr":
            node.tag = f"{_W}br"
        elif node.tag == f"{_W}ptab":
            node.tag = f"{_W}tab"
        else:
            # Of a text with its reading the text: the reading above it says the same again.
            base = node.find(f"{_W}rubyBase") if node.tag == f"{_W}ruby" else node
            _replace(node, [] if base is None else list(base))
    for choice in list(root.iter(f"{_MC}AlternateContent")):
        fallback = choice.find(f"{_MC}Fallback")
        if fallback is None or not _text(fallback):
            options = choice.findall(f"{_MC}Choice")
            is_changed = any(_show_boxes(option, choice) for option in options) or is_changed
    for drawing in list(root.iter(f"{_W}drawing")):
        # In an alternative content, only what is its older form is read.
        if next(drawing.iterancestors(f"{_MC}Choice"), None) is None:
            is_changed = _show_boxes(drawing, drawing) or is_changed
    return is_changed


def _show_boxes(inside: Any, replaced: Any) -> bool:
    """Put the text boxes that are inside of an element into its place; whether there were any with text."""
    boxes = [
        box
        for box in inside.iter(f"{_W}txbxContent")
        if _text(box) and all(up.tag != f"{_W}txbxContent" for up in _up_to(box, inside))
    ]
    if not boxes:
        return False
    # A picture is what a run may hold, and text in it is read as paragraphs behind the run's own one.
    picture = replaced.makeelement(f"{_W}pict")
    for box in boxes:
        picture.append(box)
    _replace(replaced, [picture])
    return True


def _up_to(node: Any, top: Any) -> Iterator[Any]:
    for up in node.iterancestors():
        if up is top:
            return
        yield up


def _replace(node: Any, children: list[Any]) -> None:
    parent = node.getparent()
    place = parent.index(node)
    for child in reversed(children):
        parent.insert(place, child)
    parent.remove(node)


def _without_contents(document: Any, styles: set[str]) -> str:
    """Take the tables of contents out of a document; a note that names what was left out, "" where it has none."""
    paragraphs = _paragraphs(document, styles)
    if not paragraphs:
        return ""
    texts = [text for paragraph in paragraphs if (text := _text(paragraph))]
    for paragraph in paragraphs:
        _remove(paragraph)
    shown = f", from {_short(texts[0])} to {_short(texts[-1])}" if texts else ""
    return f"a table of contents was left out: {len(texts):,} lines{shown}"


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
    return repr(shortened(text, _MAX_SHOWN))
