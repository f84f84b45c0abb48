"""The pages that are led to from everywhere: what each declares, and which one an address belongs to."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from fastapi import APIRouter

from luthier.core.access import Scope
from luthier.core.registry import PAGES
from luthier.platform.auth.member_records import Session

Group = Literal["main", "settings"]
"""Where a page is led to from: the head of every page, or the tabs of the settings."""


@dataclass(frozen=True, slots=True)
class Page:
    """What a page declares, beside the router that answers for it.

    Attributes:
        name: Its title.
        address: Its path. A plug-in's is `/plug-ins/` with the name of its entry point.
        scope: What a visitor needs to see it; None for whoever is signed in.
        order: Pages are shown by it, smallest first.
        key: The letter that leads there, after `g`; empty for none.
        group: Where it is led to from.
        router: Of a plug-in: its routes, each at the address or below it. `scope` is asked for in front of each.
        templates: Of a plug-in: the folder of its templates, found under the name of its entry point
            (`name/list.html`); `base.html` is the layout that all pages extend.
    """

    name: str
    address: str
    scope: Scope | None
    order: int
    key: str = ""
    group: Group = "main"
    router: APIRouter | None = None
    templates: Path | None = None


@cache
def declared() -> dict[str, Page]:
    """Every page by the name it is registered under, by order.

    Raises:
        NotFoundError: A package brings a page that cannot be loaded.
    """
    found: dict[str, Page] = {name: PAGES.declaration(name) for name in PAGES.names()}
    return dict(sorted(found.items(), key=lambda item: item[1].order))


def entries(group: Group = "main") -> list[Page]:
    """The pages of a group, in order."""
    return [page for page in declared().values() if page.group == group]


def entries_for(session: Session | None, group: Group = "main") -> list[Page]:
    """What this visitor may look at."""
    if session is None:
        return []
    return [page for page in entries(group) if page.scope is None or session.caller.may(page.scope)]


def current(path: str) -> str:
    """The address of the page of the navigation that an address belongs to; empty for none."""
    known = [page.address for page in entries()]
    fitting = [address for address in known if path == address or (address != "/" and path.startswith(address))]
    # The longest fit is the most specific entry.
    return max(fitting, key=len, default="")
