"""The entries of the navigation, and which one a page belongs to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from luthier.core.access import Scope
from luthier.platform.auth.member_records import Session


@dataclass(frozen=True, slots=True)
class Entry:
    """A page of the navigation.

    Attributes:
        name: Its title.
        address: Its path.
        scope: What a visitor needs to see it; None for whoever is signed in.
        key: The letter that leads there, after `g`.
    """

    name: str
    address: str
    scope: Scope | None
    key: str


ENTRIES: Final = (
    Entry("Home", "/", "read", "h"),
    Entry("Datasets", "/datasets", "read", "d"),
    Entry("Runs", "/runs", "read", "r"),
    Entry("Studies", "/studies", "read", "t"),
    Entry("Evaluations", "/evaluations", "read", "e"),
    Entry("Playground", "/playground", "infer", "p"),
    Entry("Models", "/models", "read", "m"),
    Entry("Monitor", "/monitor", "read", "o"),
    Entry("Review", "/review", "read", "v"),
    Entry("Settings", "/settings", None, "s"),
)


def entries_for(session: Session | None) -> list[Entry]:
    """What this visitor may look at."""
    if session is None:
        return []
    return [entry for entry in ENTRIES if entry.scope is None or session.caller.may(entry.scope)]


def current(path: str) -> str:
    """The address of the entry that a page belongs to; empty for none."""
    fitting = [e.address for e in ENTRIES if path == e.address or (e.address != "/" and path.startswith(e.address))]
    # The longest fit is the most specific entry.
    return max(fitting, key=len, default="")
