"""All personal data in a text, names of people included, and the rows of a column where there may be some.

Names need presidio-analyzer and a spaCy model, since patterns cannot find them. Presidio is used for PERSON only, in
English; it downloads nothing here: without a model on the machine names are not searched, and `why_not` gives the
reason.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace
from functools import cache
from importlib.util import find_spec
from typing import Any, Final

import polars as pl

from luthier.ml.data.personal_data import street
from luthier.ml.data.personal_data.national_ids import find_national_ids
from luthier.ml.data.personal_data.phone import find_phones
from luthier.ml.data.personal_data.recognizers import (
    Kind,
    Profile,
    Span,
    find_cards,
    find_emails,
    find_ibans,
    find_ip_addresses,
    find_ssns,
)
from luthier.ml.data.personal_data.street import find_streets

SPACY_MODELS: Final = ("en_core_web_lg", "en_core_web_md", "en_core_web_sm")
_MIN_SCORE: Final = 0.6
_MASK: Final = "Person "

FindNames = Callable[[str], Sequence[Span]]


def why_not() -> str | None:
    """Why names cannot be searched on this machine; None where they can."""
    if find_spec("presidio_analyzer") is None:
        return "presidio is not installed"
    if _model() is None:
        return f"presidio has no spaCy model; install one of {', '.join(SPACY_MODELS)}"
    return None


@cache
def name_finder() -> FindNames | None:
    """The finder, made once; None where `why_not` has a reason."""
    if why_not() is not None:
        return None
    from presidio_analyzer import AnalyzerEngine
    from presidio_analyzer.nlp_engine import NlpEngineProvider

    configuration = {"nlp_engine_name": "spacy", "models": [{"lang_code": "en", "model_name": _model()}]}
    engine = AnalyzerEngine(nlp_engine=NlpEngineProvider(nlp_configuration=configuration).create_engine())

    def find(text: str) -> list[Span]:
        # Only PERSON: the other kinds are found by check digits and forms, with fewer false alarms.
        results = engine.analyze(text=text, language="en", entities=["PERSON"], score_threshold=_MIN_SCORE)
        return names_from(text, results)

    return find


def names_from(text: str, results: Sequence[Any]) -> list[Span]:
    """Presidio's results as spans, in order. Reserved: `Person A`, as masks have it."""
    found = [(int(result.start), int(result.end)) for result in results]
    return [Span(s, e, "name", text[s:e], text[s:e].startswith(_MASK)) for s, e in sorted(found) if s < e]


def _model() -> str | None:
    return next((name for name in SPACY_MODELS if find_spec(name) is not None), None)


# In this order: what has a check digit or an unmistakable form keeps its characters.
_FINDERS: Final[tuple[Callable[[str], Iterable[Span]], ...]] = (
    find_emails,
    find_ibans,
    find_national_ids,
    find_cards,
    find_ssns,
    find_ip_addresses,
    find_streets,
    find_phones,
)
# What masks put in is taken out before the search, regardless of its neighbours.
_MASKS: Final = re.compile(
    r"\bperson\d+@example\.com|\+1-[2-9]\d\d-555-01\d\d|(?<!\d)1[2-9]\d\d55501\d\d(?!\d)"
    r"|\b\d+ Example Street\b|\bPerson [A-Z]+\b"
)
_BLANK: Final = "\x00"
_DIGIT: Final = re.compile(r"\d")
_ESCAPE: Final = re.compile(r"[nrtbf]|u[0-9A-Fa-f]{4}")

# The same search in the dialect of Rust's regex, coarser: a row without any of these has nothing to find.
_CANDIDATES: Final = (
    r"\d(?:[ ().\-/\u00a0\u202f\u2011]{0,3}\d){6}",
    r"(?i:[A-Z]{2}\d\d[ \u00a0\u202f-]?[A-Z0-9])",
    r"(?i:[A-Z]{2} ?\d\d ?\d\d ?\d\d ?[A-D])",
    r"(?i:[A-Z]{3}[ \u00a0\u202f]?[0-9L-V]{2}[A-Z][0-9L-V]{2}[ \u00a0\u202f]?[A-Z][0-9L-V]{3}[A-Z])",
    r"\d{6}[A-FU-Y]\d{3}",
    r"\d\.\d{1,3}\.\d{1,3}\.\d",
    r"[0-9A-Fa-f]:[0-9A-Fa-f]{1,4}:[0-9A-Fa-f:]|::[0-9A-Fa-f]",
    rf"\d[A-Za-z]? (?:[\p{{Lu}}\d][\w.'’\-]* ){{1,4}}(?:{street.STRONG_SUFFIXES}|{street.WEAK_SUFFIXES})\b",
    rf"(?i:{street.GERMAN_ENDINGS}) \d|(?:Am|An de[rn]|Auf de[mr]|Im|In der|Zum|Zur|Unter den) \p{{Lu}}[\w'’\-]* \d",
    rf"\d(?: ?(?:bis|ter|quater|[A-D]))?,? (?i:{street.FRENCH_WORDS}) ",
    rf"(?:{street.SPANISH_WORDS}|{street.ITALIAN_WORDS}|in (?:via|viale|piazza|corso)) ?[\p{{L}} '’\-.,º]{{2,60}}\d",
)


def find_personal_data(
    text: str,
    find_names: FindNames | None = None,
    *,
    profile: Profile = "recall",
    every: Collection[Kind] = (),
) -> list[Span]:
    """Every value in the text that names or reaches a person, in order, none overlapping another.

    Reserved values (example.com, 192.0.2.1, 555-0100, the masks of `data.masking`) are left out.

    Args:
        text: any text.
        find_names: from `names.name_finder`.
        profile: "recall", everything that may be a value; "precision", only what is certain to be one.
        every: kinds whose uncertain values count in either profile.
    """
    # The same length, so that offsets stay those of the original text.
    text = _MASKS.sub(lambda match: _BLANK * len(match[0]), text)
    found: list[Span] = []
    if "@" in text or _DIGIT.search(text):
        for finder in _FINDERS:
            found.extend(finder(text))
    if find_names is not None:
        found.extend(find_names(text))
    if profile == "precision":
        # Reserved spans stay until overlaps are settled: they keep other finders off their characters.
        found = [span for span in found if span.is_certain or span.is_reserved or span.kind in every]
    return [span for span in without_overlaps(text, found) if not span.is_reserved]


def without_overlaps(text: str, spans: Sequence[Span]) -> list[Span]:
    """The spans in order of place, of two that overlap the one that came first; none starts inside a JSON escape."""
    taken = bytearray(len(text)) if spans else bytearray()
    kept = []
    for span in spans:
        span = _after_escape(text, span)
        if span.start < span.end and not any(taken[span.start : span.end]):
            taken[span.start : span.end] = b"\x01" * (span.end - span.start)
            kept.append(span)
    return sorted(kept, key=lambda span: span.start)


def may_hold_personal_data(texts: pl.Series) -> pl.Series:
    """Booleans: where `find_personal_data` (without names) may find something; never false where it would."""
    name = texts.name or "text"
    column = pl.col(name)
    tests = [column.str.contains("@", literal=True), *(column.str.contains(pattern) for pattern in _CANDIDATES)]
    return texts.to_frame(name).select(pl.any_horizontal(tests).fill_null(value=False).alias("found"))["found"]


def _after_escape(text: str, span: Span) -> Span:
    """The span without the letter of a backslash escape that it begins with: in JSON, `\\nme@firm.de` is no `nme@`."""
    num_backslashes = 0
    while span.start > num_backslashes and text[span.start - num_backslashes - 1] == "\\":
        num_backslashes += 1
    # An odd number: the last backslash is not escaped itself, so it escapes the letter behind it.
    if num_backslashes % 2 and (escape := _ESCAPE.match(text, span.start)):
        start = min(escape.end(), span.end)
        value = text[start : span.end]
        is_whole = span.kind != "email" or not value.startswith("@")
        return replace(span, start=start if is_whole else span.end, value=value)
    return span
