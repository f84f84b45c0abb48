"""Reminders of assigned work: a day before it is due and when it is overdue, each once for a person and a date."""

from __future__ import annotations

import json
from datetime import timedelta

import pytest
from tests.clock import today
from tests.features.inbox.service.test_service import ADMIN, correct, member, of

from luthier.core.access import Caller
from luthier.features.inbox import service as inbox
from luthier.features.inbox.records import DUE_SECONDS, InboxEntry
from luthier.features.inbox.reminders import remind_due
from luthier.platform.auth.public_address import set_public_address
from luthier.platform.home.context import Context
from luthier.platform.notifications import mails
from luthier.platform.notifications.webhooks import create_webhook, list_deliveries


@pytest.fixture
def ben(context: Context) -> Caller:
    """A member with a mail address; a webhook wants reminders."""
    made = member(context, "Ben", "trainer")
    inbox.set_mail_address(context, made, "ben@example.org")
    create_webhook(context, ADMIN, "https://example.org/hook", ("luthier.inbox.due",))
    correct(context)
    return made


def due_in(context: Context, seconds: float, who: str = "Ben") -> InboxEntry:
    """The review, assigned for a later day, whose date is then moved."""
    (entry,) = of(context, "review")
    later = today() + timedelta(days=9)
    mark = inbox.assign(context, ADMIN, entry.item_id, who, due=later).mark
    context.inbox.save(mark.model_copy(update={"due_at": context.access.now() + seconds}))
    return inbox.get_entry(context, ADMIN, entry.item_id)


def reminders(context: Context) -> list[str]:
    (hook,) = context.webhooks.of_project("default")
    return [
        json.loads(one.body)["data"]["state"] for one in list_deliveries(context, "default", hook.webhook_id, limit=9)
    ]


def subjects(context: Context) -> list[str]:
    return [one.subject for one in mails.list_mails(context, "default") if ": Review" in one.subject]


def test_one_message_before_the_date_and_one_after_it(context: Context, ben: Caller) -> None:
    due_in(context, DUE_SECONDS + 600)
    assert remind_due(context) == 0, "there is more than a day left"
    entry = due_in(context, DUE_SECONDS - 600)
    assert [remind_due(context), remind_due(context)] == [1, 0]
    assert reminders(context) == ["due"]
    assert f"Luthier: due {entry.due_day}: Review answers of shop-bot" in subjects(context)
    mail = next(one for one in mails.list_mails(context, "default") if "due" in one.subject)
    assert mail.to == ("ben@example.org",)
    assert "/review?model=shop-bot" in mail.text
    assert "Question 1" not in mail.text, "words of users stay here"
    context.inbox.save(entry.mark.model_copy(update={"due_at": context.access.now() - 1}))
    assert [remind_due(context), remind_due(context)] == [1, 0], "another date"
    assert sorted(reminders(context)) == ["due", "overdue"]
    assert "Luthier: overdue: Review answers of shop-bot" in subjects(context)


def test_of_two_servers_one_sends(context: Context, ben: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    due_in(context, 600)
    # The other server reads before this one writes, and writes after it.
    real = inbox.list_entries
    num: list[int] = []

    def other_first(*arguments: object, **options: object) -> list[InboxEntry]:
        found = real(*arguments, **options)  # type: ignore[arg-type]
        if not num:
            num.append(-1)
            num[0] = remind_due(context)
        return found

    monkeypatch.setattr(inbox, "list_entries", other_first)
    assert (remind_due(context), num) == (0, [1])
    assert reminders(context) == ["due"]


def test_snoozed_done_and_unassigned_work_is_left_alone(context: Context, ben: Caller) -> None:
    entry = due_in(context, 600)
    inbox.snooze(context, ADMIN, entry.item_id, 3600)
    assert remind_due(context) == 0
    inbox.finish(context, ADMIN, entry.item_id)
    assert remind_due(context) == 0
    inbox.reopen(context, ADMIN, entry.item_id)
    assert remind_due(context) == 1, "it is open again"
    inbox.assign(context, ADMIN, entry.item_id, None)
    assert remind_due(context) == 0
    assert reminders(context) == ["due"]


def test_what_is_assigned_for_today_is_not_announced_twice(context: Context, ben: Caller) -> None:
    (entry,) = of(context, "review")
    mark = inbox.assign(context, ADMIN, entry.item_id, "Ben", due=today()).mark
    assert remind_due(context) == 0
    assert reminders(context) == []
    cleo = member(context, "Cleo", "trainer")
    context.inbox.save(mark.model_copy(update={"assignee_id": cleo.member_id}))
    assert remind_due(context) == 1, "another person has got no message"
    assert len(subjects(context)) == 1, "Cleo has no address, and Ben has the mail of the assignment"


def test_who_takes_something_up_for_today_is_reminded(context: Context, ben: Caller) -> None:
    (entry,) = of(context, "review")
    inbox.assign(context, ben, entry.item_id, "Ben", due=today())
    assert subjects(context) == [], "there is no message about what they did themselves"
    assert [remind_due(context), remind_due(context)] == [1, 0]
    assert reminders(context) == ["due"]
    assert len(subjects(context)) == 1


def test_a_reminder_has_the_address_that_the_work_was_assigned_at(context: Context, ben: Caller) -> None:
    """No request sends it; without an address of links in the project its link would have no host."""
    (entry,) = of(context, "review")
    mark = inbox.assign(
        context, ADMIN, entry.item_id, "Ben", due=today() + timedelta(days=9), root="https://luthier.example/"
    ).mark
    context.inbox.save(mark.model_copy(update={"due_at": context.access.now() + 600}))
    assert remind_due(context) == 1
    links = [one.text.split()[-1] for one in mails.list_mails(context, "default") if ": Review" in one.subject]
    assert links == ["https://luthier.example/review?model=shop-bot"] * 2
    set_public_address(context, ADMIN, "https://pages.example")
    context.inbox.save(mark.model_copy(update={"due_at": context.access.now() - 1}))
    assert remind_due(context) == 1
    texts = [one.text for one in mails.list_mails(context, "default") if "overdue" in one.subject]
    assert ["https://pages.example/review?model=shop-bot" in one for one in texts] == [True]


def test_messages_are_in_the_language_of_the_installation(context: Context, ben: Caller) -> None:
    context.settings = context.settings.model_copy(update={"message_language": "de"})
    entry = due_in(context, -1.0)
    assert remind_due(context) == 1
    texts = {one.subject: one.text for one in mails.list_mails(context, "default")}
    assigned = next(text for text in texts.values() if "zugewiesen" in text)
    assert " hat Ihnen dies zugewiesen: " in assigned
    assert "\nFällig: " in assigned
    subject = next(one for one in texts if one.startswith("Luthier: überfällig: "))
    due = ".".join(entry.due_day.split("-")[::-1])  # 2026-12-01 is written 01.12.2026
    assert texts[subject].startswith(f"Dies war fällig am {due}: ")
    assert entry.work.title not in texts[subject], "its title is translated, too"
