"""What holds of every page as it is sent: names in the place of ids, and at most one primary button."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from html.parser import HTMLParser
from typing import Final

_ID: Final = re.compile(r"(?<![\w/=-])[a-z]+-[0-9]{8}-[0-9]{6}-[0-9a-f]{6}(?![\w-])")
"""As `core.ids.new_id` makes them; not within an address."""
_DETAILS: Final = frozenset(("code", "pre", "textarea", "script", "style", "template"))
"""Elements that hold ids and texts for programs."""
_DETAIL_CLASSES: Final = frozenset(("mono", "digest", "text", "snippet", "why-words", "log-line"))
"""Lines of details, texts of rows and models, reasons that quote a plan, and lines of a log as they were written."""
_READ_ALOUD: Final = ("aria-label", "alt", "placeholder")
_VOID: Final = frozenset(("area", "br", "col", "hr", "img", "input", "link", "meta", "source", "track", "wbr"))


@dataclass(slots=True)
class _Element:
    tag: str
    is_detail: bool
    is_hidden: bool
    is_primary: bool = False
    words: list[str] = field(default_factory=list)


class _Page(HTMLParser):
    """Reads a page once, for all rules."""

    def __init__(self) -> None:
        super().__init__()
        self.shown: list[str] = []
        self.primary: list[str] = []
        self._open: list[_Element] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        classes = set(given.get("class", "").split())
        above = self._open[-1] if self._open else _Element("", is_detail=False, is_hidden=False)
        # The title of a box in a drawing is what a pointer shows of it.
        is_tip = tag == "title" and any(one.tag == "svg" for one in self._open)
        element = _Element(
            tag,
            is_detail=above.is_detail or is_tip or tag in _DETAILS or bool(classes & _DETAIL_CLASSES),
            is_hidden=above.is_hidden or "hidden" in given or tag == "template",
            is_primary=tag in ("a", "button") and "primary" in classes,
        )
        if not element.is_detail:
            self.shown += [given[name] for name in _READ_ALOUD if name in given]
        if tag not in _VOID:
            self._open.append(element)

    def handle_endtag(self, tag: str) -> None:
        if not any(one.tag == tag for one in self._open):
            return
        while True:
            closed = self._open.pop()
            if closed.is_primary and not closed.is_hidden:
                self.primary.append(" ".join("".join(closed.words).split()))
            if closed.tag == tag:
                return

    def handle_data(self, data: str) -> None:
        for one in self._open:
            if one.is_primary:
                one.words.append(data)
        if not self._open or not self._open[-1].is_detail:
            self.shown.append(data)


def _read(page: str) -> _Page:
    reader = _Page()
    reader.feed(page)
    reader.close()
    return reader


def ids_shown(page: str) -> list[str]:
    """Texts and labels of a page that have an id outside code, addresses and lines of details."""
    return [" ".join(text.split()) for text in _read(page).shown if _ID.search(text)]


def primary_buttons(page: str) -> list[str]:
    """The words of the primary buttons of a page, without those that are hidden."""
    return _read(page).primary
