"""The form of a new run where scripts run: sliders, text and fields in step, and the plan beside them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, Route, expect

from luthier.core.access import Caller
from luthier.features.datasets import service as dataset_versions
from luthier.features.models.service import pull_model
from luthier.platform.home.context import Context
from luthier.testing.servers import HomeServer, home_server
from luthier.testing.tiny import make_tiny_model
from tests.fixtures.questions import answers_in_this_process

from .conftest import PHONE, sign_in, violations

_PATIENT = 120_000


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[HomeServer, str]]:
    """A server whose project has a model and a dataset; with the id of that."""
    folder: Path = tmp_path_factory.mktemp("new-run")
    model = make_tiny_model(folder / "tiny")
    with Context.open(folder / "home") as context:
        pull_model(context, str(model))
        rows = [
            {"messages": [{"role": "user", "content": f"And {n}?"}, {"role": "assistant", "content": f"Then {n + 1}."}]}
            for n in range(60)
        ]
        lines = [f"{json.dumps(row)}\n".encode() for row in rows]
        file = dataset_versions.keep_rows(context, Caller(), lines, "rows.jsonl")
        dataset, _ = dataset_versions.create_dataset(context, Caller(), "<b>Support</b> chats", file)
    with answers_in_this_process(), home_server(folder / "home") as running:
        yield running, dataset.dataset_id


def opened(make_page: Callable[..., Page], server: tuple[HomeServer, str], **options: object) -> Page:
    page, (running, dataset) = make_page(**options), server
    sign_in(page, running.url, running.key)
    page.goto(f"{running.url}/runs/new?dataset={dataset}")
    page.wait_for_selector("[data-state=planned]", timeout=_PATIENT)
    return page


def until(page: Page, seen: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not seen():
        assert time.monotonic() < deadline
        page.wait_for_timeout(50)


def test_sliders_text_and_plan_say_the_same(make_page: Callable[..., Page], server: tuple[HomeServer, str]) -> None:
    page = opened(make_page, server)
    text, rank, slider = page.locator("#f-text"), page.locator("#f-method-rank"), page.get_by_label("Rank, slider")
    expect(rank).to_have_value("")
    expect(rank).to_have_attribute("placeholder", "16")
    slider.focus()
    page.keyboard.press("End")
    expect(rank).to_have_value("256")
    until(page, lambda: "rank: 256" in text.input_value())
    expect(page.locator("#why-method-rank")).to_contain_text("method.rank is 256, but", timeout=60_000)
    expect(rank).to_have_attribute("aria-invalid", "true")
    expect(page.get_by_role("button", name="Start the run")).to_be_disabled()
    page.get_by_role("button", name="clear Rank").click()
    until(page, lambda: "rank" not in text.input_value())
    expect(rank).to_be_focused()
    text.fill(f"{text.input_value()}training: {{epochs: 4, learning_rat: 1}}\n")
    expect(page.locator("#text-problems")).to_contain_text("nearest known: training.learning_rate")
    text.fill(text.input_value().replace(", learning_rat: 1", ""))
    expect(page.locator("#f-training-epochs")).to_have_value("4", timeout=60_000)
    expect(text).to_be_focused()
    expect(page.locator("#plan")).to_contain_text("steps of 8", timeout=60_000)
    page.select_option("#f-method-name", "full")
    expect(page.locator("#f-method-rank")).to_have_count(0, timeout=60_000)
    expect(page.locator("[data-status]")).to_contain_text("full trains", timeout=60_000)
    assert violations(page) == []


def test_an_answer_to_an_earlier_form_does_not_undo_what_was_typed_since(
    make_page: Callable[..., Page], server: tuple[HomeServer, str]
) -> None:
    page, held, is_over = opened(make_page, server), list[Route](), False
    text = page.locator("#f-text")
    page.route("**/runs/new/plan", lambda route: route.continue_() if is_over else held.append(route))
    page.fill("#f-method-rank", "8")
    until(page, lambda: len(held) == 1)
    typed = f"{text.input_value()}training: {{epochs: 4}}\n"
    text.fill(typed)
    held[0].continue_()
    until(page, lambda: len(held) == 2)
    assert text.input_value() == typed
    is_over = True
    held[1].continue_()
    expect(page.locator("#f-training-epochs")).to_have_value("4", timeout=60_000)


def test_base_models_are_searched_and_the_choice_is_planned(
    make_page: Callable[..., Page], server: tuple[HomeServer, str]
) -> None:
    page = opened(make_page, server)
    model, field = page.locator("#f-base_model"), page.get_by_role("searchbox", name="Search: Base model")
    sent: list[str] = []
    page.on("request", lambda request: sent.append(request.url) if request.url.endswith("/runs/new/plan") else None)
    field.press_sequentially("135m instr", delay=200)
    until(page, lambda: model.locator("option").count() < 4)
    assert "135m" in model.input_value()
    expect(field).to_have_value("135m instr")
    assert sent == [], "what is typed is no change of the recipe"
    field.press("Enter")
    until(page, lambda: f"base_model: {model.input_value()}" in page.locator("#f-text").input_value())
    assert len(sent) == 1, "the choice is"
    assert violations(page) == []


def test_it_starts_from_a_phone(make_page: Callable[..., Page], server: tuple[HomeServer, str]) -> None:
    page = opened(make_page, server, viewport=PHONE, color_scheme="dark")
    assert page.evaluate("() => document.documentElement.scrollWidth") <= PHONE["width"]
    assert violations(page) == []
    page.route("**/runs/run-*", lambda route: route.fulfill(body="the page of the run"))
    page.get_by_role("button", name="Start the run").click()
    page.wait_for_url("**/runs/run-*", timeout=60_000)


def test_without_scripts_it_is_planned_by_a_button(
    make_page: Callable[..., Page], server: tuple[HomeServer, str]
) -> None:
    running, dataset = server
    page = make_page(java_script_enabled=False)
    sign_in(page, running.url, running.key)
    page.goto(f"{running.url}/runs/new?dataset={dataset}")
    page.fill("#f-training-epochs", "5")
    page.get_by_role("button", name="Plan", exact=True).click()
    expect(page.locator("#plan")).to_contain_text("Peak memory", timeout=60_000)
    assert "epochs: 5" in page.locator("#f-text").input_value()
    page.locator("#f-text").fill(page.locator("#f-text").input_value().replace("epochs: 5", "epochs: 6"))
    page.get_by_role("button", name="Plan this text").click()
    expect(page.locator("#f-training-epochs")).to_have_value("6")
