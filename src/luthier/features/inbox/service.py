"""Use cases: the inbox of a project: see what waits, give it to a person with a date, put it off, mark it as done.

panels, reviews, datasets, alerts, canaries, failed jobs -> entries <- decisions (who, by when, until when, done)
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from datetime import UTC, date, datetime
from datetime import time as clock_time
from typing import Any, Final

from luthier.core.access import Caller
from luthier.core.errors import ConflictError, LuthierError, NotAllowedError, NotFoundError, RequestError
from luthier.features.inbox.records import (
    DUE_SECONDS,
    NEEDS,
    REMINDER,
    InboxEntry,
    InboxMark,
    InboxShow,
    InboxState,
    Reminders,
    Work,
)
from luthier.features.inbox.sources import item_id_of, waiting_work
from luthier.features.inbox.store import Event
from luthier.platform.audit_log.service import record
from luthier.platform.auth.members import caller_for
from luthier.platform.auth.members_store import Member
from luthier.platform.auth.public_address import link_root
from luthier.platform.db.monitor_state import WatchDocument
from luthier.platform.home.context import Context
from luthier.platform.notifications import mails
from luthier.platform.ui.i18n.environments import words

MAX_SNOOZE_SECONDS: Final = 366 * 24 * 3600.0
_MAIL: Final = "inbox_mail"
_ROOT: Final = "inbox_root"
"""The kind of the document with the address at which something was assigned last: a reminder is sent by no request."""
_COUNT_SECONDS: Final = 10.0
_MAX_COUNTS: Final = 1000


def list_entries(
    context: Context, caller: Caller, *, show: InboxShow = "open", assignee: str | None = None
) -> list[InboxEntry]:
    """Entries of the caller's project: overdue ones first, then by date, then the oldest.

    Args:
        context: The home.
        caller: The project, and for `for_you` the member.
        show: `for_you`: open, and assigned to the caller or to nobody. Else by state.
        assignee: Only those of a member of this name; None for all.
    """
    return list_with_counts(context, caller, show=show, assignee=assignee)[0]


def counts(context: Context, caller: Caller) -> dict[InboxShow, int]:
    """How many entries each list has."""
    return list_with_counts(context, caller)[1]


def list_with_counts(
    context: Context, caller: Caller, *, show: InboxShow = "open", assignee: str | None = None
) -> tuple[list[InboxEntry], dict[InboxShow, int]]:
    """Entries as by `list_entries`, and how many each list has; what waits is collected once for both."""
    every = _entries(context, caller)
    shows: tuple[InboxShow, ...] = ("for_you", "open", "snoozed", "done")
    found = {one: sum(_is_shown(entry, caller, one, None) for entry in every) for one in shows}
    # The navigation of the same page shows it, too.
    _keep_count(_count_key(context, caller), found["for_you"])
    return [one for one in every if _is_shown(one, caller, show, assignee)], found


def get_entry(context: Context, caller: Caller, item_id: str) -> InboxEntry:
    """One entry, in any state.

    Raises:
        NotFoundError: Nothing of this id waits in the project.
    """
    found = next((one for one in _entries(context, caller) if one.item_id == item_id), None)
    if found is None:
        raise NotFoundError(
            f"no entry here has the id {item_id[:64]!r}",
            expected="an entry of the inbox of this project; entries disappear when their work is done",
            do="see the entries: luthier inbox list, or the page /inbox",
        )
    return found


def may_assign(caller: Caller) -> bool:
    """Whether somebody may give entries to people: trainers and admins."""
    return caller.may("train")


def may_settle(caller: Caller, entry: InboxEntry) -> bool:
    """Whether somebody may put an entry off or mark it as done: trainers, admins, and the member who was given it."""
    return caller.may("train") or (caller.member_id is not None and caller.member_id == entry.mark.assignee_id)


def assign(
    context: Context, caller: Caller, item_id: str, member_name: str | None, *, due: date | None = None, root: str = ""
) -> InboxEntry:
    """Give an entry to a member, who gets a message, or with None to nobody.

    Args:
        context: The home.
        caller: A trainer or an admin.
        item_id: The entry.
        member_name: The name of a member of the project; None for nobody.
        due: The last day on which it is in time (UTC); None for no date.
        root: What links begin with, for a project without an address of links; reminders have it, too.

    Raises:
        NotFoundError: No such entry or member.
        NotAllowedError: The caller may not assign.
        RequestError: The member may not do such work, or the day is over.
    """
    if not may_assign(caller):
        raise NotAllowedError(
            f"{caller.name!r} assigns work, and may {', '.join(caller.scopes)}",
            expected="a trainer or an admin of the project",
            do="ask one of them",
        )
    entry = get_entry(context, caller, item_id)
    member = None if member_name is None else _member(context, caller, member_name)
    if member is not None:
        _check_able(member, entry.work)
    due_at = None if due is None else _end_of(due)
    if due_at is not None and due_at < context.access.now():
        raise RequestError(
            f"the due date {due}, which is in the past", expected="today or later", do="choose a later day"
        )
    changes = {
        "assignee_id": None if member is None else member.member_id,
        "assigned_by": "" if member is None else caller.name,
        "due_at": due_at,
        # Who is given something sees it now, however long it was put off before.
        "snoozed_until": None,
    }
    if member is not None:
        # Nor is it done for whoever is to do it: marked as done it would be in no list of theirs, without a reminder.
        changes |= {"done_at": None, "done_by": "", "done_mark": ""}
    mark = entry.mark.model_copy(update=changes)
    events, documents = _messages(context, caller, entry, member, due, root)
    if member is not None and events and due_at is not None and due_at - DUE_SECONDS <= context.access.now():
        # Due within the day: the message about it is this one, and a reminder a minute later would say the same. Who
        # takes something up themselves gets no message now, and is reminded.
        noted = Reminders(assignee_id=member.member_id, due_at=due_at, sent=("due",))
        documents.append(WatchDocument(caller.project_id, REMINDER, item_id, noted.model_dump_json()))
    if member is not None and root:
        documents.append(WatchDocument(caller.project_id, _ROOT, "", root.rstrip("/")))
    facts = {"about": _about(entry.work), "to": None if member is None else member.name, "due": due and str(due)}
    with context.database.transaction():
        context.inbox.save(mark, events=events, documents=documents)
        record(context, caller, "inbox.assigned", item_id, facts)
    forget_counts()
    return get_entry(context, caller, item_id)


def ask_to_annotate(
    context: Context, caller: Caller, dataset_id: str, member_name: str, *, due: date | None = None, root: str = ""
) -> InboxEntry:
    """Give the annotation of a dataset to a member, whether it was begun or not.

    Args:
        context: of the home.
        caller: who assigns the work.
        dataset_id: of the dataset.
        member_name: who gets it.
        due: the last day for it; None for no date.
        root: beginning of the link in the message; empty where there is none.

    Raises:
        NotFoundError: The project has no such dataset or member.
        NotAllowedError: The caller may not assign work.
        RequestError: The member may not do such work, or the day is over.
    """
    dataset = context.datasets.get(caller.project_id, dataset_id)
    item_id = item_id_of("annotate", dataset.dataset_id)
    # In one transaction: where the work cannot be assigned, no entry is left of it.
    with context.database.transaction():
        if item_id not in {one.item_id for one in context.inbox.list(caller.project_id)}:
            # What was decided, which is nothing yet, makes the entry; `assign` decides about it.
            context.inbox.save(InboxMark(project_id=caller.project_id, item_id=item_id))
        return assign(context, caller, item_id, member_name, due=due, root=root)


def finish(context: Context, caller: Caller, item_id: str) -> InboxEntry:
    """Mark an entry as done, for all of the project. It opens again when something new comes up in its place.

    Raises:
        NotFoundError: No such entry.
        NotAllowedError: The caller may not.
        ConflictError: It is marked already.
    """
    entry = _settled_by(context, caller, item_id)
    if entry.state == "done":
        raise ConflictError(
            f"{entry.mark.done_by} has marked this as done already", expected="an open entry", do="nothing is left"
        )
    changes = {"done_at": context.access.now(), "done_by": caller.name, "done_mark": entry.work.mark}
    return _changed(context, caller, entry, changes, "inbox.done", {})


def snooze(context: Context, caller: Caller, item_id: str, seconds: float) -> InboxEntry:
    """Hide an entry for a time, for all of the project.

    Raises:
        NotFoundError: No such entry.
        NotAllowedError: The caller may not.
        RequestError: A time of no seconds, or of more than 366 days.
    """
    if not 0 < seconds <= MAX_SNOOZE_SECONDS:
        raise RequestError(f"{seconds:,.0f} s of snooze", expected="from 1 s to 366 days", do="choose such a time")
    entry = _settled_by(context, caller, item_id)
    changes = {"snoozed_until": context.access.now() + seconds}
    return _changed(context, caller, entry, changes, "inbox.snoozed", {"seconds": seconds})


def reopen(context: Context, caller: Caller, item_id: str) -> InboxEntry:
    """Have an entry wait again that was snoozed or marked as done.

    Raises:
        NotFoundError: No such entry.
        NotAllowedError: The caller may not.
    """
    entry = _settled_by(context, caller, item_id)
    changes = {"snoozed_until": None, "done_at": None, "done_by": "", "done_mark": ""}
    return _changed(context, caller, entry, changes, "inbox.reopened", {})


def message_root(context: Context, project_id: str, root: str = "") -> str:
    """What links in messages begin with; empty where no address is known, since only commands have assigned anything.

    Args:
        context: The home.
        project_id: The project.
        root: Of the request that sends the message, for a project without an address of links; empty without one.
    """
    return link_root(context, project_id, root) or context.watches.get(project_id, _ROOT) or ""


def mail_address(context: Context, caller: Caller) -> str:
    """The mail address for what the caller is given; empty for none."""
    if caller.member_id is None:
        return ""
    return context.watches.get(caller.project_id, _MAIL, caller.member_id) or ""


def set_mail_address(context: Context, caller: Caller, address: str) -> None:
    """Keep the mail address of a member for messages of the inbox; empty for none.

    Raises:
        RequestError: The caller is no member, or the text is no address.
    """
    if caller.member_id is None:
        raise RequestError(
            f"{caller.name!r} is not a member, so nothing can be assigned to them",
            expected="a member of the project",
            do="sign in by name and password",
        )
    address = address.strip()
    if address:
        mails.check_address(address)
    with context.database.transaction():
        if address:
            context.watches.put(caller.project_id, _MAIL, caller.member_id, address)
        else:
            context.watches.remove(caller.project_id, _MAIL, caller.member_id)
        record(context, caller, "inbox.mail_address_changed", caller.member_id, {"has_address": bool(address)})


# Shared by all requests of a server process; the key holds the scopes, since they decide what a caller may see.
_known_counts: Final[dict[tuple[str, ...], tuple[float, int]]] = {}
_counting: Final = threading.Lock()


def open_count(context: Context, caller: Caller) -> int:
    """How many entries wait for the caller, for the navigation of every page: at most 10 s old."""
    with _counting:
        known = _known_counts.get(_count_key(context, caller))
    if known is not None and time.monotonic() - known[0] < _COUNT_SECONDS:
        return known[1]
    try:
        # Counted outside the lock: two threads may count the same at once, but none waits for another's database reads.
        return counts(context, caller)["for_you"]
    except LuthierError:
        # A page that explains why the database does not answer must not fail for its navigation.
        return 0


def _count_key(context: Context, caller: Caller) -> tuple[str, ...]:
    return (str(context.home), caller.project_id, caller.member_id or "", *caller.scopes)


def _keep_count(key: tuple[str, ...], number: int) -> None:
    with _counting:
        # Old entries are never read again after 10 s; starting over is simpler than dropping them one by one.
        if len(_known_counts) >= _MAX_COUNTS:
            _known_counts.clear()
        _known_counts[key] = (time.monotonic(), number)


def forget_counts() -> None:
    """Have the numbers of the navigation counted again, after a change of this process."""
    with _counting:
        _known_counts.clear()


def _entries(context: Context, caller: Caller) -> list[InboxEntry]:
    marks = {one.item_id: one for one in context.inbox.list(caller.project_id)}
    names = {one.member_id: one.name for one in context.members.list(caller.project_id)}
    now = context.access.now()
    found = []
    for work in waiting_work(context, caller, frozenset(marks)):
        item_id = item_id_of(work.kind, work.subject)
        mark = marks.get(item_id) or InboxMark(project_id=caller.project_id, item_id=item_id)
        state = _state(work, mark, now)
        is_overdue = state == "open" and mark.due_at is not None and mark.due_at < now
        found.append(InboxEntry(item_id, work, mark, names.get(mark.assignee_id or "", ""), state, is_overdue))
    return sorted(found, key=_order)


def _order(entry: InboxEntry) -> tuple[bool, float, float]:
    due = entry.mark.due_at
    return not entry.is_overdue, float("inf") if due is None else due, entry.work.since or 0.0


def _state(work: Work, mark: InboxMark, now: float) -> InboxState:
    if mark.done_at is not None and mark.done_mark == work.mark:
        return "done"
    return "snoozed" if mark.snoozed_until is not None and mark.snoozed_until > now else "open"


def _is_shown(entry: InboxEntry, caller: Caller, show: InboxShow, assignee: str | None) -> bool:
    if assignee is not None and entry.assignee != assignee:
        return False
    if show != "for_you":
        return entry.state == show
    if entry.mark.assignee_id is not None and entry.assignee:
        return entry.state == "open" and entry.mark.assignee_id == caller.member_id
    # Of what nobody was given, a person sees what they could take up.
    return entry.state == "open" and caller.may("train")


def _settled_by(context: Context, caller: Caller, item_id: str) -> InboxEntry:
    entry = get_entry(context, caller, item_id)
    if not may_settle(caller, entry):
        raise NotAllowedError(
            f"{caller.name!r} may {', '.join(caller.scopes)} here, and this entry is not assigned to them",
            expected="a trainer, an admin, or the member to whom it is assigned",
            do="ask one of them",
        )
    return entry


def _changed(
    context: Context,
    caller: Caller,
    entry: InboxEntry,
    changes: dict[str, Any],
    action: str,
    facts: dict[str, Any],
) -> InboxEntry:
    with context.database.transaction():
        context.inbox.save(entry.mark.model_copy(update=changes))
        record(context, caller, action, entry.item_id, {"about": _about(entry.work)} | facts)
    forget_counts()
    return get_entry(context, caller, entry.item_id)


def _member(context: Context, caller: Caller, name: str) -> Member:
    every: Sequence[Member] = context.members.list(caller.project_id)
    found = next((one for one in every if one.name == name), None)
    if found is None:
        known = ", ".join(repr(one.name) for one in every[:10]) or "none yet"
        raise NotFoundError(
            f"no member {name[:100]!r} in this project",
            expected=f"the name of a member: {known}",
            do="choose one of them, or invite the person: luthier users invite",
        )
    return found


def _check_able(member: Member, work: Work) -> None:
    needed = NEEDS[work.kind]
    if not caller_for(member).may(needed):
        raise RequestError(
            f"{member.name!r} is {member.role} and could not do this ({work.kind})",
            expected="a trainer or an admin",
            do="choose another member, or give this member the role trainer",
        )


def _about(work: Work) -> str:
    return f"{work.kind} {work.subject}"[:200]


def _end_of(day: date) -> float:
    return datetime.combine(day, clock_time(23, 59, 59), UTC).timestamp()


def _messages(
    context: Context, caller: Caller, entry: InboxEntry, member: Member | None, due: date | None, root: str
) -> tuple[list[Event], list[WatchDocument]]:
    """What webhooks and the member get to know; nothing where the caller takes something up themselves."""
    if member is None or member.member_id == caller.member_id:
        return [], []
    link = f"{message_root(context, caller.project_id, root)}{entry.work.address}"
    say = words(context.settings.message_language)
    title, detail = say(entry.work.title), say(entry.work.detail)
    data = {
        "id": entry.item_id,
        "kind": entry.work.kind,
        "title": title,
        "detail": detail,
        "assignee": member.name,
        "assigned_by": caller.name,
        "due": None if due is None else due.isoformat(),
        "url": link,
    }
    documents = []
    if address := context.watches.get(caller.project_id, _MAIL, member.member_id):
        subject = " ".join(f"Luthier: {title}".split())
        until = "" if due is None else "\n" + say(f"Due: {due.isoformat()}")
        text = say(f"{caller.name} has assigned this to you: {entry.work.title}") + f"\n{detail}{until}\n\n{link}\n"
        now = context.access.now()
        documents.append(mails.waiting(caller.project_id, (address,), subject, text, now=now))
    return [("luthier.inbox.assigned", data)], documents
