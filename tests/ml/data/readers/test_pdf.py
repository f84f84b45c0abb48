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
