"""Chat with a tiny model where scripts run: streamed, stopped, side by side, and kept as a test case."""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from luthier.core.access import Caller
from luthier.core.ports import SilentProgress
from luthier.features.datasets import service as dataset_versions
from luthier.ml.inference.models import sources
from luthier.platform.auth.service import create_key
from luthier.platform.home.context import Context
from luthier.platform.home.settings import Settings
from luthier.server.home import create_home_app
from luthier.testing.servers import app_server
from luthier.testing.tiny import ANSWER, THOUGHT, make_tiny_model
from tests.browser.conftest import PHONE, WIDE, sign_in, violations, wait_until
from tests.task_heads import add_head_run

SECONDS = 60_000
HEADS: dict[str, dict[str, Any]] = {
    "classify": {"kind": "classify", "labels": ("a bug", "praise", "a question"), "label_counts": (9, 5, 2)},
    "regress": {"kind": "regress", "offset": 20.0, "scale": 3.0, "lowest": 10.0, "highest": 50.0},
    "rank": {"kind": "rank"},
    "embed": {"kind": "embed", "pooling": "mean", "dimensions": (32, 8), "query_prompt": "query: "},
}
MakePage = Callable[..., Page]


@pytest.fixture(scope="module")
def served(
    tmp_path_factory: pytest.TempPathFactory, tiny_thinker: Callable[..., Path]
) -> Iterator[tuple[Context, str]]:
    """An open home with two base models that write for long and one that thinks before it answers; its address."""
    folder = tmp_path_factory.mktemp("playground")
    (folder / "home").mkdir()
    settings = Settings(home=folder / "home", serving_threads=1, max_loaded_models=3)
    with Context(settings, SilentProgress()) as context:
        for name, seed in (("tiny", 0), ("other", 1)):
            model = make_tiny_model(folder / name, seed=seed, context_length_tokens=110_000)
            sources.pull(str(model), context.home, SilentProgress())
        thinker = shutil.copytree(tiny_thinker(), folder / "thinker")
        sources.pull(str(thinker), context.home, SilentProgress())
        for letter, head in zip("abcd", HEADS.values(), strict=True):
            add_head_run(context, "tiny", letter, **head)
        with app_server(create_home_app(context), context) as address:
            yield context, address


@pytest.fixture
def chat(served: tuple[Context, str], make_page: MakePage) -> Callable[..., Page]:
    """Opens the playground, signed in."""
    context, address = served
    key = create_key(context, "k", scopes=("read", "infer", "train"))[1]

    def make(query: str, **options: object) -> Page:
        page = make_page(**options)
        sign_in(page, address, key)
        page.goto(f"{address}/playground?{query}")
        page.fill("[name=temperature]", "0")
        page.fill("[name=max_tokens]", "12")
        return page

    return make


def say(page: Page, text: str) -> None:
    page.fill("#message", text)
    page.press("#message", "Enter")


def facts(page: Page, side: int) -> list[str]:
    return page.locator(f"[data-side='{side}'] .facts-line").all_text_contents()


def test_two_models_answer_as_they_write_and_an_answer_is_kept(
    served: tuple[Context, str], chat: Callable[..., Page]
) -> None:
    page = chat("model=tiny&model=other")
    said = "Which <b>wood</b>? <img src=x onerror=alert(1)> \u202e"
    say(page, said)
    ended = page.locator(".facts-line", has_text="tokens read")
    expect(ended).to_have_count(2, timeout=SECONDS)
    assert page.locator(".turn.user .words").all_text_contents() == [said.replace("\u202e", "⟨U+202E⟩")] * 2
    assert page.locator(".turn .words img, .turn .words b").count() == 0
    say(page, "And the back?")
    expect(ended).to_have_count(4, timeout=SECONDS)
    assert violations(page) == []
    page.locator("[data-side='1'] [data-again]").last.click()
    expect(page.locator("[data-status]")).to_have_text("The answer has ended.", timeout=SECONDS)
    assert (len(facts(page, 1)), len(facts(page, 2))) == (2, 2)
    page.evaluate("Object.defineProperty(navigator, 'clipboard', {value: undefined})")  # as with plain HTTP
    answer = page.locator("[data-side='1'] .turn.answer").first
    answer.locator("[data-copy-answer]").click()
    expect(answer.locator("[data-copy-answer]")).to_have_text("selected: press Ctrl+C")
    words = answer.locator(".words").inner_text().split()
    assert page.evaluate("getSelection().toString()").split() == words != []

    page.locator("[data-side='2'] .save > summary").last.click()
    page.locator("[name='reference-2-3']").fill("Maple.")
    page.locator("[name=save][value='2:3']").click()
    link = page.locator("[data-saved] a")
    expect(link).to_have_text("row 1 of test cases, version 1")
    context, me = served[0], Caller()
    [(dataset, version)] = dataset_versions.list_datasets(context, me)
    assert link.get_attribute("href") == f"/datasets/{dataset.dataset_id}?version=1"
    turns = json.loads(dataset_versions.path_of(context, me, version).read_text(encoding="utf-8"))["messages"]
    assert [turn["content"] for turn in (turns[0], turns[2], turns[3])] == [said, "And the back?", "Maple."]


def test_an_answer_is_stopped_and_what_was_written_stays(
    served: tuple[Context, str], chat: Callable[..., Page]
) -> None:
    page = chat("model=tiny", viewport=PHONE)
    page.fill("[name=max_tokens]", "100000")  # minutes on any machine: it does not end by itself
    say(page, "Tell me all of it.")
    stop = page.locator("[data-stop]")
    expect(stop).to_be_visible()
    expect(page.locator(".turn.answer .words")).not_to_be_empty(timeout=SECONDS)
    # Taller than the window: the button must not move with the text, or nobody can press it.
    is_taller = "document.querySelector('.turn.answer').offsetHeight > innerHeight"
    wait_until(page, lambda: bool(page.evaluate(is_taller)), "an answer taller than the window")
    box = stop.bounding_box()
    assert box is not None
    assert 0 <= box["y"] <= PHONE["height"] - box["height"]
    stop.click()
    expect(page.locator(".facts-line")).to_have_text("stopped by you")
    expect(stop).to_be_hidden()
    deadline = time.monotonic() + 120
    while served[0].inference_client.num_under_way:  # the model stops as well
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert page.locator(".turn.answer .words").inner_text() != ""
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    page.fill("[name=max_tokens]", "5")
    say(page, "Go on.")
    expect(page.locator(".facts-line").last).to_contain_text("written", timeout=SECONDS)
    assert violations(page) == []


def test_an_error_is_told_in_the_place_of_the_answer(chat: Callable[..., Page], make_page: MakePage) -> None:
    page = chat("model=tiny")
    page.fill("[name=temperature]", "9")
    say(page, "Hello")
    expect(page.locator(".turn.answer [role=alert] strong")).to_have_text("temperature '9'")
    make_page.errors.clear()  # type: ignore[attr-defined] # the browser itself notes the status 422
    page.fill("[name=temperature]", "0")
    page.locator("[name=do][value=again]").click()
    expect(page.locator(".facts-line")).to_contain_text("written", timeout=SECONDS)
    assert page.locator(".turn").count() == 2


def test_a_thumb_and_a_correction_are_persistent_for_the_answer(
    served: tuple[Context, str], chat: Callable[..., Page]
) -> None:
    context, _ = served
    page = chat("model=tiny")
    say(page, "Which wood?")
    expect(page.locator(".facts-line", has_text="tokens read")).to_have_count(1, timeout=SECONDS)
    good, bad = page.locator(".thumbs button").all()
    good.click()
    expect(page.locator("[data-notice]")).to_have_text("Thanks, it is saved.", timeout=SECONDS)
    expect(good).to_have_attribute("aria-pressed", "true")
    bad.click()
    expect(bad).to_have_attribute("aria-pressed", "true", timeout=SECONDS)
    expect(good).to_have_attribute("aria-pressed", "false")
    assert violations(page) == []
    expect(page.locator("[data-notice]")).to_contain_text("What should it have said?")
    expect(page.locator("[name='reference-1-1']")).to_be_focused()
    page.locator("[name='reference-1-1']").fill("Maple.")
    page.get_by_role("button", name="Send for review").click()
    expect(page.locator("[data-saved]")).to_contain_text("Saved", timeout=SECONDS)
    (kept,) = context.feedback.list("default")
    assert (kept.thumb, kept.correction) == ("down", "Maple.")


@pytest.mark.parametrize("viewport", [WIDE, PHONE], ids=["wide", "phone"])
def test_a_thought_is_folded_and_opens_by_keyboard(
    served: tuple[Context, str], make_page: MakePage, viewport: dict[str, int]
) -> None:
    context, address = served
    page = make_page(viewport=viewport)
    sign_in(page, address, create_key(context, "k", scopes=("read", "infer", "train"))[1])
    page.goto(f"{address}/playground?model=thinker")
    page.fill("[name=temperature]", "0")
    say(page, "Which wood?")
    facts_line = page.locator(".turn.answer .facts-line")
    expect(facts_line).to_contain_text("of them thought", timeout=SECONDS)
    thought = page.locator(".turn.answer details.thought")
    expect(page.locator(".turn.answer .words")).to_have_text(ANSWER)
    expect(thought).to_be_visible()
    expect(thought.locator(".thinking")).to_be_hidden()
    assert violations(page) == []

    thought.locator("summary").focus()
    page.keyboard.press("Enter")
    expect(thought.locator(".thinking")).to_be_visible()
    expect(thought.locator(".thinking")).to_have_text(THOUGHT)
    assert violations(page) == []
    page.keyboard.press("Space")
    expect(thought.locator(".thinking")).to_be_hidden()
    assert page.evaluate("document.documentElement.scrollWidth") <= viewport["width"]

    page.get_by_label("Thinking").select_option("none")
    page.locator("[data-again]").last.click()
    expect(page.locator("[data-status]")).to_have_text("The answer has ended.", timeout=SECONDS)
    expect(page.locator(".turn.answer .words")).to_have_text(ANSWER)
    expect(thought).to_be_hidden()
    expect(facts_line).not_to_contain_text("of them thought")


@pytest.mark.parametrize(("viewport", "scheme"), [(WIDE, "light"), (PHONE, "dark")], ids=["wide", "phone"])
def test_a_model_with_a_task_head_is_tried_in_a_form_of_its_own(
    served: tuple[Context, str], make_page: MakePage, viewport: dict[str, int], scheme: str
) -> None:
    context, address = served
    page = make_page(viewport=viewport, color_scheme=scheme)
    sign_in(page, address, create_key(context, "k", scopes=("read", "infer", "train"))[1], "/playground")
    page.get_by_role("link", name="a separate form").click()
    page.wait_for_url("**/playground/head")
    assert violations(page) == []
    for letter, (kind, button, num_bars) in zip(
        "abcd",
        (("classify", "Classify", 3), ("regress", "Estimate", 1), ("rank", "Rank", 2), ("embed", "Search", 2)),
        strict=True,
    ):
        page.select_option("#model", f"ft:tiny:default:head:{letter}")
        page.locator("form[method=get] button").click()
        page.fill("#text", "Which wood is light?")
        if kind in ("rank", "embed"):
            page.fill("#documents", "Spruce is light.\nMaple is harder, and " + "much heavier " * 20)
        page.get_by_role("button", name=button, exact=True).click()
        expect(page.locator(".bars > li")).to_have_count(num_bars)
        expect(page.locator("#text")).to_have_value("Which wood is light?")
        assert violations(page) == [], kind
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), kind


def test_a_conversation_outlives_the_session_that_it_was_begun_in(
    served: tuple[Context, str], chat: Callable[..., Page], make_page: MakePage
) -> None:
    page = chat("model=tiny")
    ended = page.locator(".facts-line", has_text="tokens read")
    say(page, "Which wood?")
    expect(ended).to_have_count(1, timeout=SECONDS)
    answer = page.locator(".turn.answer .words").inner_text()
    page.context.clear_cookies()
    say(page, "And the back?")
    page.wait_for_url(re.compile("/sign-in"))
    make_page.errors.clear()  # type: ignore[attr-defined] # the browser itself notes the status 401
    page.fill("#key", create_key(served[0], "again", scopes=("read", "infer"))[1])
    page.press("#key", "Enter")
    page.wait_for_url(re.compile("/playground"))
    assert page.locator(".turn.user .words").all_text_contents() == ["Which wood?", "And the back?"]
    assert page.locator(".turn.answer .words").inner_text() == answer
    page.locator("[name=do][value=again]").click()
    expect(ended).to_have_count(2, timeout=SECONDS)
    page.goto(f"{served[1]}/playground?model=tiny")
    expect(page.locator(".turn")).to_have_count(0)
