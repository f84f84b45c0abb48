"""The inbox: what waits, who may give it to whom, and how it is put off, done, and open again."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime, timedelta

import pytest
from tests.assessed import make_panel, rate_all
from tests.clock import today
from tests.vacuous import nonempty

from luthier.core.access import Caller
from luthier.core.errors import ConflictError, NotAllowedError, NotFoundError, RequestError
from luthier.core.records.export import ServerExport
from luthier.core.records.monitoring import Alert, Signal
from luthier.core.records.traffic import Exchange
from luthier.features.datasets import annotations
from luthier.features.datasets import service as dataset_versions
from luthier.features.deployments import service as deployments
from luthier.features.feedback import service as feedback
from luthier.features.feedback.service import FeedbackInput
from luthier.features.inbox import service as inbox
from luthier.features.inbox.records import InboxEntry
from luthier.features.monitoring.alerts_store import Settled
from luthier.features.runs.changes import delete_run
from luthier.features.traffic import service as traffic
from luthier.platform.auth.members import add_member, caller_for, remove_member
from luthier.platform.auth.service import create_project
from luthier.platform.db.monitor_state import WatchDocument
from luthier.platform.home.context import Context
from luthier.platform.jobs.records import Job
from luthier.platform.notifications import mails
from luthier.platform.notifications.webhooks import create_webhook, list_deliveries
from luthier.testing.records import add_run, make_plan, make_record

ADMIN, PASSWORD = Caller(name="Ada"), "correct horse battery"


def asked(context: Context, number: int = 1) -> str:
    exchange = Exchange(
        exchange_id=f"chatcmpl-{number}",
        project_id="default",
        at=1_790_000_000.0 + number,
        model="shop-bot",
        messages=({"role": "user", "content": f"Question {number}?"},),
        answer=f"Answer {number}.",
    )
    traffic.record(context, exchange)
    return exchange.exchange_id


def correct(context: Context, number: int = 1) -> None:
    said = FeedbackInput(exchange_id=asked(context, number), thumb="down", correction=f"Better {number}.", author="u")
    feedback.give(context, ADMIN, said)


def failed_job(context: Context, job_id: str = "job-20261125-093000-aaaaaa") -> None:
    context.jobs.submit(Job(job_id=job_id, kind="export", document={}, run_id=""))
    taken = context.jobs.claim("w")
    assert taken is not None
    words = {"type": "WorkError", "came": f"no room in {context.home}/exports", "expected": "", "do": ""}
    context.jobs.finish(taken.job_id, taken.attempt, "failed", error=words)


def opened_alert(context: Context) -> None:
    signal = Signal(
        name="errors", title="Errors", group="serving", unit="%", value=2.0, state="changed", sentence="It was 1%."
    )
    alert = Alert(alert_id="alert-1", project_id="default", model="shop-bot", signal=signal, opened_at=1e9)
    states = WatchDocument("default", "standings", "shop-bot", "{}")
    assert context.alerts.settle("default", Settled([alert], states, None))


def annotated(context: Context) -> str:
    lines = [json.dumps({"prompt": f"q{number}", "completion": "a"}).encode() + b"\n" for number in range(3)]
    file = dataset_versions.keep_rows(context, ADMIN, lines, "rows.jsonl")
    dataset, _ = dataset_versions.create_dataset(context, ADMIN, "faq", file)
    queue = annotations.open_queue(context, ADMIN, dataset.dataset_id, None)
    annotations.decide(context, ADMIN, queue, 1, "accept")
    return dataset.dataset_id


def of(context: Context, kind: str, caller: Caller = ADMIN, show: str = "open") -> list[InboxEntry]:
    found = inbox.list_entries(context, caller, show=show)  # type: ignore[arg-type]
    return [one for one in found if one.work.kind == kind]


def member(context: Context, name: str, role: str, project_id: str = "default") -> Caller:
    return caller_for(add_member(context, Caller(project_id=project_id), name, PASSWORD, role))  # type: ignore[arg-type]


def test_everything_that_waits_is_there_and_goes_when_it_is_done(context: Context) -> None:
    assert inbox.list_entries(context, ADMIN) == []
    panel = make_panel(context, num_rows=2, attention=0, raters=("Ben",))
    correct(context)
    dataset_id = annotated(context)
    opened_alert(context)
    before, tried = add_run(context, "a"), add_run(context, "b")
    deployments.deploy(context, ADMIN, "support", before)
    deployments.deploy(context, ADMIN, "support", tried, canary=0.25)
    failed_job(context)
    found = {one.work.kind: one.work for one in inbox.list_entries(context, ADMIN)}
    assert {kind: (work.title, work.address) for kind, work in found.items()} == {
        "rate": ("Rate answers: “base or tuned”", f"/evaluations/panels/{panel.panel.panel_id}"),
        "review": ("Review answers of shop-bot", "/review?model=shop-bot"),
        "annotate": ("Annotate the dataset faq", f"/datasets/{dataset_id}/annotate"),
        "alert": ("shop-bot: Errors has changed", "/monitor/model?name=shop-bot"),
        "canary": ("Decide on the canary of support", "/deployments/support"),
        "job": ("Export failed", "/models"),
    }
    assert found["rate"].detail == "0 of 2 ratings by 1 rater"
    assert found["review"].detail == "1 answer to accept, correct or reject"
    assert found["annotate"].detail == "1 of 3 rows decided, version 1"
    assert found["canary"].detail == "Train · tiny · 25 Nov answers 25% of the users: not compared yet"
    assert found["job"].detail == "no room in exports", "paths of the machine are not shown"
    assert inbox.counts(context, ADMIN) == {"for_you": 6, "open": 6, "snoozed": 0, "done": 0}
    rate_all(context, panel, 0, lambda _: "tie")
    deployments.promote(context, ADMIN, "support")
    assert not {"rate", "canary"} & {one.work.kind for one in inbox.list_entries(context, ADMIN)}


def test_a_failed_job_leads_to_its_own_page(context: Context) -> None:
    export = ServerExport(export_id="exp-1", project_id="default", job_id="job-export", source="tiny")
    asked = {"export": {"export_id": "exp-1"}}
    context.exports.add(export, Job(job_id="job-export", kind="export", document=asked, run_id=""))
    for kind in ("evaluation", "batch", "import", "workflow"):
        document = {"batch_id": "batch_1"} if kind == "batch" else {}
        context.jobs.submit(Job(job_id=f"job-{kind}", kind=kind, document=document, run_id=""))  # type: ignore[arg-type]
    while (taken := context.jobs.claim("w")) is not None:
        context.jobs.finish(taken.job_id, taken.attempt, "failed", error={"type": "WorkError", "came": "no room"})
    assert {entry.work.title: entry.work.address for entry in of(context, "job")} == {
        "Export failed": "/exports/exp-1",
        "Evaluation failed": "/evaluations/orders/job-evaluation",
        "Batch failed": "/batches/batch_1",
        "Import failed": "/datasets/jobs/job-import",
        "Workflow failed": "/pipelines/jobs/job-workflow",
    }


def test_the_failed_job_of_a_deleted_run_waits_for_nobody(context: Context) -> None:
    """Its page is gone with the run: an entry would lead nowhere."""
    for letter in "ab":
        run_id = f"run-20261125-093000-{letter * 6}"
        context.jobs.submit(Job(job_id=f"job-{letter}", kind="train", document={}, run_id=run_id))
        taken = context.jobs.claim("w")
        assert taken is not None
        context.runs.create(make_record(run_id, status="failed"), make_plan())
        context.jobs.finish(taken.job_id, taken.attempt, "failed", error={"type": "WorkError", "came": "no room"})
    delete_run(context, ADMIN, "run-20261125-093000-aaaaaa")
    assert [entry.work.address for entry in of(context, "job")] == ["/runs/run-20261125-093000-bbbbbb"]


def test_an_entry_is_assigned_with_a_date_and_the_member_gets_messages(context: Context) -> None:
    correct(context)
    ben = member(context, "Ben", "trainer")
    create_webhook(context, ADMIN, "https://example.org/hook", ("luthier.inbox.assigned",))
    inbox.set_mail_address(context, ben, "ben@example.org")
    (entry,) = of(context, "review")
    assert of(context, "review", ben, "for_you") == [entry], "what nobody was given is for those who can do it"
    due = today() + timedelta(days=2)
    made = inbox.assign(context, ADMIN, entry.item_id, "Ben", due=due, root="http://here/")
    assert (made.assignee, made.mark.assigned_by, made.is_overdue) == ("Ben", "Ada", False)
    assert datetime.fromtimestamp(made.mark.due_at or 0, UTC).date() == due
    assert of(context, "review", ADMIN, "for_you") == [], "it is for Ben now"
    assert of(context, "review", ben, "for_you") == [made]
    (hook,) = context.webhooks.of_project("default")
    (sent,) = list_deliveries(context, "default", hook.webhook_id, limit=9)
    event = json.loads(sent.body)
    assert event["type"] == "luthier.inbox.assigned"
    assert event["data"]["assignee"] == "Ben"
    assert event["data"]["url"] == "http://here/review?model=shop-bot"
    (mail,) = mails.list_mails(context, "default")
    assert mail.to == ("ben@example.org",)
    assert mail.subject == "Luthier: Review answers of shop-bot"
    assert f"Due: {due}" in mail.text
    assert "Question 1" not in mail.text, "words of users stay here"
    assert context.audit_log.newest(limit=1)[0].action == "inbox.assigned"
    again = inbox.assign(context, ADMIN, entry.item_id, None)
    assert (again.assignee, again.mark.due_at) == ("", None)
    assert len(mails.list_mails(context, "default")) == 1


def test_who_takes_something_up_gets_no_message_about_it(context: Context) -> None:
    correct(context)
    ben = member(context, "Ben", "trainer")
    inbox.set_mail_address(context, ben, "ben@example.org")
    (entry,) = of(context, "review")
    inbox.assign(context, ben, entry.item_id, "Ben")
    assert mails.list_mails(context, "default") == []
    inbox.set_mail_address(context, ben, "")
    assert inbox.mail_address(context, ben) == ""
    with pytest.raises(RequestError, match="the mail address"):
        inbox.set_mail_address(context, ben, "no address")
    with pytest.raises(RequestError, match="is not a member"):
        inbox.set_mail_address(context, ADMIN, "ada@example.org")


def test_the_mail_address_goes_with_its_member(context: Context) -> None:
    ben, eve = member(context, "Ben", "trainer"), member(context, "Eve", "trainer")
    inbox.set_mail_address(context, ben, "ben@example.org")
    inbox.set_mail_address(context, eve, "eve@example.org")
    remove_member(context, ADMIN, ben.member_id)
    assert inbox.mail_address(context, ben) == ""
    assert inbox.mail_address(context, eve) == "eve@example.org"


def test_overdue_entries_come_first(context: Context) -> None:
    correct(context)
    failed_job(context)
    member(context, "Ben", "trainer")
    (job,), (review,) = of(context, "job"), of(context, "review")
    inbox.assign(context, ADMIN, job.item_id, "Ben", due=today())
    mark = inbox.assign(context, ADMIN, review.item_id, "Ben", due=date(2999, 1, 1)).mark
    assert [one.work.kind for one in inbox.list_entries(context, ADMIN)] == ["job", "review"]
    context.inbox.save(mark.model_copy(update={"due_at": 1.0}))
    found = inbox.list_entries(context, ADMIN)
    assert [(one.work.kind, one.is_overdue) for one in found] == [("review", True), ("job", False)]
    with pytest.raises(RequestError, match="which is in the past"):
        inbox.assign(context, ADMIN, job.item_id, "Ben", due=date(2020, 1, 1))


def test_only_who_may_train_assigns_and_only_to_whom_can_do_it(context: Context) -> None:
    correct(context)
    panel = make_panel(context, num_rows=2, attention=0)
    vera, other = member(context, "Vera", "viewer"), create_project(context, "other").project_id
    member(context, "Olga", "trainer", other)
    (review,), (rate,) = of(context, "review"), of(context, "rate")
    with pytest.raises(NotAllowedError, match="assigns work"):
        inbox.assign(context, vera, review.item_id, "Vera")
    with pytest.raises(RequestError, match="'Vera' is viewer and could not do this"):
        inbox.assign(context, ADMIN, review.item_id, "Vera")
    with pytest.raises(NotFoundError, match="no member 'Olga'"):
        inbox.assign(context, ADMIN, review.item_id, "Olga")
    assert inbox.list_entries(context, vera, show="for_you") == []
    with pytest.raises(NotAllowedError, match="this entry is not assigned to them"):
        inbox.finish(context, vera, rate.item_id)
    inbox.assign(context, ADMIN, rate.item_id, "Vera")
    assert [one.work.subject for one in inbox.list_entries(context, vera, show="for_you")] == [panel.panel.panel_id]
    assert inbox.finish(context, vera, rate.item_id).state == "done"


def test_done_and_snoozed_entries_come_back(context: Context) -> None:
    correct(context)
    (entry,) = of(context, "review")
    assert inbox.snooze(context, ADMIN, entry.item_id, 3600).state == "snoozed"
    assert of(context, "review") == []
    context.inbox.save(inbox.get_entry(context, ADMIN, entry.item_id).mark.model_copy(update={"snoozed_until": 1.0}))
    assert of(context, "review")[0].state == "open", "its time is over"
    done = inbox.finish(context, ADMIN, entry.item_id)
    assert (done.state, done.mark.done_by) == ("done", "Ada")
    with pytest.raises(ConflictError, match="Ada has marked this as done already"):
        inbox.finish(context, ADMIN, entry.item_id)
    assert of(context, "review", show="done") == [done]
    correct(context, 2)
    assert of(context, "review")[0].work.detail.startswith("2 answers"), "something new came in"
    inbox.finish(context, ADMIN, entry.item_id)
    assert inbox.reopen(context, ADMIN, entry.item_id).state == "open"
    for seconds in (0.0, 400 * 86400.0):
        with pytest.raises(RequestError, match="of snooze"):
            inbox.snooze(context, ADMIN, entry.item_id, seconds)
    with pytest.raises(NotFoundError, match="no entry here"):
        inbox.finish(context, ADMIN, "item-000000000000")


def test_a_dataset_is_given_to_an_annotator_before_it_was_begun(context: Context) -> None:
    file = dataset_versions.keep_rows(context, ADMIN, [b'{"prompt": "q", "completion": "a"}\n'], "rows.jsonl")
    dataset, _ = dataset_versions.create_dataset(context, ADMIN, "faq", file)
    ben = member(context, "Ben", "trainer")
    assert of(context, "annotate") == []
    with pytest.raises(NotFoundError):
        inbox.ask_to_annotate(context, ADMIN, dataset.dataset_id, "nobody")
    assert of(context, "annotate") == [], "nothing is left of what could not be assigned"
    made = inbox.ask_to_annotate(context, ADMIN, dataset.dataset_id, "Ben")
    assert (made.work.detail, made.assignee) == ("0 of 1 rows decided, version 1", "Ben")
    queue = annotations.open_queue(context, ben, dataset.dataset_id, None)
    annotations.decide(context, ben, queue, 1, "accept")
    assert of(context, "annotate") == [], "all rows are decided"


def test_what_was_marked_as_done_is_open_for_whoever_gets_it_afterwards(context: Context) -> None:
    dataset_id = annotated(context)
    ben = member(context, "Ben", "trainer")
    (entry,) = of(context, "annotate")
    assert inbox.finish(context, ADMIN, entry.item_id).state == "done"
    assert inbox.assign(context, ADMIN, entry.item_id, None).state == "done", "nobody is to do it"
    made = inbox.ask_to_annotate(context, ADMIN, dataset_id, "Ben")
    assert (made.item_id, made.state, made.mark.done_by) == (entry.item_id, "open", "")
    assert [one.item_id for one in inbox.list_entries(context, ben, show="for_you")] == [entry.item_id]


def test_another_project_sees_nothing_of_it(context: Context) -> None:
    correct(context)
    make_panel(context, num_rows=2, attention=0)
    failed_job(context)
    entries = inbox.list_entries(context, ADMIN)
    other = Caller(project_id=create_project(context, "other").project_id)
    assert inbox.list_entries(context, other) == []
    for one in nonempty(entries):
        with pytest.raises(NotFoundError):
            inbox.finish(context, other, one.item_id)


def test_the_count_of_the_navigation_is_counted_again_after_a_change(context: Context) -> None:
    correct(context)
    assert inbox.open_count(context, ADMIN) == 1
    failed_job(context)
    assert inbox.open_count(context, ADMIN) == 1, "it is remembered for some seconds"
    (entry,) = of(context, "review")
    inbox.finish(context, ADMIN, entry.item_id)
    assert inbox.open_count(context, ADMIN) == 1, "the failed job alone"


def test_what_is_finished_takes_no_place_of_what_waits(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("luthier.features.inbox.sources.MAX_OF_A_KIND", 1)
    waits = make_panel(context, num_rows=2, attention=0, raters=("Ben",))
    rate_all(context, make_panel(context, num_rows=2, attention=0, raters=("Ben",)), 0, lambda _: "tie")
    assert [one.work.subject for one in of(context, "rate")] == [waits.panel.panel_id]
    for name in ("all decided", "begun", "never begun"):
        lines = [json.dumps({"prompt": name, "completion": str(number)}).encode() + b"\n" for number in range(2)]
        file = dataset_versions.keep_rows(context, ADMIN, lines, f"{name}.jsonl")
        dataset, _ = dataset_versions.create_dataset(context, ADMIN, name, file)
        queue = annotations.open_queue(context, ADMIN, dataset.dataset_id, None)
        for row in {"all decided": (1, 2), "begun": (1,), "never begun": ()}[name]:
            annotations.decide(context, ADMIN, queue, row, "accept")
        if name != "never begun":
            assert [one.work.title for one in of(context, "annotate")] == ["Annotate the dataset begun"] * (
                name == "begun"
            )
    member(context, "Ben", "trainer")
    inbox.ask_to_annotate(context, ADMIN, dataset.dataset_id, "Ben")
    assert [one.work.title for one in of(context, "annotate")] == ["Annotate the dataset never begun"], (
        "who was given it sees it"
    )


def test_the_canary_of_a_deployment_that_was_made_again_waits_although_an_earlier_one_was_done(
    context: Context,
) -> None:
    before, tried = add_run(context, "a"), add_run(context, "b")
    for _ in range(2):
        deployments.deploy(context, ADMIN, "support", before)
        deployments.deploy(context, ADMIN, "support", tried, canary=0.005)
        (entry,) = of(context, "canary")
        assert "answers 0.5% of the users" in entry.work.detail
        assert inbox.finish(context, ADMIN, entry.item_id).state == "done"
        assert of(context, "canary") == []
        deployments.remove(context, ADMIN, "support")
