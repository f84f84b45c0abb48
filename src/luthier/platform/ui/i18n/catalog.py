"""The catalogs of a language: three files in `locale/LANGUAGE/LC_MESSAGES`, read once a process.

`pages.po` has the texts of templates, `scripts.po` those of scripts. `sentences.po` has texts that Python makes, with a
placeholder in the place of each value: "{count} rows wait" is recognised in "12 rows wait"; `{name:t}` in a translation
translates the value. `{num...}` is a number, `{currency...}` three capitals, `{ending...}` may be empty. Several
sentences are translated one by one, and so are the parts of a list with semicolons. The code that makes a sentence,
`--json` and the terminal stay English, and so do sentences that were stored; a page translates them where it shows
them (`| t`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache, lru_cache
from pathlib import Path
from typing import Final

from luthier.platform.ui.i18n.figures import day_of
from luthier.platform.ui.i18n.messages import Message

LOCALE: Final = Path(__file__).parents[1] / "locale"
_HOLE: Final = re.compile(r"\{(\w+)\}")
_FILLED: Final = re.compile(r"\{(\w+)(:t)?\}")
_DAY_NAME: Final = re.compile(r"date(?:_other)?|day")
"""Placeholders of days: only there, since a name that a person has given may look like a day."""
_ISO_DAY: Final = re.compile(r"\d{4}-(?:0[1-9]|1[0-2])-(?:0[1-9]|[12]\d|3[01])")
_NUMBER: Final = re.compile(r"((?:about )?[+−-]?\d)[\d.,]*")
_ABOUT: Final = re.compile(r"about \d")
_SENTENCES: Final = re.compile(r"(?<=[.!?]) (?=[A-Z\d])")
_CURRENCY: Final = re.compile(r"[A-Z]{3}")
_MAX_CHARACTERS: Final = 2000
"""Of a text that is compared with sentences, and of a value within it: visitors send longer ones, we write none."""
_MAX_VALUE_CHARACTERS: Final = 1500
_SPECIFIC: Final = 0.4
"""A pattern with a larger share of a text is surely about it."""
_BARE: Final = 3
"""A pattern with fewer letters outside its placeholders, such as "{opening} is {case}.", fits nearly any sentence."""
_WEAK: Final = 14
"""A pattern with fewer letters outside its placeholders, as in "one of {names}", is about names, not phrases."""
_QUOTES: Final = ("“", '"', "'")
_ENGLISH: Final = re.compile(r"\b[a-z]{3,}\b")
_PHRASE: Final = re.compile(r"\b(?:the|of|and|is|are|its?|which|that|with|from|be|not|was|to)\b")
_MAX_DEPTH: Final = 50
"""Of sentences within values of sentences: "about about about" has no end, and anybody may have it shown."""
_MAX_RECOGNISED: Final = 4000
_MAX_MISSED: Final = 1000


@dataclass(frozen=True, slots=True)
class _Pattern:
    """A sentence with placeholders. texts: before, between and behind them."""

    texts: tuple[str, ...]
    names: tuple[str, ...]
    translation: str

    @property
    def num_characters(self) -> int:
        """Of its own text, without the values."""
        return sum(map(len, self.texts))

    @property
    def is_bare(self) -> bool:
        """Whether it has hardly any word outside its placeholders, and no number or currency that a text would need."""
        has_figures = any(_is_number(name) or _is_currency(name) for name in self.names)
        return not has_figures and self.num_letters < _BARE

    @property
    def num_letters(self) -> int:
        """Of its own text."""
        return sum(map(str.isalpha, "".join(self.texts)))

    def quotes(self, name: str, value: str) -> bool:
        """Whether a value is quoted: then it is somebody's text, whatever it says."""
        is_within = name in self.names and self.texts[self.names.index(name)].endswith(_QUOTES)
        return is_within or value.startswith(_QUOTES)

    def values_in(self, text: str) -> tuple[str, ...] | None:
        """The values of the placeholders in a text, each the shortest that fits; None where the text is another one.

        No regular expression: with several placeholders it tries every way to share out a text that does not fit, and
        anybody may have such a text shown, such as an address without a page.
        """
        if not all(part in text for part in self.texts):
            return None
        # Where the rest from a placeholder on was found not to fit: it does not fit further on either.
        failed = [len(text) + 1] * len(self.names)

        def rest(index: int, at: int) -> tuple[str, ...] | None:
            if index == len(self.names):
                return () if at == len(text) else None
            if at >= failed[index]:
                return None
            name, behind = self.names[index], self.texts[index + 1]
            for end in _ends(name, text, at, behind, is_last=index == len(self.names) - 1):
                found = rest(index + 1, end + len(behind))
                if found is not None:
                    return (text[at:end], *found)
            if not _is_number(name) and not _is_currency(name):  # one of these further on may fit
                failed[index] = at
            return None

        return rest(0, len(self.texts[0])) if text.startswith(self.texts[0]) else None


@dataclass(slots=True)
class Catalog:
    """The translations of one language.

    Attributes:
        language: Its code, such as `de`.
        pages: The forms of the texts of templates.
        sentences: The texts of Python.
        scripts: The texts of scripts.
        missed: Sentences that were to be shown and have no translation, at most 1,000.
    """

    language: str
    pages: Mapping[str, tuple[str, ...]]
    sentences: Mapping[str, str]
    scripts: Mapping[str, str] = field(default_factory=dict)
    missed: set[str] = field(default_factory=set)
    _patterns: list[_Pattern] = field(default_factory=list)
    _translations: frozenset[str] = frozenset()
    _recognise: Callable[[str], tuple[_Pattern, tuple[str, ...]] | None] = lambda _: None

    def __post_init__(self) -> None:
        # The longest first: of two that fit, the one with more text of its own says more.
        known = sorted(
            (text for text in self.sentences if _HOLE.search(text)), key=lambda text: -len(_HOLE.sub("", text))
        )
        self._patterns = [_pattern(text, self.sentences[text]) for text in known]
        self._translations = frozenset((*self.sentences.values(), *(one for own in self.pages.values() for one in own)))
        self._recognise = lru_cache(_MAX_RECOGNISED)(self._search)

    def page(self, message: Message) -> tuple[str, ...] | None:
        """The forms of a text of a template; None where it has no translation."""
        found = self.pages.get(message.id)
        return found if found and (not message.plural or len(found) > 1) else None

    def sentence(self, text: str, figure: Callable[[str], str], *, depth: int = 0) -> str | None:
        """The translation of a text that Python made; None where there is none.

        Args:
            text: In English.
            figure: Writes the numbers of a value as the language does.
            depth: How many texts it is a part of.
        """
        exact = self.sentences.get(text) or self._of_page(text)
        if exact or len(text) > _MAX_CHARACTERS or depth > _MAX_DEPTH:
            return exact or None
        found = self._recognise(text)
        # A value with the end of a sentence in it belongs to several.
        is_whole = found is not None and not any(map(_SENTENCES.search, found[1]))
        if found is not None and is_whole and found[0].num_characters > _SPECIFIC * len(text):
            if (whole := self._filled(*found, figure, depth)) is not None:
                return whole
            found = None
        # Parts before a vague pattern: a value of their first one could reach to the end of the last.
        for parts, joint in ((_SENTENCES.split(text), " "), (text.split("; "), "; ")):
            if (several := self._of_several(parts, joint, figure, depth)) is not None:
                return several
        return self._of_beginning(text, figure, depth) if found is None else self._filled(*found, figure, depth)

    def _filled(
        self, pattern: _Pattern, values: tuple[str, ...], figure: Callable[[str], str], depth: int
    ) -> str | None:
        """The translation of a pattern with values in its placeholders.

        None where the pattern is bare and a value has English words that have no translation, or where it is weak and a
        value is a phrase: half a sentence would stay English, and would not be marked as that.
        """
        by_name = dict(zip(pattern.names, values, strict=True))
        has_english = has_phrase = False

        def filled(hole: re.Match[str]) -> str:
            nonlocal has_english, has_phrase
            value = by_name.get(hole[1], hole[0])
            if _DAY_NAME.fullmatch(hole[1]) and _ISO_DAY.fullmatch(value):
                return day_of(value, self.language)
            is_text = hole[2] and 0 < len(value) <= _MAX_VALUE_CHARACTERS
            if is_text and (whole := self.sentence(value, figure, depth=depth + 1)):
                return whole
            has_english |= bool(hole[2]) and " " in value.strip() and _ENGLISH.search(value) is not None
            has_phrase |= not pattern.quotes(hole[1], value) and " " in value.strip() and bool(_PHRASE.search(value))
            value = (
                value.replace("about ", f"{self.sentences.get('about', 'about')} ", 1) if _ABOUT.match(value) else value
            )
            return figure(value)

        # One pass: a value that has its own braces is not filled again.
        text = _FILLED.sub(filled, pattern.translation)
        is_half = (has_english and pattern.is_bare) or (has_phrase and pattern.num_letters < _WEAK)
        return None if is_half else text

    def _of_several(self, parts: list[str], joint: str, figure: Callable[[str], str], depth: int) -> str | None:
        """Several sentences or parts of a list, of which each has a translation."""
        if len(parts) < 2:
            return None
        found = []
        for part in parts:
            if not (translation := self.sentence(part, figure, depth=depth + 1)):
                return None
            found.append(translation)
        return joint.join(found)

    def _of_beginning(self, text: str, figure: Callable[[str], str], depth: int) -> str | None:
        """A text that is known in the middle of a sentence, and has a capital at the beginning of one."""
        if not text[:1].isupper() or text[1:2].isupper():
            return None
        found = self.sentence(text[0].lower() + text[1:], figure, depth=depth + 1)
        return None if found is None else found[:1].upper() + found[1:]

    def is_translation(self, text: str) -> bool:
        """Whether a text is in this language already: a macro may show what its caller has translated."""
        return text in self._translations

    def note_missed(self, text: str) -> None:
        """Note that a text was shown in English."""
        if len(text) <= _MAX_CHARACTERS and len(self.missed) < _MAX_MISSED:
            self.missed.add(text)

    def _of_page(self, text: str) -> str:
        forms = self.pages.get(text, ())
        return forms[0] if len(forms) == 1 else ""

    def _search(self, text: str) -> tuple[_Pattern, tuple[str, ...]] | None:
        for pattern in self._patterns:
            # Most sentences begin or end in another way.
            is_near = text.startswith(pattern.texts[0]) and text.endswith(pattern.texts[-1])
            if is_near and (found := pattern.values_in(text)) is not None:
                return pattern, found
        return None


def _pattern(text: str, translation: str) -> _Pattern:
    parts = _HOLE.split(text)  # texts and names alternate
    return _Pattern(tuple(parts[::2]), tuple(parts[1::2]), translation)


def _is_number(name: str) -> bool:
    return name == "num" or name.startswith("num_")


def _is_currency(name: str) -> bool:
    return name == "currency" or name.startswith("currency_")


def _ends(name: str, text: str, at: int, behind: str, *, is_last: bool) -> Iterator[int]:
    """Where the value of a placeholder that begins at `at` may end, with the text `behind` it.

    An ending, such as that of a plural, may be empty. `num` is a number, the longest first; `currency` has three
    capitals; of others the shortest.
    """
    if _is_number(name):
        number = _NUMBER.match(text, at)
        longest, shortest = (number.end(), number.end(1)) if number is not None else (0, 1)
        yield from (end for end in range(longest, shortest - 1, -1) if text.startswith(behind, end))
        return
    if _is_currency(name):
        code = _CURRENCY.match(text, at)
        if code is not None and text.startswith(behind, code.end()):
            yield code.end()
        return
    least = at + (not name.startswith("ending"))
    if is_last:
        end = len(text) - len(behind)
        if end >= least and text.endswith(behind):
            yield end
        return
    end = text.find(behind, least)
    while end >= 0:
        yield end
        end = text.find(behind, end + 1)


@cache
def catalog(language: str) -> Catalog:
    """The catalogs of a language, as they are in the package."""
    pages = dict(_entries(language, "pages"))
    sentences = {text: forms[0] for text, forms in _entries(language, "sentences")}
    scripts = {text: forms[0] for text, forms in _entries(language, "scripts")}
    return Catalog(language, pages, sentences, scripts)


def _entries(language: str, domain: str) -> Iterable[tuple[str, tuple[str, ...]]]:
    """The texts of a catalog with their translations; without empty and fuzzy ones."""
    from babel.messages.pofile import read_po

    with (LOCALE / language / "LC_MESSAGES" / f"{domain}.po").open("rb") as file:
        read = read_po(file, locale=language)
    for message in read:
        if not message.id or message.fuzzy:
            continue
        first = message.id if isinstance(message.id, str) else message.id[0]
        forms = (message.string,) if isinstance(message.string, str) else tuple(message.string or ())
        if forms and all(forms):
            yield first, forms
