"""Statutes and sections: `42 U.S.C. § 1983`, `O.C.G.A. Section 34-9-1(b)`, `§§ 34-9-1 to -3`, `§ 12-3`.

A section's number is found first, then the name of a code before it. The number counts without its subsections, which
become the pin. Of a range both ends count, of a list each item.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from luthier.core.results.suite import CitationForm
from luthier.ml.evaluation.grounding.citation import Citation
from luthier.ml.evaluation.grounding.clean import squash, words

_NUMBER: Final = r"(?:[A-Z]{1,2}-)?\d{1,6}[A-Za-z]{0,3}(?:[-.:/]\d{1,6}[A-Za-z]{0,3}){0,5}(?!\w)"
_SUBSECTIONS: Final = r"(?:\s?\([A-Za-z0-9]{1,5}\)){0,6}"
_ITEM: Final = rf"{_NUMBER}{_SUBSECTIONS}"
# "§§ 5-1, 5-2 and 42 U.S.C. § 1983": a number before a code or a reporter is no item of the list.
_NO_CODE_AFTER: Final = r"(?!\s[A-Z][\w.]*[.A-Z])"
_BETWEEN: Final = r"\s?(?:,\s?(?:and|or|&)\s|[,;]\s?|(?:and|or|&|to|through)\s|-\s?)\s?(?:§{1,2}\s?)?"
_LIST: Final = rf"{_ITEM}(?:{_BETWEEN}(?:-\d{{1,6}}(?!\w){_SUBSECTIONS}|{_ITEM}){_NO_CODE_AFTER}){{0,20}}"
_SIGNED: Final = re.compile(
    rf"(?:(?P<many>§§|\b(?:[Ss]ections|SECTIONS|[Ss]ecs\.))\s?(?P<list>{_LIST})"
    rf"|(?P<one>§|\b(?:[Ss]ection|SECTION|[Ss]ec\.))\s?(?P<item>{_ITEM}))"
)
_FEDERAL: Final = re.compile(
    r"(?<![\w.-])(?P<title>\d{1,3})\s(?P<code>U\.?\s?S\.?\s?C\.?(?:\s?[AS]\.?)?|C\.?\s?F\.?\s?R\.?)\s?"
    rf"(?:(?P<many>§§|[Ss]ections|[Pp]arts)\s?(?P<list>{_LIST})"
    rf"|(?:§|[Ss]ection|[Ss]ec\.|[Pp]art)?\s?(?P<item>{_ITEM}))"
)
# Codes that are written without a sign before the number, too; with a volume before it, it would be a reporter.
_UNSIGNED: Final = re.compile(
    r"(?<![\w.])(?<!\d\s)(?:(?:[A-Z]\.\s?){3,6}|OCGA\s|(?:[A-Z][a-z]{1,5}\.\s){1,3}Stat\.\s(?:Ann\.\s)?)"
    rf"(?=\w+[-.:]\w)(?P<item>{_ITEM})"
)
_PIECE: Final = re.compile(rf"(?P<number>{_NUMBER}|(?<![\w)])-\d{{1,6}}(?!\w))(?P<pin>{_SUBSECTIONS})")
_SPAN_OF_YEARS: Final = re.compile(r"(\d{1,6})-(\d{1,6})")

_CODE_WORD: Final = re.compile(r"[A-Z][\w.'&-]*")
_ACRONYM: Final = re.compile(r"(?:[A-Z]\.){2,6}|[A-Z]{3,6}")
_CODE_ENDS: Final = words("code codes stat stats statute statutes law laws ann annotated act acts rev")
_NAMED: Final = re.compile(
    r"(?:[A-Z]\.){3,6}|\b[A-Z]{3,6}\b|(?:[A-Z][\w.'&-]{0,20}\s(?:of\s)?){1,4}(?:Codes?|Acts?|Laws?|Statutes?|Stat\.)"
)
_NO_CODE: Final = words("us usa uk eu dc am pm inc llc")
_SIGNALS: Final = words(
    "see under in by per of the and also cf but accord compare both as to that this pursuant citing"
)
_SAME_CODE: Final = {"ga.code": "ocga", "official.code.georgia": "ocga", "usca": "usc", "uscs": "usc"}
_MAX_CODE_WORDS: Final = 8
_LOOK_BACK: Final = 90
# "Mass. Gen. Laws ch. 1, § 2"
_CHAPTER: Final = re.compile(r"\s(?:chs?|tit|art|pt)\.\s\d{1,4}[A-Za-z]?,?\s?$")


def find_statutes(text: str) -> Iterator[Citation]:
    """Statutes and sections in a cleaned text; a section after a code's name is never one on its own, too."""
    # One byte a character: what a federal citation covers is not found again as a section.
    is_taken = bytearray(len(text))
    for match in _FEDERAL.finditer(text):
        _take(is_taken, *match.span())
        code = f"{match['title']} {code_named(match['code'])}"
        yield from _citations(text, match, match.start(), code, "us_statute")
    for pattern in (_SIGNED, _UNSIGNED):
        for match in pattern.finditer(text):
            if any(is_taken[match.start() : match.end()]):
                continue
            if pattern is _SIGNED:
                start, name = _code_before(text, match)
            else:
                start, name = match.start(), text[match.start() : match.start("item")]
            _take(is_taken, start, match.end())
            if name:
                yield from _citations(text, match, start, code_named(name), "state_statute")
            elif _is_citation(match):
                yield from _citations(text, match, start, "§", "section")


def _take(is_taken: bytearray, start: int, end: int) -> None:
    is_taken[start:end] = b"\1" * (end - start)


def codes_named(text: str) -> set[str]:
    """The codes that a cleaned text names, with a section or without one."""
    return {code_named(match[0]) for match in _NAMED.finditer(text)}


def section_number(normal: str) -> str:
    """The number in a normal form that this module gave."""
    return normal.rpartition(" ")[2]


def code_of(normal: str) -> str:
    """The code in a normal form that this module gave; `§` for none."""
    return normal.rpartition(" ")[0]


def code_named(name: str) -> str:
    """The words of a code's name with dots between, an acronym as one word: `cal.penal.code`, `ocga`."""
    plain = [word for part in name.split() if (word := squash(part)) not in ("", "of", "ann", "annotated")]
    joined = "".join(plain) if all(len(word) == 1 for word in plain) else ".".join(plain)
    return _SAME_CODE.get(joined, joined)


def same_code(one: str, other: str) -> bool:
    """`Lab. Code` may be `Cal. Labor Code`: the last words begin alike. Titles with different numbers differ."""
    if "§" in (one, other):
        return False
    names = [code.lstrip("0123456789 .") for code in (one, other)]
    titles = {code[: len(code) - len(name)].strip(" .") for code, name in zip((one, other), names, strict=True)} - {""}
    words = zip(*(reversed(name.split(".")) for name in names), strict=False)
    return len(titles) < 2 and all(a.startswith(b) or b.startswith(a) for a, b in words)


def _is_citation(match: re.Match[str]) -> bool:
    """`§` always means one; the word may name a part of the answer itself: "Section 2" does not count."""
    if (match["many"] or match["one"]).startswith("§"):
        return True
    number = _PIECE.search(match["list"] or match["item"])
    return number is not None and (len(number["number"]) >= 3 and any(c.isdigit() for c in number["number"]))


def _citations(text: str, match: re.Match[str], start: int, code: str, kind: CitationForm) -> Iterator[Citation]:
    """One for each item of the list."""
    groups = match.groupdict()
    whole = "list" if groups.get("list") else "item"
    pieces = list(_PIECE.finditer(groups[whole]))
    is_span = whole == "list" and len(pieces) == 1 and _is_span(pieces[0]["number"])
    last = ""
    for place, piece in enumerate(pieces):
        numbers = _SPAN_OF_YEARS.fullmatch(piece["number"]) if is_span else None
        for number in numbers.groups() if numbers else (piece["number"],):
            if number.startswith("-"):  # "34-9-1 to -3"
                # "to -3" replaces the last part of the number before it.
                number = f"{last.rpartition('-')[0]}{number}" if "-" in last else number[1:]
            last = number
            yield Citation(
                text=" ".join(text[start : match.end()].split()),
                kind=kind,
                normal=f"{code} {number.casefold()}",
                start=start if place == 0 else match.start(whole) + piece.start(),
                end=match.start(whole) + piece.end(),
                pin="".join(piece["pin"].split()),
            )


def _is_span(number: str) -> bool:
    """`§§ 1981-1983`: the sign says several, so the dash represents "to"."""
    ends = _SPAN_OF_YEARS.fullmatch(number)
    return ends is not None and int(ends[1]) < int(ends[2])


def _code_before(text: str, match: re.Match[str]) -> tuple[int, str]:
    """Where the name of a code before the sign begins, and the name with its title's number; empty where none is."""
    signed = (match["many"] or match["one"]).startswith("§")
    words: list[tuple[int, str]] = []
    from_ = max(0, match.start() - _LOOK_BACK)
    window = text[from_ : match.start()]
    chapter = _CHAPTER.search(window)
    before = list(re.finditer(r"\S+", window[: chapter.start()] if chapter else window))
    for word in reversed(before[-_MAX_CODE_WORDS:]):
        plain = word[0].removesuffix(",")
        is_title = bool(words) and plain.isdigit() and len(plain) < 4
        if not (is_title or _CODE_WORD.fullmatch(plain) or plain in ("of", "&")):
            break
        words.insert(0, (from_ + word.start(), plain))
        if plain.isdigit():
            break
    # "See Cal. Penal Code": the signal before a citation is no part of the code's name.
    while words and squash(words[0][1]) in _SIGNALS:
        del words[0]
    if not words:
        return match.start(), ""
    last = words[-1][1]
    is_acronym = _ACRONYM.fullmatch(last) is not None and squash(last) not in _NO_CODE
    if is_acronym and (signed or last.count(".") > 2 or last == "OCGA"):
        while len(words) > 1 and not (words[0][1].isdigit() or _ACRONYM.fullmatch(words[0][1])):
            del words[0]
    elif squash(last) not in _CODE_ENDS or len(words) == 1 or not (signed or last.endswith(("Code", "Act", "."))):
        return match.start(), ""
    return words[0][0], " ".join(word for _, word in words) + (chapter[0].rstrip(" ,\n") if chapter else "")
