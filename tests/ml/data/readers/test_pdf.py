from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from luthier.core.errors import DataError
from luthier.ml.data.readers import pdf
from luthier.ml.data.readers.document import Section

Make = Callable[..., Path]


def test_each_page_with_its_lines_joined(make_pdf: Make) -> None:
    lines = [
        "This is a long line that is wrapped at the end of the",
        "page and goes on. A new sentence follows it here, and",
        "ends.",
        "- an item",
    ]
    found = pdf.read(make_pdf([lines, ["Page two."]]))
    assert found.sections == (Section(" ".join(lines[:3]) + "\n- an item", 1), Section("Page two.", 2))
    assert found.warnings == ()


def test_a_scan_is_named(make_pdf: Make) -> None:
    with pytest.raises(DataError, match=r"12 pages, no text: scanned[\s\S]*ocrmypdf"):
        pdf.read(make_pdf([[]] * 12))


def test_pages_without_text_are_counted(make_pdf: Make) -> None:
    found = pdf.read(make_pdf([["Text."], [], []]))
    assert found.warnings == ("2 of 3 pages have no text (2, 3): scanned?",)


def test_a_password(make_pdf: Make) -> None:
    with pytest.raises(DataError, match="protected by a password"):
        pdf.read(make_pdf([["Secret."]], password="pw"))


@pytest.mark.parametrize("content", [b"%PDF-1.4\nnothing of the kind", b"%PDF-1.7\n" + b"\xff" * 5000])
def test_a_broken_one(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.pdf"
    path.write_bytes(content)
    with pytest.raises(DataError, match="broken PDF"):
        pdf.read(path)


def test_a_hyphen_that_belongs_to_the_word_stays_where_the_line_ends() -> None:
    """As PDFium gives divided words, with a mark in place of their hyphen."""
    pages = [
        ["In Baden\x02Württemberg the long\x02term plan is a good exam\x02ple."],
        ["", "A long-term plan, COVID\x0219 and DONAU\x02DAMPF, \x02 and not\x02"],
    ]
    assert pdf.with_whole_words(pages) == [
        ["In Baden-Württemberg the long-term plan is a good example."],
        ["", "A long-term plan, COVID-19 and DONAUDAMPF,  and not"],
    ]


def test_lines_that_end_in_a_hyphen_are_put_together(make_pdf: Make) -> None:
    lines = ["Anna lives in Baden-", "Berg and has a very nice exam-", "ple of a long word there."]
    text = pdf.read(make_pdf([lines])).sections[0].text
    assert text == "Anna lives in Baden-Berg and has a very nice example of a long word there."


def test_what_was_typed_into_a_form_is_read(make_pdf: Make) -> None:
    from pypdf import PdfWriter
    from pypdf.generic import (
        ArrayObject,
        DecodedStreamObject,
        DictionaryObject,
        NameObject,
        NumberObject,
        TextStringObject,
    )

    path = make_pdf([["Name of the applicant:"], ["Second page."]])
    writer = PdfWriter(clone_from=path)
    page = writer.pages[0]
    shown = DecodedStreamObject()
    shown.set_data(b"/Tx BMC BT /F1 12 Tf 2 5 Td (Anna Miller) Tj ET EMC")
    shown[NameObject("/Type")], shown[NameObject("/Subtype")] = NameObject("/XObject"), NameObject("/Form")
    shown[NameObject("/BBox")] = ArrayObject(map(NumberObject, (0, 0, 200, 20)))
    shown[NameObject("/Resources")] = page["/Resources"]
    field = DictionaryObject(
        {
            NameObject("/Type"): NameObject("/Annot"),
            NameObject("/Subtype"): NameObject("/Widget"),
            NameObject("/FT"): NameObject("/Tx"),
            NameObject("/T"): TextStringObject("name"),
            NameObject("/V"): TextStringObject("Anna Miller"),
            NameObject("/F"): NumberObject(4),
            NameObject("/Rect"): ArrayObject(map(NumberObject, (72, 600, 272, 620))),
            NameObject("/AP"): DictionaryObject({NameObject("/N"): writer._add_object(shown)}),
        }
    )
    page[NameObject("/Annots")] = ArrayObject([writer._add_object(field)])
    with path.open("wb") as file:
        writer.write(file)
    texts = [section.text for section in pdf.read(path).sections]
    assert texts == ["Name of the applicant: Anna Miller", "Second page."]
