"""The line above a page that says who does its work, and assigns it from there."""

from __future__ import annotations

from collections.abc import Callable
from html import unescape

import pytest
from fastapi.testclient import TestClient
from tests.assessed import make_panel
from tests.features.inbox.pages.test_pages import signed_in
from tests.features.inbox.service.test_service import annotated, correct, failed_job, member, opened_alert

from luthier.core.access import Caller
from luthier.features.inbox import service as inbox
from luthier.features.inbox.assignments import Assignments
from luthier.platform.auth.members_store import Session
from luthier.platform.auth.service import create_project
from luthier.platform.home.context import Context

Browser = Callable[..., TestClient]


def line_of(page: str) -> str:
    return page.partition('class="page-inbox"')[2].partition("</div>")[0]


def test_review_is_assigned_on_its_own_page(home: Context, browser: Browser) -> None:
    correct(home)
    one = browser("read", "train")
    assert "has no members yet" in line_of(one.get("/review?model=shop-bot").text)
    member(home, "Ben <b>", "trainer")
    line = line_of(one.get("/review?model=shop-bot").text)
    assert "assigned to nobody" in line
    action = line.partition('action="')[2].partition('"')[0]
    back = unescape(line.partition('name="back" value="')[2].partition('"')[0])
    assert back == "/review?model=shop-bot"
    led = one.post(action, data={"name": "Ben <b>", "due": "2999-12-31", "back": back})
    assert (led.status_code, led.headers["location"]) == (303, back)
    page = one.get(back).text
    assert "Review answers of shop-bot: assigned to Ben &lt;b&gt;." in page
    assert "assigned to Ben &lt;b&gt; · due" in line_of(page)
    assert 'value="2999-12-31"' in line_of(page)
    elsewhere = one.post(action, data={"name": "Ben <b>", "back": "//example.org/x"})
    assert elsewhere.headers["location"] == "/", "another server is never led to"
    assert line_of(one.get("/review?model=other").text) == ""
    wrong = one.post(action, data={"name": "Ben <b>", "due": "2020-01-01", "back": back})
    assert (wrong.status_code, "which is in the past" in wrong.text) == (422, True)


def test_an_annotation_that_nobody_has_begun_is_assigned_there(home: Context, browser: Browser) -> None:
    dataset_id = annotated(home)
    member(home, "Ben", "trainer")
    one, address = browser("read", "train"), f"/datasets/{dataset_id}/annotate"
    assert "1 of 3 rows decided" in line_of(one.get(address).text)
    other = one.post("/inbox/annotate", data={"dataset": dataset_id, "name": "Ben", "back": address})
    assert other.headers["location"] == address
    assert "assigned to Ben" in line_of(one.get(address).text)


def test_viewers_see_who_does_it_and_cannot_assign(home: Context, browser: Browser) -> None:
    panel = make_panel(home, num_rows=2, attention=0)
    member(home, "Vera", "viewer")
    (rate,) = [one for one in inbox.list_entries(home, Caller()) if one.work.kind == "rate"]
    inbox.assign(home, Caller(), rate.item_id, "Vera")
    line = line_of(signed_in(browser, "Vera").get(f"/evaluations/panels/{panel.panel.panel_id}").text)
    assert "assigned to Vera" in line
    assert "<form" not in line


@pytest.mark.parametrize("query", ["", "name=shop-bot", "name=shop-bot&show=all", "name=other"])
def test_only_entries_that_lead_to_the_page_are_shown(home: Context, query: str) -> None:
    opened_alert(home)
    failed_job(home)
    create_project(home, "other")
    caller = Caller(scopes=("read",))
    session = Session(caller=caller, project_name="default", how="key", created_at=0.0, expires_at=1.0)
    assignments = Assignments(home)
    found = assignments.of(session, "/monitor/model", query)
    assert (None if found is None else [one.work.kind for one in found.entries]) == (
        ["alert"] if "shop-bot" in query else None
    )
    assert assignments.of(session, "/inbox", "") is None, "the inbox itself has its own forms"
    assert assignments.of(None, "/monitor/model", query) is None
