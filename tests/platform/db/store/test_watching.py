"""Alerts, feedback, reviews and documents on both databases."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from luthier.core.errors import ConflictError, NotFoundError
from luthier.core.records.monitoring import Alert, Signal
from luthier.core.records.traffic import Feedback, ReviewItem
from luthier.features.feedback.store import FeedbackStore, ReviewStore
from luthier.features.monitoring.alerts_store import AlertStore, Settled
from luthier.platform.db.database import Database
from luthier.platform.db.monitor_state import WatchDocument, WatchStore

PROJECT = "default"
HOSTILE = "\x00 \u202e '; drop table alerts; --"


def alert(number: int, **changes: object) -> Alert:
    signal = Signal(name="errors", title=HOSTILE, group="serving", unit="", value=1.0, state="changed")
    made = Alert(alert_id=f"alert-{number}", project_id=PROJECT, model="m", signal=signal, opened_at=float(number))
    return made.model_copy(update=changes)


def said(author: str = "", **fields: object) -> Feedback:
    values: dict[str, object] = {"feedback_id": f"feedback-{author}", "exchange_id": "c-1", "thumb": "up"}
    return Feedback(project_id=PROJECT, model="m", author=author, **(values | fields))


def item(number: int, **changes: object) -> ReviewItem:
    made = ReviewItem(
        review_id=f"review-{number}", project_id=PROJECT, model="m", source="traffic", exchange_id=f"c-{number}",
        messages=({"role": "user", "content": HOSTILE},), answer=HOSTILE,
    )  # fmt: skip
    return made.model_copy(update=changes)


def test_alerts_and_documents_are_written_together_or_not_at_all(database: Database) -> None:
    alerts, watches = AlertStore(database), WatchStore(database)
    states = WatchDocument(PROJECT, "standings", "m", "{}")
    assert alerts.settle(PROJECT, Settled([alert(1), alert(2)], states, None))
    assert [one.alert_id for one in alerts.list(PROJECT)] == ["alert-2", "alert-1"]
    assert watches.get(PROJECT, "standings", "m") == "{}"
    broken = Settled([alert(3)], states, "{}", [WatchDocument("no such project", "mail", "m", "{}")])
    with pytest.raises(Exception, match=r"(?i)foreign key|violates"):
        alerts.settle(PROJECT, broken)
    assert len(alerts.list(PROJECT)) == 2
    after = WatchDocument(PROJECT, "standings", "m", '{"at": 9}')
    assert alerts.settle(PROJECT, Settled([alert(1, status="closed", closed_at=9.0)], after, "{}"))
    for stale in ("{}", None):
        assert not alerts.settle(PROJECT, Settled([alert(3)], states, stale)), "another check was written meanwhile"
    assert watches.get(PROJECT, "standings", "m") == '{"at": 9}'
    assert [one.alert_id for one in alerts.list(PROJECT, model="m", status="open", limit=5)] == ["alert-2"]
    with pytest.raises(NotFoundError, match="nearest: alert-"):
        alerts.get("alert-9", PROJECT)


def test_who_says_something_twice_at_one_moment_has_said_it_once(database: Database) -> None:
    feedback = FeedbackStore(database)
    with ThreadPoolExecutor(4) as pool:
        came = list(pool.map(lambda n: feedback.put(said("u", score=n / 10)), range(8)))
    assert sum(before is None for _, before in came) == 1
    (kept,) = feedback.list(PROJECT)
    assert kept in [made for made, _ in came]
    feedback.put(said("x" * 100_000, feedback_id="feedback-b"))
    assert len(feedback.of_exchanges(PROJECT, ["c-1"])) == 2
    assert list(feedback.list(PROJECT, until=kept.created_at)) == []


def test_an_item_is_added_once_and_saved_only_as_it_was_seen(database: Database) -> None:
    reviews = ReviewStore(database)
    assert len(reviews.add([item(1), item(2)])) == 2
    assert reviews.add([item(1)]) == []
    seen = reviews.get("review-1", PROJECT)
    reviews.save(seen.model_copy(update={"status": "rejected", "decided_by": "bob"}), seen=seen)
    with pytest.raises(ConflictError, match="bob"):
        reviews.save(seen.model_copy(update={"status": "accepted"}), seen=seen)
    assert reviews.counts(PROJECT) == {("m", "rejected"): 1, ("m", "waiting"): 1}
    assert list(reviews.ids(PROJECT, model="m", status="waiting")) == ["review-2"]
    assert reviews.exchange_ids(PROJECT) == {"c-1", "c-2"}
    with pytest.raises(NotFoundError):
        reviews.get("review-1", "other")
    reviews.remove("review-1", PROJECT)
    assert reviews.find("review-1", PROJECT) is None


def test_documents_change_one_after_the_other(database: Database) -> None:
    watches = WatchStore(database)

    def more(before: str | None) -> str:
        return str(int(before or 0) + 1)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: watches.change(PROJECT, "counted", "", more), range(20)))
    assert watches.get(PROJECT, "counted") == "20"
    assert [one.document for one in watches.list("counted")] == ["20"]
    watches.remove(PROJECT, "counted")
    assert watches.list("counted", PROJECT) == []
