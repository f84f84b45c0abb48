"""Documentation is plain English: no page has a word of the list below.

Sentences of the pages have a list of their own, `tests/platform/ui/test_template_words.py`.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.vacuous import nonempty

ROOT = Path(__file__).resolve().parents[1]
BANNED = (
    "afresh", "amiss", "anew", "any more", "astray", "at hand", "came to", "for ever", "goes on", "hence",
    "held against", "henceforth", "hitherto", "in vain", "learnt", "lest", "likewise", "reckon", "reckons", "seldom",
    "stands", "thereof", "therein", "told", "unto", "went on", "whence", "wherein", "whilst",
)  # fmt: skip
"""Archaic or roundabout words. Plain ones: again, no longer, here, continues, also, computes, rarely, is, so."""
_WORDS = re.compile(rf"\b({'|'.join(BANNED)})\b", re.IGNORECASE)
_HISTORY = {"CHANGELOG.md", "log.md", "benchmarks.md", "decisions", "design"}
"""What was written at its time."""
_WRITTEN_ELSEWHERE = {"corpus", "work", "interface_texts.md"}
"""Documents of an example, in the English of their kind; and texts of the program."""


def pages() -> list[Path]:
    found = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").rglob("*.md")]
    left_out = _HISTORY | _WRITTEN_ELSEWHERE
    return sorted(page for page in found if not left_out & set(page.relative_to(ROOT).parts))


def prose_of(text: str) -> str:
    """A page without what it quotes: blocks of code, code spans and addresses of links."""
    text = re.sub(r"^( *)(`{3,}).*?^\1\2 *$", "", text, flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"^(?: {4}|\t).*$", "", text, flags=re.MULTILINE)
    text = re.sub(r"`[^`\n]*`", "", text)
    return re.sub(r"\]\([^)]*\)", "]", text)


def offences(text: str) -> list[str]:
    return [match[0] for match in _WORDS.finditer(" ".join(prose_of(text).split()))]


@pytest.mark.parametrize("text", ["It goes on.", "The rows are\nheld against it.", "Begin Anew"])
def test_an_archaic_word_is_found(text: str) -> None:
    assert offences(text)


@pytest.mark.parametrize("text", ["`told`", "    luthier anew", "```\ntold\n```", "[x](told.md)", "an understand"])
def test_quotes_are_left_out(text: str) -> None:
    assert offences(text) == []


def test_no_page_has_one() -> None:
    found = {page: offences(page.read_text(encoding="utf-8")) for page in nonempty(pages())}
    assert len(found) > 60
    assert {str(page.relative_to(ROOT)): words for page, words in found.items() if words} == {}
