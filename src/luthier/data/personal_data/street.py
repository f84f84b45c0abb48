"""Street addresses with a house number, as written in English, German, Dutch, French, Spanish and Italian.

A street without a house number is a place on a map and is not reported. What stays ambiguous: shops and titles that
look like an address ("300 Blue Ridge Mountain"), a year after a square ("Alexanderplatz 2021" is left alone).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from luthier.data.personal_data import street_words as words
from luthier.data.personal_data.span import Span

_NAME: Final = r"[^\W\d_a-zß-öø-ÿ][\w'’\-]{0,40}"
_PARTICLE: Final = (
    r"(?:(?:de las|de los|de la|de l['’]|della|delle|dello|degli|dell['’]|dei|del"
    r"|des|du|de|di|da|la|le|les|los|las|el|y|e"
    r"|d['’]|l['’]) ?)"
)
_NAMES: Final = rf"{_PARTICLE}{{0,2}}{_NAME}(?:[ ]{_PARTICLE}{{0,2}}{_NAME}){{0,3}}"
_TAIL: Final = r"(?:,? (?:Apt|Apartamento|Appartamento|Piso|Puerta|Piano|Interno|Esc)\.? ?\d{1,4})?"
_NUMBER: Final = r"(\d{1,5}(?: ?[a-zA-Z](?![\w.]))?(?:[/\-]\d{1,4})?)"

_ENGLISH: Final = re.compile(
    rf"(?<![\w.,:/$€£#%+\-])(?<!\d )(\d{{1,6}}[A-Za-z]?) (?:[NSEW]{{1,2}}\.? |North |South |East |West )?"
    rf"(?:(?:\d{{1,3}}(?:st|nd|rd|th)|{_NAME}) ){{1,3}}?(?:({words.STRONG_SUFFIXES})|(?:{words.WEAK_SUFFIXES}))\b\.?"
    rf"((?:,? |\n)(?:{words.UNITS}))?"
)
_GERMAN: Final = re.compile(
    rf"(?<![\w.\-])(?:([A-ZÄÖÜ](?:[\w\-]|\.(?=-)){{1,60}}?(?i:{words.GERMAN_ENDINGS}))"
    rf"|(?:(?:Am|An der|An den|Auf dem|Auf der|Im|In der|Zum|Zur|"
    rf"Unter den|Alte|Neue|Lange|Kurze|Hohe|Obere|"
    rf"Untere|Große|Kleine|[A-ZÄÖÜ]\w{{2,30}}e[rns]?) ){_NAME}) {_NUMBER}"
    rf"(?![\w]|[.,:]\d|[ ]?[%€$°])"
)
_GERMAN_LAST_WORD: Final = re.compile(rf"(?:{words.GERMAN_WORDS})$")
_GERMAN_PREPOSITION: Final = re.compile(r"(?:Am|An de[rn]|Auf de[mr]|Unter den) ")
_FRENCH: Final = re.compile(
    rf"(?<![\w.,:/$€£#%+\-])(?<!\d )(\d{{1,4}})(?: ?(?:bis|ter|quater|[A-D])\b)?,? "
    rf"(?i:{words.FRENCH_WORDS}) {_NAMES}(?![\w'’\-])"
)
_SPANISH: Final = re.compile(
    rf"(?<![\w.])(?:{words.SPANISH_WORDS}) ?{_NAMES},? (?:n\.?º ?|núm\.? ?)?{_NUMBER}(?!\w|[.,:]\d|[ ]?[%€$°]){_TAIL}"
)
_ITALIAN: Final = re.compile(
    rf"(?<![\w.])(?:{words.ITALIAN_WORDS}|(?<=in )via|(?<=in )viale|(?<=in )piazza|(?<=in )corso) {_NAMES},? "
    rf"(?:n\.? ?)?{_NUMBER}(?!\w|[.,:]\d|[ ]?[%€$°]){_TAIL}"
)
_MASK: Final = re.compile(r"\d+ Example Street")
_YEAR: Final = re.compile(r"(?:19|20)\d\d")
_UNIT_OR_TIME: Final = re.compile(
    r"(?i) ?(?:Uhr|Euro|EUR|Prozent|Minuten|Stunden|Tage|Jahre|km|kg|cm|mm|m|h|min|"
    r"euros?|años|anni|giorni|ore|ans|heures|jours|días|horas)\b"
)
_COUNTING_BEFORE: Final = re.compile(
    r"(?i)\b(?:page|chapter|no|number|top|about|over|of|in|since|the|these|all|episode|season)\.? $"
)


def find_streets(text: str) -> Iterator[Span]:
    """Each street with its house number and flat. Reserved: `n Example Street`, as masks have it."""
    for match in _ENGLISH.finditer(text):
        is_mask = _MASK.fullmatch(match[0]) is not None
        if is_mask or _is_english(text, match):
            yield Span(match.start(), match.end(), "street", match[0], is_mask)
    for match in _GERMAN.finditer(text):
        if _is_german(text, match):
            yield Span(match.start(), match.end(), "street", match[0])
    for match in _FRENCH.finditer(text):
        yield Span(match.start(), match.end(), "street", match[0])
    for pattern in (_SPANISH, _ITALIAN):
        for match in pattern.finditer(text):
            if not _YEAR.fullmatch(match[1]) and not _UNIT_OR_TIME.match(text, match.end()):
                yield Span(match.start(), match.end(), "street", match[0])


def _is_english(text: str, match: re.Match[str]) -> bool:
    number, strong, unit = match[1], match[2], match[3]
    if unit:
        return True
    if _COUNTING_BEFORE.search(text[max(0, match.start() - 12) : match.start()]):
        return False
    return strong is not None or (len(number) >= 3 and not _YEAR.fullmatch(number))


def _is_german(text: str, match: re.Match[str]) -> bool:
    number = match[match.lastindex or 1]
    if _UNIT_OR_TIME.match(text, match.end()):
        return False
    if match[1] is None:
        named = match[0][: -len(number) - 1]
        is_street = _GERMAN_LAST_WORD.search(named) is not None or _GERMAN_PREPOSITION.match(named) is not None
        return is_street and not _YEAR.fullmatch(number)
    word = match[1].casefold()
    return word not in words.GERMAN_NOUNS and not (
        _YEAR.fullmatch(number) and not word.endswith(("straße", "strasse", "str."))
    )
