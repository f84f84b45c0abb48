"""The outbox on both databases: every end is told once to each who wants to know, whatever dies when."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import update

from luthier.core.access import DEFAULT_PROJECT
from luthier.core.errors import NotFoundError
from luthier.platform.auth.store import AccessStore
from luthier.platform.db.database import Database
from luthier.platform.db.tables import jobs, webhook_deliveries
from luthier.platform.jobs.records import Job
from luthier.platform.jobs.store import JobStore
from luthier.platform.notifications.store import EVENT_TYPES, EventType, Webhook, WebhookStore


@pytest.fixture
def hooks(database: Database) -> WebhookStore:
    return WebhookStore(database)


def add(hooks: WebhookStore, name: str, *kinds: EventType, project: str = DEFAULT_PROJECT) -> Webhook:
    made = Webhook(webhook_id=name, project_id=project, url=f"http://{name}/", event_types=kinds or EVENT_TYPES)
    return hooks.add(made, "whsec_c2VjcmV0")


def end(queue: JobStore, name: str, project: str = DEFAULT_PROJECT) -> None:
    queue.submit(Job(job_id=name, kind="train", document={}, run_id=f"run-{name}", project_id=project))
    queue.ask(name, "cancel")


def test_each_end_is_told_once_to_each_who_wants_it(hooks: WebhookStore, queue: JobStore, database: Database) -> None:
    AccessStore(database).add_project("proj-b", "b")
    for name in ("a1", "a2"):
        add(hooks, name)
    add(hooks, "other-kind", "fine_tuning.job.failed")
    add(hooks, "other-project", project="proj-b")
    end(queue, "j1")
    assert hooks.announce() == 1
    assert hooks.announce() == 0, "it was announced"
    due = hooks.claim(limit=10, lease_seconds=60)
    assert sorted(one.delivery.webhook_id for one in due) == ["a1", "a2"]
    assert len({one.delivery.message_id for one in due}) == 2
    assert len({one.delivery.body for one in due}) == 1, "one event, told to two"
    event = json.loads(due[0].delivery.body)
    assert (event["object"], event["type"], event["data"]) == ("event", "fine_tuning.job.cancelled", {"id": "j1"})
    assert event["created_at"] == int(queue.get("j1").finished_at or 0)
    assert (due[0].secret, due[0].url) == ("whsec_c2VjcmV0", f"http://{due[0].delivery.webhook_id}/")
    assert hooks.claim(limit=10, lease_seconds=60) == [], "both are taken"


def test_what_had_ended_before_a_webhook_was_made_is_not_told(hooks: WebhookStore, queue: JobStore) -> None:
    end(queue, "j1")
    hooks.announce()
    add(hooks, "late")
    assert hooks.announce() == 0
    assert hooks.deliveries("late", DEFAULT_PROJECT, 10) == []


def test_only_jobs_that_train_are_told_of(hooks: WebhookStore, queue: JobStore) -> None:
    add(hooks, "a")
    queue.submit(Job(job_id="j", kind="export", document={}, run_id=""))
    queue.ask("j", "cancel")
    assert hooks.announce() == 1
    assert hooks.announce() == 0
    assert hooks.claim(limit=10, lease_seconds=60) == []


def test_a_job_that_was_resumed_and_ends_again_is_told_again(hooks: WebhookStore, queue: JobStore) -> None:
    add(hooks, "a")
    queue.submit(Job(job_id="j", kind="train", document={}, run_id="r"))
    for _ in range(2):
        job = queue.claim("w")
        assert job is not None
        queue.finish("j", job.attempt, "failed", {"came": "x"})
        assert hooks.announce() == 1
        queue.resume("j")
    kinds = [json.loads(one.body)["type"] for one in hooks.deliveries("a", DEFAULT_PROJECT, 10)]
    assert kinds == ["fine_tuning.job.failed"] * 2


def test_two_servers_never_take_the_same(hooks: WebhookStore, queue: JobStore) -> None:
    add(hooks, "a")
    for number in range(12):
        end(queue, f"j{number}")
    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(lambda _: hooks.announce(), range(4))) == 12
        taken = [one for some in pool.map(lambda _: hooks.claim(limit=3, lease_seconds=60), range(8)) for one in some]
    while some := hooks.claim(limit=3, lease_seconds=60):
        taken += some
    assert len({one.delivery.message_id for one in taken}) == len(taken) == 12


def test_what_a_dead_server_had_taken_is_sent_by_another_and_the_late_word_counts_for_nothing(
    hooks: WebhookStore, queue: JobStore, database: Database
) -> None:
    add(hooks, "a")
    end(queue, "j")
    hooks.announce()
    (first,) = hooks.claim(limit=1, lease_seconds=60)
    with database.write() as connection:
        connection.execute(update(webhook_deliveries).values(next_at=1.0))
    (second,) = hooks.claim(limit=1, lease_seconds=60)
    assert second.delivery.message_id == first.delivery.message_id
    assert second.delivery.num_attempts == 2
    assert hooks.settle(first.delivery, "failed", "late") is None
    done = hooks.settle(second.delivery, "delivered", "HTTP 204")
    assert done is not None
    assert (done.status, done.last_answer) == ("delivered", "HTTP 204")
    assert hooks.settle(second.delivery, "pending", "again") is None, "what is done stays done"


def test_what_failed_waits_for_its_time(hooks: WebhookStore, queue: JobStore) -> None:
    add(hooks, "a")
    end(queue, "j")
    hooks.announce()
    (due,) = hooks.claim(limit=1, lease_seconds=60)
    after = hooks.settle(due.delivery, "pending", "HTTP 500", wait_seconds=100)
    assert after is not None
    assert after.next_at == pytest.approx(due.delivery.next_at + 40, abs=10)
    assert hooks.claim(limit=1, lease_seconds=60) == []


def test_another_projects_is_not_there(hooks: WebhookStore, database: Database) -> None:
    AccessStore(database).add_project("proj-b", "b")
    add(hooks, "a")
    for ask in (hooks.get, hooks.remove, lambda *given: hooks.deliveries(*given, 5)):
        with pytest.raises(NotFoundError, match="no webhook 'a'"):
            ask("a", "proj-b")
    hooks.tell("a", DEFAULT_PROJECT, "luthier.webhook.test", {"id": "a"})
    assert hooks.remove("a", DEFAULT_PROJECT).webhook_id == "a"
    assert hooks.of_project(DEFAULT_PROJECT) == []
    assert hooks.claim(limit=5, lease_seconds=60) == [], "what it was to be told goes with it"


def test_a_clock_that_is_set_back_holds_up_no_message_and_sends_none_without_a_rest(
    hooks: WebhookStore, queue: JobStore, set_clock: Callable[[float], None]
) -> None:
    add(hooks, "a")
    end(queue, "j1")
    hooks.announce()
    set_clock(-3 * 3600.0)
    (due,) = hooks.claim(limit=10, lease_seconds=60)
    assert hooks.claim(limit=10, lease_seconds=60) == [], "it is taken"
    assert hooks.settle(due.delivery, "pending", "HTTP 500", wait_seconds=20) is not None
    assert hooks.claim(limit=10, lease_seconds=60) == [], "it rests"
    set_clock(20)
    (again,) = hooks.claim(limit=10, lease_seconds=60)
    assert 15 < again.age_seconds < 60, "so that it is given up in time"


def test_kinds_of_jobs_whose_end_is_no_event_are_not_told(hooks: WebhookStore, queue: JobStore) -> None:
    add(hooks, "a")
    for kind in ("import", "evaluation"):
        queue.submit(Job(job_id=kind, kind=kind, document={}, run_id=""))
        queue.ask(kind, "cancel")
    assert hooks.announce() == 2
    assert hooks.claim(limit=10, lease_seconds=60) == []


def test_a_job_that_cannot_be_read_stops_no_other_message(
    hooks: WebhookStore, queue: JobStore, database: Database
) -> None:
    add(hooks, "a")
    for name in ("odd", "plain"):
        end(queue, name)
    with database.write() as connection:
        connection.execute(update(jobs).where(jobs.c.job_id == "odd").values(kind="of-a-newer-version"))
    assert hooks.announce() == 2
    (due,) = hooks.claim(limit=10, lease_seconds=60)
    assert json.loads(due.delivery.body)["data"] == {"id": "plain"}
    assert hooks.announce() == 0
