"""Sentences of the pages are plain product English: none has a word of the list below, and terms exist.

Read are the templates, and what Python and scripts show on pages: the English side of the catalogs, which another test
holds to be complete.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import pytest
from tests.vacuous import nonempty

import luthier
from luthier.core.text.glossary import find_term
from luthier.platform.ui.i18n.catalog import catalog

SOURCE = Path(luthier.__file__).parent
BANNED = (
    "told", "stands", "anew", "afresh", "looked at", "look at", "looks at", "found out", "find out", "finds out",
    "says why", "say why", "who asks", "mere luck", "begun", "bring", "brings", "brought", "bring about", "worked off",
    "goes on", "went on", "whilst", "thereof", "tell apart", "held against", "in vain", "what became of", "whoever",
    "whatever", "likewise", "rightly", "for good", "set apart",
)  # fmt: skip
"""Archaic, private or roundabout words. Plain ones: shown, is, again, checked, learned, gives the reason, add."""
_ATTRIBUTE = re.compile(r'(?:aria-label|placeholder|title|alt|data-confirm)="([^"]*)"')
_JINJA = re.compile(r"\{[{%].*?[%}]\}", re.S)
_TERM = re.compile(r"""\bterm(?:\.ask)?\(\s*["']([^"']+)["']""")


def templates() -> list[Path]:
    return sorted(path for path in SOURCE.rglob("*.html") if "templates" in path.parts)


def prose_of(text: str) -> list[str]:
    """What people read of a template: text between tags, of attributes that are read out, and in expressions."""
    text = re.sub(r"\{#.*?#\}", "", text, flags=re.S)
    literals = (words for part in _JINJA.findall(text) for words in re.findall(r'"([^"]*)"', part))
    found = [words for words in literals if " " in words.strip()]
    text = _JINJA.sub("…", text)
    found += _ATTRIBUTE.findall(text)
    text = re.sub(r"<(script|style|code|pre)\b.*?</\1>", "…", text, flags=re.S)
    return found + [" ".join(words.split()) for words in re.split(r"<[^>]*>", text)]


def offences(text: str) -> list[str]:
    words = re.compile(rf"\b({'|'.join(BANNED)})\b", re.IGNORECASE)
    return [f"{match[0]!r} in {sentence[:100]!r}" for sentence in prose_of(text) for match in words.finditer(sentence)]


@pytest.mark.parametrize(
    "text",
    [
        "<p>The rows are looked at first.</p>",
        '<button aria-label="Look at it">x</button>',
        '{{ empty("Nothing yet", "Bring rows first.") }}',
        "<p>It begins\n  anew</p>",
    ],
)
def test_a_banned_word_is_seen_wherever_people_read_it(text: str) -> None:
    assert len(offences(text)) == 1


def test_what_no_one_reads_is_left_alone() -> None:
    assert offences('{# looked at #}<a href="/bring" class="told">x</a><code>begun</code>{{ begun }}') == []


@pytest.mark.parametrize("path", nonempty(templates()), ids=lambda path: str(path.relative_to(SOURCE)))
def test_no_template_has_a_banned_word(path: Path) -> None:
    assert offences(path.read_text(encoding="utf-8")) == []


def banned_in(texts: Iterable[str]) -> list[str]:
    """The banned words of sentences that are no templates."""
    words = re.compile(rf"\b({'|'.join(BANNED)})\b", re.IGNORECASE)
    return [f"{match[0]!r} in {text[:100]!r}" for text in texts for match in words.finditer(text)]


def test_no_sentence_of_python_or_of_a_script_has_a_banned_word() -> None:
    texts = catalog("de")
    assert banned_in(["It begins anew.", "A new row."]) == ["'anew' in 'It begins anew.'"]
    assert banned_in(nonempty([*texts.sentences, *texts.scripts, *texts.pages])) == []


def test_every_explained_word_is_in_the_glossary() -> None:
    used = {word for path in templates() for word in _TERM.findall(path.read_text(encoding="utf-8"))}
    for word in nonempty(sorted(used)):
        assert find_term(word).meaning
