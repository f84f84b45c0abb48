"""What is quoted of an error of a library."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from tests.vacuous import nonempty

from luthier.core.errors import first_line

SOURCE = Path(__file__).parents[2] / "src" / "luthier"


@pytest.mark.parametrize(
    ("said", "empty", "line"),
    [
        (ValueError("no such shape\nand more"), None, "no such shape"),
        (ValueError("\n  indented\n"), None, "indented"),
        # Libraries raise errors without a word, too; quoting them must not raise another.
        (AssertionError(), None, "AssertionError"),
        (OSError("\n"), "", ""),
        ("", "no reason given", "no reason given"),
    ],
)
def test_an_error_is_quoted_by_its_first_line_also_where_it_says_nothing(
    said: object, empty: str | None, line: str
) -> None:
    assert first_line(said, empty) == line


def test_no_error_is_quoted_by_a_line_that_may_not_be_there() -> None:
    wrong = re.compile(r"str\(\w+(?:\[0\])?\)(?:\.strip\(\))?\.splitlines\(\)\[-?\d\]")
    found = {path.name: wrong.findall(path.read_text(encoding="utf-8")) for path in nonempty(SOURCE.rglob("*.py"))}
    assert {name: places for name, places in found.items() if places} == {}
