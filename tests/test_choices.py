"""The list of choices in the documentation is the one that the declarations make."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def test_the_page_is_as_the_declarations_make_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "docsite")
    page = importlib.import_module("choices_page")
    found = page.PAGE.read_text(encoding="utf-8")
    assert found == page.text(), "run `python docsite/choices_page.py`"
