"""Reminders: whoever has work of the inbox with a date gets a message a day before its end, and one when it is overdue.

remind_due (every minute, by the server) -> entries that are open, assigned and due -> mail, webhooks

Each message goes out once for a date and a person: what was sent is stored in the transaction of the message itself, so
that several servers with one database send it once. Another date or another person gets new ones.
"""

from __future__ import annotations

from typing import Any

from luthier.core.access import Caller
from luthier.features.inbox import service as inbox
from luthier.features.inbox.records import DUE_SECONDS, REMINDER, InboxEntry, InboxMark, Reminders, ReminderState
from luthier.features.inbox.store import Event
from luthier.platform.auth.members import caller_for
from luthier.platform.auth.members_store import Member
from luthier.platform.db.monitor_state import WatchDocument
from luthier.platform.home.context import Context
from luthier.platform.notifications import mails
from luthier.platform.ui.i18n.environments import words


def remind_due(context: Context) -> int:
    """Send the reminders that are due, of all projects; returns how many."""
    return sum(_remind(context, project.project_id) for project in context.access.projects())


def _remind(context: Context, project_id: str) -> int:
    now = context.access.now()
    sent = {one.name: Reminders.model_validate_json(one.document) for one in context.watches.list(REMINDER, project_id)}
    due = {
        mark.item_id: mark
        for mark in context.inbox.list(project_id)
        if (state := _state_of(mark, now)) is not None and not _was_sent(sent.get(mark.item_id), mark, state)
    }
    if not due:  # the common case costs two short queries: what waits is only collected where a message is missing
        return 0
    people = {one.member_id: one for one in context.members.list(project_id)}
    num = 0
    for entry in inbox.list_entries(context, Caller(project_id=project_id), show="open"):
        member = people.get(entry.mark.assignee_id or "")
        state = _state_of(entry.mark, now)
        # The entry is newer than `due`: between the two it may have been assigned to somebody else, or given more time.
        if entry.item_id in due and member is not None and state is not None:
            num += _send(context, entry, member, state, now)
    return num


def _state_of(mark: InboxMark, now: float) -> ReminderState | None:
    """What there is to say about an entry by now; None where it has no person or date, or time is left."""
    if mark.assignee_id is None or mark.due_at is None or now < mark.due_at - DUE_SECONDS:
        return None
    return "overdue" if mark.due_at < now else "due"


def _was_sent(before: Reminders | None, mark: InboxMark, state: ReminderState) -> bool:
    return before is not None and before.is_about(mark) and state in before.sent


def _send(context: Context, entry: InboxEntry, member: Member, state: ReminderState, now: float) -> bool:
    """Queue the message, unless another server has done so meanwhile."""
    mark = entry.mark
    assert mark.due_at is not None, "only what has a date is due"
    events, mail = _messages(context, entry, member, state, now)
    with context.database.transaction():
        # Read again behind the lock of writers: between the list above and here another server may have sent it.
        text = context.watches.get(mark.project_id, REMINDER, entry.item_id)
        before = None if text is None else Reminders.model_validate_json(text)
        if _was_sent(before, mark, state):
            return False
        known = before.sent if before is not None and before.is_about(mark) else ()
        kept = Reminders(assignee_id=member.member_id, due_at=mark.due_at, sent=(*known, state))
        noted = WatchDocument(mark.project_id, REMINDER, entry.item_id, kept.model_dump_json())
        context.inbox.notify(mark.project_id, events=events, documents=[noted, *mail])
    return True


def _messages(
    context: Context, entry: InboxEntry, member: Member, state: ReminderState, now: float
) -> tuple[list[Event], list[WatchDocument]]:
    project_id = entry.mark.project_id
    day = entry.due_day
    link = f"{inbox.message_root(context, project_id)}{entry.work.address}"
    say = words(context.settings.message_language)
    title, detail = say(entry.work.title), say(entry.work.detail)
    data: dict[str, Any] = {
        "id": entry.item_id,
        "kind": entry.work.kind,
        "title": title,
        "detail": detail,
        "assignee": member.name,
        "due": day,
        "state": state,
        "url": link,
    }
    documents = []
    if address := inbox.mail_address(context, caller_for(member)):
        subject = "overdue" if state == "overdue" else f"due {day}"
        subject = " ".join(say(f"Luthier: {subject}: {entry.work.title}").split())
        since = f"This was due on {day}" if state == "overdue" else f"This is due on {day} (UTC)"
        text = say(f"{since}: {entry.work.title}") + f"\n{detail}\n\n{link}\n"
        documents.append(mails.waiting(project_id, (address,), subject, text, now=now))
    return [("luthier.inbox.due", data)], documents
