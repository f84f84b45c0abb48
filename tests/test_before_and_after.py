"""docs/design/before-and-after.md: each page has its picture of both sides, and no picture is left over.

A page that is new has its picture of today, and says what was in its place.
"""

from __future__ import annotations

import re
from pathlib import Path

from tests.vacuous import nonempty

PAGE = Path(__file__).parents[1] / "docs" / "design" / "before-and-after.md"
MAX_BYTES = 1_500_000
"""Of the old pictures together: a repository should stay small."""


def test_each_page_has_a_picture_of_both_sides() -> None:
    text = PAGE.read_text(encoding="utf-8")
    sections = nonempty(text.split("\n## ")[1:])
    for section in sections:
        pictures = re.findall(r"!\[([^\]]+)\]\(([^)]+)\)", section)
        (*before, after) = pictures
        assert len(pictures) == (1 if "\n| no page: " in section else 2)
        name = after[1].removeprefix("../screenshots/").removesuffix("-light-desk.png")
        assert [f"before/{name}.png"] * len(before) == [path for _, path in before]
        for words, path in pictures:
            assert len(words.split()) > 4, f"{path}: what it shows, for those who do not see it"
            assert (PAGE.parent / path).is_file(), path


def test_every_old_picture_is_shown_and_they_are_small() -> None:
    text = PAGE.read_text(encoding="utf-8")
    pictures = nonempty(sorted((PAGE.parent / "before").iterdir()))
    assert [one.name for one in pictures if f"(before/{one.name})" not in text] == []
    assert sum(one.stat().st_size for one in pictures) < MAX_BYTES
