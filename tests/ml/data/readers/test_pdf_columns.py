"""The order in which the text of a PDF page is read: by columns, whatever order they were drawn in; tables by rows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from pypdf import PdfWriter
from pypdf.generic import DecodedStreamObject, DictionaryObject, NameObject

from luthier.ml.data.readers import pdf

Drawn = tuple[float, float, str]
"""A piece of text with its place, in points from the lower left corner."""

LEFT = [
    "The workshop in the old mill repairs violins",
    "and cellos that come from all over the land.",
    "Most of them need a new bridge, and many of",
    "them have cracks that take weeks of patient",
    "work before they sound again as they did on",
    "the day when they were made, which may have",
    "been in another country and a long time ago.",
]
RIGHT = [
    "A good varnish is thin, and it lets the wood",
    "move with the seasons. It is made of resins",
    "which are boiled in oil, filtered, and mixed",
    "with colours that come from roots and barks",
    "and from the wings of small insects. No two",
    "makers have the same recipe for it, and few",
    "of them would tell you theirs if you asked.",
]


def pdf_of(path: Path, drawn: Sequence[Drawn], to_unicode: str = "") -> Path:
    """A page with these pieces of text, drawn in this order in Helvetica of 10 points."""
    writer = PdfWriter()
    page = writer.add_blank_page(612, 792)
    font = DictionaryObject(
        {
            NameObject("/Type"): NameObject("/Font"),
            NameObject("/Subtype"): NameObject("/Type1"),
            NameObject("/BaseFont"): NameObject("/Helvetica"),
            NameObject("/Encoding"): NameObject("/WinAnsiEncoding"),
        }
    )
    if to_unicode:
        font[NameObject("/ToUnicode")] = writer._add_object(_stream(to_unicode))
    fonts = DictionaryObject({NameObject("/F1"): writer._add_object(font)})
    page[NameObject("/Resources")] = DictionaryObject({NameObject("/Font"): fonts})
    shown = "\n".join(f"BT /F1 10 Tf 1 0 0 1 {left} {bottom} Tm ({text}) Tj ET" for left, bottom, text in drawn)
    page[NameObject("/Contents")] = writer._add_object(_stream(shown))
    with path.open("wb") as file:
        writer.write(file)
    return path


def _stream(text: str) -> DecodedStreamObject:
    made = DecodedStreamObject()
    made.set_data(text.encode("latin-1"))
    return made


def text_of(path: Path) -> str:
    return " ".join(" ".join(section.text for section in pdf.read(path).sections).split())


def column(lines: Sequence[str], left: float, top: float = 700) -> list[Drawn]:
    return [(left, top - 14 * number, line) for number, line in enumerate(lines)]


def line_by_line(*columns: Sequence[Drawn]) -> list[Drawn]:
    return [piece for row in zip(*columns, strict=True) for piece in row]


WHOLE = " ".join([*LEFT, *RIGHT])


@pytest.mark.parametrize("is_line_by_line", [False, True])
def test_two_columns_are_read_one_after_the_other_in_whatever_order_they_were_drawn(
    tmp_path: Path, is_line_by_line: bool
) -> None:
    left, right = column(LEFT, 72), column(RIGHT, 310)
    drawn = line_by_line(left, right) if is_line_by_line else [*left, *right]
    assert text_of(pdf_of(tmp_path / "page.pdf", drawn)) == WHOLE


def test_lines_over_both_columns_part_them_from_top_to_bottom(tmp_path: Path) -> None:
    title = (150, 730, "On the repair of old instruments, and on the varnish that is used for it")
    note = (150, 590, "Photographs of the workshop, which was built in the year of the great flood")
    drawn = [
        title,
        *line_by_line(column(LEFT, 72), column(RIGHT, 310)),
        note,
        *line_by_line(column(LEFT, 72, 560), column(RIGHT, 310, 560)),
    ]
    wanted = f"{title[2]} {WHOLE} {note[2]} {WHOLE}"
    assert text_of(pdf_of(tmp_path / "page.pdf", drawn)) == wanted


@pytest.mark.parametrize(
    ("keys", "values"),
    [
        (["Oak", "Ash", "Elm", "Maple", "Spruce", "Pear"], ["7 euros", "9 euros", "6 euros", "12", "5", "20 euros"]),
        # As long as lines of prose; each cell begins a sentence of its own.
        ([f"The board number {n} is of spruce and is dry." for n in range(8)],
         [f"Das Brett Nummer {n} ist trockene Fichte." for n in range(8)]),
    ],
)  # fmt: skip
def test_a_table_is_read_by_rows(tmp_path: Path, keys: list[str], values: list[str]) -> None:
    drawn = line_by_line(column(keys, 72), column(values, 310))
    wanted = " ".join(f"{key} {value}" for key, value in zip(keys, values, strict=True))
    assert text_of(pdf_of(tmp_path / "page.pdf", drawn)) == wanted


THREE = [
    [
        "The workshop repairs violins and",
        "cellos that come from all over",
        "the land. Most of them need a new",
        "bridge, and many have cracks that",
        "take weeks of patient work before",
        "they sound as they did long ago.",
    ],
    [
        "A good varnish is thin, and lets",
        "the wood move with the seasons.",
        "It is made of resins which are",
        "boiled in oil, then filtered, and",
        "mixed with colours that come from",
        "roots, barks and small insects.",
    ],
    [
        "Strings were made of gut, and are",
        "made of steel today. They pull at",
        "the neck with the weight of a man",
        "so that old instruments need a",
        "longer bar inside, and a new neck",
        "where theirs was too short.",
    ],
]


@pytest.mark.parametrize("is_line_by_line", [False, True])
@pytest.mark.parametrize("has_title", [False, True])
def test_three_columns_are_read_one_after_the_other_in_whatever_order_they_were_drawn(
    tmp_path: Path, is_line_by_line: bool, has_title: bool
) -> None:
    title = [(150.0, 730.0, "On the repair of old instruments, and on the varnish that is used for it")][:has_title]
    columns = [column(lines, left) for lines, left in zip(THREE, (60, 230, 400), strict=True)]
    drawn = line_by_line(*columns) if is_line_by_line else [piece for one in columns for piece in one]
    whole = " ".join(line for lines in ([one[2] for one in title], *THREE) for line in lines)
    assert text_of(pdf_of(tmp_path / "page.pdf", [*title, *drawn])) == whole


@pytest.mark.parametrize("num_lines", [1, 3])
def test_a_table_of_three_columns_is_read_by_rows(tmp_path: Path, num_lines: int) -> None:
    """Each cell of one or of three lines, which are drawn together; lines behind the first go on in lower case."""
    rows = [[[f"{name} {n} of the list of wood", "which was bought in spring and", "dried for seven long years."]
             for name in ("Board", "Block", "Wedge")] for n in range(1, 7)]  # fmt: skip
    drawn, wanted = list[Drawn](), list[str]()
    for number, row in enumerate(rows):
        for cell, left in zip(row, (60, 230, 400), strict=True):
            drawn += column(cell[:num_lines], left, 700 - 14 * num_lines * number)
            wanted += cell[:num_lines]
    assert text_of(pdf_of(tmp_path / "page.pdf", drawn)) == " ".join(wanted)


HEBREW = "אבגדהוזחטיכלמנסעפצקרשתםןךףץ"
TO_UNICODE = (
    "/CIDInit /ProcSet findresource begin 12 dict begin begincmap\n"
    "1 begincodespacerange <00> <FF> endcodespacerange\n"
    f"{len(HEBREW)} beginbfchar\n"
    + "".join(f"<{0x41 + place:02X}> <{ord(letter):04X}>\n" for place, letter in enumerate(HEBREW))
    + "endbfchar\nendcmap CMapName currentdict /CMap defineresource pop end end"
)


def codes(text: str) -> str:
    """Hebrew as the codes of the font, from left to right as they are seen on the page."""
    seen = text[::-1]
    return "".join(chr(0x41 + HEBREW.index(letter)) if letter in HEBREW else letter for letter in seen).replace(
        "\\", "\\\\"
    )


def test_text_from_right_to_left_is_read_in_the_order_of_speech(tmp_path: Path) -> None:
    lines = ["שלום עולם", "ספר טוב"]
    path = pdf_of(tmp_path / "page.pdf", column([codes(line) for line in lines], 300), TO_UNICODE)
    assert pdf.read(path).sections[0].text.split() == ["שלום", "עולם", "ספר", "טוב"]


def test_a_single_digit_in_a_column_of_its_own_is_no_part_of_the_word_before_it(tmp_path: Path) -> None:
    rows = [("Oak board", "7.50", "12"), ("Pear", "6", "3"), ("Elm", "7", "x"), ("Lime", "8", "9")]
    drawn = [
        (left, 700.0 - 14 * number, cell)
        for number, row in enumerate(rows)
        for left, cell in zip((72.0, 310.0, 400.0), row, strict=True)
    ]
    wanted = " ".join(" ".join(row) for row in rows)
    assert text_of(pdf_of(tmp_path / "page.pdf", drawn)) == wanted
