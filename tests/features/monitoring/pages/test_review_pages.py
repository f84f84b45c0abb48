"""/review: decisions one by one, with and without scripts."""

from __future__ import annotations

import re

import pytest
from tests.features.monitoring.pages.test_pages import HOSTILE, asked, is_harmless

from luthier.core.access import DEFAULT_PROJECT, Caller
from luthier.features.feedback import review as review_queue


def queued(home, num: int = 3) -> list[str]:  # type: ignore[no-untyped-def]
    for number in range(num):
        asked(home, number)
    review_queue.queue_sample(home, Caller(), "shop-bot", num, seed=0)
    return list(home.review_items.ids(DEFAULT_PROJECT))


def form_of(page: str) -> dict[str, str]:
    found = dict(re.findall(r'name="(item|seen|model|status)" value="([^"]*)"', page))
    return found | {"seen": re.search(r'name="seen" value="([^"]*)"', page)[1]}  # type: ignore[index]


def statuses(home) -> dict[str, str]:  # type: ignore[no-untyped-def]
    return {one.review_id: one.status for one in home.review_items.list(DEFAULT_PROJECT)}


def test_an_empty_queue_says_what_comes_here(browser) -> None:  # type: ignore[no-untyped-def]
    page = browser("read", "train").get("/review").text
    assert "Nothing to review yet" in page
    for needless in ("Undo my last decision", "<progress", "0 of 0"):
        assert needless not in page


def test_accept_reject_edit_undo_without_scripts(browser, home) -> None:  # type: ignore[no-untyped-def]
    ids, client = queued(home), browser("read", "train")
    page = client.get("/review").text
    assert form_of(page)["item"] == ids[0]
    assert 'data-press="a"' in page
    led = client.post("/review/decide", data=form_of(page) | {"decision": "accept"})
    assert led.status_code == 303
    assert ids[1] in led.headers["location"]
    page = client.get(led.headers["location"]).text
    led = client.post("/review/decide", data=form_of(page) | {"decision": "reject"})
    page = client.get(led.headers["location"] + "&edit=1").text
    assert "What the model is to learn" in page
    form = form_of(page) | {"decision": "edit", "answer": "\r\nBetter,\r\nindeed. "}
    led = client.post("/review/decide", data=form)
    assert list(statuses(home).values()) == ["accepted", "rejected", "accepted"]
    assert [one.learned for one in review_queue.accepted(home, DEFAULT_PROJECT)][1] == "Better,\nindeed."
    assert "All 3 are reviewed" in client.get(led.headers["location"]).text
    assert client.post("/review/undo", data={}).status_code == 303
    assert statuses(home)[ids[2]] == "waiting"
    assert "0 of 1" not in client.get("/review?status=rejected").text
    client.post("/review/undo", data={"item": ids[1]})
    assert statuses(home)[ids[1]] == "waiting"


@pytest.mark.parametrize("headers", [{}, {"HX-Request": "true"}], ids=["page", "part"])
def test_what_another_tab_has_reset_already_is_said_beside_the_item(browser, home, headers: dict[str, str]) -> None:  # type: ignore[no-untyped-def]
    ids, client = queued(home), browser("read", "train")
    client.post("/review/decide", data=form_of(client.get("/review").text) | {"decision": "accept"})
    assert client.post("/review/undo", data={"item": ids[0]}).status_code == 303
    again = client.post("/review/undo", data={"item": ids[0]}, headers=headers)
    assert again.status_code == 409
    assert 'id="desk"' in again.text
    assert form_of(again.text)["item"] == ids[0]
    assert statuses(home)[ids[0]] == "waiting"


def test_with_scripts_the_desk_alone_is_swapped(browser, home) -> None:  # type: ignore[no-untyped-def]
    ids, client = queued(home), browser("read", "train")
    page = client.get("/review", headers={"HX-Request": "true"})
    assert "<html" not in page.text
    assert 'id="desk"' in page.text
    made = client.post(
        "/review/decide", data=form_of(page.text) | {"decision": "accept"}, headers={"HX-Request": "true"}
    )
    assert made.status_code == 200
    assert ids[1] in made.text
    assert "it is accepted" in made.text
    assert ids[1] in made.headers["HX-Replace-Url"]


def test_who_was_later_is_told_and_loses_no_word(browser, home) -> None:  # type: ignore[no-untyped-def]
    ids, client = queued(home), browser("read", "train")
    form = form_of(client.get("/review").text)
    item = home.review_items.get(ids[0], DEFAULT_PROJECT)
    review_queue.decide(home, Caller(name="bob"), item, "reject")
    refused = client.post("/review/decide", data=form | {"decision": "edit", "answer": "My words."})
    assert refused.status_code == 409
    assert "bob has changed this item in the meantime" in refused.text
    assert "My words." in refused.text
    assert statuses(home)[ids[0]] == "rejected"


def test_bad_forms_are_refused(browser, home) -> None:  # type: ignore[no-untyped-def]
    queued(home)
    client = browser("read", "train")
    form = form_of(client.get("/review").text)
    assert client.post("/review/decide", data=form | {"decision": "burn"}).status_code == 422
    assert client.post("/review/decide", data=form | {"item": "../x", "decision": "accept"}).status_code == 404
    empty = client.post("/review/decide", data=form | {"decision": "edit", "answer": "  "})
    assert empty.status_code == 422
    assert "write the answer" in empty.text
    assert client.get("/review?item=review-20260101-000000-000000").status_code == 404
    assert client.post("/review/queue", data={"model": "shop-bot", "what": "sample", "num": "0"}).status_code == 422
    assert set(statuses(home).values()) == {"waiting"}


def test_who_may_only_read_decides_nothing(browser, home) -> None:  # type: ignore[no-untyped-def]
    queued(home)
    client = browser("read")
    page = client.get("/review?edit=1").text
    assert "/review/decide" not in page
    assert "You can read the decisions here" in page
    assert client.post("/review/decide", data={"item": "x", "seen": "x", "decision": "accept"}).status_code == 403


def test_more_is_queued_from_the_page(browser, home) -> None:  # type: ignore[no-untyped-def]
    for number in range(5):
        asked(home, number, messages=({"role": "user", "content": HOSTILE},))
    client = browser("read", "train")
    led = client.post("/review/queue", data={"model": "shop-bot", "what": "sample", "num": "4"})
    assert led.status_code == 303
    page = client.get(led.headers["location"]).text
    assert "4 answers are waiting for review" in page
    assert is_harmless(page)
    assert len(statuses(home)) == 4
    led = client.post("/review/queue", data={"model": "shop-bot", "what": "sample", "num": "1"})
    assert "1 answer is waiting for review" in client.get(led.headers["location"]).text


def test_accepted_answers_go_to_a_dataset_by_one_button(browser, home) -> None:  # type: ignore[no-untyped-def]
    from luthier.features.datasets import service as dataset_versions

    ids, client = queued(home, 2), browser("read", "train")
    assert "to-dataset" not in client.get("/review").text, "nothing is accepted yet"
    for one in ids:
        item = home.review_items.get(one, DEFAULT_PROJECT)
        review_queue.decide(home, Caller(), item, "accept", edited=f"Better than {one}.")
    page = client.get("/review").text
    assert "A new dataset of them" in page
    refused = client.post("/review/add", data={"name": " ", "model": "shop-bot"})
    assert refused.status_code == 422
    assert "printable characters" in refused.text
    made = client.post("/review/add", data={"name": "faq", "model": "shop-bot"})
    assert made.status_code == 303
    faq = home.datasets.find(DEFAULT_PROJECT, "faq")
    assert faq is not None
    assert f"/datasets/{faq.dataset_id}?version=1" in made.headers["location"]
    assert "All accepted answers are in" in client.get("/review?status=accepted").text
    rows = b'{"messages":[{"role":"user","content":"Hello?"},{"role":"assistant","content":"Hi."}]}\n'
    file = dataset_versions.keep_rows(home, Caller(), [rows], "other.jsonl")
    other, _ = dataset_versions.create_dataset(home, Caller(), "other", file)
    page = client.get(f"/review?dataset={other.dataset_id}").text
    assert "Add 2 accepted rows to other as version 2" in page
    led = client.post("/review/add", data={"dataset": other.dataset_id})
    assert led.status_code == 303
    assert "2 accepted answers were added as version 2." in client.get(led.headers["location"]).text
    again = client.post("/review/add", data={"dataset": other.dataset_id})
    assert again.status_code == 409
    assert "none can be added" in again.text
    reader = browser("read")
    assert "/review/add" not in reader.get("/review").text
    assert reader.post("/review/add", data={"dataset": other.dataset_id}).status_code == 403
