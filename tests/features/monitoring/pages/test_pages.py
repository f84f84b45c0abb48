"""/monitor: what is watched, what has changed, and exchanges whose hostile words stay words."""

from __future__ import annotations

import re
import sys
import threading
import types
from typing import Any

import pytest

from luthier.core.access import DEFAULT_PROJECT, Caller
from luthier.core.errors import WorkError
from luthier.core.records.monitoring import Signal, WatchReport
from luthier.core.records.traffic import Exchange
from luthier.features.feedback import service as feedback
from luthier.features.feedback.service import FeedbackInput
from luthier.features.monitoring import alerts
from luthier.features.monitoring import loop as monitor_loop
from luthier.features.traffic import service as traffic
from luthier.features.traffic.files import settle
from luthier.platform.home.context import Context
from luthier.platform.notifications import mails
from luthier.testing.servers import wait_for

HOSTILE = "</dd></textarea><script>alert(1)</script><img src=x onerror=alert(2)>\x1b[2J\u202egnirts\x00{{ 7919*7907 }}"


def asked(home, number: int = 1, **fields: object) -> str:  # type: ignore[no-untyped-def]
    values: dict[str, object] = {
        "exchange_id": f"chatcmpl-{number}",
        "project_id": DEFAULT_PROJECT,
        "at": 1e9 + number,
        "model": "shop-bot",
        "messages": ({"role": "user", "content": f"Question {number}?"},),
        "answer": f"Answer {number}.",
    }
    exchange = Exchange(**(values | fields))
    traffic.record(home, exchange)
    return exchange.exchange_id


@pytest.fixture
def sick(home, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    """`shop-bot` is watched, and errs more in each look."""
    counts = iter(range(2, 99))

    def watch(_context: object, project_id: str, model: str, *, since: float, until: float) -> WatchReport:
        value = float(next(counts))
        errors = Signal(
            name="errors", title="Errors", group="serving", unit="%", value=value, low=value - 1, high=value + 1,
            reference=1.0, p_value=0.001, state="changed", since=until - 3600, examples=("chatcmpl-1", HOSTILE),
            sentence=HOSTILE, do="look at the log",
        )  # fmt: skip
        length = Signal(name="length", title="Length", group="input", unit="", value=None, sentence="too little")
        return WatchReport(
            project_id=project_id, model=model, since=since, until=until, num_exchanges=7, num_with_text=2,
            num_dropped=3, signals=(errors, length), cautions=("few rows",),
        )  # fmt: skip

    monkeypatch.setitem(sys.modules, "luthier.features.monitoring.service", types.SimpleNamespace(watch=watch))
    monkeypatch.setattr(monitor_loop, "answer_to", lambda context, _, given: monitor_loop.run_checks(context, given))
    alerts.change_settings(home, Caller(), {"models": ("shop-bot",)})


def is_harmless(text: str) -> bool:
    return "<script>alert" not in text and "<img src=x" not in text and "\x1b" not in text and "\u202e" not in text


def test_a_fresh_home_says_what_to_do(browser) -> None:  # type: ignore[no-untyped-def]
    page = browser("read").get("/monitor")
    assert page.status_code == 200
    assert "Nothing is monitored yet" in page.text
    assert "Deploy a model" not in page.text, "who may only read cannot"


def test_what_is_watched_and_what_has_changed(browser, home, sick: None) -> None:  # type: ignore[no-untyped-def]
    client = browser("read", "train")
    assert "not enough data" in client.get("/monitor").text
    for _ in range(2):
        assert client.post("/monitor/look", data={"name": "shop-bot"}).status_code == 303
        wait_for(lambda: monitor_loop.check_progress(home, DEFAULT_PROJECT, "shop-bot").state == "answered")
    page = client.get("/monitor").text
    for words in ("1 open", "Errors", "look at the log", "chatcmpl-1"):
        assert words in page
    page = client.get("/monitor/model", params={"name": "shop-bot"}).text
    for words in (
        "7 exchanges",
        "3 exchanges are not in the log",
        "few rows",
        "What users ask",
        "too little",
        'svg class="drawn"',
    ):
        assert words in page
    assert is_harmless(page)
    assert "⟨U+202E⟩" in page


def test_a_look_by_hand_holds_nobody_up(browser, home, sick: None, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    begun, go_on = [], threading.Event()

    def slow(context: Context, _: str, given: dict[str, Any]) -> dict[str, Any]:
        begun.append(given)
        assert go_on.wait(60)
        return monitor_loop.run_checks(context, given)

    monkeypatch.setattr(monitor_loop, "answer_to", slow)
    client, page = browser("read", "train"), "/monitor/model?name=shop-bot"
    led = [client.post("/monitor/look", data={"name": "shop-bot"}).headers["location"] for _ in range(2)]
    assert led == [page, page], "answered while the look goes on"
    shown = client.get(page).text
    assert "The exchanges are being checked" in shown
    assert re.search(r"<button[^>]* disabled>Check now", shown)
    go_on.set()
    wait_for(lambda: monitor_loop.check_progress(home, DEFAULT_PROJECT, "shop-bot").state == "answered")
    assert begun == [{"models": [[DEFAULT_PROJECT, "shop-bot"]], "canaries": False}], (
        "one look, however often asked for"
    )
    shown = client.get(page).text
    assert "Checked manually" in shown
    assert "7 exchanges" in shown


def test_a_look_by_hand_that_cannot_begin_says_so(browser, home, sick: None, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    def busy(*_: object) -> dict[str, Any]:
        raise WorkError("2 such questions are being answered already", expected="one of them to end", do="ask again")

    monkeypatch.setattr(monitor_loop, "answer_to", busy)
    client = browser("read", "train")
    client.post("/monitor/look", data={"name": "shop-bot"})
    wait_for(lambda: monitor_loop.check_progress(home, DEFAULT_PROJECT, "shop-bot").state == "failed")
    assert "being answered already" in client.get("/monitor/model?name=shop-bot").text


def test_a_look_that_failed_is_shown(browser, home, sick: None, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    def watch(*_arguments: object, **_named: object) -> WatchReport:
        raise ZeroDivisionError

    monkeypatch.setitem(sys.modules, "luthier.features.monitoring.service", types.SimpleNamespace(watch=watch))
    monitor_loop.check_model(home, DEFAULT_PROJECT, "shop-bot")
    assert "check failed" in browser("read").get("/monitor").text
    assert "The last check failed" in browser("read").get("/monitor/model?name=shop-bot").text


def test_a_mail_that_waits_is_shown(browser, home) -> None:  # type: ignore[no-untyped-def]
    mail = mails.Mail(mail_id="mail-1", to=("a@example.org",), subject="s", text="t", last_answer="550 <b>no</b>")
    home.watches.put(DEFAULT_PROJECT, mails.KIND, mail.mail_id, mail.model_dump_json())
    page = browser("read").get("/monitor").text
    assert "waits for another attempt" in page
    assert "550 &lt;b&gt;no" in page


def test_hostile_words_stay_words(browser, home) -> None:  # type: ignore[no-untyped-def]
    calls = [{"id": "c", "type": "function", "function": {"name": HOSTILE, "arguments": HOSTILE}}]
    messages = (
        {"role": "user", "content": HOSTILE},
        {"role": "assistant", "content": None, "tool_calls": calls},
        {"role": HOSTILE, "content": [{"type": "text", "text": HOSTILE}]},
    )
    one = asked(home, model=HOSTILE[:60], target=HOSTILE, error_code=HOSTILE, messages=messages, answer=HOSTILE)
    feedback.give(home, Caller(), FeedbackInput(exchange_id=one, correction=HOSTILE, comment=HOSTILE, author=HOSTILE))
    client = browser("read", "train")
    for address in (f"/monitor/exchanges/{one}", "/monitor/exchanges", "/monitor/exchanges?show=said", "/review"):
        page = client.get(address)
        assert page.status_code == 200, address
        assert is_harmless(page.text), address
        assert "{{ 7919*7907 }}" in page.text or "62615533" not in page.text
    assert "alert(1)" in client.get(f"/monitor/exchanges/{one}").text


def test_exchanges_of_one_moment_are_on_one_page_each(browser, home) -> None:  # type: ignore[no-untyped-def]
    for number in range(120):
        asked(home, number, at=1e9 + 0.1)
    client, seen, address = browser("read"), [], "/monitor/exchanges?name=shop-bot"
    for size in (50, 50, 20):
        page = client.get(address).text
        ids = list(dict.fromkeys(re.findall(r"chatcmpl-\d+(?=<)", page)))
        assert len(ids) == size
        seen += ids
        address = page.split('class="button" href="')[-1].split('"')[0].replace("&amp;", "&")
    assert len(set(seen)) == 120


def test_exchanges_are_sifted_and_paged(browser, home) -> None:  # type: ignore[no-untyped-def]
    for number in range(60):
        asked(home, number, status=500 if number < 3 else 200)
    asked(home, 99, model="other", messages=None, answer=None)
    client = browser("read")
    first = client.get("/monitor/exchanges?name=shop-bot").text
    assert "50 of 60" in first
    assert "chatcmpl-59" in first
    assert "chatcmpl-9<" not in first
    older = first.split('class="button" href="')[-1].split('"')[0].replace("&amp;", "&")
    assert "10 of 10" in client.get(older).text
    assert "10 of 10" in client.get(re.sub("&before_id=[^&]*", "", older)).text, "an address of before"
    assert "3 of 3" in client.get("/monitor/exchanges?show=failed").text
    assert "60 of 60" not in client.get("/monitor/exchanges?show=words&name=other").text
    bare = client.get("/monitor/exchanges/chatcmpl-99").text
    assert "The text was not stored" in bare
    assert "Send for review" not in bare


def test_another_projects_exchanges_are_not_there(browser, home) -> None:  # type: ignore[no-untyped-def]
    home.access.add_project("proj-b", "b")
    one = asked(home, project_id="proj-b")
    client = browser("read", "train")
    assert client.get(f"/monitor/exchanges/{one}").status_code == 404
    assert client.post(f"/monitor/exchanges/{one}/review").status_code == 404
    assert client.get("/monitor/model?name=none").status_code == 404
    assert client.post("/monitor/look", data={"name": "none"}).status_code == 404


def test_an_exchange_is_queued_once(browser, home) -> None:  # type: ignore[no-untyped-def]
    one = asked(home)
    assert browser("read").post(f"/monitor/exchanges/{one}/review").status_code == 403
    client = browser("read", "train")
    assert client.post(f"/monitor/exchanges/{one}/review").status_code == 303
    client.post(f"/monitor/exchanges/{one}/review")
    assert len(home.review_items.list(DEFAULT_PROJECT)) == 1


def test_what_will_be_watched_is_shown_before_there_is_traffic(home, browser) -> None:  # type: ignore[no-untyped-def]
    alerts.change_settings(home, Caller(), {"models": ("new-bot",)})
    page = browser("read").get("/monitor/model?name=new-bot").text
    assert "What is monitored" in page
    assert "needs 200 more answers in the last" in page
    assert "waiting for data" in page
    assert "no judge is set" in page


def test_a_page_of_many_exchanges_in_files_says_that_more_are_stored(browser, home) -> None:  # type: ignore[no-untyped-def]
    for number in range(60):
        asked(home, number, at=1e9 + 86_400 * (number // 55) + number)
    settle(home)
    client = browser("read")
    first = client.get("/monitor/exchanges").text
    assert "50, and more are stored" in first
    assert len(set(re.findall(r"chatcmpl-\d+(?=<)", first))) == 50
    older = first.split('class="button" href="')[-1].split('"')[0].replace("&amp;", "&")
    assert "10 of 10" in client.get(older).text
    assert "None of these" in client.get("/monitor/exchanges?show=said").text


def test_titles_of_groups_and_of_filters_are_german_on_german_pages(browser, home, sick: None) -> None:  # type: ignore[no-untyped-def]
    client = browser("read", "train")
    client.headers["accept-language"] = "de"
    assert client.post("/monitor/look", data={"name": "shop-bot"}).status_code == 303
    wait_for(lambda: monitor_loop.check_progress(home, DEFAULT_PROJECT, "shop-bot").state == "answered")
    page = client.get("/monitor/model", params={"name": "shop-bot"}).text
    assert "Was Nutzer fragen" in page
    assert "What users ask" not in page
    filters = client.get("/monitor/exchanges").text
    for words in (">Alle</a>", ">Fehlgeschlagen</a>", ">Mit Text</a>", ">Mit Feedback</a>"):
        assert words in filters
