"""/rate/{token}: in by a link alone, blind, without scripts; out where the link is wrong or the panel closed."""

from __future__ import annotations

import re

import pytest
from fastapi.testclient import TestClient
from tests.assessed import careful, make_panel, rate_all
from tests.fixtures.pages import Browser

from luthier.core.access import Caller
from luthier.features.human_eval import rate_pages as rate
from luthier.features.human_eval import service as rating_links
from luthier.features.human_eval.items import AnsweredRow, AnsweredRows
from luthier.features.human_eval.service import NewPanel, close_panel, create_panel
from luthier.platform.home.context import Context

ME = Caller()


@pytest.fixture
def rater(browser: Browser) -> TestClient:
    """A browser that nobody has signed in with."""
    return browser()


def address_of(made: NewPanel, place: int = 0) -> str:
    return made.links[place].path


def item_of(page: str) -> int:
    found = re.search(r'name="item" value="(\d+)"', page)
    assert found is not None, page[:2000]
    return int(found.group(1))


def test_a_rater_reads_what_to_do_rates_all_and_is_thanked(home: Context, rater: TestClient) -> None:
    made = make_panel(home, num_rows=3, attention=0)
    address = address_of(made)
    start = rater.get(address)
    assert start.status_code == 200
    assert "Begin" in start.text
    assert "check that raters read" not in start.text, "there are none"
    for number in range(3):
        page = rater.get(f"{address}?begin=1").text
        assert f"{number + 1} of 3" in page
        sent = rater.post(address, data={"item": item_of(page), "choice": "tie", "comment": " both good "})
        assert (sent.status_code, sent.headers["location"]) == (303, f"{address}?begin=1")
    assert "you are done" in rater.get(address).text
    kept = home.rating_panels.ratings(made.panel.panel_id)
    assert [(one.preference, one.comment) for one in kept] == [("tie", "both good")] * 3


def test_a_comment_of_many_lines_is_as_long_as_it_was_written(home: Context, rater: TestClient) -> None:
    made = make_panel(home, num_rows=3, attention=0)
    item, lines = item_of(rater.get(f"{address_of(made)}?begin=1").text), 1_000 * "x\n"
    sent = {"item": item, "choice": "tie", "comment": lines.replace("\n", "\r\n")}
    assert rater.post(address_of(made), data=sent).status_code == 303
    assert [one.comment for one in home.rating_panels.ratings(made.panel.panel_id)] == [lines.strip()]


def test_nothing_tells_who_wrote_what(home: Context, rater: TestClient) -> None:
    made = make_panel(home, num_rows=3, systems=("plainmodel", "tunedmodel"))
    for path in (address_of(made), f"{address_of(made)}?begin=1"):
        page = rater.get(path)
        for word in (
            "plainmodel",
            "tunedmodel",
            "rows.jsonl",
            "attention check",
            "garbled",
            made.panel.panel_id,
            "Ada",
        ):
            assert word not in page.text
        assert "<nav" not in page.text
        assert page.headers["referrer-policy"] == "no-referrer"
        assert page.headers["cache-control"] == "no-store"
        assert "script-src 'self'" in page.headers["content-security-policy"]


def test_scores_are_kept_and_a_missing_one_is_asked_for_again(home: Context, rater: TestClient) -> None:
    made = make_panel(home, kind="likert", num_rows=2, attention=0)
    address = address_of(made)
    item = item_of(rater.get(f"{address}?begin=1").text)
    lacking = rater.post(address, data={"item": item, "relevance": 4, "coherence": 2, "comment": "hm <b>"})
    assert lacking.status_code == 422
    assert "no score for accuracy" in lacking.text
    assert "hm &lt;b&gt;" in lacking.text, "what was typed is not lost"
    assert re.search(r'name="relevance" value="4"[^>]*checked', lacking.text)
    assert home.rating_panels.ratings(made.panel.panel_id) == []
    data = {"item": item, "relevance": 4, "coherence": 2, "accuracy": 5, "shown_at": "nan"}
    assert rater.post(address, data=data).status_code == 303
    (kept,) = home.rating_panels.ratings(made.panel.panel_id)
    assert kept.scores == {"relevance": 4, "coherence": 2, "accuracy": 5}
    assert kept.seconds is None, "a time that is none is not kept"


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"item": "x", "choice": "first"},
        {"item": "99", "choice": "first"},
        {"item": "-1", "choice": "first"},
        {"item": "0", "choice": "third"},
        {"item": "0", "choice": "first", "comment": "x" * 2001},
        {"item": "9" * 400, "choice": "first"},
    ],
)
def test_forms_that_no_page_sends_are_refused(home: Context, rater: TestClient, data: dict[str, str]) -> None:
    made = make_panel(home)
    assert rater.post(address_of(made), data=data).status_code == 422
    assert home.rating_panels.ratings(made.panel.panel_id) == []


def test_a_form_sent_twice_is_one_rating_and_undo_shows_the_item_again(home: Context, rater: TestClient) -> None:
    made = make_panel(home)
    address = address_of(made)
    item = item_of(rater.get(f"{address}?begin=1").text)
    for _ in range(2):
        rater.post(address, data={"item": item, "choice": "first"})
    assert len(home.rating_panels.ratings(made.panel.panel_id)) == 1
    following = rater.get(address).text
    assert item_of(following) != item
    assert rater.post(f"{address}/undo").status_code == 303
    assert item_of(rater.get(f"{address}?begin=1").text) == item
    assert rater.post(f"{address}/undo").status_code == 303, "with nothing to take back nothing happens"


def test_hostile_answers_are_shown_as_text(home: Context, rater: TestClient) -> None:
    hostile = '<script>alert(1)</script><img src=x onerror="x()">{{ 7 * 7 }}'
    rows = (AnsweredRow("r:1", f"Q {hostile}", (), "", {"base": hostile, "tuned": "\u202eevil"}),)
    answered = AnsweredRows(("base", "tuned"), "rows", rows)
    words = "Mind <b>this</b>"
    made = create_panel(home, ME, answered, kind="pairwise", attention=0, raters=1, instructions=words)
    for page in (rater.get(address_of(made)).text, rater.get(f"{address_of(made)}?begin=1").text):
        assert "<script>alert" not in page
        assert "<img src=x" not in page
        assert "Mind &lt;b&gt;this&lt;/b&gt;" in page
        assert "\u202e" not in page, "what turns text around is made visible"


def test_an_empty_answer_says_so(home: Context, rater: TestClient) -> None:
    rows = (AnsweredRow("r:1", "Q", (), "", {"base": "  ", "tuned": "yes"}),)
    made = create_panel(home, ME, AnsweredRows(("base", "tuned"), "rows", rows), kind="pairwise", attention=0, raters=1)
    assert "(an empty answer)" in rater.get(f"{address_of(made)}?begin=1").text


def test_wrong_links_are_told_and_slowed_down(home: Context, rater: TestClient) -> None:
    made = make_panel(home)
    assert rater.get("/rate/nonsense").status_code == 404
    assert rater.post("/rate/nonsense", data={"item": 0}).status_code == 404
    assert rater.post("/rate/nonsense/undo").status_code == 404
    for number in range(rate.FAILURES_PER_MINUTE):
        rater.get(f"/rate/{number}")
    slowed = rater.get(address_of(made))
    assert slowed.status_code == 429
    assert "wait" in slowed.text
    assert "Question" not in slowed.text


def test_a_revoked_link_lets_nobody_in_and_a_new_one_goes_on(home: Context, rater: TestClient) -> None:
    made = make_panel(home, num_rows=4, attention=0)
    rate_all(home, made, 0, careful("pairwise"), most=2)
    rater_id = made.links[0].rater.rater_id
    again = rating_links.renew_link(home, ME, made.panel.panel_id, rater_id)
    assert rater.get(address_of(made)).status_code == 404
    assert "3 of 4" in rater.get(again.path).text
    rating_links.revoke_link(home, ME, made.panel.panel_id, rater_id)
    gone = rater.get(again.path)
    assert gone.status_code == 404
    assert "withdrawn" in gone.text


def test_a_closed_panel_says_so_and_keeps_nothing(home: Context, rater: TestClient) -> None:
    made = make_panel(home)
    address = address_of(made)
    item = item_of(rater.get(f"{address}?begin=1").text)
    close_panel(home, ME, made.panel.panel_id)
    assert "is closed" in rater.get(address).text
    assert rater.post(address, data={"item": item, "choice": "first"}).headers["location"] == address
    assert rater.post(f"{address}/undo").headers["location"] == address
    assert home.rating_panels.ratings(made.panel.panel_id) == []


def test_forms_of_other_sites_are_refused(home: Context, rater: TestClient) -> None:
    made = make_panel(home)
    sent = rater.post(address_of(made), data={"item": 0, "choice": "first"}, headers={"Sec-Fetch-Site": "cross-site"})
    assert sent.status_code == 403


def test_a_link_lets_in_to_nothing_else(home: Context, rater: TestClient) -> None:
    made = make_panel(home)
    rater.get(address_of(made))
    assert rater.get(f"/evaluations/panels/{made.panel.panel_id}").headers["location"].startswith("/sign-in")
