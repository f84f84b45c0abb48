"""English on a German page, found by the catalogs: words that only English texts have, and texts with a translation.

Stop words find sentences that were left in English; these rules also find a single word, such as the unit `fraction` or
the state `failed`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache

from luthier.platform.ui.i18n.catalog import catalog

_WORD = re.compile(r"[^\W\d_]{2,}(?:[-'’][^\W\d_]+)*")
_PLACEHOLDER = re.compile(r"\{\w+(?::t)?\}|</?\d+>|`[^`]*`")
_KEY = re.compile(r"\S*(?:[/_=:]\w|\w[._]\w)[^\s,;)]*|\.[a-z]+|\b[a-z]+-20\d\d\S*")
"""Addresses, file names, keys of recipes and ids."""
_NAMES = re.compile(
    r"(?<![\w-])(?:"
    # Runs, deployments, judges, projects and tasks of suites, as the tests have named them.
    r"(?:Answers|Train|Rows)(?: · tiny)?(?: · (?:25 Nov|…))?(?: \(\w{6}\))?(?:, step \d)?|, step \d"
    r"|support|front-desk|a second one|strict judge|default|style|general"
    # A column of rows, a trainer of TRL, the language itself, and commands.
    r"|prompt|reward|English|tune, compare-models, automl, distill, retrain"
    r")(?![\w-])"
)
"""Names that a German page has as they are: given by people, or of code."""


@cache
def english_words() -> frozenset[str]:
    """The words of our English texts that no German text has."""
    texts = catalog("de")
    english = (*texts.pages, *texts.sentences, *texts.scripts)
    forms = (form for own in texts.pages.values() for form in own)
    german = (*forms, *texts.sentences.values(), *texts.scripts.values())
    return frozenset(_words_of(english) - _words_of(german))


def texts_in_english(texts: Iterable[str]) -> list[str]:
    """Those of a German page that have an English word, or that the catalogs translate to another text."""
    found = []
    for text in texts:
        bare = _NAMES.sub("", _KEY.sub("", text)).strip(" ·,;:()")
        if _has_other_translation(bare) or any(word.lower() in english_words() for word in _WORD.findall(bare)):
            found.append(text)
    return found


def _has_other_translation(text: str) -> bool:
    texts = catalog("de")
    known = texts.sentences.get(text) or next(iter(texts.pages.get(text, ())), text)
    # `Start` is the German of `Home`, and the English of a button.
    return known != text and not texts.is_translation(text)


def _words_of(texts: Iterable[str]) -> set[str]:
    return {word.lower() for text in texts for word in _WORD.findall(_PLACEHOLDER.sub(" ", text))}
