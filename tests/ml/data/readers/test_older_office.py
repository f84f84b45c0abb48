"""Documents that are no OOXML, as LibreOffice saves them: Word 97, RTF and OpenDocument, in `fixtures/documents`."""

from __future__ import annotations

import shutil
import struct
import zipfile
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.core.errors import DataError
from luthier.ml.data.readers import doc, opendocument, rtf, xlsx
from luthier.ml.data.readers.document import READERS, Document, check_signature, load_reader

SAMPLES = Path(__file__).parents[3] / "fixtures" / "documents"
TERMS = (
    "The seller delivers within ten days \u2013 \u201cwithout delay\u201d \u2013 for 40 \u20ac. "
    "Größe, škoda, \U0001f600."
)
TABLE = "| Item | Price |\n| --- | --- |\n| Chair | 120 \u20ac |\n| Table | 340 \u20ac |"


def _read(name: str) -> Document:
    path = SAMPLES / name
    check_signature(path)
    return load_reader(READERS[path.suffix])(path)


def _parts(document: Document) -> list[tuple[tuple[str, ...], str]]:
    return [(section.headings, section.text) for section in document.sections]


def test_a_word_document_has_its_headings_and_tables() -> None:
    document = _read("contract.doc")
    assert _parts(document) == [
        (("Terms of delivery",), f"{TERMS}\n\nKept before and kept after.\n\nOne word is left out."),
        (("Terms of delivery", "Prices"), f"{TABLE}\n\nPrices hold for a year."),
        (("Payment",), "by invoice\n\nin advance\n\nLast line."),
    ]
    assert document.warnings == (
        "1 deleted passage not read",
        "1 hidden passage not read",
        "headers and footers were not read",
        "automatic numbers and bullets of lists were not read",
    )


def test_an_open_document_has_its_headings_lists_and_tables() -> None:
    document = _read("contract.odt")
    assert _parts(document) == [
        (("Terms of delivery",), f"{TERMS}\n\nKept before hidden wordsand kept after.\n\nOne word is left out."),
        (("Terms of delivery", "Prices"), f"{TABLE}\n\nPrices hold for a year."),
        (("Payment",), "- by invoice\n- in advance\n\nLast line."),
    ]
    assert document.warnings == ("1 deleted passage not read", "1 header or footer not read")


def test_rich_text_is_one_section() -> None:
    document = _read("contract.rtf")
    ((headings, text),) = _parts(document)
    assert headings == ()
    lines = text.split("\n")
    assert lines[:2] == ["Terms of delivery", TERMS]
    assert "One word is left out." in lines
    assert lines[lines.index("Item|Price") :][:3] == ["Item|Price", "Chair|120 \u20ac", "Table|340 \u20ac"]
    assert lines[-3:] == ["- by invoice", "- in advance", "Last line."]
    assert document.warnings == ("1 deleted passage not read", "1 hidden passage read with the rest")


def test_slides_have_numbers_notes_and_tables() -> None:
    document = _read("slides.odp")
    assert [(one.page, one.headings, one.text) for one in document.sections] == [
        (1, ("Returns",), "- Within 30 days\n- With the receipt"),
        (1, ("Returns", "Notes"), "Say that shipping is free."),
        (2, ("Prices",), "| Item | Price |\n| --- | --- |\n| Chair | 120 |"),
    ]
    assert document.warnings == ("hidden slides were read: 2",)


@pytest.mark.parametrize("name", ["answers.xls", "answers.ods"])
def test_a_workbook_as_a_document(name: str) -> None:
    document = _read(name)
    answers, lists = _parts(document)
    assert answers[0] == ("Answers",)
    assert answers[1].split("\n") == [
        "| question | answer | share | price | day | open |",
        "| --- | --- | --- | --- | --- | --- |",
        "| Where is my order? | It is on its way. | 25.0% | 1,234.50 \u20ac | 2026-03-01 | TRUE |",
        "| Can I return it? | Yes, within 30 days. | 12.5% | 7.00 \u20ac | 2026-03-01 14:30:00 | FALSE |",
        "| Größe \\| 42 zweite Zeile | Ja, 42. | 100.0% | 12.00 \u20ac |",
        "| Broken? | #DIV/0! |",
    ]
    assert lists == (("Lists",), "| x | y |\n| --- | --- |\n| 1 | 2 |")
    assert document.warnings == (
        "the sheet 'Answers' has 1 hidden row, read with the rest",
        "the sheet 'Lists' is hidden, and was read",
    )


@pytest.mark.parametrize("name", ["merged.xls", "merged.ods"])
def test_a_merged_value_is_in_each_of_its_rows(name: str) -> None:
    assert _parts(_read(name)) == [(("Plan",), "| room | guest |\n| --- | --- |\n| Red | Ann |\n| Red | Bob |")]


def _open_document(path: Path, body: str, kind: str = "text", **parts: str) -> Path:
    """An OpenDocument file with a body."""
    names = "".join(
        f' xmlns:{short}="urn:oasis:names:tc:opendocument:xmlns:{name}:1.0"'
        for short, name in (
            *(("office", "office"), ("text", "text"), ("table", "table"), ("draw", "drawing"), ("style", "style")),
            *(("svg", "svg-compatible"), ("presentation", "presentation")),
        )
    )
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("mimetype", f"application/vnd.oasis.opendocument.{kind}")
        tag = "text" if kind == "text" else kind
        inside = f"<office:body><office:{tag}>{body}</office:{tag}></office:body>"
        archive.writestr("content.xml", f"<office:document-content{names}>{inside}</office:document-content>")
        archive.writestr("styles.xml", f"<office:document-styles{names}></office:document-styles>")
        for name, text in parts.items():
            archive.writestr(name, text)
    return path


def test_notes_of_an_open_document_are_at_its_end_and_comments_are_counted(tmp_path: Path) -> None:
    note = (
        "<text:note><text:note-citation>1</text:note-citation><text:note-body><text:p>Art. 5</text:p></text:note-body>"
        "</text:note>"
    )
    body = (
        f"<text:p>The court{note} found<office:annotation><text:p>sure?</text:p></office:annotation>"
        " a<text:s text:c='2'/>b"
        "<text:tab/>c<text:line-break/>d <text:span>in <text:a>parts</text:a></text:span>.</text:p>"
        "<text:table-of-content><text:index-body><text:p>Contents</text:p></text:index-body></text:table-of-content>"
        "<draw:frame><draw:image/><svg:desc>A seal</svg:desc></draw:frame>"
        "<draw:frame><draw:text-box><text:p>Boxed</text:p></draw:text-box></draw:frame>"
    )
    document = opendocument.read_odt(_open_document(tmp_path / "a.odt", body))
    assert [one.text for one in document.sections] == [
        "The court[1] found a  b\tc\nd in parts.\n\nA seal\n\nBoxed\n\n[1] Art. 5"
    ]
    assert document.warnings == (
        "1 comment not read",
        "1 pictures: only their alternative texts were read",
        "1 index not read",
    )


def test_entities_of_an_open_document_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.odt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("mimetype", "application/vnd.oasis.opendocument.text")
        archive.writestr("content.xml", '<!DOCTYPE x [<!ENTITY a "aaaa">]><x>&a;</x>')
    with pytest.raises(DataError):
        check_signature(path)


@pytest.mark.parametrize("name", ["a.odt", "a.ods", "a.odp"])
def test_an_open_document_with_a_password_is_refused(tmp_path: Path, name: str) -> None:
    kind = {"a.odt": "text", "a.ods": "spreadsheet", "a.odp": "presentation"}[name]
    manifest = {"META-INF/manifest.xml": "<manifest:encryption-data/>"}
    path = _open_document(tmp_path / name, "", kind, **manifest)
    check_signature(path)
    with pytest.raises(DataError, match="protected by a password"):
        load_reader(READERS[path.suffix])(path)


@pytest.mark.parametrize(
    ("sample", "name", "reason"),
    [
        ("contract.odt", "a.ods", r"named \.ods but holds OpenDocument of another kind \(text\)"),
        ("contract.odt", "a.docx", r"named \.docx but holds OpenDocument"),
        ("contract.rtf", "a.doc", r"named \.doc but holds RTF"),
        ("contract.doc", "a.docx", "an old Office document"),
        ("contract.doc", "a.rtf", "an old Office document"),
        ("slides.odp", "a.xls", "ZIP archive"),
    ],
)
def test_a_document_with_the_name_of_another(tmp_path: Path, sample: str, name: str, reason: str) -> None:
    path = Path(shutil.copyfile(SAMPLES / sample, tmp_path / name))
    with pytest.raises(DataError, match=reason):
        check_signature(path)


def test_repeated_rows_of_an_open_document_do_not_fill_the_memory(tmp_path: Path) -> None:
    cell = '<table:table-cell table:number-columns-repeated="16000"><text:p>x</text:p></table:table-cell>'
    row = f'<table:table-row table:number-rows-repeated="1000000">{cell}</table:table-row>'
    path = _open_document(tmp_path / "a.ods", f'<table:table table:name="A">{row}</table:table>', "spreadsheet")
    with pytest.raises(DataError, match="more than 50,000,000 cells"):
        xlsx.read_ods(path)


def test_an_older_word_document_and_one_with_a_password_say_what_to_do(tmp_path: Path) -> None:
    data = (SAMPLES / "contract.doc").read_bytes()
    start = data.index(struct.pack("<H", 0xA5EC))
    old, locked = bytearray(data), bytearray(data)
    old[start + 2 : start + 4] = struct.pack("<H", 0x68)
    locked[start + 11] |= 1
    for number, (changed, reason) in enumerate(((old, "Word 95 or older"), (locked, "protected by a password"))):
        (tmp_path / f"{number}.doc").write_bytes(changed)
        with pytest.raises(DataError, match=reason) as caught:
            doc.read(tmp_path / f"{number}.doc")
        assert "save it" in caught.value.do


def test_characters_of_rich_text_in_other_code_pages(tmp_path: Path) -> None:
    path = tmp_path / "a.rtf"
    path.write_bytes(rb"{\rtf1\ansi\ansicpg1250 \'8aachta, \u-10179?\u-8704? and\~\'9e}")
    assert [one.text for one in rtf.read(path).sections] == ["Šachta, \U0001f600 and\xa0ž"]
    path.write_bytes(rb"{\rtf1 }")
    assert rtf.read(path).sections == ()


@settings(max_examples=60)
@given(st.data())
@pytest.mark.parametrize("name", ["contract.doc", "answers.xls"])
def test_a_damaged_file_is_an_error_that_says_so_or_is_read(
    tmp_path_factory: pytest.TempPathFactory, name: str, data: st.DataObject
) -> None:
    content = bytearray((SAMPLES / name).read_bytes())
    for place in data.draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=6)):
        content[place] = data.draw(st.integers(0, 255))
    end = data.draw(st.integers(len(content) // 4, len(content)))
    path = tmp_path_factory.getbasetemp() / f"damaged{Path(name).suffix}"
    path.write_bytes(content[:end])
    with suppress(DataError):  # and nothing else
        assert isinstance(load_reader(READERS[path.suffix])(path), Document)
