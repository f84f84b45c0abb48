"""Decisions: `Harrow v. Tallow Mills, 31 Pelm. 204, 207 (2019)` in any reporter, or by their parties alone."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Final

from luthier.ml.evaluation.grounding.citation import Citation
from luthier.ml.evaluation.grounding.clean import squash, words
from luthier.ml.evaluation.grounding.parties import PartyIndex, is_distinctive, joined, names_alone, names_before

# Each part of its name ends with a dot or before a blank, so that there is one way alone to read it.
_REPORTER: Final = (
    r"[A-Z][A-Za-z']{0,12}\.?(?:\s?(?<=[.\s])(?:[A-Z][A-Za-z']{0,12}\.?|\d{1,2}(?:d|th|st|nd|rd)\b)){0,5}"
)
_CITE: Final = re.compile(
    rf"(?<![\w.,$€£/-])(?P<volume>\d{{1,4}})\s(?P<reporter>{_REPORTER})\s(?P<page>\d{{1,6}})(?![\w%/:]|[.,]\d)"
)
_PIN: Final = re.compile(r",\s(?:at\s)?(?P<pin>\d{1,6}+(?:-\d{1,6}+)?+)(?!\s[A-Z]|[\w.]\w)")
_PINS: Final = r"(?:,\s(?:at\s)?\d{1,6}(?:-\d{1,6})?){0,3}"
_YEAR: Final = re.compile(rf"{_PINS}\s?[(\[][^()\[\]]{{0,40}}\b(?:1[6-9]|20)\d\d[)\]]")
_YEAR_LATER: Final = re.compile(rf"(?:{_PINS},\s\d{{1,4}}\s{_REPORTER}\s\d{{1,6}}){{1,3}}{_YEAR.pattern}")
_PARALLEL: Final = re.compile(r",\s(?:(?:at\s)?\d{1,6}(?:-\d{1,6})?,\s)?")
_NO_REPORTER: Final = words(
    "jan feb mar apr may jun jul aug sep sept oct nov dec mon tue wed thu fri sat sun st ave rd no vol pp p ch"
)


def find_cases(text: str, by_eyecite: Sequence[Citation] = ()) -> Iterator[Citation]:
    """The decisions in a cleaned text.

    One in several reporters is one citation. One named alone counts where no citation of the same parties is in the
    text. `Id.` and `supra` are not counted, nor is a short form (`410 U.S. at 120`) of a volume that is cited in full.

    Args:
        text: as `clean` returns it.
        by_eyecite: what `us_law` found, which goes before what is found here.
    """
    cited = _in_order([*by_eyecite, *_by_form(text)])
    full = _joined_parallels(text, [one for one in cited if not one.normal.endswith(" at")])
    yield from full
    volumes = {form.rpartition(" ")[0] for one in full for form in (one.normal, *one.parallel)}
    yield from (one for one in cited if one.normal.endswith(" at") and one.normal.removesuffix(" at") not in volumes)
    named, is_cited = PartyIndex(), bytearray(len(text))
    for one in full:
        is_cited[one.start : one.end] = b"\1" * (one.end - one.start)
        if one.names is not None:
            named.add(one.names)
    for start, end, names in names_alone(text):
        if any(is_cited[start:end]) or not is_distinctive(names) or named.find(names):
            continue
        named.add(names)
        yield Citation(
            joined(names), "us_case", f"named {squash(names[0])} {squash(names[1])}", start, end, names=names
        )


def reporter_of(normal: str) -> str:
    """The reporter in a normal form that this module gave to a decision in a reporter."""
    return normal.split(" ")[1]


def is_name_alone(citation: Citation) -> bool:
    """Whether a decision was cited by its parties alone."""
    return citation.normal.startswith("named ")


def _by_form(text: str) -> Iterator[Citation]:
    """Citations by their form alone: with a dot or a series in the reporter, and parties before or a year after."""
    for match in _CITE.finditer(text):
        reporter = match["reporter"]
        if not re.search(r"[.\d]", reporter) or squash(reporter.split()[0]) in _NO_REPORTER:
            continue
        has_year = _YEAR.match(text, match.end()) or _YEAR_LATER.match(text, match.end())
        if not has_year and names_before(text, match.start()) is None and not _follows_cite(text, match.start()):
            continue
        yield decision(text, match.span(), match["volume"], reporter, match["page"])


def _follows_cite(text: str, start: int) -> bool:
    """`410 U.S. 113, 93 S. Ct. 705`: the second has what the first has."""
    return re.search(rf"\d\s{_REPORTER}\s\d{{1,6}},\s(?:\d{{1,6}},\s)?$", text[max(0, start - 60) : start]) is not None


def decision(text: str, span: tuple[int, int], volume: str, reporter: str, page: str) -> Citation:
    """A decision in one reporter, at its place in a cleaned text."""
    pin = _PIN.match(text, span[1])
    return Citation(
        text=_line(text[span[0] : span[1]]),
        kind="us_case",
        normal=f"{volume} {squash(reporter)} {page.lower()}",
        start=span[0],
        end=span[1],
        pin=pin["pin"] if pin else "",
    )


def _in_order(found: list[Citation]) -> list[Citation]:
    """By place; of two that overlap the one that begins first, of two that begin together the first of `found`."""
    kept: list[Citation] = []
    # The sort is stable: of two that begin together the first of `found` (eyecite's) comes first.
    for one in sorted(found, key=lambda citation: citation.start):
        if not kept or one.start >= kept[-1].end:
            kept.append(one)
    return kept


def _joined_parallels(text: str, cited: list[Citation]) -> list[Citation]:
    """Citations that follow each other with a comma alone between are one decision; each with its parties."""
    groups: list[list[Citation]] = []
    for one in cited:
        if groups and _PARALLEL.fullmatch(text[groups[-1][-1].end : one.start]):
            groups[-1].append(one)
        else:
            groups.append([one])
    return [_decision(text, group) for group in groups]


def _decision(text: str, group: list[Citation]) -> Citation:
    first, last = group[0], group[-1]
    before = names_before(text, first.start)
    year = _YEAR.match(text, last.end)
    end = year.end() if year else last.end
    start = before[0] if before else first.start
    return replace(
        first,
        text=_line(text[start:end]),
        start=start,
        end=end,
        pin=last.pin or first.pin,
        names=before[1] if before else None,
        parallel=tuple(one.normal for one in group[1:]),
    )


def _line(text: str) -> str:
    return " ".join(text.split())
