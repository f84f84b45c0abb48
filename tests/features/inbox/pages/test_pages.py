"""/inbox by its forms, without scripts; the count in the navigation, and the part of the home page."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from fastapi.testclient import TestClient
from tests.assessed import make_panel
from tests.features.inbox.service.test_service import correct, failed_job, member

from luthier.core.access import Caller
from luthier.features.human_eval.service import renew_link, revoke_link
from luthier.features.inbox import service as inbox
from luthier.platform.auth.service import create_project
from luthier.platform.home.context import Context

Browser = Callable[..., TestClient]
PASSWORD = "correct horse battery"


@pytest.fixture(autouse=True)
def counted_anew() -> None:
    inbox.forget_counts()


def signed_in(browser: Browser, name: str) -> TestClient:
    one = browser()
    assert one.post("/sign-in", data={"name": name, "password": PASSWORD}).status_code == 303
    return one


def item_of(page: str) -> str:
    found = re.search(r'id="(item-[0-9a-f]{12})"', page)
    assert found is not None
    return found[1]


def test_an_empty_inbox_leads_to_no_other_empty_list(browser: Browser) -> None:
    one = browser("read", "train")
    assert "Nothing is waiting for you" in one.get("/inbox").text
    for show in ("for_you", "open", "done"):
        assert 'class="button primary"' not in one.get(f"/inbox?show={show}").text


def test_an_entry_is_assigned_snoozed_done_and_opened_again(home: Context, browser: Browser) -> None:
    correct(home)
    member(home, "Ben <b>", "trainer")
    one = browser("read", "train")
    page = one.get("/inbox").text
    assert "Review answers of shop-bot" in page
    assert re.search(r'Inbox <span class="count number">1<', page)
    item = item_of(page)
    led = one.post(f"/inbox/{item}/assign", data={"name": "Ben <b>", "due": "2999-12-31", "show": "for_you"})
    assert (led.status_code, led.headers["location"]) == (303, "/inbox")
    page = one.get("/inbox").text
    assert "Review answers of shop-bot: assigned to Ben &lt;b&gt;." in page
    assert "Nothing is waiting for you" in page
    ben = signed_in(browser, "Ben <b>")
    page = ben.get("/inbox").text
    assert "assigned to Ben &lt;b&gt; by k" in page
    assert ben.post(f"/inbox/{item}/snooze", data={"span": "3d"}).status_code == 303
    assert "hidden, shown again <time" in ben.get("/inbox?show=snoozed").text
    assert ben.post(f"/inbox/{item}/reopen", data={"show": "snoozed"}).headers["location"] == "/inbox?show=snoozed"
    assert ben.post(f"/inbox/{item}/done").status_code == 303
    page = ben.get("/inbox?show=done").text
    assert "done by Ben &lt;b&gt;" in page
    second = ben.post(f"/inbox/{item}/done")
    assert second.status_code == 409
    assert "has marked this as done already" in second.text


def test_wrong_forms_are_explained_and_kept(home: Context, browser: Browser) -> None:
    correct(home)
    member(home, "Ben", "trainer")
    one = browser("read", "train")
    item = item_of(one.get("/inbox").text)
    for data, status, words in (
        ({"name": "Ben", "due": "2020-01-01"}, 422, "which is in the past"),
        ({"name": "Ben", "due": "soon"}, 422, "a day such as 2026-12-03"),
        ({"name": "Nobody"}, 404, "no member"),
    ):
        answer = one.post(f"/inbox/{item}/assign", data=data)
        assert (answer.status_code, words in answer.text) == (status, True), data
        assert '<details class="why" open>' in answer.text
    assert one.post(f"/inbox/{item}/snooze", data={"span": "forever"}).status_code == 422
    assert one.post("/inbox/item-000000000000/done").status_code == 404
    assert one.post("/inbox/other/done").status_code == 422
    assert one.post("/inbox/annotate", data={"dataset": "data-none", "name": "Ben"}).status_code == 404
    assert one.get("/inbox?show=nothing").status_code == 422


def test_a_viewer_sees_and_settles_what_they_were_given_alone(home: Context, browser: Browser) -> None:
    correct(home)
    panel = make_panel(home, num_rows=2, attention=0)
    member(home, "Vera", "viewer")
    vera = signed_in(browser, "Vera")
    assert "Nothing is waiting for you" in vera.get("/inbox").text
    page = vera.get("/inbox?show=open").text
    assert "Rate answers" in page
    assert "/assign" not in page
    rate = next(one for one in inbox.list_entries(home, Caller()) if one.work.kind == "rate")
    assert vera.post(f"/inbox/{rate.item_id}/assign", data={"name": "Vera"}).status_code == 403
    assert vera.post(f"/inbox/{rate.item_id}/done").status_code == 403
    assert vera.post(f"/inbox/{rate.item_id}/rate").status_code == 403
    inbox.assign(home, Caller(), rate.item_id, "Vera")
    inbox.forget_counts()
    assert "Rate now" in vera.get("/inbox").text
    led = vera.post(f"/inbox/{rate.item_id}/rate")
    assert led.status_code == 303
    begun = vera.get(led.headers["location"])
    assert begun.status_code == 200
    assert "Begin" in begun.text, "the link is in their own name, so nothing is asked"
    assert "Vera" in [one.name for one in home.rating_panels.raters(panel.panel.panel_id)]
    again = vera.post(f"/inbox/{rate.item_id}/rate").headers["location"]
    assert vera.get(led.headers["location"]).status_code == 404, "each click makes a new link"
    assert vera.get(again).status_code == 200


def test_rating_from_the_inbox_keeps_the_link_that_was_sent(home: Context, browser: Browser) -> None:
    panel = make_panel(home, num_rows=2, attention=0, raters=("Vera",))
    panel_id, sent = panel.panel.panel_id, panel.links[0].path
    member(home, "Vera", "trainer")
    vera = signed_in(browser, "Vera")
    rate = next(one for one in inbox.list_entries(home, Caller()) if one.work.kind == "rate")
    own = vera.post(f"/inbox/{rate.item_id}/rate").headers["location"]
    assert own != sent
    (rater,) = home.rating_panels.raters(panel_id)
    assert rater.name == "Vera"
    for path in (own, sent):
        assert "Begin" in vera.get(path).text
    assert vera.get(f"{own}x").status_code == 404
    assert vera.get(f"/rate/{rater.rater_id}").status_code == 404
    renewed = renew_link(home, Caller(), panel_id, rater.rater_id)
    assert [vera.get(path).status_code for path in (own, sent, renewed.path)] == [404, 404, 200]
    again = vera.post(f"/inbox/{rate.item_id}/rate").headers["location"]
    revoke_link(home, Caller(), panel_id, rater.rater_id)
    assert [vera.get(path).status_code for path in (again, renewed.path)] == [404, 404]


def test_a_rater_link_opened_by_a_member_is_explained(home: Context, browser: Browser) -> None:
    panel = make_panel(home, num_rows=2, attention=0, raters=("Cleo",))
    member(home, "Vera", "viewer")
    other = create_project(home, "other").project_id
    member(home, "Olga", "admin", other)
    vera, olga, path = signed_in(browser, "Vera"), signed_in(browser, "Olga"), panel.links[0].path
    page = vera.get(path)
    assert page.status_code == 409
    assert "This link belongs to a rater" in page.text
    assert "Cleo" in page.text
    assert f"/evaluations/panels/{panel.panel.panel_id}" in page.text
    page = olga.get(path)
    assert page.status_code == 409
    assert "Cleo" not in page.text
    assert panel.panel.panel_id not in page.text
    assert "Begin" in vera.get(f"{path}?mine=1").text
    assert browser().get(path).status_code == 200
    assert browser("read").get(path).status_code == 200, "who has a key may try a link out"


def test_the_home_page_has_what_is_for_the_visitor(home: Context, browser: Browser) -> None:
    failed_job(home)
    home.access.add_project("proj-b", "b")
    from tests.homes import fill

    fill(home)
    page = browser("read", "train").get("/").text
    assert "For you" in page
    assert "Export failed" in page
    assert "Export failed" not in browser("read").get("/").text, "a viewer was not given it"


def test_who_may_not_read_has_no_inbox(browser: Browser) -> None:
    assert browser("infer").get("/inbox").status_code == 403
    page = browser("infer").get("/playground").text
    assert "/inbox" not in page
