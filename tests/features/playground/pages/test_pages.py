"""The playground without scripts, and what it says to scripts."""

from __future__ import annotations

import json
from collections.abc import Callable
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from tests.fixtures.pages import shown
from tests.vacuous import nonempty

from luthier.core.access import Caller
from luthier.core.errors import BusyError, OverlongError
from luthier.core.ports import SilentProgress
from luthier.core.records.traffic import TrafficPolicy
from luthier.core.stream import Ended, Failed, Piece, Served, Started, StreamEvent, TextRequest
from luthier.features.datasets import service as dataset_versions
from luthier.features.models.store import TunedModel
from luthier.features.traffic.policy import set_traffic_policy
from luthier.ml.inference.models import sources
from luthier.platform.auth.service import create_project
from luthier.platform.home.context import Context
from luthier.testing.records import add_run

Browser = Callable[..., TestClient]
ANSWER: tuple[StreamEvent, ...] = (
    Started(num_prompt_tokens=5),
    Piece(text="<script>alert(2)</script>\n```html\n", num_new_tokens=1),
    Piece(text="<img src=x>\n```\n\u202eend", num_new_tokens=2),
    Ended(reason="length", num_new_tokens=2),
)
HOSTILE = '<script>alert(1)</script> "><img src=x onerror=alert(1)> \u202e'


@pytest.fixture
def tiny(home: Context, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A base model by whose name the same is always answered; tests/browser asks a real one."""

    def ask(_: Served, request: TextRequest, hear: Callable[[StreamEvent], None], *, key: str | None) -> Any:
        assert request.conversation is not None
        if "wood " * 100 in str(request.conversation.messages[-1].content):
            hear(Failed(error=OverlongError("over the context", expected="less", do="cut").as_json()))
        for event in ANSWER:
            hear(event)
        return lambda: None

    sources.pull(str(tiny_model), home.home, SilentProgress())
    monkeypatch.setattr(home.inference_client, "ask", ask)
    return "tiny"


def talk(*turns: str) -> str:
    roles = ("user", "assistant")
    return json.dumps([{"role": roles[n % 2], "content": turn} for n, turn in enumerate(turns)])


def form(**fields: Any) -> dict[str, Any]:
    usual = {"temperature": "0", "top_p": "1", "max_tokens": "8", "seed": "", "stop": "", "system": ""}
    return {"model": "tiny", **usual, **fields}


def test_without_a_model_it_says_how_to_come_to_one(browser: Browser) -> None:
    page = browser("read", "infer").get("/playground").text
    assert "No model to chat with yet" in page
    assert '<a class="button" href="/models?show=base">' in page
    assert "/runs/new" not in page, "whoever may not train is not sent there"
    assert "/models?show=base" not in browser("infer").get("/playground").text


def test_only_what_this_project_may_ask_is_offered(home: Context, browser: Browser, tiny: str) -> None:
    run_id, failed = add_run(home, "a"), add_run(home, "b", status="failed")
    page = browser("infer", "read").get(f"/playground?model={run_id}&model=tiny").text
    name = home.run_labels.names([run_id])[run_id]
    assert name.endswith("tiny · 25 Nov")
    assert f'<option value="{run_id}" selected data-shown="{name}">{name} (' in page
    assert '<option value="tiny" selected>' in page
    assert failed not in page
    create_project(home, "other")
    other = browser("infer", project="other")
    page = other.get(f"/playground?model={run_id}").text
    assert f'value="{run_id}"' not in page
    assert "cannot be used here" in page
    asked = other.post("/playground/answer", data=form(model=run_id, talk=talk("Hi")))
    assert (asked.status_code, asked.json()["error"]["came"]) == (404, f"no run '{run_id}'")


def test_the_whole_answer_comes_with_the_page(browser: Browser, tiny: str) -> None:
    sent = form(message=f"Which wood?\r\n{HOSTILE}", talk=["[]", "[]"], model=["tiny", ""])
    one = browser("infer")
    page = shown(one, one.post("/playground", data=sent)).text
    assert "5 tokens read, 2 written" in page
    assert "cut off at its limit" in page
    assert (
        "<p>&lt;script&gt;alert(2)&lt;/script&gt;</p><pre>&lt;img src=x&gt;</pre><p>\u27e8U+202E\u27e9end</p>" in page
    )
    assert "Which wood?\n&lt;script&gt;" in page
    assert "<script>alert" not in page
    assert "<img src=x" not in page
    said = json.loads(unescape(page.split('name="talk" value="')[1].split('"')[0]))
    assert [turn["role"] for turn in said] == ["user", "assistant"]
    assert said[1]["content"].endswith("\u202eend"), "what is kept is what was said"


def test_two_models_answer_side_by_side_and_again(browser: Browser, tiny: str) -> None:
    one = browser("infer")
    sent = form(message="Hello", talk=["[]", "[]"], model=["tiny", "tiny"])
    said = shown(one, one.post("/playground", data=sent)).text
    assert said.count('class="turn answer"') == 3, "two, and the template of the script"
    kept = talk("Hello", "Hi")
    sent = form(do="again", talk=[kept, "[]"], model=["tiny", "tiny"])
    again = shown(one, one.post("/playground", data=sent)).text
    assert again.count('class="turn answer"') == 2


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"message": "  "}, "an empty message"),
        ({"message": "a", "model": ""}, "no model is chosen"),
        ({"message": "a", "temperature": "hot"}, "temperature &#39;hot&#39;"),
        ({"message": "a", "temperature": "nan"}, "temperature &#39;nan&#39;"),
        ({"message": "a", "max_tokens": "0"}, "max tokens &#39;0&#39;"),
        ({"message": "a", "seed": "9" * 400}, "expected</dt>"),
        ({"message": "a", "stop": "1\n2\n3\n4\n5"}, "5 texts to stop at"),
        ({"message": "a", "talk": "{"}, "a conversation that does not come from this page"),
        (
            {"message": "a", "talk": '[{"role":"system","content":"x"}]'},
            "a conversation that does not come from this page",
        ),
        ({"message": "a", "talk": talk(*["x"] * 201)}, "a conversation of 201 turns"),
        ({"do": "again", "talk": "[]"}, "there is no question yet"),
    ],
)
def test_what_cannot_be_is_told_and_the_form_kept(
    browser: Browser, tiny: str, fields: dict[str, str], told: str
) -> None:
    answer = browser("infer").post("/playground", data=form(system="Be <brief>.", **fields))
    assert answer.status_code == 422
    assert told in answer.text
    assert "Be &lt;brief&gt;." in answer.text


def test_scripts_get_the_answer_line_by_line(home: Context, browser: Browser, tiny: str) -> None:
    answer = browser("infer").post("/playground/answer", data=form(talk=talk("Which wood?")))
    assert answer.headers["content-type"] == "application/x-ndjson"
    lines = [json.loads(line) for line in answer.text.splitlines()]
    assert [lines[0]["kind"], lines[1]["kind"], lines[-1]["kind"]] == ["asked", "started", "ended"]
    assert all(nonempty(line["kind"] == "text" for line in lines[2:-1]))
    assert "written" in lines[-1]["facts"]
    used = home.usage.list(Caller().project_id, since="2000-01-01")
    assert [(day.model, day.num_requests) for day in used] == [("tiny", 1)]


def test_a_question_over_the_context_is_told_in_the_stream(browser: Browser, tiny: str) -> None:
    answer = browser("infer").post("/playground/answer", data=form(talk=talk("wood " * 2000)))
    failed = json.loads(answer.text.splitlines()[-1])
    assert failed["kind"] == "failed"
    assert "context" in failed["error"]["came"] + failed["error"]["expected"]


def test_a_busy_server_says_when_to_come_again(
    home: Context, browser: Browser, tiny: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ask(*_: object, **__: object) -> None:
        raise BusyError("64 asks are under way", expected="at most 64", do="-", retry_seconds=7)

    monkeypatch.setattr(home.inference_client, "ask", ask)
    answer = browser("infer").post("/playground/answer", data=form(talk=talk("Hi")))
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "7")
    assert answer.json()["error"]["do"] == "try again in 7 s"


def test_an_answer_becomes_a_test_case(home: Context, browser: Browser, tiny: str) -> None:
    one = browser("train", "infer")
    said = {"talk": [talk("Which wood?", "Oak.", "Sure?", "No."), "[]"], "model": ["tiny", ""], "system": "Short."}
    sent = form(**said, save="1:3", cases="test cases", **{"reference-1-3": "Spruce."})
    page = shown(one, one.post("/playground/cases", data=sent))
    assert page.status_code == 200
    [(dataset, version)] = dataset_versions.list_datasets(home, Caller())
    assert (dataset.name, version.origin, version.num_rows) == ("test cases", "test case", 1)
    assert f"/datasets/{dataset.dataset_id}?version=1" in page.text
    row = json.loads(dataset_versions.path_of(home, Caller(), version).read_text())
    assert row["messages"] == [
        {"role": "system", "content": "Short."},
        {"role": "user", "content": "Which wood?"},
        {"role": "assistant", "content": "Oak.", "weight": 0},
        {"role": "user", "content": "Sure?"},
        {"role": "assistant", "content": "Spruce."},
    ]
    told = one.post("/playground/cases", data=sent, headers={"Accept": "application/json"}).json()
    assert told["words"] == "row 2 of test cases, version 2"


def test_what_is_no_answer_is_not_saved(browser: Browser, tiny: str) -> None:
    one = browser("train", "infer")
    sent = form(talk=[talk("Which wood?", "Oak.")], cases="test cases", **{"reference-1-1": " "})
    assert "without an answer" in one.post("/playground/cases", data=sent | {"save": "1:1"}).text
    assert one.post("/playground/cases", data=sent | {"save": "1:1"}).status_code == 422
    for place in ("1:7", "2:1", "x", "1:0"):
        answer = one.post("/playground/cases", data=sent | {"save": place}, headers={"Accept": "application/json"})
        assert (answer.status_code, answer.json()["error"]["came"]) == (422, "no such answer")


def test_who_may_ask_and_who_may_save(browser: Browser, tiny: str) -> None:
    assert browser("read").get("/playground").status_code == 403
    assert browser("read").post("/playground/answer", data=form(talk=talk("Hi"))).status_code == 403
    asker = browser("infer")
    assert "Save as test case" not in asker.get("/playground").text
    assert asker.post("/playground/cases", data=form()).status_code == 403
    nobody = browser().post("/playground/answer", data=form(), headers={"Accept": "application/json"})
    assert (nobody.status_code, nobody.headers["hx-redirect"]) == (401, "/sign-in?next=/playground")


def test_a_run_whose_model_has_a_name_is_asked_by_that(home: Context, browser: Browser, tiny: str) -> None:
    run_id = add_run(home, "a")
    model = f"ft:tiny:default::{run_id[-6:]}"
    folder = str(home.settings.run_folder(run_id))
    made = TunedModel(
        model_id=model, project_id="default", job_id="j", run_id=run_id, base_model="tiny", adapter_path=folder
    )
    home.tuned_models.add(made)
    page = browser("infer").get(f"/playground?model={run_id}").text
    name = home.run_labels.names([run_id])[run_id]
    assert f'<option value="{model}" selected data-shown="{name}">{name} · {model}</option>' in page
    assert f'value="{run_id}"' not in page


def asked_once(client: TestClient) -> str:
    """The conversation as the page's hidden field has it, after one answer."""
    page = shown(client, client.post("/playground", data=form(message="Hi", do="send"))).text
    return unescape(page.split('name="talk" value="')[1].split('"')[0])


def test_a_thumb_is_persistent_for_the_answer(home: Context, browser: Browser, tiny: str) -> None:
    client = browser("infer", "read")
    said = asked_once(client)
    page = shown(client, client.post("/playground/feedback", data=form(talk=said, said="up:1:1")))
    assert page.status_code == 200
    assert "Thanks, it is saved." in page.text
    assert 'value="up:1:1" formaction="/playground/feedback" formnovalidate aria-pressed="true"' in page.text
    (kept,) = home.feedback.list("default")
    assert (kept.model, kept.thumb, kept.author) == ("tiny", "up", "k")
    asked = {"Accept": "application/json"}
    told = client.post("/playground/feedback", data=form(talk=said, said="down:1:1"), headers=asked).json()
    assert told["thumb"] == "down"
    assert "What should it have said?" in told["words"]
    page = shown(client, client.post("/playground/feedback", data=form(talk=said, said="down:1:1"))).text
    assert '<details class="save" open>' in page
    assert [one.thumb for one in home.feedback.list("default")] == ["down"]


def test_a_correction_from_the_playground_waits_for_review(home: Context, browser: Browser, tiny: str) -> None:
    set_traffic_policy(home, Caller(), TrafficPolicy(keep="full"))
    client = browser("infer", "read")
    fields = {"talk": asked_once(client), "said": "correct:1:1", "reference-1-1": f"It should say {HOSTILE}"}
    said = shown(client, client.post("/playground/feedback", data=form(**fields)))
    assert "Saved for review" in said.text
    (item,) = home.review_items.list("default")
    assert (item.source, item.status, item.correction) == ("correction", "waiting", f"It should say {HOSTILE}".strip())


@pytest.mark.parametrize("thumb", ["down", "up"])
def test_a_thumb_after_a_correction_leaves_it_in_review(home: Context, browser: Browser, tiny: str, thumb: str) -> None:
    set_traffic_policy(home, Caller(), TrafficPolicy(keep="full"))
    client = browser("infer", "read")
    talk = asked_once(client)
    client.post("/playground/feedback", data=form(talk=talk, said="correct:1:1", **{"reference-1-1": "Maple."}))
    asked = {"Accept": "application/json"}
    told = client.post("/playground/feedback", data=form(talk=talk, said=f"{thumb}:1:1"), headers=asked).json()
    assert told == {"thumb": thumb, "words": "Saved; your correction stays."}
    (kept,) = home.feedback.list("default")
    assert (kept.thumb, kept.correction) == (thumb, "Maple.")
    (item,) = home.review_items.list("default")
    assert (item.status, item.correction) == ("waiting", "Maple.")


@pytest.mark.parametrize(
    ("said", "status"),
    [("up:1:0", 422), ("up:1:9", 422), ("burn:1:1", 422), ("", 422), ("correct:1:1", 422), ("up:9:1", 422)],
)
def test_what_says_nothing_of_an_answer_is_refused(browser: Browser, tiny: str, said: str, status: int) -> None:
    client = browser("infer")
    assert client.post("/playground/feedback", data=form(talk=asked_once(client), said=said)).status_code == status


def test_feedback_for_an_answer_that_is_not_known_is_refused(home: Context, browser: Browser, tiny: str) -> None:
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho", "exchange_id": "ask-none"}]
    page = browser("infer").post("/playground/feedback", data=form(talk=json.dumps(turns), said="up:1:1"))
    assert page.status_code == 404
    assert "ask-none" in page.text
    assert list(home.feedback.list("default")) == []


def test_a_thought_is_folded_away_beside_the_answer(
    home: Context, browser: Browser, tiny: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ask(_: Served, request: TextRequest, hear: Callable[[StreamEvent], None], *, key: str | None) -> Any:
        hear(Started(num_prompt_tokens=5))
        hear(Piece(text="", reasoning="<b>so</b>", num_new_tokens=2))
        hear(Piece(text="four", num_new_tokens=3))
        hear(Ended(reason="stop", num_new_tokens=3, num_thinking_tokens=2))
        return lambda: None

    monkeypatch.setattr(home.inference_client, "ask", ask)
    one = browser("infer")
    page = shown(one, one.post("/playground", data=form(message="2+2?", talk=["[]", "[]"], model=["tiny", ""]))).text
    assert (
        '<details class="thought"><summary>Thought</summary><div class="thinking">&lt;b&gt;so&lt;/b&gt;</div>' in page
    )
    assert "3 written (2 of them thought)" in page
    lines = one.post("/playground/answer", data=form(talk=talk("2+2?"))).text.splitlines()
    told = [(one["kind"], one.get("text")) for one in map(json.loads, lines)]
    assert ("thought", "<b>so</b>") in told
    assert ("text", "four") in told
