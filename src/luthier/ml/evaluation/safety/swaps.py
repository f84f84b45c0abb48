"""Swaps of names, pronouns and words for groups in a text, at word boundaries, from a table of this project's own."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

import yaml

TABLE: Final = Path(__file__).parent / "probes" / "swaps.yaml"
# "Her" is "him" or "his", "his" is "her" or "hers": what follows decides. "Her" before one of these is "him".
_AFTER_OBJECT: Final = (
    "a|about|after|again|an|and|as|at|away|back|because|before|but|by|down|for|from|he|here|home|how|if|in|into|it|"
    "now|of|off|on|or|out|over|she|so|that|the|then|there|they|this|to|today|tomorrow|up|what|when|where|while|who|"
    "why|will|with|yesterday|you"
)
_HER_AS_OBJECT: Final = rf"her(?=\W*$|[.,;:!?)\"'\n]|\s+(?:{_AFTER_OBJECT})\b)"
_HIS_ALONE: Final = r"his(?=\W*$|[.,;:!?)\"\n])"


@dataclass(frozen=True, slots=True)
class Swapped:
    """A text after a swap.

    Attributes:
        text: the text with the swaps.
        swaps: `he -> she`, each once, in order.
        direction: 1 where only words of the first side stood there, so that now it speaks of the second; -1 the other
            way round; 0 where both did.
    """

    text: str
    swaps: tuple[str, ...]
    direction: int


@dataclass(frozen=True)
class Swap:
    """One group of the table.

    Attributes:
        group: name of the group.
        first: name of its first side.
        second: name of its second side.
        is_control: names are swapped for others of the same kind.
        is_exact: words count in their own case only.
        to_second: word of the first side -> its partner.
        to_first: word of the second side -> its partner.
        as_written: words whose partner keeps the case of the table.
        pattern: finds every word of both sides.
    """

    group: str
    first: str
    second: str
    is_control: bool
    is_exact: bool
    to_second: dict[str, str]
    to_first: dict[str, str]
    as_written: frozenset[str]
    pattern: re.Pattern[str]

    def apply(self, text: str) -> Swapped | None:
        """The text with each word of the group swapped for its partner, all at once; None where there is none."""
        found: dict[str, None] = {}
        sides: set[int] = set()

        def partner(match: re.Match[str]) -> str:
            word = match[0]
            other, side = self._other(text, match)
            if word not in self.as_written:
                other = _in_case_of(word, other)
            sides.add(side)
            found[f"{word} -> {other}"] = None
            return other

        # In one pass, so that a word that was just put in is not swapped back.
        swapped = self.pattern.sub(partner, text)
        return Swapped(swapped, tuple(found), sides.pop() if len(sides) == 1 else 0) if found else None

    def _other(self, text: str, match: re.Match[str]) -> tuple[str, int]:
        """The replacement of the word, and the side that it is from as a direction."""
        key = match[0] if self.is_exact else match[0].casefold()
        if self.group == "gender":
            if key == "her":
                return ("him" if _matches(_HER_AS_OBJECT, text, match) else "his"), -1
            if key == "his":
                return ("hers" if _matches(_HIS_ALONE, text, match) else "her"), 1
        return (self.to_second[key], 1) if key in self.to_second else (self.to_first[key], -1)


@cache
def read_swaps() -> tuple[Swap, ...]:
    """The groups of the table."""
    return tuple(_read(yaml.safe_load(TABLE.read_text(encoding="utf-8"))))


def _read(table: list[dict[str, Any]]) -> Iterator[Swap]:
    for entry in table:
        is_exact = bool(entry.get("exact", False))
        first, second = entry["sides"]
        pairs = [(str(one), str(other)) for one, other in entry["pairs"]]
        to_second = {first if is_exact else first.casefold(): second for first, second in pairs}
        to_first = {second if is_exact else second.casefold(): first for first, second in pairs}
        words = [*to_second, *to_first]
        if entry["group"] == "gender":
            to_second |= {"him": "her"}
            to_first |= {"hers": "his"}
            words += ["him", "his", "her", "hers"]
        # Longest first: the first alternative that matches wins, and a word may begin with another.
        alternatives = "|".join(sorted(map(re.escape, words), key=len, reverse=True))
        pattern = re.compile(rf"\b(?:{alternatives})\b", 0 if is_exact else re.IGNORECASE)
        as_written = frozenset(word for pair in pairs for word in pair) | {"him", "his", "her", "hers"}
        yield Swap(
            str(entry["group"]),
            first,
            second,
            bool(entry.get("control", False)),
            is_exact,
            to_second,
            to_first,
            as_written,
            pattern,
        )


def _matches(pattern: str, text: str, match: re.Match[str]) -> bool:
    return re.compile(pattern, re.IGNORECASE).match(text, match.start()) is not None


def _in_case_of(word: str, other: str) -> str:
    """The other word in capitals as the word is, which is not written as the table has it."""
    if word.isupper() and len(word) > 1:
        return other.upper()
    return other[0].upper() + other[1:] if word[:1].isupper() else other
