"""The sentences of the pages: all listed in the documentation, and easy to read."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.vacuous import nonempty

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def texts() -> Any:
    sys.path.insert(0, str(ROOT / "docsite"))
    try:
        return importlib.import_module("interface_texts")
    finally:
        sys.path.remove(str(ROOT / "docsite"))


def test_every_page_is_plain_english(texts: Any) -> None:
    for name in nonempty(texts.PAGES):
        sentences = texts.page_sentences(name)
        assert len(sentences) > 8, f"{name}: its templates are elsewhere now"
        ease = texts.reading_ease(sentences)
        assert ease >= texts.LEAST_EASE, f"{name} reads at {ease:.0f}: shorter sentences, shorter words"
    for name, files in nonempty(texts.other_templates().items()):
        if sentences := texts.sentences_in(files):
            ease = texts.reading_ease(sentences)
            assert ease >= texts.LEAST_EASE, f"{name} reads at {ease:.0f}: shorter sentences, shorter words"


def test_every_template_is_in_the_list(texts: Any) -> None:
    listed = {path for patterns in texts.PAGES.values() for pattern in patterns for path in texts.SOURCE.glob(pattern)}
    others = {path for files in texts.other_templates().values() for path in files}
    assert listed | others == set(texts.SOURCE.glob("**/templates/**/*.html"))
    assert not listed & others
    assert len(others) > 60
    page = texts.text()
    assert {"## `monitoring` (", "## `ui/settings` ("} <= {line.rpartition("(")[0] + "(" for line in page.splitlines()}


def test_the_list_is_as_the_templates_are(texts: Any) -> None:
    assert texts.PAGE.read_text(encoding="utf-8") == texts.text(), "run `python docsite/interface_texts.py`"


def test_the_score_is_that_of_flesch(texts: Any) -> None:
    # 12 words in 2 sentences, 14 syllables, counted by hand.
    plain = ["The cat sat on the mat.", "It was a very sunny day."]
    assert texts.reading_ease(plain) == pytest.approx(206.835 - 1.015 * 6 - 84.6 * 14 / 12)
    hard = ["Institutional considerations necessitate comprehensive documentation of organisational responsibilities."]
    assert texts.reading_ease(hard) < 0 < 60 < texts.reading_ease(plain)


@pytest.mark.parametrize(
    ("word", "num"),
    [("made", 1), ("named", 1), ("names", 1), ("started", 2), ("table", 2), ("verdict", 2), ("the", 1), ("files", 1),
     ("rows", 1), ("answered", 2), ("model", 2), ("passages", 3), ("costs", 1), ("don't", 1)],
)  # fmt: skip
def test_syllables_of_words_of_the_pages(texts: Any, word: str, num: int) -> None:
    assert texts._num_syllables(word) == num


def test_sentences_are_found_wherever_a_template_has_them(texts: Any) -> None:
    template = """
    {# Not a sentence of the page. #}<h1>Data</h1><p>The {{ term("audit") }} has found {{ n | count }} rows. They
    <strong>stay as they are</strong>.{% if x %} Go through them first.{% else %} Nothing was found here.{% endif %}</p>
    {{ empty("No rows yet", "Add a file, then " ~ term("plan") ~ " a run with it.", "Add data", "/datasets/new") }}
    <p><a href="/x">All of the rows</a><a href="/y">The first ten rows</a></p><p>{{ _("Every text of a page.") }}</p>
    <form data-confirm="Remove it for good?"></form><style>.not a sentence at all {}</style>
    """
    assert texts.sentences_of(template) == [
        "Add a file, then plan a run with it.",
        "Remove it for good?",
        "The audit has found … rows.",
        "They stay as they are.",
        "Go through them first.",
        "Nothing was found here.",
        "All of the rows",
        "The first ten rows",
        "Every text of a page.",
    ]
