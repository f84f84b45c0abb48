"""Word documents of Word 97 to 2003 (.doc, MS-DOC): paragraphs with their headings, tables, footnotes and endnotes.

The text lies in pieces, in the order of a table of pieces; what its characters and paragraphs are (deleted, hidden, a
heading, the end of a row) lies in pages of 512 bytes by their place in the file. Section numbers below are of MS-DOC.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Final

from luthier.core.errors import DataError
from luthier.core.text.counted import counted
from luthier.ml.data.files.compound_file import Storage, read_compound_file
from luthier.ml.data.readers.document import Document
from luthier.ml.data.readers.outline import Paragraph, markdown_table, sections_by_headings

_MAGIC: Final = 0xA5EC
_WORD_97: Final = 0x00C1
_ENCRYPTED, _OTHER_TABLE = 0x0100, 0x0200
# Places in the header of pairs of offset and length (2.5.6): in the table stream.
_NOTE_REFERENCES, _NOTE_TEXTS = 0x00AA, 0x00B2
_CHARACTERS, _PARAGRAPHS = 0x00FA, 0x0102
_PIECES = 0x01A2
_ENDNOTE_REFERENCES, _ENDNOTE_TEXTS = 0x020A, 0x0212
# Modifiers of properties (2.6.1, 2.6.2).
_DELETED, _HIDDEN = 0x0800, 0x083C
_IN_TABLE, _ROW_END, _OUTLINE, _STYLE, _LIST = 0x2416, 0x2417, 0x2640, 0x4600, 0x460B
_TABS: Final = 0xC615
_TABLE_DEFINITION: Final = 0xD608
_NUM_HEADINGS: Final = 9
_PAGE_BYTES: Final = 512
_CELL_END, _FIELD, _FIELD_RESULT, _FIELD_END = "\x07", "\x13", "\x14", "\x15"
_SIGNS: Final = str.maketrans(
    {
        "\x01": "",  # a picture
        "\x03": "",
        "\x04": "",
        "\x05": "",  # the place of a comment
        "\x08": "",  # a drawing
        "\x0b": "\n",
        "\x0c": "\n",
        "\x0e": "\n",
        "\x1e": "\u2011",
        "\x1f": "\u00ad",
    }
)


@dataclass(frozen=True, slots=True)
class _Runs:
    """Properties by their place in the file: of `starts[i]` up to `starts[i + 1]` they are `values[i]`."""

    starts: list[int] = field(default_factory=list)
    values: list[dict[int, int]] = field(default_factory=list)

    def at(self, place: int) -> dict[int, int]:
        """The properties of a byte."""
        index = bisect_right(self.starts, place) - 1
        return self.values[index] if index >= 0 else {}


@dataclass(frozen=True, slots=True)
class _Piece:
    """Text of a document: its first character, its place in the file, and whether a character has one byte."""

    first: int
    offset: int
    text: str
    is_narrow: bool


@dataclass(slots=True)
class _Text:
    """One paragraph as it is stored.

    Attributes:
        text: without its end.
        end: the character that ends it.
        properties: of the paragraph.
    """

    text: str
    end: str
    properties: dict[int, int]


def read(path: Path) -> Document:
    """A section a heading; tables as Markdown, footnotes and endnotes at the end, then the text boxes.

    Headers, footers, comments, deleted and hidden passages are left out, which warnings say.

    Raises:
        DataError: the file is no such document, damaged, of Word before 97, or protected by a password.
    """
    root = read_compound_file(path)
    try:
        return _Reader(root).document()
    except (struct.error, IndexError, ValueError) as error:
        raise DataError(
            f"it is damaged: {error}", expected="a whole Word document", do="open it in Word and save it as .docx"
        ) from error


class _Reader:
    def __init__(self, root: Storage) -> None:
        self._main = root.read("WordDocument") or b""
        magic, version = struct.unpack_from("<HH", self._main) if len(self._main) >= _PAGE_BYTES else (0, 0)
        if magic != _MAGIC or version < _WORD_97:
            raise DataError(
                "it is of Word 95 or older" if version else "it holds no Word document",
                expected="a document of Word 97 to 2003",
                do="open it in a word processor and save it as .docx",
            )
        (flags,) = struct.unpack_from("<H", self._main, 10)
        if flags & _ENCRYPTED:
            raise DataError(
                "it is protected by a password", expected="a document without password", do="save it without a password"
            )
        self._table = root.read("1Table" if flags & _OTHER_TABLE else "0Table") or b""
        # Lengths of the parts in characters (2.5.4): text, footnotes, headers, macros, comments, endnotes, text boxes.
        self._lengths = struct.unpack_from("<8i", self._main, 0x4C)
        self._pieces = list(self._read_pieces())
        self._characters = self._read_runs(_CHARACTERS, is_paragraphs=False)
        self._paragraphs = self._read_runs(_PARAGRAPHS, is_paragraphs=True)
        self._num_deleted = self._num_hidden = self._num_pictures = 0
        self._has_lists = False

    def document(self) -> Document:
        """The whole, with warnings."""
        length, footnotes, headers, macros, comments, endnotes, boxes, _ = self._lengths
        starts = [0]
        for one in (length, footnotes, headers, macros, comments, endnotes):
            starts.append(starts[-1] + max(0, one))
        foot_places, end_places = self._positions(_NOTE_REFERENCES, 2), self._positions(_ENDNOTE_REFERENCES, 2)
        labels = {place: f"[{number}]" for number, place in enumerate(sorted({*foot_places, *end_places}), start=1)}
        paragraphs = list(self._blocks(0, length, labels))
        for places, texts, begin, num in (
            (foot_places, self._positions(_NOTE_TEXTS, 0), starts[1], footnotes),
            (end_places, self._positions(_ENDNOTE_TEXTS, 0), starts[5], endnotes),
        ):
            if num > 0:
                for place, (first, last) in zip(places, pairwise(texts), strict=False):
                    inside = self._blocks(begin + first, begin + last, {})
                    text = " ".join(one.text.strip() for one in inside if one.text.strip())
                    paragraphs.append(Paragraph(f"{labels[place]} {text}"))
        paragraphs += self._blocks(starts[6], starts[6] + max(0, boxes), {})
        found = (
            (self._num_deleted, "deleted passage"),
            (self._num_hidden, "hidden passage"),
            (self._num_pictures, "picture or drawing"),
        )
        warnings = [
            f"{counted(num, noun, 'pictures or drawings' if noun.startswith('picture') else '')} not read"
            for num, noun in found
            if num
        ]
        if headers > 0 and any(one.text.strip() for one in self._blocks(starts[2], starts[3], {})):
            warnings.append("headers and footers were not read")
        if self._has_lists:
            warnings.append("automatic numbers and bullets of lists were not read")
        if comments > 0:
            warnings.append("comments were not read")
        if boxes > 0:
            warnings.append("text boxes were read, at the end")
        return Document(tuple(sections_by_headings(paragraphs)), tuple(warnings))

    def _pair(self, place: int) -> bytes:
        """What a pair of offset and length in the header names."""
        offset, length = struct.unpack_from("<II", self._main, place)
        if offset + length > len(self._table):
            raise ValueError("its tables are cut short")
        return self._table[offset : offset + length]

    def _positions(self, place: int, data_bytes: int) -> list[int]:
        """The positions of a table of positions (PLC, 2.2.2): n + 1 of them and n records; without the last one
        where there are records."""
        data = self._pair(place)
        num = (len(data) - 4) // (4 + data_bytes) if len(data) >= 4 else -1
        return list(struct.unpack_from(f"<{num + (not data_bytes)}I", data)) if num >= 0 else []

    def _read_pieces(self) -> Iterator[_Piece]:
        """The table of pieces (2.9.38, 2.9.177)."""
        data, place = self._pair(_PIECES), 0
        while place < len(data) and data[place] == 1:  # properties of pieces come before it
            place += 3 + struct.unpack_from("<H", data, place + 1)[0]
        if place >= len(data) or data[place] != 2:
            raise ValueError("it has no table of pieces")
        (length,) = struct.unpack_from("<I", data, place + 1)
        num = (length - 4) // 12
        firsts = struct.unpack_from(f"<{num + 1}I", data, place + 5)
        for index, (first, last) in enumerate(pairwise(firsts)):
            (packed,) = struct.unpack_from("<I", data, place + 5 + 4 * (num + 1) + 8 * index + 2)
            is_narrow, offset = bool(packed & 0x40000000), packed & 0x3FFFFFFF
            if last < first:
                raise ValueError("its table of pieces is not in order")
            if is_narrow:
                offset //= 2
                text = self._main[offset : offset + last - first].decode("cp1252", "replace")
            else:
                # A character beyond 16 bits counts as two, which keep their places until the text is whole.
                raw = self._main[offset : offset + 2 * (last - first)]
                text = "".join(map(chr, struct.unpack(f"<{len(raw) // 2}H", raw[: len(raw) // 2 * 2])))
            yield _Piece(first, offset, text, is_narrow)

    def _read_runs(self, place: int, *, is_paragraphs: bool) -> _Runs:
        """Properties of characters or paragraphs: pages of them (2.9.32, 2.9.174), by a table of their numbers."""
        data = self._pair(place)
        num = (len(data) - 4) // 8
        found = list[tuple[int, dict[int, int]]]()
        for (number,) in struct.iter_unpack("<I", data[4 * (num + 1) : 4 * (num + 1) + 4 * num]):
            page = self._main[(number & 0x3FFFFF) * _PAGE_BYTES :][:_PAGE_BYTES]
            if len(page) == _PAGE_BYTES:
                found += _runs_of(page, is_paragraphs)
        found.sort(key=lambda one: one[0])
        return _Runs([start for start, _ in found], [values for _, values in found])

    def _characters_of(self, first: int, last: int) -> Iterator[tuple[str, int]]:
        """The characters of a part with their places in the file."""
        for piece in self._pieces:
            begin, end = max(first - piece.first, 0), min(last - piece.first, len(piece.text))
            width = 1 if piece.is_narrow else 2
            for index in range(begin, end):
                yield piece.text[index], piece.offset + width * index

    def _stored(self, first: int, last: int, labels: dict[int, str]) -> Iterator[_Text]:
        """The paragraphs of a part, without what is deleted or hidden, and of fields their results."""
        out: list[str] = []
        depth = hidden_depth = 0
        was = 0
        place = 0
        for position, (sign, place) in enumerate(self._characters_of(first, last), start=first):
            values = self._characters.at(place)
            what = _DELETED if values.get(_DELETED) else _HIDDEN if values.get(_HIDDEN) else 0
            if what and what != was:
                self._num_deleted += what == _DELETED
                self._num_hidden += what == _HIDDEN and sign not in (_FIELD, _FIELD_END)
            was = what
            if sign == _FIELD:  # its instruction is not text, and may have fields inside
                depth += 1
                hidden_depth = hidden_depth or depth
            elif sign == _FIELD_RESULT:
                hidden_depth = 0 if hidden_depth == depth else hidden_depth
            elif sign == _FIELD_END:
                hidden_depth = 0 if hidden_depth == depth else hidden_depth
                depth = max(0, depth - 1)
            elif sign in ("\r", _CELL_END) or (sign == "\x0c" and not hidden_depth):
                # A deleted end joins two paragraphs.
                if what != _DELETED or sign == _CELL_END:
                    yield _Text("".join(out), sign, self._paragraphs.at(place))
                    out = []
            elif not what and not hidden_depth:
                if sign == "\x02":
                    out.append(labels.get(position, ""))
                else:
                    self._num_pictures += sign in "\x01\x08"
                    out.append(sign)
        if out:
            yield _Text("".join(out), "\r", self._paragraphs.at(place))

    def _blocks(self, first: int, last: int, labels: dict[int, str]) -> Iterator[Paragraph]:
        rows: list[list[str]] = []
        cells: list[str] = []
        cell: list[str] = []
        for one in self._stored(first, last, labels):
            text = _whole(one.text.translate(_SIGNS)).strip("\n")
            if one.end == _CELL_END and one.properties.get(_ROW_END):
                rows.append(cells)
                cells = []
            elif one.end == _CELL_END:
                cells.append(" ".join([*cell, text]).strip())
                cell = []
            elif one.properties.get(_IN_TABLE) and one.end == "\r":
                cell.append(text)
            else:
                self._has_lists |= bool(one.properties.get(_LIST) and text)
                yield from _table(rows, cells, cell)
                rows, cells, cell = [], [], []
                yield Paragraph(text, _level(one.properties))
        yield from _table(rows, cells, cell)


def _table(rows: list[list[str]], cells: list[str], cell: list[str]) -> Iterator[Paragraph]:
    left = [*cells, *([" ".join(cell)] if cell else [])]
    if rows or left:
        yield Paragraph(markdown_table([*rows, *([left] if left else [])]))


def _whole(text: str) -> str:
    """Halves of characters beyond 16 bits joined."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def _level(properties: dict[int, int]) -> int:
    """Of a heading: the styles 1 to 9 are the built-in ones (2.9.271), and others may have a level of the outline."""
    if 1 <= properties.get(_STYLE, 0) <= _NUM_HEADINGS:
        return properties[_STYLE]
    outline = properties.get(_OUTLINE, _NUM_HEADINGS)
    return outline + 1 if outline < _NUM_HEADINGS else 0


def _runs_of(page: bytes, is_paragraphs: bool) -> Iterator[tuple[int, dict[int, int]]]:
    num = page[-1]
    places = struct.unpack_from(f"<{num + 1}I", page)
    width = 13 if is_paragraphs else 1
    for index in range(num):
        begin = 2 * page[4 * (num + 1) + width * index]
        values: dict[int, int] = {}
        if begin and is_paragraphs:
            # A length in words, of which the first byte is one; 0 means that the next byte has it (2.9.175).
            size, begin = (2 * page[begin] - 1, begin + 1) if page[begin] else (2 * page[begin + 1], begin + 2)
            values[_STYLE] = struct.unpack_from("<H", page, begin)[0]
            values |= _modifiers(page[begin + 2 : begin + size])
        elif begin:
            values = _modifiers(page[begin + 1 : begin + 1 + page[begin]])
        yield places[index], values


def _modifiers(data: bytes) -> dict[int, int]:
    """Modifiers with values of one or two bytes (2.2.5); all others are stepped over."""
    found, place = dict[int, int](), 0
    while place + 2 <= len(data):
        (modifier,) = struct.unpack_from("<H", data, place)
        place += 2
        size: int = (1, 1, 2, 4, 2, 2, 0, 3)[modifier >> 13]
        if size == 0:
            if place >= len(data):
                break
            if modifier == _TABLE_DEFINITION:
                size = struct.unpack_from("<H", data, place)[0] + 1 if place + 2 <= len(data) else len(data)
            elif modifier == _TABS and data[place] == 255:
                break  # of a size that follows from its content
            else:
                size = data[place] + 1
        elif size <= 2 and place + size <= len(data):
            found[modifier] = int.from_bytes(data[place : place + size], "little")
        place += size
    return found
