"""Citations of decisions: `Harrow v. Tallow Mills, 31 Pelm. 204, 207 (2019)` in any reporter, or by parties alone.

The parties are found before a citation or alone in the text, and compared if two citations may refer to the same
decision.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Final

from luthier.ml.evaluation.grounding.citation import Citation, squash, words

Names = tuple[str, str]

_LOOK_BACK: Final = 200
_MAX_WORDS: Final = 10
_VERSUS: Final = re.compile(r"\sv(?:s)?\.?\s")
_ONE_PARTY: Final = re.compile(
    r"\b(?:[Ii]n\s[Rr]e|[Ee]x\s[Pp]arte|Matter\sof|Estate\sof)\s(?P<name>[A-Z][^;\n]{0,80}?),?\s?$"
)
_ALONE: Final = re.compile(r"(?<=[\w.,)])\sv(?:s)?\.\s(?=[A-Z])")
_CONNECTORS: Final = words("of the and & ex rel. de la von van et al.")
_ABBREVIATED: Final = words(
    "inc co corp ltd llc lp llp bros ins mfg dept comm assn bd cty st dr mr mrs ms jr sr ry natl intl indus"
)
_SIGNALS: Final = words(
    "see in but cf accord under compare as also and the by both from following citing quoting e.g then when "
    "while here thus however"
)
# Words that do not identify a party.
_ANYBODY: Final = words(
    "inc co corp corporation company ltd limited llc lp llp the of and a an et al ex rel state commonwealth people "
    "united states"
)


def names_before(text: str, start: int) -> tuple[int, Names] | None:
    """The parties right before a citation, and their start; None if there are none."""
    from_ = max(0, start - _LOOK_BACK)
    window = text[from_:start]
    versus = list(_VERSUS.finditer(window))
    if versus:
        last = versus[-1]
        defendant = window[last.end() :].strip(" \n,*_\"'")
        is_party = bool(defendant[:1].isupper()) and ";" not in defendant and len(defendant.split()) <= _MAX_WORDS
        begin, plaintiff = _backwards(window[: last.start()])
        if is_party and plaintiff and _goes_on(defendant):
            return from_ + begin, (plaintiff, " ".join(defendant.split()))
    one = _ONE_PARTY.search(window)
    if one is not None and _goes_on(one["name"]):
        return from_ + one.start(), ("", " ".join(one["name"].split()))
    return None


def names_alone(text: str) -> Iterator[tuple[int, int, Names]]:
    """`Harrow v. Tallow Mills` wherever it occurs: (start, end, parties)."""
    for versus in _ALONE.finditer(text):
        from_ = max(0, versus.start() - _LOOK_BACK)
        begin, plaintiff = _backwards(text[from_ : versus.start()])
        length, defendant = _forwards(text[versus.end() : versus.end() + _LOOK_BACK])
        if plaintiff and defendant:
            yield from_ + begin, versus.end() + length, (plaintiff, defendant)


class PartyIndex:
    """An index of decisions by their parties, each with a note."""

    def __init__(self) -> None:
        self._by_word: dict[str, dict[tuple[Names, str], None]] = {}

    def __bool__(self) -> bool:
        return bool(self._by_word)

    def add(self, names: Names, note: str = "") -> None:
        """Add a decision; no effect if it exists."""
        for side in names:
            for word in _distinctive_words(side):
                self._by_word.setdefault(word, {})[names, note] = None

    def find(self, names: Names) -> list[str]:
        """The distinct notes of all decisions that may have the same parties."""
        words = {word for side in names for word in _distinctive_words(side)}
        # A dict keeps the order of sorted words: results do not depend on the hash seed.
        found = {entry: None for word in sorted(words) for entry in self._by_word.get(word, ())}
        return list(dict.fromkeys(note for other, note in found if same_parties(names, other)))


def same_parties(one: Names, other: Names) -> bool:
    """Whether two names may refer to the same parties: on each side, all distinctive words of one occur in the other.

    `Harrow v. Mills` may be `Harrow v. Tallow Mills, Inc.`; it is not `Harrow v. Stone Mills`. A side without a
    distinctive word (`State`) matches any.
    """
    return all(_fits(_distinctive_words(a), _distinctive_words(b)) for a, b in zip(one, other, strict=True))


def is_distinctive(names: Names) -> bool:
    """Whether both sides have distinctive words."""
    return all(_distinctive_words(side) for side in names)


def joined(names: Names) -> str:
    """`Harrow v. Tallow Mills`; `In re Harrow` where there is one party."""
    return f"{names[0]} v. {names[1]}" if names[0] else f"In re {names[1]}"


def _fits(one: frozenset[str], other: frozenset[str]) -> bool:
    return one <= other or other <= one


def _distinctive_words(name: str) -> frozenset[str]:
    return frozenset(plain for word in re.split(r"[\s/-]+", name) if (plain := squash(word)) and plain not in _ANYBODY)


def _goes_on(name: str) -> bool:
    """Whether the name contains no end of a sentence."""
    return not any(_ends_sentence(word) for word in name.split()[:-1])


def _ends_sentence(word: str) -> bool:
    plain = squash(word)
    return word.endswith((".", "!", "?")) and len(plain) > 2 and "." not in word[:-1] and plain not in _ABBREVIATED


def _is_word(word: str) -> bool:
    return word[:1].isupper() or word[:1] == "&" or word in _CONNECTORS


def _backwards(text: str) -> tuple[int, str]:
    """The party that a text ends with, and where it begins."""
    found: list[re.Match[str]] = []
    for word in reversed(list(re.finditer(r"\S+", text))[-_MAX_WORDS:]):
        plain = word[0].lstrip("(\"'[*_")
        if not _is_word(plain) or (found and (_ends_sentence(plain) or plain.endswith((";", ":", ")")))):
            break
        found.insert(0, word)
        if len(plain) < len(word[0]):
            break
    while found and (squash(found[0][0]) in _SIGNALS or not found[0][0].lstrip("(\"'[*_")[:1].isupper()):
        del found[0]
    if not found:
        return len(text), ""
    name = " ".join(word[0] for word in found).strip(" ,*_\"'([")
    return found[0].start() + len(found[0][0]) - len(found[0][0].lstrip("(\"'[*_")), name


def _forwards(text: str) -> tuple[int, str]:
    """The party that a text begins with, and where it ends."""
    end = 0
    for count, word in enumerate(re.finditer(r"\S+", text)):
        if count == _MAX_WORDS or not _is_word(word[0]):
            break
        stripped = word[0].rstrip(".,;:!?)\"'*_]")
        is_short = squash(stripped) in _ABBREVIATED and word[0].startswith(f"{stripped}.")
        end = word.start() + len(stripped) + is_short
        if word[0] != stripped and word[0] != f"{stripped}.":
            break
        if word[0].endswith(".") and not is_short and len(squash(stripped)) > 1:
            break
    name = " ".join(text[:end].split())
    while name.rpartition(" ")[2] in _CONNECTORS:
        name = name.rpartition(" ")[0]
    return end, name


# Each part of its name ends with a dot or before a blank, so that parsing is unambiguous.
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

    A decision in several reporters is one citation. A decision cited by its parties alone counts only without another
    citation of the same parties. `Id.` and `supra` are not counted, nor is a short form (`410 U.S. at 120`) of a volume
    that is cited in full.

    Args:
        text: as `clean` returns it.
        by_eyecite: citations found by eyecite, which take precedence.
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
    """`410 U.S. 113, 93 S. Ct. 705`: the second inherits parties and year of the first."""
    return re.search(rf"\d\s{_REPORTER}\s\d{{1,6}},\s(?:\d{{1,6}},\s)?$", text[max(0, start - 60) : start]) is not None


def decision(text: str, span: tuple[int, int], volume: str, reporter: str, page: str) -> Citation:
    """A decision in one reporter, at its place in a cleaned text.

    Args:
        text: the cleaned text.
        span: where the citation begins and ends in it.
        volume: of the reporter.
        reporter: as it is abbreviated.
        page: the first page of the decision.
    """
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
    """Sorted by position; of two that overlap the one that begins first, then the first of `found`."""
    kept: list[Citation] = []
    # The sort is stable: of two that begin together the first of `found` (eyecite's) comes first.
    for one in sorted(found, key=lambda citation: citation.start):
        if not kept or one.start >= kept[-1].end:
            kept.append(one)
    return kept


def _joined_parallels(text: str, cited: list[Citation]) -> list[Citation]:
    """Citations separated only by a comma are one decision; each with its parties."""
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
