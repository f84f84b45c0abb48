"""A fact as pages show it: a name, its value, and a word beneath."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Fact:
    """A name, its value as text, and a smaller note."""

    name: str
    value: str
    note: str = ""
