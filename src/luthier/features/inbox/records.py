"""An entry of the inbox: work that waits for a person, and what was decided about it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, Literal

from luthier.core.access import Scope
from luthier.core.frozen_model import FrozenModel

InboxKind = Literal["rate", "review", "annotate", "alert", "canary", "job"]
InboxState = Literal["open", "snoozed", "done"]
InboxShow = Literal["for_you", "open", "snoozed", "done"]
ReminderState = Literal["due", "overdue"]
REMINDER: Final = "inbox_reminder"
"""The kind of the documents about reminders that were sent."""
DUE_SECONDS: Final = 24 * 3600.0
"""So long before the end of its day work counts as due."""
KIND_TITLES: Final[dict[InboxKind, str]] = {
    "rate": "Rate",
    "review": "Review",
    "annotate": "Annotate",
    "alert": "Alert",
    "canary": "Canary",
    "job": "Failed job",
}
NEEDS: Final[dict[InboxKind, Scope]] = {
    "rate": "read",
    "review": "train",
    "annotate": "train",
    "alert": "read",
    "canary": "train",
    "job": "read",
}
"""What a person has to be allowed to do to settle such an entry; raters need no more than their link."""


class InboxMark(FrozenModel):
    """What people have decided about an entry. Times are seconds since 1970 by the database's clock.

    Attributes:
        project_id: The project.
        item_id: The entry.
        assignee_id: The member who does it; None for nobody.
        assigned_by: Who assigned it; empty where nobody did.
        due_at: By when it is to be done; None for no date.
        snoozed_until: Until when it is hidden; None where it is not.
        done_at: When it was marked as done; None where it was not.
        done_by: Who marked it; empty where nobody did.
        done_mark: The state of what it is about at that time; another state opens the entry again.
        updated_at: When this last changed.
    """

    project_id: str
    item_id: str
    assignee_id: str | None = None
    assigned_by: str = ""
    due_at: float | None = None
    snoozed_until: float | None = None
    done_at: float | None = None
    done_by: str = ""
    done_mark: str = ""
    updated_at: float = 0.0


@dataclass(frozen=True, slots=True)
class Work:
    """Work that waits for a person, found in another part of the project.

    Attributes:
        kind: What is to be done.
        subject: What it is about: an id or a name.
        title: For people, on one line.
        detail: How far it is, or what happened.
        address: The page where it is done.
        since: Since when it waits, in seconds since 1970; None where that is not known.
        mark: Its state; an entry that was marked as done opens again with another one.
    """

    kind: InboxKind
    subject: str
    title: str
    detail: str
    address: str
    since: float | None
    mark: str


@dataclass(frozen=True, slots=True)
class InboxEntry:
    """An entry of the inbox.

    Attributes:
        item_id: Its id, the same as long as it is about the same thing.
        work: What is to be done.
        mark: What was decided about it.
        assignee: The name of the member who does it; empty for nobody.
        state: Whether it is open.
        is_overdue: Whether it is open and its date has passed.
    """

    item_id: str
    work: Work
    mark: InboxMark
    assignee: str
    state: InboxState
    is_overdue: bool

    @property
    def due_day(self) -> str:
        """The day of its date (UTC), as fields of forms take it; empty for none."""
        due = self.mark.due_at
        return "" if due is None else datetime.fromtimestamp(due, UTC).date().isoformat()


class Reminders(FrozenModel):
    """Which reminders about an entry were sent.

    Attributes:
        assignee_id: To whom.
        due_at: For which date, in seconds since 1970.
        sent: Those that went out.
    """

    assignee_id: str
    due_at: float
    sent: tuple[ReminderState, ...] = ()

    def is_about(self, mark: InboxMark) -> bool:
        """Whether they were for the person and the date that an entry has now."""
        return (self.assignee_id, self.due_at) == (mark.assignee_id, mark.due_at)
