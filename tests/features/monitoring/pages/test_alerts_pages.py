"""/monitor/alerts: the alerts of a project, open ones or all, and none of another project."""

from __future__ import annotations

from tests.fixtures.pages import Browser

from luthier.core.access import DEFAULT_PROJECT
from luthier.core.records.monitoring import Signal, WatchReport
from luthier.features.monitoring import alerts
from luthier.platform.auth.service import create_project
from luthier.platform.home.context import Context

HOSTILE = '"><img src=x onerror=alert(1)>'


def report(since: float) -> WatchReport:
    signal = Signal(
        name="errors", title="Errors", group="serving", unit="%", value=9.0, low=8.0, high=10.0, reference=1.0,
        p_value=0.001, state="changed", since=1e9, examples=(), sentence=HOSTILE, do="look at the log",
    )  # fmt: skip
    return WatchReport(
        project_id=DEFAULT_PROJECT, model="shop-bot", since=since, until=since + 3600, num_exchanges=700,
        num_with_text=0, num_dropped=0, signals=(signal,), cautions=(),
    )  # fmt: skip


def test_without_alerts_the_page_says_when_one_opens(browser: Browser) -> None:
    page = browser("read").get("/monitor/alerts")
    assert "No open alerts" in page.text
    assert "No alerts yet" in browser("read").get("/monitor/alerts?show=all").text
    assert browser("read").get("/monitor/alerts?show=closed").status_code == 422


def test_alerts_are_shown_open_or_all_to_those_of_the_project(home: Context, browser: Browser) -> None:
    for number in range(3):  # an alert opens when a change is still there in the next check
        alerts.review(home, DEFAULT_PROJECT, report(1e9 + 3600 * number))
    page = browser("read").get("/monitor/alerts").text
    assert "shop-bot" in page
    assert "<img src=x" not in page
    create_project(home, "b")
    assert "shop-bot" not in browser("read", project="b").get("/monitor/alerts?show=all").text
    assert browser("infer").get("/monitor/alerts").status_code == 403
