"""The annotation desk: who decides what, and what the pages and their pieces say of it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from html import unescape
from typing import Any

import pytest
from fastapi.testclient import TestClient

from luthier.core.access import Caller
from luthier.core.errors import StorageFullError
from luthier.features.datasets import annotations as annotation_queue
from luthier.features.datasets import service as dataset_versions
from luthier.platform.auth.service import create_project
from luthier.platform.home.context import Context

Browser = Callable[..., TestClient]
HX = {"HX-Request": "true"}
SCRIPT, IMAGE = "<script>alert(1)</script>", '"><img src=x onerror=alert(1)>'


def chat(number: int, answer: str | None = None) -> dict[str, Any]:
    said = answer or f"It is {number}."
    return {"messages": [{"role": "user", "content": f"What is {number}?"}, {"role": "assistant", "content": said}]}


def bring(home: Context, rows: list[dict[str, Any]], caller: Caller | None = None) -> str:
    caller = caller or Caller(name="Ada")
    blocks = [(json.dumps(row) + "\n").encode() for row in rows]
    file = dataset_versions.keep_rows(home, caller, blocks, "rows.jsonl")
    return dataset_versions.create_dataset(home, caller, "rows", file)[0].dataset_id


@pytest.fixture
def desk(home: Context) -> str:
    """The address of the desk of three rows."""
    return f"/datasets/{bring(home, [chat(n) for n in (1, 2, 3)])}/annotate"


def words(answer: Any) -> str:
    return " ".join(unescape(re.sub("<[^>]*>", " ", answer.text)).split())


def test_a_decision_is_kept_and_the_next_row_comes(browser: Browser, desk: str) -> None:
    one = browser("train", "read")
    assert "0 of 3 rows decided, 0 rejected" in words(one.get(desk))
    sent = {"version": 1, "row": 1, "decision": "reject", "show": "undecided", "seen": ""}
    answer = one.post(f"{desk}/decide", data=sent)
    assert (answer.status_code, answer.headers["location"]) == (303, f"{desk}?version=1&show=undecided&row=2")
    page = one.get(answer.headers["location"])
    assert "Row 1 is rejected." in words(page)
    assert "1 of 3 rows decided, 1 rejected" in words(page)
    assert "What is 2?" in words(page)


def test_htmx_gets_the_desk_alone_and_the_address_of_the_row(browser: Browser, desk: str) -> None:
    one = browser("train", "read")
    sent = {"version": 1, "row": 2, "decision": "accept", "show": "undecided"}
    answer = one.post(f"{desk}/decide", data=sent, headers=HX)
    assert (answer.status_code, answer.headers["hx-replace-url"]) == (200, f"{desk}?version=1&show=undecided&row=3")
    assert answer.text.lstrip().startswith('<div id="desk"')
    assert 'data-notice="row 2 is accepted"' in answer.text
    answer = one.post(f"{desk}/decide", data=sent | {"row": 3}, headers=HX)
    assert "What is 1?" in words(answer), "after the last row come those that were skipped"
    answer = one.post(f"{desk}/decide", data=sent | {"row": 1}, headers=HX)
    assert "All 3 rows are decided" in words(answer)
    assert "Train on it" in words(answer)


def test_the_last_decision_is_taken_back(browser: Browser, desk: str) -> None:
    one = browser("train", "read")
    assert "you have no decision to undo" in words(one.post(f"{desk}/undo", data={"version": 1}, headers=HX))
    for row in (1, 2):
        one.post(f"{desk}/decide", data={"version": 1, "row": row, "decision": "accept"})
    answer = one.post(f"{desk}/undo", data={"version": 1}, headers=HX)
    assert "What is 2?" in words(answer)
    assert "1 of 3 rows decided" in words(answer)
    answer = one.post(f"{desk}/undo", data={"version": 1, "row": 1})
    assert answer.headers["location"] == f"{desk}?version=1&show=undecided&row=1"


def test_an_edit_by_its_texts_and_as_json(browser: Browser, desk: str) -> None:
    one = browser("train", "read")
    form = one.get(f"{desk}?row=1&edit=text")
    assert 'name="text:/messages/1/content"' in form.text
    texts = {"text:/messages/0/content": "What is 1?", "text:/messages/1/content": "One.\r\nYes."}
    sent = {"version": "1", "row": "1"} | texts
    answer = one.post(f"{desk}/edit", data=sent, headers=HX)
    assert 'data-notice="row 1 is edited"' in answer.text
    shown = one.get(f"{desk}?row=1&show=edited").text
    assert "<del>It is 1</del><ins>One.\nYes</ins>." in shown
    as_json = json.dumps(chat(2, "Two"))
    assert one.post(f"{desk}/edit", data={"version": "1", "row": "2", "json": as_json}).status_code == 303
    assert "2 of 3 rows decided" in words(one.get(desk))


@pytest.mark.parametrize(
    ("sent", "said"),
    [
        ({"text:/messages/1/content": "  "}, "messages[1].content is an empty answer: nothing to learn"),
        ({"text:/messages/1/content": "It is 1."}, "the row is unchanged"),
        ({"text:/nowhere": "x"}, "the row has no text at '/nowhere'"),
        ({"json": '{"messages": ['}, "this is not JSON"),
        ({"json": '{"text": "x"}'}, "messages is absent or null"),
    ],
)
def test_an_edit_that_is_refused_keeps_what_was_typed(
    browser: Browser, desk: str, sent: dict[str, str], said: str
) -> None:
    one = browser("train", "read")
    for headers in ({}, HX):
        answer = one.post(f"{desk}/edit", data={"version": "1", "row": "1"} | sent, headers=headers)
        assert answer.status_code == 422
        assert said in words(answer)
        if "text:/nowhere" not in sent:
            assert next(iter(sent.values())) in unescape(answer.text)
    assert "0 of 3 rows decided" in words(one.get(desk))


def test_an_edit_that_cannot_be_stored_now_keeps_what_was_typed(
    browser: Browser, desk: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise StorageFullError("the disk is full", expected="room", do="free some")

    monkeypatch.setattr(annotation_queue, "decide", full)
    sent = {"version": "1", "row": "1", "text:/messages/1/content": "typed for minutes"}
    answer = browser("train", "read").post(f"{desk}/edit", data=sent, headers=HX)
    assert answer.status_code == 507
    assert answer.text.lstrip().startswith('<div id="desk"')
    assert "the disk is full" in answer.text
    assert "typed for minutes" in answer.text


def test_a_version_is_made_of_what_was_said(home: Context, browser: Browser, desk: str) -> None:
    one = browser("train", "read")
    refused = one.post(f"{desk}/version", data={"version": 1, "note": "why"})
    assert (refused.status_code, "no row was rejected or edited" in refused.text) == (422, True)
    assert 'value="why"' in refused.text
    one.post(f"{desk}/decide", data={"version": 1, "row": 2, "decision": "reject"})
    answer = one.post(f"{desk}/version", data={"version": 1, "note": "why"})
    dataset_id = desk.split("/")[2]
    assert answer.headers["location"] == f"/datasets/{dataset_id}?version=2"
    made = dataset_versions.get_version(home, Caller(), dataset_id)
    assert (made.note, made.author, made.num_rows, made.details["rejected"]) == ("why", "k", 2, 1)
    assert "0 of 2 rows decided" in words(one.get(desk))


def test_what_somebody_else_says_meanwhile_is_told(home: Context, browser: Browser, desk: str) -> None:
    from luthier.features.datasets.annotations import decide, open_queue

    one, ben = browser("train", "read"), Caller(name="Ben <b>")
    page = one.get(f"{desk}?row=1").text
    news = unescape(re.search(r'data-news="([^"]*)"', page)[1])  # type: ignore[index]
    decide(home, ben, open_queue(home, ben, desk.split("/")[2], 1), 1, "reject")
    told = one.get(news, headers=HX)
    assert "Ben <b> has rejected this row just now" in words(told)
    assert "<b>" not in told.text
    answer = one.post(f"{desk}/decide", data={"version": 1, "row": 1, "decision": "accept", "seen": ""}, headers=HX)
    assert "Ben &lt;b&gt; had rejected it in the meantime, your decision counts now" in answer.text


def test_rows_of_a_finding_alone(browser: Browser, desk: str) -> None:
    one = browser("train", "read")
    page = words(one.get(f"{desk}?rows=2-3&show=all"))
    assert "0 of 2 chosen rows decided" in page
    assert "What is 2?" in page
    answer = one.post(f"{desk}/decide", data={"version": 1, "row": 3, "decision": "accept", "rows": "2-3"})
    assert answer.headers["location"] == f"{desk}?version=1&show=undecided&row=2&rows=2-3"
    for asked, status in (("rows=x", 422), ("rows=77", 404), ("row=77", 404), ("show=none", 422), ("version=9", 404)):
        assert one.get(f"{desk}?{asked}").status_code == status


def test_viewers_look_only(browser: Browser, desk: str) -> None:
    viewer = browser("read")
    page = viewer.get(f"{desk}?edit=text").text
    assert "You can see decisions here" in page
    assert not re.search(r'method="post" action="[^"]*annotate', page)
    assert "What is 1?" in page
    for path, sent in (
        ("decide", {"row": 1, "decision": "accept"}),
        ("edit", {"row": 1, "json": "{}"}),
        ("undo", {}),
        ("version", {}),
    ):
        assert viewer.post(f"{desk}/{path}", data={"version": 1} | sent).status_code == 403
    assert browser().get(desk).status_code == 303


def test_other_projects_datasets_are_not_there(home: Context, browser: Browser, desk: str) -> None:
    other = create_project(home, "other")
    stranger = browser("train", "read", project=other.project_id)
    for path in ("annotate", "map", "split", "compare", "annotate/news?version=1&row=1", "map/points?version=1"):
        assert stranger.get(desk.replace("annotate", path)).status_code == 404
    assert stranger.post(f"{desk}/decide", data={"version": 1, "row": 1, "decision": "accept"}).status_code == 404
    assert stranger.post(desk.replace("annotate", "split"), data={"version": 1}).status_code == 404


def test_hostile_rows_show_as_text(home: Context, browser: Browser) -> None:
    rows = [
        chat(1, SCRIPT + IMAGE + "\u202egnol\u0000") | {IMAGE: SCRIPT},
        {"messages": [{"role": SCRIPT, "content": {"a": [IMAGE]}}]},
    ]
    desk = f"/datasets/{bring(home, rows)}/annotate"
    one = browser("train", "read")
    for row in (1, 2):
        for edit in ("", "&edit=text", "&edit=json"):
            page = one.get(f"{desk}?row={row}{edit}").text
            assert "<script>alert" not in page
            assert "<img src=x" not in page
            assert "\u0000" not in page
    shown = one.get(f"{desk}?row=1").text
    assert "\u202e" not in shown
    assert "\u27e8U+202E\u27e9gnol" in shown
    assert "\\u202egnol\\u0000" in unescape(one.get(f"{desk}?row=1&edit=json").text)


def test_a_row_that_cannot_be_read_is_told_and_can_be_written_anew(home: Context, browser: Browser) -> None:
    file = dataset_versions.keep_rows(
        home, Caller(), [json.dumps(chat(1)).encode(), b"\n{broken\n", b'{"text": "half \\ud800"}\n'], "rows.jsonl"
    )
    dataset = dataset_versions.create_dataset(home, Caller(), "rows", file)[0]
    desk, one = f"/datasets/{dataset.dataset_id}/annotate", browser("train", "read")
    assert "This row cannot be read" in one.get(f"{desk}?row=2").text
    assert one.get(f"{desk}?row=2&edit=text").status_code == 200
    assert "\\ud800" in one.get(f"{desk}?row=3&edit=json").text
    sent = {"version": "1", "row": "2", "json": json.dumps(chat(2))}
    assert one.post(f"{desk}/edit", data=sent).status_code == 303


def test_long_texts_are_cut_and_empty_ones_named(home: Context, browser: Browser) -> None:
    rows = [{"prompt": "x" * 30_000, "completion": "c", "note": ""}]
    page = browser("read").get(f"/datasets/{bring(home, rows)}/annotate")
    assert "10,000 more characters" in words(page)
    assert len(page.text) < 35_000
    assert "empty" in words(page)


def test_who_was_signed_out_meanwhile_comes_back_to_the_row(browser: Browser, desk: str) -> None:
    stranger, sent = browser(), {"version": 1, "row": 2, "decision": "accept"}
    at = {"HX-Current-URL": f"http://127.0.0.1{desk}?row=2"}
    answer = stranger.post(f"{desk}/decide", data=sent, headers=HX | at)
    # What was sent comes back with the page, under a name that nobody can guess.
    way = f"/sign-in?next={desk}%3Frow%3D2%26restored%3D"
    assert (answer.status_code, answer.headers["hx-redirect"][: len(way)]) == (401, way)
    elsewhere = {"HX-Current-URL": "https://evil.example/x"}
    answer = stranger.post(f"{desk}/decide", data=sent, headers=HX | elsewhere)
    assert answer.headers["hx-redirect"].startswith(f"/sign-in?next={desk}%3Frestored%3D"), (
        "the page above: one cannot go where a form is sent"
    )
