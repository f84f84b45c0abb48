"""All citations of a text, in order, each with its sentence; parses statutes and US law.

Statutes are `42 U.S.C. § 1983`, `O.C.G.A. Section 34-9-1(b)`, `§§ 34-9-1 to -3`, `§ 12-3`. A section's number is found
first, then the name of a code before it. The number is used without its subsections, which become the pin. Both ends of
a range and each item of a list count.

eyecite (Free Law Project; extra `law`) knows the reporters and codes of the United States, so that a decision without
parties and without a year is found, short forms (`410 U.S. at 120`), and laws in their own forms (`124 Stat. 119`).
"""

from __future__ import annotations

import logging
import re
from bisect import bisect_left, bisect_right
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import replace
from importlib.util import find_spec
from typing import Final

from luthier.core.results.suite import CitationForm
from luthier.core.system.bounded_regex import BoundedPattern
from luthier.core.text.sentences import sentence_spans
from luthier.ml.evaluation.grounding.cases import decision, find_cases
from luthier.ml.evaluation.grounding.citation import Citation, blocks, clean, find_patterns, find_urls, squash, words

_NUMBER: Final = r"(?:[A-Z]{1,2}-)?\d{1,6}[A-Za-z]{0,3}(?:[-.:/]\d{1,6}[A-Za-z]{0,3}){0,5}(?!\w)"
_SUBSECTIONS: Final = r"(?:\s?\([A-Za-z0-9]{1,5}\)){0,6}"
_ITEM: Final = rf"{_NUMBER}{_SUBSECTIONS}"
# "§§ 5-1, 5-2 and 42 U.S.C. § 1983": a number before a code or a reporter is not an item of the list.
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
    """Statutes and sections in a cleaned text; a section after a code's name is not counted again as a bare section."""
    # One byte per character: text covered by a federal citation is not found again as a section.
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
    """`Lab. Code` may be `Cal. Labor Code`: the last words begin alike. Different title numbers do not match."""
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
    # "See Cal. Penal Code": the signal before a citation is not part of the code's name.
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


_DIGIT: Final = re.compile(r"\d")
_FEDERAL_REPORTERS: Final = ("Stat.", "Pub. L.", "Fed. Reg.")


def has_eyecite() -> bool:
    """Whether the extra `law` is installed."""
    return find_spec("eyecite") is not None


def find_us_law(text: str) -> tuple[list[Citation], list[Citation]]:
    """(decisions, statutes) in a cleaned text; empty if eyecite is not installed.

    The normal form of a short form ends in ` at`, in place of a page.
    """
    if not has_eyecite():
        return [], []
    from eyecite import get_citations
    from eyecite.models import FullCaseCitation, FullLawCitation, ShortCaseCitation

    logging.getLogger("eyecite").setLevel(logging.ERROR)  # it logs overlaps, with the text, to the terminal
    cases: list[Citation] = []
    laws: list[Citation] = []
    # In blocks: eyecite's time grows faster than the length of a text.
    for offset, part in blocks(text):
        if _DIGIT.search(part) is None:  # nothing to find, and it rejects empty text
            continue
        for found in get_citations(part):
            groups = {name: value for name, value in found.groups.items() if value}
            start, end = found.token.start + offset, found.token.end + offset
            shown = " ".join(text[start:end].split())
            if isinstance(found, FullLawCitation) and len(groups) > 1:
                *code, number = {**groups, "reporter": found.corrected_reporter()}.values()
                kind = "us_statute" if groups.get("reporter") in _FEDERAL_REPORTERS else "state_statute"
                laws.append(Citation(shown, kind, f"{code_named(' '.join(code))} {number.casefold()}", start, end))
            elif isinstance(found, ShortCaseCitation) and "volume" in groups:
                volume = f"{groups['volume']} {squash(found.corrected_reporter())}"
                cases.append(Citation(shown, "us_case", f"{volume} at", start, end))
            elif isinstance(found, FullCaseCitation) and {"volume", "page"} <= groups.keys():
                cases.append(decision(text, (start, end), groups["volume"], found.corrected_reporter(), groups["page"]))
    return cases, laws


_MAX_AROUND: Final = 400


def find_citations(
    text: str, forms: Collection[CitationForm], patterns: Mapping[str, BoundedPattern] | None = None
) -> tuple[Citation, ...]:
    """The citations of the wanted forms and by the user's patterns, in the order of the text.

    A citation that occurs twice in a text is found twice. Within a URL only custom patterns are found.

    Args:
        text: as written; offsets of citations are those of the cleaned text.
        forms: which forms count.
        patterns: compiled patterns of a user's own citations, by name.
    """
    cleaned = clean(text)
    urls = list(find_urls(cleaned))
    # As long as the text, so that offsets fit both.
    plain = _blanked(cleaned, urls)
    cases, laws = find_us_law(plain) if {"us_case", "us_statute", "state_statute"} & set(forms) else ([], [])
    statutes = list(find_statutes(plain))
    # Our own finder first: it knows subsections and ranges, which eyecite leaves out.
    statutes += _apart_from(statutes, laws, plain)
    found = [one for one in statutes if one.kind in forms]
    found += find_patterns(cleaned, patterns or {})
    if "us_case" in forms:
        found += _apart_from(statutes, find_cases(plain, cases), plain)
    if "url" in forms:
        found += urls
    found.sort(key=lambda one: (one.start, one.end))
    spans = sentences_of(cleaned, found)
    starts, ends = [span[0] for span in spans], [span[1] for span in spans]
    return tuple(replace(one, sentence=_sentence(cleaned, one, starts, ends)) for one in found)


def sentences_of(cleaned: str, citations: Collection[Citation]) -> list[tuple[int, int]]:
    """(start, end) of each sentence of a cleaned text; none ends within a citation ("31 Pelm. App. 204")."""
    inner = sorted((one.start, one.end) for one in citations)
    joined: list[tuple[int, int]] = []
    place, reach = 0, 0
    for start, end in sentence_spans(cleaned):
        # A citation continues across this sentence end: both are one sentence.
        if joined and reach > start:
            start = joined.pop()[0]
        joined.append((start, end))
        while place < len(inner) and inner[place][0] < end:
            reach = max(reach, inner[place][1])
            place += 1
    return joined


def _apart_from(found: Iterable[Citation], others: Iterable[Citation], text: str) -> list[Citation]:
    """The others that overlap none of the found citations."""
    is_found = bytearray(len(text))
    for one in found:
        is_found[one.start : one.end] = b"\1" * (one.end - one.start)
    return [one for one in others if not any(is_found[one.start : one.end])]


def _sentence(text: str, citation: Citation, starts: list[int], ends: list[int]) -> str:
    """Of a sentence without an end, the text around the citation."""
    start = starts[max(0, bisect_right(starts, citation.start) - 1)]
    end = ends[min(len(ends) - 1, bisect_left(ends, citation.end))]
    first, last = max(start, citation.start - _MAX_AROUND), min(end, citation.end + _MAX_AROUND)
    shown = " ".join(text[first:last].split())
    return f"{'…' * (first > start)}{shown}{'…' * (last < end)}"


def _blanked(text: str, urls: Collection[Citation]) -> str:
    """The text with URLs blanked out: numbers in their paths are not citations."""
    parts, last = [], 0
    for url in urls:
        parts += [text[last : url.start], " " * (url.end - url.start)]
        last = url.end
    return "".join([*parts, text[last:]])
