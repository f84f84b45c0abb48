"""Where each value of a plan comes from, written down while the plan is made."""

from __future__ import annotations

from typing import TypeVar

from luthier.core.plan import Source, ValueSource

T = TypeVar("T")


class Provenance:
    """Collects the source of each value while the plan is made."""

    def __init__(self) -> None:
        self.found: dict[str, ValueSource] = {}

    def note(self, name: str, source: Source, why: str) -> None:
        """Write down where the value of that dotted name comes from."""
        self.found[name] = ValueSource(source=source, why=why)

    def pick(self, name: str, asked: T | None, default: tuple[T, str]) -> T:
        """The asked value where there is one, else the default; noted either way."""
        if asked is not None:
            self.note(name, "asked", "in the recipe")
            return asked
        self.note(name, "default", default[1])
        return default[0]

    def in_order(self, sections: tuple[str, ...]) -> dict[str, ValueSource]:
        """All that was noted, section by section, each in the order it was noted in."""
        # The sort is stable: within a section the order of noting stays.
        return dict(sorted(self.found.items(), key=lambda item: sections.index(item[0].partition(".")[0])))
