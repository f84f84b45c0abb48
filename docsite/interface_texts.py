"""docs/interface_texts.md: every sentence of the pages, with the reading ease of each page.

python docsite/interface_texts.py        # write it; a test holds the page and the templates together

The reading ease is that of Flesch ("A new readability yardstick", 1948): 206.835 - 1.015 words a sentence - 84.6
syllables a word. 60 and more is plain English. Syllables are counted by groups of vowels, which is within a few percent
of a dictionary for texts of this length. Values that a template fills in are written as "…" and are no words.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from html import unescape
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "interface_texts.md"
SOURCE = ROOT / "src" / "luthier"
LEAST_EASE = 60.0
"""What every page has to reach."""
PAGES: dict[str, tuple[str, ...]] = {
    "Home": ("features/home_page/templates/*.html", "features/inbox/templates/home.html"),
    "Guided run": ("features/guided_runs/templates/*.html", "platform/ui/templates/rail.html"),
    "Add data": (
        "features/datasets/templates/new.html",
        "features/datasets/templates/columns.html",
        "features/datasets/templates/import*.html",
        "features/datasets/templates/origin.html",
    ),
    "Documents and questions": (
        "features/datasets/templates/job*.html",
        "features/datasets/templates/questions*.html",
    ),
    "Datasets": ("features/datasets/templates/list.html", "features/datasets/templates/show.html"),
    "Annotate": ("features/datasets/templates/annotate.html", "features/datasets/templates/desk.html"),
    "Run": tuple(f"features/runs/templates/{name}.html" for name in ("run", "now", "below", "samples", "edit")),
    "Verdict": (
        "features/evaluations/templates/verdict.html",
        "features/evaluation_orders/templates/show.html",
        "features/evaluation_orders/templates/alternative.html",
        "features/roi/templates/worth_part.html",
    ),
    "Playground": ("features/playground/templates/show.html", "features/playground/templates/turns.html"),
    "Inbox": ("features/inbox/templates/list.html", "features/inbox/templates/page_inbox.html"),
    "Rate": ("features/human_eval/templates/rate/*.html",),
    "Sign in": ("features/accounts/templates/*.html", "platform/ui/templates/error.html"),
}
_HEAD = f"""# Sentences of the interface

Made by `docsite/interface_texts.py` from the templates of the pages. The number beside a page is its reading ease by
Flesch, over all of its sentences; `tests/platform/ui/test_reading_ease.py` holds it at {LEAST_EASE:.0f} or more. The
pages that a person without a terminal meets come first, then all others by the folder of their templates. "…" is a
value that the page fills in.
"""
_BREAK = "\x1f"
"""Between texts that belong to different elements; line breaks of a template are spaces."""
_COMMENT = re.compile(r"\{#.*?#\}", re.S)
_CODE = re.compile(r"<(script|style|pre)\b.*?</\1>", re.S)
_TRANSLATED = re.compile(r"""\{\{\s*_\(\s*"((?:[^"\\]|\\.)*)".*?\}\}""", re.S)
_TERM = re.compile(r"""\{\{\s*term\(\s*"([^"]*)".*?\}\}""", re.S)
_JOINED_TERM = re.compile(r"""["']\s*~\s*term\(\s*"([^"]*)"[^)]*\)\s*~\s*["']""")
_JOINED = re.compile(r"""["']\s*~[^~"{}%]*~\s*["']""")
_NEXT_TO_EACH_OTHER = re.compile(r"(?<=</a>)(?=\s*<a\b)|(?<=</a>|</b>)(?=[A-Z])|(?<=</strong>)(?=[A-Z…])")
_HINTS = re.compile(r'(?:placeholder|title|data-confirm)="([^"]*)"')
_OTHER_BRANCH = re.compile(r"\{%-?\s*(?:else|elif|pluralize)\b.*?%\}", re.S)
_TAG = re.compile(r"\{%.*?%\}", re.S)
_VALUE = re.compile(r"\{\{.*?\}\}", re.S)
_LITERAL = re.compile(r'"([^"{}]*)"')
_WITHIN_A_SENTENCE = re.compile(r"</?(?:a|abbr|b|bdi|code|em|i|kbd|mark|strong|time)\b[^>]*>")
_ELEMENT = re.compile(r"<[^>]*>")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=\S)|:\s+(?=[A-Z…])")
_WORD = re.compile(r"[A-Za-z][A-Za-z'’-]*")
_LEAST_WORDS = 4
"""Shorter texts are labels: they have no structure to be hard to read."""


def sentences_of(template: str) -> list[str]:
    """The sentences of a template, in their order, each once."""
    text = _CODE.sub(_BREAK, _COMMENT.sub("", template))
    text = _JOINED.sub("…", _JOINED_TERM.sub(r"\1", text))
    text = _TERM.sub(r"\1", _TRANSLATED.sub(r"\1", text))
    # Sentences within expressions: "{{ empty("No data yet", "Add files first.") }}".
    pieces = [words for part in (*_TAG.findall(text), *_VALUE.findall(text)) for words in _LITERAL.findall(part)]
    text = _VALUE.sub("…", _TAG.sub("", _OTHER_BRANCH.sub(_BREAK, text)))
    text = _NEXT_TO_EACH_OTHER.sub(_BREAK, text)
    pieces += _HINTS.findall(text)
    pieces += _ELEMENT.sub(_BREAK, _WITHIN_A_SENTENCE.sub("", text)).split(_BREAK)
    found = (" ".join(unescape(one).split()) for piece in pieces for one in _SENTENCE_END.split(piece))
    return list(dict.fromkeys(one.strip(" ·") for one in found if _is_sentence(one)))


def page_sentences(name: str) -> list[str]:
    """The sentences of a page, over all of its templates."""
    return sentences_in([path for pattern in PAGES[name] for path in sorted(SOURCE.glob(pattern))])


def other_templates() -> dict[str, list[Path]]:
    """The templates of all other pages by their folder, such as `monitoring` or `settings`."""
    listed = {path for patterns in PAGES.values() for pattern in patterns for path in SOURCE.glob(pattern)}
    found: dict[str, list[Path]] = {}
    for path in sorted(SOURCE.glob("**/templates/**/*.html")):
        if path not in listed:
            inside = path.parts[path.parts.index("templates") + 1 : -1]
            folder = path.parts[path.parts.index("templates") - 1]
            found.setdefault("/".join((folder, *inside)), []).append(path)
    return found


def sentences_in(files: list[Path]) -> list[str]:
    """The sentences of templates, each once."""
    return list(dict.fromkeys(one for path in files for one in sentences_of(path.read_text(encoding="utf-8"))))


def reading_ease(sentences: list[str]) -> float:
    """Flesch's reading ease of all sentences together."""
    words = [word for sentence in sentences for word in _WORD.findall(sentence)]
    return 206.835 - 1.015 * len(words) / len(sentences) - 84.6 * sum(map(_num_syllables, words)) / len(words)


def text() -> str:
    """The whole page."""
    clerks = [line for name in PAGES for line in _section(name, page_sentences(name))]
    others = [(name, sentences_in(files)) for name, files in other_templates().items()]
    rest = [line for name, sentences in others if sentences for line in _section(f"`{name}`", sentences)]
    return "\n".join([_HEAD, *clerks, *rest]) + "\n"


def _section(name: str, sentences: list[str]) -> Iterator[str]:
    yield f"## {name} ({reading_ease(sentences):.0f})\n"
    yield from (f"- {_escaped(one)}" for one in sentences)
    yield ""


def _escaped(sentence: str) -> str:
    return re.sub(r"([\\`*_{}<>\[\]|])", r"\\\1", sentence)


def _is_sentence(text: str) -> bool:
    words = _WORD.findall(text)
    # Names of classes and fields come in lists, too, but in small letters and without an end.
    return len(words) >= _LEAST_WORDS and (text.rstrip()[-1:] in ".!?" or text.strip()[:1].isupper())


def _num_syllables(word: str) -> int:
    letters = word.lower().replace("’", "").replace("'", "")
    num = len(re.findall(r"[aeiouy]+", letters))
    if re.search(r"[^aeiouyl]e$|[^aeiouytd]ed$|[^aeiouysxzhcg]es$", letters) and num > 1:
        num -= 1  # a silent e: "made", "named", "names"
    return max(1, num)


if __name__ == "__main__":
    PAGE.write_text(text(), encoding="utf-8")
    print(PAGE)
