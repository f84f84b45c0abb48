"""DOCX, PPTX, XLSX and EPUB."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import pytest
from tests.vacuous import nonempty

from luthier.core.errors import DataError
from luthier.ml.data.readers import office, xlsx
from luthier.ml.data.readers.document import Section
from luthier.ml.data.readers.markdown import tidy

Make = Callable[..., Path]


def test_docx_in_sections_by_heading(make_docx: Make) -> None:
    path = make_docx(
        [("Heading1", "Title"), ("", "First text with under_score."), ("Heading2", "Part"), ("", "Second.")]
    )
    assert office.read_docx(path).sections == (
        Section("First text with under_score.", None, ("Title",)),
        Section("Second.", None, ("Title", "Part")),
    )


def test_pptx_knows_its_slides(make_pptx: Make) -> None:
    found = office.read_pptx(make_pptx([("One", "First body", "a note"), ("Two", "Second body", "")]))
    assert found.sections == (
        Section("First body", 1, ("One",)),
        Section("a note", 1, ("One", "Notes:")),
        Section("Second body", 2, ("Two",)),
    )


def test_xlsx_keeps_whole_numbers_whole_and_empty_cells_empty(make_xlsx: Make) -> None:
    rows = [["name", "n", "day"], ["a|b", 3, datetime(2024, 5, 1)], [], [None, 2.5], ["long " * 40]]
    found = xlsx.read(make_xlsx({"Prices": rows, "Empty": []}))
    assert found.sections == (
        Section(
            "| name | n | day |\n| --- | --- | --- |\n| a\\|b | 3 | 2024-05-01 |\n|  | 2.5 |\n| "
            + ("long " * 40)
            + "|",
            None,
            ("Prices",),
        ),
    )


def test_xlsx_names_hidden_sheets(make_xlsx: Make, tmp_path: Path) -> None:
    import openpyxl

    path = make_xlsx({"Shown": [["a"]], "Secret": [["b"]]})
    book = openpyxl.load_workbook(path)
    book["Secret"].sheet_state = "hidden"
    book.save(path)
    found = xlsx.read(path)
    assert [section.headings for section in found.sections] == [("Shown",), ("Secret",)]
    assert found.warnings == ("the sheet 'Secret' is hidden, and was read",)


def test_epub_in_reading_order(make_epub: Make) -> None:
    found = office.read_epub(
        make_epub(["<h1>One</h1><p>First <a href='c1.xhtml'>chapter</a>.</p>", "<h1>Two</h1><p>Second.</p>"])
    )
    assert found.sections == (
        Section("**Title:** The Book"),
        Section("First chapter.", None, ("One",)),
        Section("Second.", None, ("Two",)),
    )


def test_pictures_are_counted_and_their_texts_kept() -> None:
    text, warnings = tidy("a ![A cat](cat.png) b [x](#y) [web](https://e.org/)\n\n\n\nc")
    assert text == "a A cat b x [web](https://e.org/)\n\nc"
    assert warnings == ("1 pictures: only their names or alternative texts were read",)


def test_xlsx_reads_all_rows_of_a_sheet_that_gives_a_wrong_size(make_xlsx: Make, tmp_path: Path) -> None:
    """Some programs write `<dimension ref="A1"/>` for any sheet; openpyxl's read-only mode stops there."""
    whole = make_xlsx({"Prices": [["Item", "Price"], ["Oak", 7], ["Ash", 9]]})
    path = tmp_path / "wrong.xlsx"
    with zipfile.ZipFile(whole) as source, zipfile.ZipFile(path, "w") as target:
        for entry in nonempty(source.namelist()):
            data = source.read(entry)
            if entry.startswith("xl/worksheets/"):
                assert b'<dimension ref="A1:B3"' in data
                data = data.replace(b'<dimension ref="A1:B3"', b'<dimension ref="A1"')
            target.writestr(entry, data)
    assert xlsx.read(path) == xlsx.read(whole)
    assert "| Ash | 9 |" in xlsx.read(path).sections[0].text


def test_xlsx_numbers_are_as_the_workbook_shows_them(make_xlsx: Make) -> None:
    import openpyxl

    path = make_xlsx({"Prices": [["rate", "price", "sum", "day", "sold"]]})
    book = openpyxl.load_workbook(path)
    formats = {"A2": (0.19, "0%"), "B2": (1234.5, "#,##0.00 €"), "C2": (0.1 + 0.2, "General"), "E2": (True, "0")}
    for place, (value, number_format) in formats.items():
        book["Prices"][place] = value
        book["Prices"][place].number_format = number_format
    book["Prices"]["D2"] = datetime(2024, 5, 1)
    book["Prices"]["D2"].number_format = "mm-dd-yy"
    book.save(path)
    assert xlsx.read(path).sections[0].text.splitlines()[-1] == "| 19% | 1,234.50 € | 0.3 | 2024-05-01 | TRUE |"


def test_xlsx_says_what_is_hidden_and_which_formulas_have_no_result(make_xlsx: Make) -> None:
    import openpyxl

    path = make_xlsx({"Prices": [["a", "b"], [1, "=A2*2"], [3, 4]], "Plain": [["c"]]})
    book = openpyxl.load_workbook(path)
    book["Prices"].row_dimensions[3].hidden = True
    book["Prices"].column_dimensions["B"].hidden = True
    book.save(path)
    found = xlsx.read(path)
    assert found.sections[0].text.splitlines()[-2:] == ["| 1 |", "| 3 | 4 |"]
    assert found.warnings == (
        "the sheet 'Prices' has 1 hidden row and 1 hidden column, read with the rest",
        "1 formula without saved result in the sheet 'Prices', read as empty cells (B2): "
        "save it in a spreadsheet program",
    )


def test_xlsx_value_of_merged_cells_is_in_each_of_their_rows(make_xlsx: Make) -> None:
    import openpyxl

    path = make_xlsx({"Prices": [["Kind", "Item"], ["Wood", "Oak"], [None, "Ash"], [None, None], [None, "Elm"]]})
    book = openpyxl.load_workbook(path)
    book["Prices"].merge_cells("A2:A4")
    book.save(path)
    assert xlsx.read(path).sections[0].text.splitlines()[2:] == ["| Wood | Oak |", "| Wood | Ash |", "|  | Elm |"]


def test_pptx_line_breaks_and_hidden_slides(make_pptx: Make) -> None:
    from pptx import Presentation

    path = make_pptx([("One\vtitle", "First\vline", ""), ("Two", "Body", "")])
    show = Presentation(str(path))
    show.slides[1]._element.set("show", "0")
    show.save(str(path))
    found = office.read_pptx(path)
    assert found.sections == (Section("First\nline", 1, ("One title",)), Section("Body", 2, ("Two",)))
    assert found.warnings == ("hidden slides were read: 2",)


@pytest.mark.parametrize(("file", "is_refused"), [("OEBPS/c0.xhtml", True), ("OEBPS/fonts/a.otf", False)])
def test_an_epub_with_encrypted_chapters_is_refused(make_epub: Make, file: str, is_refused: bool) -> None:
    spaces = 'xmlns="urn:oasis:names:tc:opendocument:xmlns:container" xmlns:enc="http://www.w3.org/2001/04/xmlenc#"'
    entry = f'<enc:CipherData><enc:CipherReference URI="{file}"/></enc:CipherData>'
    path = make_epub(["<p>Text.</p>"], {"META-INF/encryption.xml": f"<encryption {spaces}>{entry}</encryption>"})
    if is_refused:
        with pytest.raises(DataError, match=r"encrypted chapters \(DRM\): 1"):
            office.read_epub(path)
    else:
        assert office.read_epub(path).sections[-1].text.endswith("Text.")


EMPTY = rb"<v(?: ?/>|></v>)"


def edited(path: Path, part: str, before: bytes, after: bytes) -> Path:
    """A copy of an archive with what a pattern finds in one of its parts replaced."""
    target = path.with_name(f"edited-{path.name}")
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(target, "w") as copy:
        for entry in nonempty(source.namelist()):
            data = source.read(entry)
            if entry == part:
                data, num = re.subn(before, after, data)
                assert num == 1
            copy.writestr(entry, data)
    return target


def test_xlsx_formulas_that_were_saved_as_zero_and_never_computed_are_empty(make_xlsx: Make) -> None:
    """XlsxWriter saves 0 for every formula, and has the workbook computed when it is opened."""
    whole = make_xlsx({"Prices": [["item", "sum", "half"], ["Oak", "=1+1", "=3/2"], ["Ash", 0, "=0"]]})
    sheet = "xl/worksheets/sheet1.xml"
    never = edited(whole, sheet, rb"(<f>1\+1</f>)" + EMPTY, rb"\1<v>0</v>")
    saved = edited(never, sheet, rb"(<f>3/2</f>)" + EMPTY, rb"\1<v>1.5</v>")
    path = edited(saved, sheet, rb"(<f>0</f>)" + EMPTY, rb"\1<v>0</v>")
    found = xlsx.read(path)
    assert found.sections[0].text.splitlines()[2:] == ["| Oak |  | 1.5 |", "| Ash | 0 |"]
    assert "2 formulas without saved result in the sheet 'Prices', read as empty cells (B2, C3)" in found.warnings[0]
    computed = edited(path, "xl/workbook.xml", b'fullCalcOnLoad="1"', b'fullCalcOnLoad="0"')
    assert xlsx.read(computed).sections[0].text.splitlines()[2:] == ["| Oak | 0 | 1.5 |", "| Ash | 0 | 0 |"]
    assert xlsx.read(computed).warnings == ()


def test_xlsx_counts_comments_charts_and_pictures(make_xlsx: Make, tmp_path: Path) -> None:
    import openpyxl
    from openpyxl.chart import BarChart, Reference
    from openpyxl.comments import Comment
    from openpyxl.drawing.image import Image
    from PIL import Image as Picture

    path = make_xlsx({"Prices": [["item", "price"], ["Oak", 7], ["Ash", 9]]})
    book = openpyxl.load_workbook(path)
    sheet = book["Prices"]
    for place in ("A2", "A3"):
        sheet[place].comment = Comment("Only on Mondays.", "Ann")
    chart = BarChart()
    chart.add_data(Reference(sheet, min_col=2, min_row=1, max_row=3), titles_from_data=True)
    sheet.add_chart(chart, "E1")
    Picture.new("RGB", (4, 4)).save(tmp_path / "dot.png")
    sheet.add_image(Image(str(tmp_path / "dot.png")), "E20")
    book.save(path)
    found = xlsx.read(path)
    assert "Mondays" not in found.sections[0].text
    assert found.warnings == ("2 comments not read", "1 chart not read", "1 picture not read")


def test_pptx_counts_comments(make_pptx: Make) -> None:
    path = make_pptx([("One", "Body", "")])
    comment = '<p:cm authorId="0"><p:pos x="1" y="1"/><p:text>Too long.</p:text></p:cm>'
    space = 'xmlns:p="http://schemas.openxmlformats.org/presentationml/2006/main"'
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("ppt/comments/comment1.xml", f"<p:cmLst {space}>{comment * 2}</p:cmLst>")
    found = office.read_pptx(path)
    assert (found.sections, found.warnings) == ((Section("Body", 1, ("One",)),), ("2 comments not read",))
