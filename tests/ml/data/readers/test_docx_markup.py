"""Text of Word documents that mammoth alone passes over, notes, and tables with cells over several rows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from luthier.ml.data.readers import office
from luthier.ml.data.readers.document import Document

Make = Callable[..., Path]
W = "http://schemas.openxmlformats.org/wordprocessingml/2006/main"
MC = "http://schemas.openxmlformats.org/markup-compatibility/2006"
WPS = "http://schemas.microsoft.com/office/word/2010/wordprocessingShape"
CHART = "http://schemas.openxmlformats.org/drawingml/2006/chart"


@pytest.fixture
def read(make_docx: Make) -> Callable[..., Document]:
    """Read a document with this body, and with these further parts."""

    def read(body: str, **parts: str) -> Document:
        spaces = f'xmlns:w="{W}" xmlns:mc="{MC}" xmlns:wps="{WPS}" xmlns:c="{CHART}"'
        whole = {"document": f"<w:document {spaces}><w:body>{body}</w:body></w:document>"}
        whole |= {name: f"<w:{name} {spaces}>{inside}</w:{name}>" for name, inside in parts.items()}
        return office.read_docx(make_docx([], {f"word/{name}.xml": text for name, text in whole.items()}))

    return read


def run(text: str) -> str:
    return f'<w:r><w:t xml:space="preserve">{text}</w:t></w:r>'


def paragraph(inside: str) -> str:
    return f"<w:p>{inside}</w:p>"


def text_of(found: Document) -> str:
    return "\n\n".join(section.text for section in found.sections)


@pytest.mark.parametrize(
    ("inside", "text"),
    [
        (f'<w:fldSimple w:instr=" MERGEFIELD Name ">{run("Anna")}</w:fldSimple>', "Anna"),
        (f'<w:dir w:val="rtl">{run("שלום")}</w:dir>', "שלום"),
        (f'<w:bdo w:val="rtl">{run("שלום")}</w:bdo>', "שלום"),
        (f"<w:r><w:ruby><w:rt>{run('かんじ')}</w:rt><w:rubyBase>{run('漢字')}</w:rubyBase></w:ruby></w:r>", "漢字"),
    ],
)
def test_text_inside_of_other_elements_is_read(read: Callable[..., Document], inside: str, text: str) -> None:
    found = read(paragraph(run("Dear ") + inside + run(", hello.")))
    assert text_of(found) == f"Dear {text}, hello."


def box(text: str) -> str:
    return f"<w:txbxContent>{paragraph(run(text))}</w:txbxContent>"


NEW_BOX = f"<w:drawing><wps:wsp><wps:txbx>{box('In a box.')}</wps:txbx></wps:wsp></w:drawing>"


@pytest.mark.parametrize(
    "inside",
    [
        NEW_BOX,
        f'<mc:AlternateContent><mc:Choice Requires="wps">{NEW_BOX}</mc:Choice></mc:AlternateContent>',
        f'<mc:AlternateContent><mc:Choice Requires="wps">{NEW_BOX}</mc:Choice>'
        f"<mc:Fallback><w:pict/></mc:Fallback></mc:AlternateContent>",
        f'<mc:AlternateContent><mc:Choice Requires="wps">{NEW_BOX}</mc:Choice>'
        f"<mc:Fallback><w:pict>{box('In a box.')}</w:pict></mc:Fallback></mc:AlternateContent>",
    ],
)
def test_a_text_box_is_read_once_with_or_without_its_older_form(read: Callable[..., Document], inside: str) -> None:
    found = read(paragraph(f"{run('Before.')}<w:r>{inside}</w:r>") + paragraph(run("After.")))
    assert text_of(found).split("\n\n") == ["Before.", "In a box.", "After."]


def test_notes_have_plain_numbers(read: Callable[..., Document]) -> None:
    note = f'<w:footnote w:id="2">{paragraph(run("See Bach."))}</w:footnote>'
    found = read(paragraph(f'{run("A fugue")}<w:r><w:footnoteReference w:id="2"/></w:r>{run(".")}'), footnotes=note)
    assert text_of(found).split() == ["A", "fugue[1].", "1.", "See", "Bach."]


def test_a_cell_over_several_rows_is_in_each_of_them(read: Callable[..., Document]) -> None:
    """Else the cells behind it would be under the heading of another column."""

    def cell(text: str, merge: str = "") -> str:
        return f"<w:tc><w:tcPr>{merge}</w:tcPr>{paragraph(run(text))}</w:tc>"

    begins, goes_on = '<w:vMerge w:val="restart"/>', "<w:vMerge/>"
    rows = [
        cell("Kind") + cell("Item") + cell("Price"),
        cell("Wood", begins) + cell("Oak|Ash") + cell("7"),
        cell("", goes_on) + cell("Elm") + cell("9"),
    ]
    found = read("<w:tbl>" + "".join(f"<w:tr>{row}</w:tr>" for row in rows) + "</w:tbl>" + paragraph(run("End.")))
    lines = [" ".join(line.split()) for line in text_of(found).splitlines()]
    assert "| Wood | Oak\\|Ash | 7 |" in lines
    assert "| Wood | Elm | 9 |" in lines


def test_what_is_not_read_is_counted(read: Callable[..., Document]) -> None:
    chart = "<w:r><w:drawing><c:chart/></w:drawing></w:r>"
    comments = "".join(f'<w:comment w:id="{n}">{paragraph(run("why?"))}</w:comment>' for n in range(2))
    found = read(paragraph(run("Text.") + chart), comments=comments)
    assert (text_of(found), found.warnings) == ("Text.", ("1 chart not read", "2 comments not read"))


def test_headers_and_footers_are_named_once_and_page_numbers_are_not(make_docx: Make) -> None:
    spaces = f'xmlns:w="{W}" xmlns:mc="{MC}" xmlns:wps="{WPS}"'
    pages = [
        f"<w:hdr {spaces}>{paragraph(run('Acme Ltd') + '<w:r><w:tab/></w:r>' + run('Confidential'))}</w:hdr>",
        f"<w:hdr {spaces}>{paragraph(run('Acme Ltd') + '<w:r><w:tab/></w:r>' + run('Confidential'))}</w:hdr>",
        f"<w:hdr {spaces}>{paragraph(run('Draft') + f'<w:r>{NEW_BOX}</w:r>')}</w:hdr>",
    ]
    parts = {f"word/header{number}.xml": text for number, text in enumerate(pages, start=1)}
    parts["word/footer1.xml"] = f"<w:ftr {spaces}>{paragraph(run('- 7 -'))}</w:ftr>"
    found = office.read_docx(make_docx([("", "Text.")], parts))
    assert text_of(found) == "Text."
    said = "3 lines of headers and footers not read: 'Acme Ltd Confidential', 'Draft', 'In a box.'"
    assert found.warnings == (said,)
    only_numbers = {name: text for name, text in parts.items() if "footer" in name}
    assert office.read_docx(make_docx([("", "Text.")], only_numbers)).warnings == ()
