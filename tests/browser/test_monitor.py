"""Watching and reviewing in a browser before a real server: charts, keys, hostile words, and what axe-core says."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from luthier.core.access import DEFAULT_PROJECT, Caller
from luthier.core.records.monitoring import Signal, SignalGroup, SignalState, WatchReport
from luthier.core.records.traffic import Exchange
from luthier.features.feedback import review as review_queue
from luthier.features.feedback import service as feedback
from luthier.features.feedback.service import FeedbackInput
from luthier.features.monitoring import alerts
from luthier.features.monitoring import loop as watching
from luthier.features.traffic import service as traffic
from luthier.platform.home.context import Context
from luthier.testing.servers import HomeServer, home_server
from tests.browser.conftest import PHONE, WIDE, sign_in, violations_in_light_and_dark

MakePage = Callable[..., Page]
HOSTILE = '<script>alert(1)</script><img src=x onerror="alert(2)"> \u202egnirts'
MODEL = "shop-bot"


def signal(name: str, title: str, group: SignalGroup, unit: str, value: float, state: SignalState) -> Signal:
    return Signal(
        name=name, title=title, group=group, unit=unit, value=value, low=value * 0.9, high=value * 1.1, reference=1.0,
        p_value=0.0004 if state == "changed" else 0.6, state=state,
        since=None if state == "steady" else time.time() - 9e3,
        examples=("chatcmpl-1", "chatcmpl-2") if state == "changed" else (),
        sentence=f"It was 1.0 {unit} before." if state == "steady" else f"A tenth took twice as long. {HOSTILE}",
        do="Look at the queue of the server, and at what was deployed that day." if state == "changed" else "",
    )  # fmt: skip


def fill(home: Path) -> None:
    now = time.time()
    with Context.open(home) as context:
        alerts.change_settings(context, Caller(), {"models": (MODEL, "quiet-bot"), "is_on": False})
        for number in range(12):
            words = {"messages": ({"role": "user", "content": f"{HOSTILE} Which board for bread, number {number}?"},)}
            exchange = Exchange(
                exchange_id=f"chatcmpl-{number}", project_id=DEFAULT_PROJECT, at=now - 60 * number, model=MODEL,
                target="run-20261125-093000-1f2e3d", num_prompt_tokens=40 + number, num_new_tokens=30, seconds=1.2,
                first_token_seconds=0.2, status=500 if number == 9 else 200,
                error_code="overloaded" if number == 9 else "",
                answer=f"The walnut board. {HOSTILE}", **words,
            )  # fmt: skip
            traffic.record(context, exchange)
        said = FeedbackInput(
            exchange_id="chatcmpl-1", thumb="down", correction="The maple board: it is harder.", author="ann"
        )
        feedback.give(context, Caller(), said)
        feedback.give(context, Caller(), FeedbackInput(exchange_id="chatcmpl-2", thumb="up", author="bob"))
        review_queue.queue_sample(context, Caller(), MODEL, 4, seed=1)
        for look in range(20):
            is_late = look > 14
            latency = 2.1 if is_late else 1.0 + 0.1 * math.sin(look)
            signals = (
                signal(
                    "latency", "Latency, 95th percentile", "serving", "s", latency, "changed" if is_late else "steady"
                ),
                signal("errors", "Errors", "serving", "%", 1.0 + 0.05 * math.cos(look), "steady"),
                signal("prompt_length", "Length of prompts", "input", "tokens", 40 + math.sin(look), "steady"),
            )
            until = now - 3600 * (19 - look)
            report = WatchReport(
                project_id=DEFAULT_PROJECT, model=MODEL, since=until - 86400, until=until, num_exchanges=1240,
                num_with_text=310, num_dropped=3, signals=signals, cautions=("No training profile: prompts are new.",),
            )  # fmt: skip
            alerts.review(context, DEFAULT_PROJECT, report)
            watching._keep(context, report)
        watching._end(context, DEFAULT_PROJECT, MODEL, now, "")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HomeServer]:
    home = tmp_path_factory.mktemp("monitor") / "home"
    fill(home)
    with home_server(home) as running:
        yield running


@pytest.mark.parametrize("viewport", [WIDE, PHONE], ids=["desk", "phone"])
def test_nothing_is_wrong_with_the_pages(server: HomeServer, make_page: MakePage, viewport: dict[str, int]) -> None:
    page = make_page(viewport=viewport)
    sign_in(page, server.url, server.key)
    places = [
        "/monitor",
        f"/monitor/model?name={MODEL}",
        "/monitor/exchanges",
        "/monitor/exchanges/chatcmpl-1",
        "/review",
    ]
    for place in places:
        page.goto(f"{server.url}{place}")
        assert violations_in_light_and_dark(page) == [], place
        width = page.evaluate("document.documentElement.scrollWidth")
        assert width <= viewport["width"], f"{place} is wider than its window"


def test_what_has_changed_leads_to_what_shows_it(server: HomeServer, make_page: MakePage) -> None:
    page = make_page()
    sign_in(page, server.url, server.key, "/monitor")
    page.get_by_role("link", name=MODEL).first.click()
    expect(page.get_by_role("heading", name="Over time")).to_be_visible()
    page.get_by_role("link", name="chatcmpl-1").first.click()
    expect(page.get_by_text("<script>alert(1)</script>").first).to_be_visible()
    assert page.locator("main script, main img[src=x]").count() == 0


def test_reviewing_by_keys_alone(server: HomeServer, make_page: MakePage) -> None:
    page = make_page()
    sign_in(page, server.url, server.key, "/review")
    title = page.locator("#row-title")
    expect(title).to_contain_text("A correction")
    page.keyboard.press("a")
    expect(page.locator("#show-accepted .number")).to_have_text("1")
    expect(title).to_contain_text("From the traffic")
    page.keyboard.press("e")
    area = page.locator("#answer")
    expect(area).to_be_focused()
    area.fill("The maple board.")
    page.keyboard.press("Control+Enter")
    expect(page.locator("#show-accepted .number")).to_have_text("2")
    page.keyboard.press("r")
    expect(page.locator("#show-rejected .number")).to_have_text("1")
    page.keyboard.press("u")
    expect(page.locator("#show-rejected .number")).to_have_text("0")
    expect(page.locator("#show-waiting .number")).to_have_text("3")
