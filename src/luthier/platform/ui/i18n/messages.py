"""Messages: texts with named placeholders and numbered elements, and the parts that a translation puts in their place.

    An {num_rows} <1>audit</1> of your rows    ->    Eine <1>Prüfung</1> Ihrer {num_rows} Zeilen

A message may have a plural; its form is chosen by the condition in the template, as English does: one, or any other
number.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

_BLANKS: Final = re.compile(r"[ \t\r\n]+")
_PART: Final = re.compile(r"\{(\w+)\}|<(/?)(\d+)>")


@dataclass(frozen=True, slots=True)
class Message:
    """A text of the pages. plural: its form for any number but one, where it has one. line: of the template."""

    id: str
    plural: str = ""
    line: int = 0


Find: TypeAlias = Callable[[Message], Sequence[str] | None]
"""The translation of a message, in one form or in the two of a plural; None where there is none."""


@dataclass(frozen=True, slots=True)
class Hole:
    """A place that is filled when the page is made. name: of its placeholder. source: of the template."""

    name: str
    source: str


@dataclass(frozen=True, slots=True)
class Named:
    """An explained word: its key in the glossary, and the word that is shown."""

    key: str
    word: str


@dataclass(frozen=True, slots=True)
class Tags:
    """The tags around the text of an inline element, as in the template."""

    begin: str
    end: str


@dataclass(frozen=True, slots=True)
class Ending:
    """A letter or word for the plural: the condition of the singular, and both forms."""

    condition: str
    one: str
    other: str
    source: str


@dataclass(slots=True)
class Element:
    """An inline element, or an explained word, with what is in it."""

    mark: Tags | Named
    items: list[Item]


Item: TypeAlias = "str | Hole | Element | Ending"


@dataclass(frozen=True, slots=True)
class Plural:
    """Both forms of a translated message, and the condition of the first."""

    condition: str
    one: list[str | Hole | Element]
    other: list[str | Hole | Element]


def translated(items: Sequence[Item], find: Find, line: int) -> list[str | Hole | Element] | None:
    """The parts of the translation of a message without a plural; None where there is none."""
    found = translated_forms(items, find, line)
    return found if isinstance(found, list) else None


def translated_forms(items: Sequence[Item], find: Find, line: int) -> list[str | Hole | Element] | Plural | None:
    """The parts of the translation of a message; None where there is none."""
    ending = next(_endings(items), None)
    if ending is None:
        writer = _Writer("")
        forms = find(Message(writer.text(items), "", line))
        return None if forms is None else _parts(forms[0], writer)
    one, other = _Writer(ending.condition, is_one=True), _Writer(ending.condition)
    forms = find(Message(one.text(items), other.text(items), line))
    return None if forms is None else Plural(ending.condition, _parts(forms[0], one), _parts(forms[-1], other))


def placeholders(text: str) -> list[str]:
    """The placeholders and tags of a message, in alphabetical order."""
    return sorted(found[0] for found in _PART.finditer(text))


def _endings(items: Sequence[Item]) -> Iterator[Ending]:
    for item in items:
        if isinstance(item, Ending):
            yield item
        elif isinstance(item, Element):
            yield from _endings(item.items)


class _Writer:
    """Writes the id of a message, and knows afterwards what its placeholders and numbers are."""

    def __init__(self, condition: str, *, is_one: bool = False) -> None:
        self._condition, self._is_one = condition, is_one
        self.holes: dict[str, Hole] = {}
        self.elements: list[Element] = []

    def text(self, items: Sequence[Item]) -> str:
        return _BLANKS.sub(" ", self._text(items)).strip()

    def _text(self, items: Sequence[Item]) -> str:
        words = []
        for item in items:
            if isinstance(item, str):
                words.append(item)
            elif isinstance(item, Ending) and item.condition == self._condition:
                words.append(item.one if self._is_one else item.other)
            elif isinstance(item, Ending):
                words.append(self._hole(Hole("ending", item.source)))
            elif isinstance(item, Hole):
                words.append(self._hole(item))
            else:
                self.elements.append(item)
                number = len(self.elements)
                words.append(f"<{number}>{self._text(item.items)}</{number}>")
        return "".join(words)

    def _hole(self, hole: Hole) -> str:
        name, number = hole.name, 1
        # The same expression twice is one placeholder; another of the same name gets a number.
        while name in self.holes and self.holes[name].source != hole.source:
            number += 1
            name = f"{hole.name}{number}"
        self.holes[name] = hole
        return f"{{{name}}}"


def _parts(text: str, writer: _Writer) -> list[str | Hole | Element]:
    """A translation with the template's own parts in the place of its placeholders."""
    stack: list[list[str | Hole | Element]] = [[]]
    at = 0
    for found in _PART.finditer(text):
        if found.start() > at:
            stack[-1].append(text[at : found.start()])
        at = found.end()
        if found[1] is not None:
            stack[-1].append(writer.holes[found[1]] if found[1] in writer.holes else found[0])
        elif found[2] and len(stack) > 1:
            inside = stack.pop()
            stack[-1].append(Element(writer.elements[int(found[3]) - 1].mark, list(inside)))
        elif not found[2]:
            stack.append([])
    if at < len(text):
        stack[-1].append(text[at:])
    return [part for level in stack for part in level]
