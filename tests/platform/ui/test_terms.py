"""The "?" of a word: once a page, with ids that a piece of a page does not repeat."""

from __future__ import annotations

import re

import pytest

from luthier.core.errors import NotFoundError
from luthier.platform.ui.terms import Terms


def ids(markup: str) -> list[str]:
    return re.findall(r' id="([^"]+)"', markup)


def test_the_first_use_is_explained_and_a_later_one_is_the_word() -> None:
    term = Terms("/runs", is_piece=False)
    first = term("loss masks")
    assert 'popovertarget="term-loss-mask"' in first
    assert ids(first) == ["term-loss-mask"]
    assert "loss masks" in first
    assert term("loss mask", "a <mask>") == "a &lt;mask&gt;"
    assert term.ask("loss mask") == ""


def test_the_question_mark_alone() -> None:
    ask = Terms("/runs", is_piece=False).ask("verdict")
    assert "term-word" not in ask
    assert 'aria-label="What does verdict mean?"' in ask


def test_a_piece_has_other_ids_than_its_page() -> None:
    whole, piece = Terms("/runs", is_piece=False), Terms("/runs", is_piece=True)
    assert ids(whole("run")) != ids(piece("run"))
    assert ids(Terms("/a", is_piece=True)("run")) != ids(Terms("/b", is_piece=True)("run"))


def test_a_word_that_the_glossary_does_not_have_is_an_error_of_the_template() -> None:
    with pytest.raises(NotFoundError):
        Terms("/runs", is_piece=False)("no such word")
