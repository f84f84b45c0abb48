"""Decisions of the inbox, and what it asks other stores, on both databases."""

from __future__ import annotations

from sqlalchemy import func, select

from luthier.core.records.traffic import ReviewItem
from luthier.features.datasets.store import Dataset, DatasetStore, DatasetVersion, RowDecision
from luthier.features.feedback.store import ReviewStore
from luthier.features.inbox.records import InboxMark
from luthier.features.inbox.store import InboxStore
from luthier.platform.auth.members_store import Member, MemberStore
from luthier.platform.auth.store import AccessStore
from luthier.platform.db.database import Database
from luthier.platform.db.monitor_state import WatchDocument, WatchStore
from luthier.platform.db.tables import files, webhook_deliveries
from luthier.platform.notifications.store import Webhook, WebhookStore

PROJECT, OTHER = "default", "proj-other"


def test_a_decision_is_replaced_with_its_messages_and_outlives_its_member(database: Database) -> None:
    AccessStore(database).add_project(OTHER, "other")
    people, store = MemberStore(database), InboxStore(database)
    people.add(Member(member_id="member-1", project_id=PROJECT, name="Ben", role="trainer"), "hash")
    hook = Webhook(webhook_id="webhook-1", project_id=PROJECT, url="https://x", event_types=("luthier.inbox.assigned",))
    WebhookStore(database).add(hook, "secret")
    first = store.save(InboxMark(project_id=PROJECT, item_id="item-1", assignee_id="member-1", due_at=5.0))
    mail = WatchDocument(PROJECT, "mail", "mail-1", "{}")
    second = first.model_copy(update={"done_by": "Ada"})
    kept = store.save(second, events=[("luthier.inbox.assigned", {"id": "item-1"})], documents=[mail])
    assert kept.updated_at >= first.updated_at > 0
    assert store.list(PROJECT) == [kept]
    assert store.list(OTHER) == []
    assert WatchStore(database).get(PROJECT, "mail", "mail-1") == "{}"
    with database.read() as connection:
        assert connection.execute(select(func.count()).select_from(webhook_deliveries)).scalar() == 1
    people.remove(PROJECT, "member-1")
    assert [one.assignee_id for one in store.list(PROJECT)] == [None]


def test_what_waits_for_review_is_counted_by_model(database: Database) -> None:
    store = ReviewStore(database)
    names = ("shop", "shop", "desk")
    items = [
        ReviewItem(
            review_id=f"review-{number}", project_id=PROJECT, model=name, source="traffic", messages=(), answer="a"
        )
        for number, name in enumerate(names)
    ]
    store.add(items)
    assert [one[:3] for one in store.waiting(PROJECT)] == [("desk", 1, "review-2"), ("shop", 2, "review-0")]
    item = store.get("review-2", PROJECT)
    store.save(item.model_copy(update={"status": "accepted"}), seen=item)
    assert [one[0] for one in store.waiting(PROJECT)] == ["shop"]
    assert store.waiting(OTHER) == []


def test_annotated_datasets_are_those_with_decisions_about_their_newest_version(database: Database) -> None:
    store = DatasetStore(database)
    with database.write() as connection:
        connection.execute(
            files.insert(),
            [
                {"file_id": f"file-{name}", "project_id": PROJECT, "filename": "r.jsonl", "purpose": "fine-tune",
                 "sha256": "0" * 64, "num_bytes": 1, "status": "processed", "created_at": 1.0}
                for name in ("a", "b")
            ],
        )  # fmt: skip
    made = {}
    for name in ("a", "b"):
        version = DatasetVersion(
            dataset_id=f"data-{name}", number=1, file_id=f"file-{name}", filename="r.jsonl", sha256="0" * 64,
            num_bytes=1, num_rows=3, origin="upload",
        )  # fmt: skip
        store.add(Dataset(dataset_id=f"data-{name}", project_id=PROJECT, name=name), version)
        made[name] = version
        store.decide(f"data-{name}", 1, RowDecision(row=1, decision="accept"))
    store.decide("data-b", 1, RowDecision(row=2, decision="reject"))
    found = [(dataset.name, version.number, num) for dataset, version, num in store.annotated(PROJECT)]
    assert found == [("a", 1, 1), ("b", 1, 2)]
    store.add_version(made["a"].model_copy(update={"parent": 1}))
    assert [dataset.name for dataset, _, _ in store.annotated(PROJECT)] == ["b"], "nothing of version 2 was decided"
    assert store.annotated(OTHER) == []
