"""Running titles, page numbers and tables of contents are left out and named; text that looks like them stays."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from luthier.ml.data.readers import pdf
from luthier.ml.data.readers.pdf import without_furniture

Make = Callable[..., Path]


def _body(number: int) -> list[str]:
    return [
        f"This is the first sentence of the text on page {number}, long",
        f"enough to be wrapped at the end of its line as number {number * 7}.",
        f"A second one says that {number * 37} things were found.",
        f"It ends with the {number}th remark on the matter.",
    ]


def test_running_titles_and_page_numbers_of_a_pdf(make_pdf: Make) -> None:
    pages = [["Annual report 2023", *_body(n), f"Page {n} of 12"] for n in range(1, 13)]
    found = pdf.read(make_pdf(pages))
    assert len(found.sections) == 12
    assert not any("Annual report" in one.text or "Page" in one.text for one in found.sections)
    assert all(f"page {one.page}," in one.text and "remark" in one.text for one in found.sections)
    assert found.warnings == (
        "running titles were left out, with the number of their pages: 'Annual report 2023' (12)",
        "page numbers were left out on 12 of 12 pages",
    )


def test_titles_of_chapters_and_roman_numbers() -> None:
    pages = [
        [
            f"{'Beginnings' if n < 5 else 'Methods and tools'} {n + 10}" if n % 2 else "The book of violins",
            *_body(n),
            ["i", "ii", "iii", "iv"][n] if n < 4 else f"- {n - 3} -",
        ]
        for n in range(10)
    ]
    found = without_furniture(pages)
    assert list(found.pages[0]) == _body(0)
    assert [page[-1] for page in found.pages] == [_body(n)[-1] for n in range(10)]
    assert "page numbers were left out on 10 of 10 pages" in found.left_out
    assert "'The book of violins' (5)" in found.left_out[0]


def test_numbers_and_lines_of_the_text_stay() -> None:
    table = [["12", *_body(1), "34"], ["56", *_body(2), "7"], ["8", *_body(3), "90"], ["11", *_body(4), "5"]]
    questions = [[f"Question {n}", *_body(n), "Answer:"] for n in (3, 8, 4)]
    few = [["Heading", *_body(n)] for n in range(2)]
    short = [["Text."] for _ in range(12)]
    for pages in (table, few, short):
        found = without_furniture(pages)
        assert (tuple(map(list, found.pages)), found.left_out) == (tuple(pages), ())
    assert [page[0] for page in without_furniture(questions).pages] == ["Question 3", "Question 8", "Question 4"]


def test_a_table_of_contents_over_two_pages(make_pdf: Make) -> None:
    entries = [f"{n} Chapter of the name {'abc'[n % 3]} {'. ' * 10}{n * 2}" for n in range(1, 31)]
    pages = [
        ["The book of violins", "Written by nobody", "in a year", "at a place"],
        ["Contents", *entries[:20]],
        [*entries[20:], "Index ........ 62"],
        *([f"{n} Chapter", *_body(n)] for n in range(40)),
    ]
    found = pdf.read(make_pdf(pages))
    assert [one.page for one in found.sections][:3] == [1, 4, 5]
    assert not any("....." in one.text or ". . ." in one.text for one in found.sections)
    (note,) = (one for one in found.warnings if "table of contents" in one)
    assert note.startswith("a table of contents was left out: 32 lines on pages 2, 3, from 'Contents' to 'Index ...")


def test_a_table_of_contents_without_leaders_needs_its_heading() -> None:
    entries = ["Introduction 1", "A title that goes on over", "the end of its line 4", "Methods 9", "Results 12"]
    text = ["In all there were 3", "and of these we saw 5", "and then another 9", "as is written here."]
    pages = [["Inhaltsverzeichnis", *entries, "And then the text begins.", *text], *(_body(n) for n in range(12))]
    found = without_furniture(pages)
    assert list(found.pages[0]) == ["And then the text begins.", *text]
    assert "6 lines on page 1, from 'Inhaltsverzeichnis' to 'Results 12'" in found.left_out[-1]


def test_a_price_list_is_no_table_of_contents() -> None:
    menu = ["Soup ..... 7", "Bread ..... 2", "Fish ..... 19", "Cake ..... 5", "Tea ..... 3", "Wine ..... 8"]
    assert without_furniture([menu]).left_out == ()
