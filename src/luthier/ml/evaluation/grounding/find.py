"""All citations of a text, in order, each with its sentence."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from typing import Final

from luthier.core.results.suite import CitationForm
from luthier.core.system.bounded_regex import BoundedPattern
from luthier.core.text.sentences import sentence_spans
from luthier.ml.evaluation.grounding.cases import find_cases
from luthier.ml.evaluation.grounding.citation import Citation
from luthier.ml.evaluation.grounding.clean import clean
from luthier.ml.evaluation.grounding.patterns import find_patterns, find_urls
from luthier.ml.evaluation.grounding.statutes import find_statutes
from luthier.ml.evaluation.grounding.us_law import find_us_law

_MAX_AROUND: Final = 400


def find_citations(
    text: str, forms: Collection[CitationForm], patterns: Mapping[str, BoundedPattern] | None = None
) -> tuple[Citation, ...]:
    """The citations of the wanted forms and by the user's patterns, in the order of the text.

    A citation that occurs twice in a text is found twice. Nothing is found within a URL but by a user's pattern.

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
        # A citation goes on over this end of a sentence: both are one.
        if joined and reach > start:
            start = joined.pop()[0]
        joined.append((start, end))
        while place < len(inner) and inner[place][0] < end:
            reach = max(reach, inner[place][1])
            place += 1
    return joined


def _apart_from(found: Iterable[Citation], others: Iterable[Citation], text: str) -> list[Citation]:
    """Those of the others that overlap none of what was found."""
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
    """The text with blanks for URLs: the numbers in their paths are no citations."""
    parts, last = [], 0
    for url in urls:
        parts += [text[last : url.start], " " * (url.end - url.start)]
        last = url.end
    return "".join([*parts, text[last:]])
