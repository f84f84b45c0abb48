"""Workbooks: one sheet with rows, values as shown, and a word about all that would be lost."""

from __future__ import annotations

import re
import shutil
import zipfile
from collections.abc import Callable
from datetime import date, datetime
from pathlib import Path
from typing import Any

import openpyxl
import pytest
from tests.vacuous import nonempty

from luthier.core.dataset import Row
from luthier.core.errors import DataError, RowProblem
from luthier.ml.data.files.source import open_source
from luthier.ml.data.rows.formats import load_file
from luthier.ml.data.rows.row_index import build_index
from luthier.ml.data.rows.rows import read_as, read_rows

Write = Callable[..., Path]
DOCUMENTS = Path(__file__).parents[3] / "fixtures" / "documents"


@pytest.fixture
def workbook(tmp_path: Path) -> Write:
    """Write sheets (name -> rows) as a workbook; `change` may do more to it before it is saved."""

    def write(sheets: dict[str, list[list[Any]]], change: Callable[[Any], object] = lambda book: None) -> Path:
        book = openpyxl.Workbook()
        book.remove(book.active)
        for name, rows in sheets.items():
            sheet = book.create_sheet(name)
            for row in rows:
                sheet.append(row)
        change(book)
        book.save(tmp_path / "rows.xlsx")
        return tmp_path / "rows.xlsx"

    return write


def _rows(path: Path) -> list[Row | RowProblem]:
    return list(read_rows(open_source(path)))


def test_the_one_sheet_with_rows_is_read_and_said(workbook: Write) -> None:
    rows = [[], ["Question ", " ANSWER"], ["Which?", "This é."], [], ["Why?", "So."]]
    loaded = load_file(workbook({"Empty": [], "Answers": rows, "Empty too": []}))
    assert [(one.id, one.reference) for one in loaded.examples] == [("rows.xlsx:3", "This é."), ("rows.xlsx:5", "So.")]
    assert loaded.shape_reason == (
        "every row has Question and ANSWER (prompt = Question, completion = ANSWER); read as the sheet 'Answers'"
    )


def test_values_are_the_texts_that_the_sheet_shows(workbook: Write) -> None:
    def formats(book: Any) -> None:
        for place, number_format in enumerate(("0%", "#,##0.00", "dd.mm.yyyy", "General", "General", "00000"), start=1):
            book["A"].cell(2, place).number_format = number_format

    values = [0.125, 1234.5, datetime(2024, 3, 5), 0.1 + 0.2, True, 42]
    path = workbook({"A": [list("abcdef"), values, [None, "", None, "x"]]}, formats)
    assert [row.fields for row in _rows(path) if isinstance(row, Row)] == [
        {"a": "13%", "b": "1,234.50", "c": "05.03.2024", "d": "0.3", "e": "TRUE", "f": "00042"},
        {"a": "", "b": "", "c": "", "d": "x", "e": "", "f": ""},
    ]


def test_a_date_in_the_format_of_the_country_is_iso(workbook: Write) -> None:
    def formats(book: Any) -> None:
        book["A"]["A2"].number_format = "mm-dd-yy"

    (row,) = _rows(workbook({"A": [["day"], [date(2024, 3, 5)]]}, formats))
    assert isinstance(row, Row)
    assert row.fields == {"day": "2024-03-05"}


def test_a_sheet_with_a_single_line_has_no_rows_and_is_named(workbook: Write) -> None:
    rows = [["question", "answer"], ["Where?", "Here."]]
    loaded = load_file(workbook({"Notes": [["As of 1 May"]], "Answers": rows, "Names": [["question", "answer"]]}))
    assert [one.reference for one in loaded.examples] == ["Here."]
    assert loaded.shape_reason.endswith("read as the sheet 'Answers' (not 'Notes', 'Names': a single line and no rows)")
    with pytest.raises(DataError, match="rows on 2 sheets: 'A', 'B'"):
        list(read_rows(open_source(workbook({"A": [["x"]], "B": [["y"]]}))))


def test_two_sheets_with_rows_are_refused_by_name(workbook: Write) -> None:
    path = workbook({"Train": [["text"], ["a"]], "Test": [["text"], ["b"]]})
    with pytest.raises(DataError, match=r"rows on 2 sheets: 'Train', 'Test'[\s\S]*separate file"):
        load_file(path)


def test_merged_cells_are_refused(workbook: Write) -> None:
    path = workbook({"A": [["prompt", "completion"], ["a", "b"]]}, lambda book: book["A"].merge_cells("A1:B1"))
    with pytest.raises(DataError, match=r"merged cells on the sheet 'A': A1:B1[\s\S]*unmerge"):
        load_file(path)


def test_titles_above_the_names_are_left_out_and_said(workbook: Write) -> None:
    rows = [["Report 2024"], ["as of", None], [], ["prompt", "completion"], ["q", "a"], ["r", "b"]]
    loaded = load_file(workbook({"A": rows}, lambda book: book["A"].merge_cells("A1:B1")))
    assert [(one.id, one.reference) for one in loaded.examples] == [("rows.xlsx:5", "a"), ("rows.xlsx:6", "b")]
    assert loaded.shape_reason.endswith("read as the sheet 'A', column names on row 4 below 'Report 2024', 'as of'")
    three = [["Report 2024"], ["prompt", "completion", "id"], ["q", "a", 1]]
    assert load_file(workbook({"A": three})).examples[0].id == "rows.xlsx:3"


@pytest.mark.parametrize(
    "rows",
    [
        [["text"], ["a", "note"], ["b", "note"]],
        [["text"], [], ["a", "note"], ["b"], ["c"]],
        [["text"], [], ["a", 3], ["b", 4]],
        [["text"], [], ["a", "b"]],
    ],
)
def test_values_beside_a_column_of_texts_are_no_table_below_a_title(workbook: Write, rows: list[list[Any]]) -> None:
    with pytest.raises(DataError, match=r"value in cell B\d, and row 1 gives its column no name[\s\S]*remove titles"):
        load_file(workbook({"A": rows}))


def test_a_hidden_sheet_beside_the_rows_is_left_out_and_named(workbook: Write) -> None:
    def hide(book: Any) -> None:
        book["Choices"].sheet_state = "hidden"
        book["A"].row_dimensions[3].hidden = True

    rows = [["prompt", "completion"], ["q", "a"], ["r", "b"]]
    loaded = load_file(workbook({"A": rows, "Choices": [["Status"], ["open"], ["closed"]]}, hide))
    assert loaded.num_rows == 2
    assert loaded.shape_reason.endswith("read as the sheet 'A' (not 'Choices': hidden), with 1 hidden row")


def test_columns_without_name_and_values_do_not_matter(workbook: Write) -> None:
    rows = [["prompt", None, None, "completion"], ["q", None, None, "a"]]
    assert load_file(workbook({"A": rows})).examples[0].reference == "a"
    with pytest.raises(DataError, match="value in cell C2, and row 1 gives its column no name"):
        load_file(workbook({"A": [rows[0], ["q", None, "x", "a"]]}))


def test_a_formula_without_its_result_is_refused(workbook: Write) -> None:
    with pytest.raises(DataError, match="formulas without saved results on the sheet 'A': B2"):
        load_file(workbook({"A": [["prompt", "completion"], ["q", "=1+1"]]}))


def test_a_formula_whose_saved_result_is_an_empty_text_is_an_empty_cell(workbook: Write, tmp_path: Path) -> None:
    """As spreadsheet programs save `=IF(A2="";"";...)`: a cell of text with an empty value."""
    made, path = workbook({"A": [["prompt", "note"], ["q", '=IF(A2="q","","x")']]}), tmp_path / "saved.xlsx"
    with zipfile.ZipFile(made) as source, zipfile.ZipFile(path, "w") as target:
        for entry in nonempty(source.namelist()):
            data = source.read(entry)
            if entry == "xl/worksheets/sheet1.xml":
                assert data.count(b'<c r="B2">') == 1
                data = data.replace(b'<c r="B2">', b'<c r="B2" t="str">')
            target.writestr(entry, data)
    (row,) = _rows(path)
    assert isinstance(row, Row)
    assert row.fields == {"prompt": "q", "note": ""}


def test_an_error_in_a_cell_is_a_problem_of_its_row(workbook: Write) -> None:
    found = _rows(workbook({"A": [["prompt", "completion"], ["q", "#N/A"], ["q", "a"]]}))
    problem, row = found
    assert isinstance(problem, RowProblem)
    assert (problem.line, problem.field, problem.reason) == (2, "completion", "is the error of a formula (cell B2)")
    assert isinstance(row, Row)


def test_what_is_no_workbook_is_refused(tmp_path: Path, workbook: Write) -> None:
    path = tmp_path / "other.xlsx"
    path.write_bytes(b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + b"\0" * 100)
    with pytest.raises(DataError, match="password"):
        load_file(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("something", "else")
    with pytest.raises(DataError, match=r"other\.xlsx cannot be read as a workbook"):
        load_file(path)
    whole = workbook({"A": [["text"], ["a"]]}).read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"other\.xlsx: its ZIP archive is broken"):
        load_file(path)
    path = path.rename(tmp_path / "rows.xlsb")
    with pytest.raises(DataError, match=r"spreadsheet of another format[\s\S]*save it as .xlsx or CSV"):
        load_file(path)


def test_rows_of_a_workbook_have_places_as_others_have(workbook: Write, tmp_path: Path) -> None:
    path = workbook({"A": [["text"], ["one"], [], ["two"]]})
    index = build_index(path, tmp_path / "index")
    assert [index.line(place) for place in range(index.num_rows)] == [2, 4]
    assert index.row(1) == Row("rows.xlsx", 4, {"text": "two"})


def test_a_formula_that_was_saved_as_zero_and_never_computed_is_refused(workbook: Write, tmp_path: Path) -> None:
    """As XlsxWriter saves it: 0 for every formula, in a workbook that is computed when it is opened."""
    whole = workbook({"A": [["prompt", "completion"], ["How many?", "=1+1"]]})
    path = tmp_path / "never.xlsx"
    with zipfile.ZipFile(whole) as source, zipfile.ZipFile(path, "w") as target:
        for entry in nonempty(source.namelist()):
            data = source.read(entry)
            if entry == "xl/worksheets/sheet1.xml":
                data, num = re.subn(rb"(<f>1\+1</f>)<v(?: ?/>|></v>)", rb"\1<v>0</v>", data)
                assert num == 1
            target.writestr(entry, data)
    with pytest.raises(DataError, match="formulas without saved results on the sheet 'A': B2"):
        load_file(path)


def test_a_second_table_with_the_same_columns_is_a_problem(tmp_path: Path) -> None:
    book = openpyxl.Workbook()
    for row in (["prompt", "completion"], ["q", "a"], [], ["prompt", "completion"], ["r", "b"]):
        book.active.append(row)
    path = tmp_path / "two.xlsx"
    book.save(path)
    with pytest.raises(DataError, match="1 of 3 rows") as caught:
        load_file(path)
    (problem,) = caught.value.problems
    assert problem.line == 4
    assert problem.reason.startswith("repeats the names of the columns")


@pytest.mark.parametrize("name", ["answers.xls", "answers.ods"])
def test_rows_of_workbooks_that_are_no_ooxml(name: str) -> None:
    source = open_source(DOCUMENTS / name)
    assert read_as(source) == "the sheet 'Answers' (not 'Lists': hidden), with 1 hidden row"
    *rows, problem = read_rows(source)
    assert [row.fields for row in rows if isinstance(row, Row)][:1] == [
        {
            "question": "Where is my order?",
            "answer": "It is on its way.",
            "share": "25.0%",
            "price": "1,234.50 \u20ac",
            "day": "2026-03-01",
            "open": "TRUE",
        }
    ]
    assert len(rows) == 3
    assert isinstance(problem, RowProblem)
    assert (problem.line, problem.field, problem.value) == (5, "answer", "#DIV/0!")


@pytest.mark.parametrize("name", ["merged.xls", "merged.ods"])
def test_merged_cells_of_workbooks_that_are_no_ooxml_are_refused(name: str) -> None:
    with pytest.raises(DataError, match=rf"{name} has merged cells on the sheet 'Plan': A2:A3"):
        list(read_rows(open_source(DOCUMENTS / name)))


def test_a_workbook_with_the_name_of_another_is_refused(tmp_path: Path) -> None:
    for sample, name, reason in (
        ("answers.ods", "a.xls", r"named \.xls but holds a workbook of another format"),
        ("answers.xls", "a.ods", r"named \.ods but holds an old workbook"),
        ("contract.rtf", "a.xls", r"named \.xls but holds something else"),
    ):
        path = Path(shutil.copyfile(DOCUMENTS / sample, tmp_path / name))
        with pytest.raises(DataError, match=reason):
            open_source(path)


def test_a_workbook_with_macros_is_read_as_any_other(workbook: Write, tmp_path: Path) -> None:
    path = workbook({"a": [["prompt", "completion"], ["x", "y"]]}).rename(tmp_path / "a.xlsm")
    assert [row.fields for row in read_rows(open_source(path)) if isinstance(row, Row)] == [
        {"prompt": "x", "completion": "y"}
    ]
