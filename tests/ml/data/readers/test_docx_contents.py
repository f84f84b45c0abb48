"""Tables of contents of Word documents, by style, by block and by field, are left out and named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from luthier.ml.data.readers import office

Make = Callable[..., Path]

W = "http://schemas.openxmlformats.org/wordprocessingml/2006/main"
TEXT = [("Heading1", "Wood"), ("", "Spruce is light."), ("Heading1", "Varnish"), ("", "It shines.")]


def _document(body: str) -> dict[str, str]:
    return {"word/document.xml": f'<?xml version="1.0"?><w:document xmlns:w="{W}"><w:body>{body}</w:body></w:document>'}


def _paragraph(text: str, style: str = "") -> str:
    named = f'<w:pPr><w:pStyle w:val="{style}"/></w:pPr>' if style else ""
    return f"<w:p>{named}<w:r><w:t>{text}</w:t></w:r></w:p>"


BLOCK = (
    '<w:sdt><w:sdtPr><w:docPartObj><w:docPartGallery w:val="Table of Contents"/></w:docPartObj></w:sdtPr><w:sdtContent>'
    + "".join(_paragraph(text) for text in ("What is inside", "Wood 3", "Varnish 7"))
    + "</w:sdtContent></w:sdt>"
)
FIELD = (
    '<w:p><w:r><w:fldChar w:fldCharType="begin"/></w:r><w:r><w:instrText> TOC \\o "1-3" </w:instrText></w:r>'
    '<w:r><w:fldChar w:fldCharType="separate"/></w:r><w:r><w:t>What is inside</w:t></w:r></w:p>'
    '<w:p><w:r><w:t>Wood</w:t><w:tab/></w:r><w:r><w:fldChar w:fldCharType="begin"/></w:r>'
    "<w:r><w:instrText> PAGEREF _Toc1 </w:instrText></w:r>"
    '<w:r><w:fldChar w:fldCharType="separate"/></w:r><w:r><w:t>3</w:t></w:r>'
    '<w:r><w:fldChar w:fldCharType="end"/></w:r></w:p>'
    "<w:p><w:r><w:t>Varnish 7</w:t></w:r></w:p>"
    '<w:p><w:r><w:fldChar w:fldCharType="end"/></w:r></w:p>'
)
STYLED = "".join(
    _paragraph(text, style)
    for text, style in (("What is inside", "TOCHeading"), ("Wood 3", "TOC1"), ("Varnish 7", "TOC2"))
)


@pytest.mark.parametrize("contents", [BLOCK, FIELD, STYLED])
def test_it_is_left_out_and_named(make_docx: Make, contents: str) -> None:
    body = contents + "".join(_paragraph(text, style) for style, text in TEXT)
    found = office.read_docx(make_docx([], _document(body)))
    assert [(one.headings, one.text) for one in found.sections] == [
        (("Wood",), "Spruce is light."),
        (("Varnish",), "It shines."),
    ]
    assert found.warnings == ("a table of contents was left out: 3 lines, from 'What is inside' to 'Varnish 7'",)


def test_styles_go_by_their_names_whatever_the_language(make_docx: Make) -> None:
    styles = (
        f'<w:styles xmlns:w="{W}"><w:style w:type="paragraph" w:styleId="Verzeichnis1">'
        '<w:name w:val="toc 1"/></w:style>'
        '<w:style w:type="paragraph" w:styleId="Heading1"><w:name w:val="heading 1"/></w:style></w:styles>'
    )
    body = _paragraph("Holz 3", "Verzeichnis1") + "".join(_paragraph(text, style) for style, text in TEXT)
    found = office.read_docx(make_docx([], {**_document(body), "word/styles.xml": styles}))
    assert [one.text for one in found.sections] == ["Spruce is light.", "It shines."]
    assert found.warnings[0].startswith("a table of contents was left out: 1 lines")


def test_documents_without_one_are_read_as_they_are(make_docx: Make) -> None:
    found = office.read_docx(make_docx(TEXT))
    assert (len(found.sections), found.warnings) == (2, ())


def test_a_field_that_never_ends_takes_nothing_with_it(make_docx: Make) -> None:
    open_field = FIELD.removesuffix('<w:p><w:r><w:fldChar w:fldCharType="end"/></w:r></w:p>')
    body = open_field + "".join(_paragraph(text, style) for style, text in TEXT)
    found = office.read_docx(make_docx([], _document(body)))
    assert [one.text for one in found.sections][-2:] == ["Spruce is light.", "It shines."]


def test_tracked_changes_are_read_as_accepted_and_named(make_docx: Make) -> None:
    body = (
        "<w:p><w:r><w:t>The fee is </w:t></w:r>"
        '<w:del w:id="1" w:author="A"><w:r><w:delText>100</w:delText></w:r></w:del>'
        '<w:ins w:id="2" w:author="A"><w:r><w:t>200</w:t></w:r></w:ins><w:r><w:t> euros.</w:t></w:r></w:p>'
        # The mark of a paragraph alone has no text.
        '<w:p><w:pPr><w:rPr><w:ins w:id="3" w:author="A"/></w:rPr></w:pPr><w:r><w:t>It is due.</w:t></w:r></w:p>'
    )
    found = office.read_docx(make_docx([], _document(body)))
    assert [one.text for one in found.sections] == ["The fee is 200 euros.\n\nIt is due."]
    assert found.warnings == ("tracked changes were read as accepted: 1 insertion, 1 deletion",)
