"""The guided run, the rail of first steps, and words with a "?": by mouse, by keys, on a phone and without scripts."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from luthier.core.access import Caller
from luthier.features.datasets import service as dataset_versions
from luthier.features.models.service import pull_model
from luthier.platform.home.context import Context
from luthier.testing.servers import HomeServer, home_server
from luthier.testing.tiny import make_tiny_model
from tests.browser.start_page import StartPage
from tests.fixtures.questions import answers_in_this_process

from .conftest import PHONE, sign_in, sign_in_by_form, violations

NAME = "Client questions"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HomeServer]:
    """A server whose project has a model and a dataset, and no run yet."""
    folder: Path = tmp_path_factory.mktemp("start")
    model = make_tiny_model(folder / "tiny")
    with Context.open(folder / "home") as context:
        pull_model(context, str(model))
        rows = [{"prompt": f"And {n}?", "completion": f"Then {n + 1}."} for n in range(40)]
        lines = [f"{json.dumps(row)}\n".encode() for row in rows]
        dataset_versions.create_dataset(
            context, Caller(), NAME, dataset_versions.keep_rows(context, Caller(), lines, "rows.jsonl")
        )
    with answers_in_this_process(), home_server(folder / "home") as running:
        yield running


def test_from_home_to_a_run_in_four_clicks(make_page: Callable[..., Page], server: HomeServer) -> None:
    page = make_page()
    sign_in_by_form(page, server.url, server.key)
    rail = page.get_by_role("navigation", name="First steps")
    expect(rail.get_by_role("listitem").nth(1)).to_contain_text("Train: next")
    page.get_by_role("main").get_by_role("link", name="Start a guided run", exact=True).click()
    start = StartPage(page)
    assert violations(page) == []
    start.choose_data(NAME).planned()
    expect(page.get_by_role("radio", name="Answer questions")).to_be_checked()
    expect(rail.get_by_role("listitem").nth(1)).to_contain_text("this page")
    assert "dataset=" in page.url, "a reload keeps the answers"
    page.reload()
    start.planned()
    assert violations(page) == []
    start.choose_size("Better and slower").planned()
    expect(start.size("Better and slower")).to_be_checked()
    expect(page.get_by_role("link", name="All settings of “better and slower”")).to_be_visible()
    page.route("**/runs/run-*", lambda route: route.fulfill(body="the page of the run"))
    start.start()


def test_a_refused_answer_of_the_guided_run_is_said_and_its_questions_stay(
    make_page: Callable[..., Page], server: HomeServer
) -> None:
    page = make_page()
    sign_in(page, server.url, server.key, "/start")
    with Context.open(server.home) as context:
        rows = dataset_versions.keep_rows(context, Caller(), [b'{"text": "One."}\n'], "rows.jsonl")
        gone, _ = dataset_versions.create_dataset(context, Caller(), "Soon removed", rows)
        page.reload()
        dataset_versions.remove_dataset(context, Caller(), gone.dataset_id)
    page.get_by_role("radio", name="Soon removed").check()
    expect(page.locator("[data-refusal]")).to_contain_text("no dataset")
    expect(page.locator("#guide")).to_be_visible()
    page.get_by_role("radio", name=NAME).check()
    expect(page.locator("[data-refusal]")).to_have_count(0)
    expect(page.get_by_role("radio", name=NAME)).to_be_checked()
    make_page.errors.clear()  # type: ignore[attr-defined] # the browser itself notes the status 404


def test_words_are_explained_by_click_keys_and_hover(make_page: Callable[..., Page], server: HomeServer) -> None:
    page = make_page()
    sign_in(page, server.url, server.key)
    page.goto(f"{server.url}/start")
    ask = page.get_by_role("button", name="What does base model mean?")
    tip = page.locator("#term-base-model")
    expect(tip).to_be_hidden()
    ask.focus()
    page.keyboard.press("Enter")
    expect(tip).to_be_visible()
    expect(tip).to_contain_text("The finished language model that training starts from.")
    assert violations(page) == []
    page.keyboard.press("Escape")
    expect(tip).to_be_hidden()
    expect(ask).to_be_focused()
    ask.hover()
    expect(tip).to_be_visible()
    ask.click()
    expect(tip).to_be_visible()
    page.get_by_role("heading", name="Guided run").click()
    expect(tip).to_be_hidden()
    ask.click()
    tip.get_by_role("link", name="Glossary").click()
    page.wait_for_url("**/glossary#base-model")
    expect(page.locator("#base-model")).to_be_in_viewport()
    assert violations(page) == []


def test_on_a_phone_in_the_dark(make_page: Callable[..., Page], server: HomeServer) -> None:
    page = make_page(viewport=PHONE, color_scheme="dark", has_touch=True)
    sign_in(page, server.url, server.key)
    for path in ("/", "/start", "/glossary", "/deployments", "/monitor/alerts"):
        page.goto(f"{server.url}{path}")
        assert page.evaluate("() => document.documentElement.scrollWidth") <= PHONE["width"], path
        assert violations(page) == [], path
    page.goto(f"{server.url}/start")
    page.get_by_role("button", name="What does base model mean?").tap()
    box = page.locator("#term-base-model").bounding_box()
    assert box is not None
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= PHONE["width"]
    page.keyboard.press("Escape")
    page.get_by_text("Menu", exact=True).click()
    navigation = page.get_by_role("navigation", name="Pages")
    for group in ("Data", "Train", "Evaluate", "Use", "Watch"):
        expect(navigation.get_by_role("list", name=group)).to_be_visible()
    assert violations(page) == []
    navigation.get_by_role("link", name="Deployments").click()
    page.wait_for_url("**/deployments")


def test_without_scripts(make_page: Callable[..., Page], server: HomeServer) -> None:
    page = make_page(java_script_enabled=False)
    sign_in_by_form(page, server.url, server.key)
    page.goto(f"{server.url}/start")
    page.get_by_text(NAME, exact=True).click()
    page.get_by_text("Sort texts into categories", exact=True).click()
    page.get_by_role("button", name="Update the plans").click()
    page.wait_for_url("**goal=labels**")
    StartPage(page).planned()  # the page refreshes itself until they are there
    page.get_by_role("button", name="What does base model mean?").click()
    expect(page.locator("#term-base-model")).to_be_visible()


def test_keys_lead_to_pages(make_page: Callable[..., Page], server: HomeServer) -> None:
    page = make_page()
    sign_in(page, server.url, server.key, "/")
    for key, path in (("n", "/start"), ("y", "/deployments"), ("a", "/monitor/alerts"), ("d", "/datasets")):
        page.keyboard.press("g")
        page.keyboard.press(key)
        page.wait_for_url(f"**{path}")


def test_forms_and_conversations_survive_a_reload(make_page: Callable[..., Page], server: HomeServer) -> None:
    page = make_page()
    sign_in(page, server.url, server.key)
    with page.expect_response("**/runs/new/plan"):  # the form is planned once when it opens
        page.goto(f"{server.url}/runs/new")
    page.wait_for_load_state("networkidle")
    text = page.locator("#f-text")
    text.fill("base_model: tiny\ntraining: {epochs: 7}\n")
    expect(page.locator("#f-training-epochs")).to_have_value("7")
    page.reload()
    expect(text).to_have_value("base_model: tiny\ntraining: {epochs: 7}\n")
    expect(page.locator("#f-training-epochs")).to_have_value("7")
    page.goto(f"{server.url}/playground")
    talk = [
        {"role": "user", "content": "Why?"},
        {"role": "assistant", "content": "<b>Because</b>.", "facts": "3 tokens"},
    ]
    page.evaluate("(talk) => sessionStorage.setItem('luthier-talk::1', JSON.stringify(talk))", talk)
    page.reload()
    expect(page.locator(".turn.user .words")).to_have_text("Why?")
    expect(page.locator(".turn.answer .words")).to_have_text("<b>Because</b>.")
    page.get_by_role("link", name="New conversation").click()
    page.wait_for_url("**/playground?model=*")
    page.reload()
    expect(page.locator(".turn")).to_have_count(0)
    page.get_by_role("button", name="Sign out").click()
    page.wait_for_url("**/sign-in*")
    kept = page.evaluate("() => Object.keys(sessionStorage).filter((name) => name.startsWith('luthier-'))")
    assert kept == [], "what a tab keeps is of who was signed in"
