"""The words of the pages: complete, found in any form, one source for pages, command line and documentation."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from luthier.core.errors import NotFoundError
from luthier.core.text.glossary import TERMS, find_term, markdown_table

DOCS = Path(__file__).resolve().parents[3] / "docs" / "glossary.md"


def test_sixty_terms_or_more_each_explained_once() -> None:
    assert len(TERMS) >= 60
    assert len({term.name.casefold() for term in TERMS}) == len(TERMS)
    assert len({term.key for term in TERMS}) == len(TERMS), "anchors of one page"
    for term in TERMS:
        assert term.meaning.endswith("."), term.name
        assert len(term.meaning) <= 200, f"{term.name} is read beside a word"


def test_a_term_is_found_in_other_forms_and_letters() -> None:
    assert find_term("Loss  Masks").name == "loss mask"
    assert find_term("held out").name == "held-out rows"
    assert find_term("LORA").name == "LoRA"


def test_no_two_terms_have_a_form_in_common() -> None:
    forms = [form.casefold() for term in TERMS for form in (term.name, *term.also)]
    assert len(forms) == len(set(forms))


def test_an_unknown_word_names_near_ones() -> None:
    with pytest.raises(NotFoundError) as refused:
        find_term("los mask")
    assert "loss mask" in refused.value.expected
    assert "luthier glossary" in refused.value.do


def test_the_documentation_has_the_same_table() -> None:
    assert markdown_table() in DOCS.read_text(encoding="utf-8"), "copy what `markdown_table()` gives"


def test_explanations_are_easy_to_read() -> None:
    """By Flesch's reading ease of all of them together, with syllables by groups of vowels: 60 and above is plain."""
    text = " ".join(term.meaning for term in TERMS)
    assert flesch(text) >= 60


def flesch(text: str) -> float:
    words = re.findall(r"[A-Za-z]+", text)
    num_sentences = len(re.findall(r"[.!?:](?:\s|$)", text))
    syllables = sum(max(1, len(re.findall(r"[aeiouy]+", re.sub(r"e$", "", word.lower())))) for word in words)
    return 206.835 - 1.015 * len(words) / num_sentences - 84.6 * syllables / len(words)
