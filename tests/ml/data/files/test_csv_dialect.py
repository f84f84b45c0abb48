"""CSV as people have it: every delimiter, encoding and quoting that spreadsheets and scripts write."""

from __future__ import annotations

import csv
import io
import tempfile
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from luthier.core.dataset import Row
from luthier.core.errors import DataError, RowProblem
from luthier.ml.data.files.csv_dialect import csv_dialect
from luthier.ml.data.files.source import open_source
from luthier.ml.data.rows.formats import load_file
from luthier.ml.data.rows.rows import read_as, read_rows


def _read(path: Path) -> list[dict[str, object]]:
    rows = list(read_rows(open_source(path)))
    assert [row for row in rows if isinstance(row, RowProblem)] == []
    return [row.fields for row in rows if isinstance(row, Row)]


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ("Question;Answer\nWhat, then?;3,50 €\n", "semicolons, UTF-8"),
        ("Question\tAnswer\nWhat; then, so?\t3,50 €\n", "tabs, UTF-8"),
        ("Question|Answer\nWhat, then?|3,50 €\n", "bars, UTF-8"),
        ("sep=;\nQuestion;Answer\nWhat, then?;3,50 €\n", "semicolons, UTF-8"),
        ("Question;Answer\rWhat, then?;3,50 €\rWhich?;4\r", "semicolons, UTF-8"),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "cp1252"])
def test_what_spreadsheets_save_is_read_and_said(tmp_path: Path, data: str, said: str, encoding: str) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(data.encode(encoding))
    loaded = load_file(path)
    assert loaded.examples[0].reference == "3,50 €"
    named = {"utf-8": "UTF-8", "utf-8-sig": "UTF-8", "cp1252": "Windows-1252", "utf-32": "UTF-32"}
    said = said.replace("UTF-8", named.get(encoding, "UTF-16"))
    assert loaded.shape_reason == (
        f"every row has Question and Answer (prompt = Question, completion = Answer); read as {said}"
    )


def test_commas_in_numbers_and_in_column_names_split_nothing_beside_semicolons(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("Preis, EUR;Menge, Stück\n3,50;4,20\n7,00;1,5\n")
    assert _read(path)[0] == {"Preis, EUR": "3,50", "Menge, Stück": "4,20"}


def test_a_file_of_one_column_is_not_split(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text('text\nOne, two; three\tfour | five\n"quoted, ""so"""\n\n\n')
    assert _read(path) == [{"text": "One, two; three\tfour | five"}, {"text": 'quoted, "so"'}]
    assert read_as(open_source(path)) == ""


def test_a_delimiter_of_texts_does_not_outvote_that_of_the_header(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("prompt,completion\n" + '"a; b; c",d; e; f\n' * 600)
    assert len(_read(path)) == 600
    assert csv_dialect(open_source(path)).delimiter == ","


def test_ragged_rows_are_refused_with_their_lines_and_the_delimiter(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("prompt;completion\n" + "q;a\n" * 3 + "q;a;b\nq\n")
    with pytest.raises(DataError, match="2 of 5 rows") as caught:
        load_file(path)
    reasons = [problem.reason for problem in caught.value.problems]
    assert reasons == [
        "has 3 values where the header has 2, separated by semicolons (record that ends on line 5 of the file)",
        "has 1 value where the header has 2, separated by semicolons (record that ends on line 6 of the file)",
    ]


def test_what_only_stands_behind_the_sample_still_decides_the_encoding(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(b"prompt;completion\n" + b"question;answer\n" * 60_000 + "où;déjà\n".encode("cp1252"))
    rows = _read(path)
    assert (len(rows), rows[-1]) == (60_001, {"prompt": "où", "completion": "déjà"})
    assert read_as(open_source(path)) == "semicolons, Windows-1252"


def test_a_file_that_breaks_its_encoding_names_line_and_byte(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    whole = "prompt;completion\nq;a\nq;answer\n".encode("utf-16")
    path.write_bytes(whole[:-1])
    with pytest.raises(DataError, match=r"breaks its encoding UTF-16 on line 3 \(byte 62\)"):
        load_file(path)


@pytest.mark.parametrize("data", ["вопрос;ответ\nчто;это\n".encode("cp1251"), b"a;b\nc;\x81\xe9t\xe9\n"])
def test_other_encodings_are_not_taken_for_windows_1252(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(data)
    with pytest.raises(DataError, match="UTF-8"):
        load_file(path)


_WESTERN = ("Café", "naïve", "Straße", "“so”", "5 €", "3,50", "año", "", "plain", 'a "quote"', "two\nlines", " x; y|z ")
_NAMES = st.lists(st.sampled_from(["prompt", "Completion", "id", "ünïcode", "notes 2", "x"]), min_size=1, unique=True)
_TEXTS = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), max_size=12)


@settings(max_examples=150, deadline=None)
@given(
    names=_NAMES,
    data=st.data(),
    delimiter=st.sampled_from(",;\t|"),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-32", "cp1252"]),
    quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC]),
    end=st.sampled_from(["\n", "\r\n"]),
)
def test_any_table_is_read_back_to_the_same_rows(
    names: list[str], data: st.DataObject, delimiter: str, encoding: str, quoting: int, end: str
) -> None:
    cells = st.sampled_from(_WESTERN) if encoding == "cp1252" else st.one_of(_TEXTS, st.sampled_from(_WESTERN))
    table = data.draw(st.lists(st.lists(cells, min_size=len(names), max_size=len(names)), max_size=8))
    written = io.StringIO(newline="")
    writer = csv.writer(written, delimiter=delimiter, quoting=quoting, lineterminator=end)  # type: ignore[arg-type]
    writer.writerow(names)
    writer.writerows(table)
    again = csv.reader(io.StringIO(written.getvalue(), newline=""), delimiter=delimiter)
    assume(list(again) == [names, *table])  # Python 3.11 writes a lone carriage return without quotes
    assume(all([cell.strip() for cell in row] != names for row in table))  # a repeated header is a problem, not a row
    # Of several columns, a line of delimiters alone is what spreadsheets write for an empty row.
    expected = [row for row in table if len(names) == 1 or any(cell.strip() for cell in row)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.csv"
        path.write_bytes(written.getvalue().encode(encoding))
        assert [list(row.values()) for row in _read(path)] == expected


@pytest.mark.parametrize(
    ("above", "said"),
    [
        ("Kundenanfragen 2025\n\n", "'Kundenanfragen 2025'"),
        ("Kundenanfragen 2025;;\nStand: 1.12.2025;;\n;;\n", "'Kundenanfragen 2025', 'Stand: 1.12.2025'"),
        ("Kundenanfragen 2025;;\n", "'Kundenanfragen 2025'"),
    ],
)
def test_titles_above_the_header_are_left_out_and_said(tmp_path: Path, above: str, said: str) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(above + "Question;Answer;Nr\n" + "Was, wann?;3,50;1\n" * 3)
    assert _read(path) == [{"Question": "Was, wann?", "Answer": "3,50", "Nr": "1"}] * 3
    line = above.count("\n") + 1
    assert read_as(open_source(path)) == f"semicolons, UTF-8, column names on line {line} below {said}"


@pytest.mark.parametrize(
    ("data", "names"),
    [
        ("text\none, two, three\nfour, five, six\n", ["text"]),
        ("text\nfoo\none, two\nthree, four\n", ["text"]),
        (",text\n0,a\n1,b\n", ["", "text"]),
        ("text;\na;b\nc;d\n", ["text", ""]),
        ("a;b;c\n1;;\n2;;\nx;y;z\n", ["a", "b", "c"]),
        ("Title;;\n2023;2024;2025\n1;2;3\n", ["Title"]),
    ],
)
def test_a_header_is_not_taken_for_a_title(tmp_path: Path, data: str, names: list[str]) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(data)
    assert csv_dialect(open_source(path)).titles == ()
    first = next(iter(read_rows(open_source(path))))
    assert list(first.fields) == names if isinstance(first, Row) else names == ["Title"]


def test_empty_values_behind_the_last_column_are_none(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("prompt,completion\nq,a,\nq,a,,\nq,a\n")
    assert _read(path) == [{"prompt": "q", "completion": "a"}] * 3
