"""A look opens and closes alerts, and whoever wants to know is told once: log, webhook, mail, whatever they do."""

from __future__ import annotations

import json
import logging
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from email import message_from_string
from email.policy import default
from pathlib import Path

import pytest
from pydantic import SecretStr
from tests.fixtures.mail_server import MailServer, mail_server

from luthier.core.access import DEFAULT_PROJECT, Caller
from luthier.core.errors import NotFoundError, RequestError, WorkError
from luthier.core.records.monitoring import Alert, Signal, SignalState, WatchReport
from luthier.features.monitoring import alerts
from luthier.platform.home.context import Context
from luthier.platform.home.settings import Settings
from luthier.platform.notifications import mails, outgoing, webhooks
from luthier.platform.notifications import webhooks as webhook_sender

CALLER = Caller()
HOSTILE = "<script>alert(1)</script>\r\nBcc: all@example.org\x1b[2J\u202e"


@pytest.fixture
def context(tmp_path: Path) -> Iterator[Context]:
    """A home that may reach this machine's own servers."""
    (tmp_path / "home").mkdir()
    settings = Settings(home=tmp_path / "home", webhooks_may_reach_private=True)
    with Context.open(settings.home) as plain, Context(settings, plain.progress) as opened:
        yield opened


@pytest.fixture
def server() -> Iterator[MailServer]:
    with mail_server() as made:
        yield made


def mailing_by(context: Context, url: str) -> None:
    context.settings = context.settings.model_copy(update={"smtp": SecretStr(url), "smtp_from": "luthier@example.org"})


def signal(state: SignalState = "changed", name: str = "latency", **more: object) -> Signal:
    values: dict[str, object] = {"name": name, "title": "Latency (95%)", "group": "serving", "unit": "s", "value": 1.9}
    shown = {"low": 1.7, "high": 2.2, "reference": 0.8, "since": 1_000.0, "examples": ("chatcmpl-1",), "do": "look"}
    return Signal(**(values | shown | {"state": state} | more))


def report(*signals: Signal, at: float = 2_000.0, model: str = "shop-bot") -> WatchReport:
    return WatchReport(
        project_id=DEFAULT_PROJECT, model=model, since=0, until=at, num_exchanges=9, num_with_text=3, signals=signals
    )


def looks(context: Context, *states: SignalState) -> list[list[Alert]]:
    return [
        alerts.review(context, DEFAULT_PROJECT, report(signal(state), at=2_000.0 + 3600 * number))
        for number, state in enumerate(states)
    ]


def send_webhooks(context: Context) -> int:
    with ThreadPoolExecutor(1) as pool:
        return webhook_sender.send_due(context, pool)


def test_an_alert_opens_stays_and_closes(context: Context) -> None:
    told = looks(context, "steady", "changed", "changed", "steady", "unknown", "steady", "steady", "steady")
    assert [[one.status for one in look] for look in told] == [[], ["open"], [], [], [], [], ["closed"], []]
    (kept,) = alerts.list_alerts(context, DEFAULT_PROJECT)
    assert (kept.status, kept.opened_at, kept.closed_at) == ("closed", 5_600.0, 2_000.0 + 3600 * 6)
    assert context.alerts.get(kept.alert_id, DEFAULT_PROJECT) == kept
    with pytest.raises(NotFoundError):
        context.alerts.get(kept.alert_id, "other")


@pytest.mark.parametrize("has_states", [False, True])
def test_two_checks_at_once_open_an_alert_once(
    context: Context, monkeypatch: pytest.MonkeyPatch, has_states: bool
) -> None:
    alerts.change_settings(context, CALLER, {"emails": ["ann@example.org"]})
    if has_states:
        alerts.review(context, DEFAULT_PROJECT, report(signal("steady"), at=1_000.0))
    listed, others = alerts.list_alerts, [report(signal(), at=2_100.0)]

    def listing(*given: object, **more: object) -> list[Alert]:
        found = listed(*given, **more)  # type: ignore[arg-type]
        # The other check is read and written whole between the reading and the writing of this one.
        while others:
            assert [one.status for one in alerts.review(context, DEFAULT_PROJECT, others.pop())] == ["open"]
        return found

    monkeypatch.setattr(alerts, "list_alerts", listing)
    assert alerts.review(context, DEFAULT_PROJECT, report(signal(), at=2_000.0)) == []
    assert len(listed(context, DEFAULT_PROJECT)) == 1
    assert len(context.watches.list(mails.KIND, DEFAULT_PROJECT)) == 1
    for number in range(24):
        alerts.review(context, DEFAULT_PROJECT, report(signal("steady"), at=3_000.0 + number))
    assert [one.status for one in listed(context, DEFAULT_PROJECT)] == ["closed"]


def test_flapping_is_told_of_once(context: Context) -> None:
    webhooks.create_webhook(context, CALLER, "http://127.0.0.1:9/", ("luthier.alert.opened", "luthier.alert.closed"))
    looks(context, *(["changed", "steady"] * 10))
    (hook,) = webhooks.list_webhooks(context, DEFAULT_PROJECT)
    assert len(webhooks.list_deliveries(context, DEFAULT_PROJECT, hook.webhook_id, limit=50)) == 1
    assert len(alerts.list_alerts(context, DEFAULT_PROJECT)) == 1


def test_the_same_look_again_changes_nothing(context: Context) -> None:
    look = report(signal())
    assert len(alerts.review(context, DEFAULT_PROJECT, look)) == 1
    assert alerts.review(context, DEFAULT_PROJECT, look) == []


def test_an_open_alert_keeps_since_when_and_what_showed_it(context: Context) -> None:
    alerts.review(context, DEFAULT_PROJECT, report(signal(since=1_000.0, examples=("chatcmpl-1",))))
    alerts.review(context, DEFAULT_PROJECT, report(signal(value=2.5, since=1_900.0, examples=()), at=3_000.0))
    (kept,) = alerts.list_alerts(context, DEFAULT_PROJECT)
    assert (kept.signal.value, kept.signal.since, kept.signal.examples) == (2.5, 1_000.0, ("chatcmpl-1",))


def test_a_signal_that_is_watched_no_more_says_so(context: Context) -> None:
    alerts.review(context, DEFAULT_PROJECT, report(signal()))
    for number in range(1, 4):
        told = alerts.review(context, DEFAULT_PROJECT, report(at=2_000.0 + number))
    assert [one.status for one in told] == ["closed"]
    assert "no longer monitored" in told[0].signal.sentence
    assert alerts.subject_of(told) == "shop-bot: Latency (95%) is no longer monitored"
    assert alerts.text_of(told).startswith("Latency (95%): no longer monitored\n")


def test_webhooks_are_told_what_changed_since_when_what_shows_it_and_what_to_do(context: Context) -> None:
    webhooks.create_webhook(context, CALLER, "http://127.0.0.1:9/", ("luthier.alert.opened",))
    webhooks.create_webhook(context, CALLER, "http://127.0.0.1:9/", ("fine_tuning.job.failed",))
    looks(context, "changed", "steady", "steady", "steady")
    deaf, hook = webhooks.list_webhooks(context, DEFAULT_PROJECT)
    assert webhooks.list_deliveries(context, DEFAULT_PROJECT, deaf.webhook_id, limit=9) == []
    (one,) = webhooks.list_deliveries(context, DEFAULT_PROJECT, hook.webhook_id, limit=9)  # nothing of its close
    event = json.loads(one.body)
    assert event["type"] == "luthier.alert.opened"
    data = event["data"]
    assert (data["model"], data["value"], data["interval"], data["reference"]) == ("shop-bot", 1.9, [1.7, 2.2], 0.8)
    assert (data["since"], data["examples"], data["do"]) == (1_000.0, ["chatcmpl-1"], "look")


def test_a_webhook_that_hangs_holds_up_no_look_and_loses_nothing(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    def post(url: str, headers: dict[str, str], body: bytes, *, may_reach_private: bool) -> int:
        return outgoing.post(url, headers, body, may_reach_private=may_reach_private, most_seconds=1.0)

    monkeypatch.setattr(webhook_sender, "post", post)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes connections, and never says a word
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/"
        made, _ = webhooks.create_webhook(context, CALLER, url)
        assert len(looks(context, "changed")[0]) == 1
        assert send_webhooks(context) == 1
    (one,) = webhooks.list_deliveries(context, DEFAULT_PROJECT, made.webhook_id, limit=9)
    assert (one.status, one.num_attempts, one.last_answer) == (
        "pending",
        1,
        "RemoteDisconnected: Remote end closed connection without response",
    )
    assert len(looks(context, "changed", "steady", "steady", "steady", "steady")[-1]) <= 1


def test_one_mail_a_look_says_it_in_words(context: Context, server: MailServer) -> None:
    alerts.change_settings(context, CALLER, {"emails": ("ops@example.org", "boss@example.org")})
    mailing_by(context, f"smtp://{server.address}")
    alerts.review(context, DEFAULT_PROJECT, report(signal(), signal(name="errors", title="Errors")))
    assert mails.send_due(context) == 1
    assert mails.list_mails(context, DEFAULT_PROJECT) == []
    assert mails.send_due(context) == 0
    ((to, text),) = server.received
    assert to == ["ops@example.org", "boss@example.org"]
    message = message_from_string(text, policy=default)
    assert message["subject"] == "shop-bot: 2 alerts"
    assert (message["from"], message["auto-submitted"]) == ("luthier@example.org", "auto-generated")
    body = message.get_content()
    for words in ("1.9 s (95%: 1.7 to 2.2), was 0.8 s", "1970-01-01 00:16 UTC", "chatcmpl-1", "do        look"):
        assert words in body


def test_hostile_text_makes_no_header_and_hides_nothing(
    context: Context, server: MailServer, caplog: pytest.LogCaptureFixture
) -> None:
    alerts.change_settings(context, CALLER, {"emails": ("ops@example.org",)})
    mailing_by(context, f"smtp://{server.address}")
    look = report(signal(title=HOSTILE, sentence=HOSTILE, do=HOSTILE, examples=(HOSTILE,)), model="m\r\nX-Evil: 1")
    with caplog.at_level(logging.WARNING, "luthier.alerts"):
        alerts.review(context, DEFAULT_PROJECT, look)
    assert mails.send_due(context) == 1
    message = message_from_string(server.received[0][1], policy=default)
    assert message["bcc"] is None
    assert message["x-evil"] is None
    assert message.get_content_type() == "text/plain"
    assert "\x1b" not in message.get_content()
    assert "\u202e" not in message.get_content()
    line = next(one for one in caplog.messages if "alert-" in one)
    assert "\n" not in line
    assert "\x1b" not in line
    assert "\u202e" not in line


def test_a_server_that_refuses_is_tried_again_and_then_given_up(context: Context) -> None:
    alerts.change_settings(context, CALLER, {"emails": ("ops@example.org",)})
    with mail_server(greeting="554 no service here") as server:
        mailing_by(context, f"smtp://{server.address}")
        looks(context, "changed")
        assert mails.send_due(context) == 1
        (mail,) = mails.list_mails(context, DEFAULT_PROJECT)
        assert (mail.status, mail.num_attempts) == ("pending", 1)
        assert "554 no service here" in mail.last_answer
        assert mail.next_at > context.access.now()
        assert mails.send_due(context) == 0, "not again at once"
        old = mail.model_copy(update={"next_at": 0.0, "created_at": mail.created_at - 4 * 24 * 3600})
        context.watches.put(DEFAULT_PROJECT, mails.KIND, mail.mail_id, old.model_dump_json())
        assert mails.send_due(context) == 1
    (mail,) = mails.list_mails(context, DEFAULT_PROJECT)
    assert mail.status == "failed", "it is shown, not forgotten"
    assert mails.send_due(context) == 0


def test_a_clock_that_is_set_back_holds_up_no_mail_and_sends_none_without_a_rest(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    alerts.change_settings(context, CALLER, {"emails": ("ops@example.org",)})
    with mail_server(greeting="554 no service here") as server:
        mailing_by(context, f"smtp://{server.address}")
        looks(context, "changed")
        now = context.access.now() - 3 * 3600.0
        monkeypatch.setattr(context.access, "now", lambda: now)
        assert mails.send_due(context) == 1
        assert mails.send_due(context) == 0, "not again at once"
        (mail,) = mails.list_mails(context, DEFAULT_PROJECT)
        assert mail.created_at == now, "so that it is given up in time"
        assert now < mail.next_at < now + 60


def test_only_who_was_refused_is_tried_again(context: Context) -> None:
    alerts.change_settings(context, CALLER, {"emails": ("a@example.org", "gone@example.org")})
    with mail_server(refused={"gone@example.org"}) as server:
        mailing_by(context, f"smtp://{server.address}")
        looks(context, "changed")
        mails.send_due(context)
        assert [to for to, _ in server.received] == [["a@example.org"]]
    (mail,) = mails.list_mails(context, DEFAULT_PROJECT)
    assert mail.to == ("gone@example.org",)
    assert "550 no mailbox" in mail.last_answer


def test_a_server_that_hangs_is_not_waited_for(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mails, "_CONNECT_SECONDS", 0.3)
    with mail_server(greeting="") as server:
        mailing_by(context, f"smtp://{server.address}")
        mail = mails.Mail(mail_id="m", to=("a@example.org",), subject="s", text="t")
        with pytest.raises(WorkError, match="timed out"):
            mails.deliver(context.settings, mail)


def test_who_must_log_in_does(context: Context) -> None:
    mail = mails.Mail(mail_id="m", to=("a@example.org",), subject="s", text="t")
    with mail_server(login=("me", "p@ss:w")) as server:
        mailing_by(context, f"smtp://me:p%40ss%3Aw@{server.address}")
        assert mails.deliver(context.settings, mail) == {}
        mailing_by(context, f"smtp://me:secret-word@{server.address}")
        with pytest.raises(WorkError, match="535 wrong user") as caught:
            mails.deliver(context.settings, mail)
        assert "secret-word" not in str(caught.value)
        assert len(server.received) == 1


def test_no_word_in_the_clear_where_tls_was_asked_for(context: Context, server: MailServer) -> None:
    mailing_by(context, f"smtp+starttls://me:pw@{server.address}")
    with pytest.raises(WorkError, match="STARTTLS"):
        mails.deliver(context.settings, mails.Mail(mail_id="m", to=("a@example.org",), subject="s", text="t"))
    assert not [one for one in server.commands if one.startswith(("AUTH", "MAIL"))]


@pytest.mark.parametrize("url", ["", "ftp://host", "smtp://", "smtp://host:99999", "secret-without-a-scheme"])
def test_a_server_that_is_none_is_named_without_its_secrets(context: Context, url: str) -> None:
    if url:
        mailing_by(context, url)
    with pytest.raises(WorkError) as caught:
        mails.deliver(context.settings, mails.Mail(mail_id="m", to=("a@example.org",), subject="s", text="t"))
    assert "secret" not in str(caught.value)
    assert "LUTHIER_SMTP" in str(caught.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"emails": ("nobody",)},
        {"emails": ("a@example.org\r\nBcc: b@example.org",)},
        {"every_minutes": 0},
        {"window_hours": 10_000},
        {"rule": {"close_after": 0}},
        {"what": 1},
    ],
)
def test_settings_that_cannot_be_are_refused(context: Context, changes: dict[str, object]) -> None:
    with pytest.raises(RequestError):
        alerts.change_settings(context, CALLER, changes)
    assert context.watches.get(DEFAULT_PROJECT, "alerting") is None


def test_settings_are_of_the_project_and_in_the_audit_log(context: Context) -> None:
    alerts.change_settings(context, CALLER, {"every_minutes": 5})
    after = alerts.change_settings(context, CALLER, {"models": ("base",)})
    assert (after.every_minutes, after.models) == (5, ("base",))
    assert alerts.alert_settings(context, "other").every_minutes == 60
    entry = context.audit_log.newest(limit=1, project_id=DEFAULT_PROJECT)[0]
    assert entry.action == "alerts.settings_changed"


def test_a_test_goes_everywhere_an_alert_goes(context: Context) -> None:
    alerts.change_settings(context, CALLER, {"emails": ("a@example.org", "gone@example.org")})
    made, _ = webhooks.create_webhook(context, CALLER, "http://127.0.0.1:9/hook")
    with mail_server(refused={"gone@example.org"}) as server:
        mailing_by(context, f"smtp://{server.address}")
        came = alerts.send_test(context, CALLER)
    assert came["log"] == "written"
    assert came["a@example.org"] == "sent"
    assert "550 no mailbox" in came["gone@example.org"]
    assert made.url in came
    assert len(webhooks.list_deliveries(context, DEFAULT_PROJECT, made.webhook_id, limit=9)) == 1


def test_mails_and_texts_of_webhooks_are_in_the_language_of_messages(context: Context) -> None:
    context.settings = context.settings.model_copy(update={"message_language": "de"})
    webhooks.create_webhook(context, CALLER, "http://127.0.0.1:9/", ("luthier.alert.opened", "luthier.alert.closed"))
    alerts.change_settings(context, CALLER, {"emails": ["ann@example.org"]})
    sentence = "1.9 s in the last 24 h."
    changed = [
        signal(title="Requests that were refused (4xx)", sentence=sentence),
        signal(name="other", title="Requests that were refused (4xx)"),
    ]
    alerts.review(context, DEFAULT_PROJECT, report(*changed))
    (mail,) = mails.list_mails(context, DEFAULT_PROJECT)
    assert mail.subject == "shop-bot: 2 Warnungen"
    title = alerts.words("de")("Requests that were refused (4xx)")
    assert mail.text.startswith(f"{title}: verändert\n  jetzt        1,9 s (95 %: 1,7 bis 2,2), vorher 0,8 s\n")
    assert "\n  seit         1970-01-01" in mail.text
    assert "\n  Beispiele    chatcmpl-1\n" in mail.text
    (hook,) = webhooks.list_webhooks(context, DEFAULT_PROJECT)
    sent = webhook_sender.list_deliveries(context, DEFAULT_PROJECT, hook.webhook_id, limit=2)
    assert {json.loads(one.body)["data"]["title"] for one in sent} == {title}
    assert {json.loads(one.body)["data"]["signal"] for one in sent} == {"latency", "other"}, "names for programs stay"
