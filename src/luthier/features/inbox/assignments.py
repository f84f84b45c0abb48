"""Who does the work that a page is about: a line above the pages that entries of the inbox lead to."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import parse_qsl, urlsplit

from luthier.core.errors import LuthierError
from luthier.features.inbox import service as inbox
from luthier.features.inbox.records import InboxEntry
from luthier.platform.auth.members_store import Session
from luthier.platform.home.context import Context

_PAGES: Final = re.compile(
    r"/(?:evaluations/panels|evaluations/orders|deployments|runs|exports|batches|datasets/jobs|pipelines/jobs)"
    r"/(?!(?:new|compare)$)[^/]+"
    r"|/datasets/(?P<dataset>[^/]+)/annotate|/review|/monitor/model"
)
"""The pages that entries lead to: on others nothing is looked up."""


@dataclass(frozen=True, slots=True)
class PageInbox:
    """The work that a page is about.

    Attributes:
        entries: Open entries that lead to the page.
        people: The names of members who can be given it; empty where the visitor may not assign.
        dataset_id: A dataset whose annotation nobody was given yet, on its page; empty for none.
    """

    entries: tuple[InboxEntry, ...] = ()
    people: tuple[str, ...] = field(default=())
    dataset_id: str = ""


class Assignments:
    """The entries of pages, for the pages of one server. Its methods may be called by any thread."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def of(self, session: Session | None, path: str, query: str) -> PageInbox | None:
        """The work of a page; None where there is none, or it is not for this visitor to see.

        Args:
            session: Who is signed in.
            path: The address of the page.
            query: Its query, without a question mark.
        """
        # Before anything is read: collecting what waits costs a query for each kind of work.
        page = _PAGES.fullmatch(path)
        if page is None or session is None or not session.caller.may("read"):
            return None
        caller = session.caller
        try:
            open_entries = inbox.list_entries(self._context, caller, show="open")
            people = self._context.members.list(caller.project_id) if inbox.may_assign(caller) else ()
        except LuthierError:
            # The page itself says why the database does not answer.
            return None
        found = tuple(one for one in open_entries if _leads_to(one.work.address, path, query))
        names = tuple(one.name for one in people)
        dataset_id = page["dataset"] if not found and names and page["dataset"] else ""
        return PageInbox(found, names, dataset_id) if found or dataset_id else None


def _leads_to(address: str, path: str, query: str) -> bool:
    """Whether an address is that of a page, with any further values in its query."""
    # The query of an entry is a part of that of the page: /review?model=x is also shown with a filter.
    parts = urlsplit(address)
    return parts.path == path and set(parse_qsl(parts.query)) <= set(parse_qsl(query))
