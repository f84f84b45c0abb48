"""The whole way as a newcomer walks it, from the link that the start prints to a chat with the tuned model."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

from playwright.sync_api import Page, expect

from luthier.features.models.service import pull_model
from luthier.platform.home.context import Context
from luthier.testing.servers import RunningServer, running_server
from luthier.testing.tiny import make_tiny_model
from tests.fixtures.forked_children import SessionForkServer

from .conftest import look_often, violations_in_light_and_dark

MINUTES = 60_000


def rows() -> str:
    turns = ([("user", f"What comes after {n}?"), ("assistant", f"After {n} comes {n + 1}.")] for n in range(48))
    said = ([{"role": role, "content": content} for role, content in two] for two in turns)
    return "".join(json.dumps({"messages": messages}) + "\n" for messages in said)


def check(page: Page) -> None:
    """No page on the way is out of reach for anybody, in light or dark."""
    assert violations_in_light_and_dark(page) == [], page.url


def bring_rows(page: Page, folder: Path) -> None:
    (folder / "questions.jsonl").write_text(rows(), encoding="utf-8")
    page.get_by_role("link", name="Datasets", exact=True).click()
    check(page)
    page.get_by_role("link", name="Add data").first.click()
    page.set_input_files("#file", folder / "questions.jsonl")
    page.fill("#name", "Questions")
    page.get_by_role("button", name="Add", exact=True).click()
    page.wait_for_url("**/datasets/data-*")
    expect(page.get_by_role("heading", level=1)).to_have_text("Questions")
    check(page)


def start_a_run(page: Page) -> None:
    page.get_by_role("link", name="Train on it").first.click()
    page.wait_for_url("**/start?**")
    check(page)
    page.goto(page.url.replace("/start?", "/runs/new?"))  # the whole form, with the same dataset
    page.select_option("#f-base_model", "tiny")
    page.wait_for_selector("[data-state=planned]", timeout=2 * MINUTES)
    text = page.locator("#f-text")
    recipe = text.input_value()
    assert "held_out: 0.1" in recipe, "rows to judge by are set aside from the start"
    more = "training: {epochs: 2, num_threads: 1}\nevaluation: {max_new_tokens: 8, few_shot: 0}\n"
    text.fill(recipe.replace("held_out: 0.1", "validation: 0.1\n  held_out: 0.25") + more)
    expect(page.locator("#f-training-epochs")).to_have_value("2", timeout=MINUTES)
    check(page)
    page.get_by_role("button", name="Start the run").click()
    page.wait_for_url("**/runs/run-*", timeout=2 * MINUTES)


def wait_until_done(page: Page) -> str:
    expect(page.locator("main")).to_contain_text("succeeded", timeout=5 * MINUTES)
    page.wait_for_timeout(1500)  # the page loads itself again at the end of its run
    page.reload(wait_until="networkidle")
    check(page)
    return urlsplit(page.url).path.rsplit("/", 1)[-1]


def chat(page: Page, server: RunningServer, run_id: str) -> None:
    page.goto(f"{server.url}/playground?model={run_id}")
    page.fill("[name=max_tokens]", "8")
    page.fill("#message", "What comes after 7?")
    page.press("#message", "Enter")
    expect(page.locator(".facts-line")).to_contain_text("tokens read", timeout=2 * MINUTES)
    check(page)


def test_from_upload_to_chat(tmp_path: Path, make_page: Callable[..., Page], fork_server: SessionForkServer) -> None:
    with Context.open(tmp_path / "home") as context:
        pull_model(context, str(make_tiny_model(tmp_path / "tiny")))
    with running_server(tmp_path / "home", popen=fork_server.popen_text) as server:
        page = look_often(make_page())
        page.goto(server.link)
        page.wait_for_url(f"{server.url}/")
        check(page)
        bring_rows(page, tmp_path)
        start_a_run(page)
        run_id = wait_until_done(page)
        for path in ("/runs", "/evaluations", "/models", f"/models/{run_id}", "/settings/keys", "/"):
            page.goto(f"{server.url}{path}")
            expect(page.get_by_role("heading", level=1)).to_be_visible()
            check(page)
        page.goto(f"{server.url}/evaluations")
        page.locator("main a[href^='/evaluations/']").first.click()
        check(page)
        chat(page, server, run_id)


def test_a_form_that_was_open_while_the_server_was_killed_is_sent_all_the_same(
    tmp_path: Path, make_page: Callable[..., Page], fork_server: SessionForkServer
) -> None:
    page = make_page()
    with running_server(tmp_path / "home", num_workers=0, popen=fork_server.popen_text) as server:
        port = urlsplit(server.url).port or 0
        page.goto(server.link)
        page.goto(f"{server.url}/settings/keys")
        page.locator("input[name=name]").first.fill("kept over a restart")
        server.process.kill()
        server.process.wait()
    deadline = time.monotonic() + 120
    while True:
        try:
            with running_server(tmp_path / "home", num_workers=0, port=port, popen=fork_server.popen_text):
                expect(page.locator("input[name=name]").first).to_have_value("kept over a restart")
                page.get_by_label("infer").check()
                page.get_by_role("button", name="Create the key").click()
                expect(page.locator("main")).to_contain_text("kept over a restart", timeout=MINUTES)
                expect(page.locator("main")).to_contain_text("sk-luthier-")
            break
        except RuntimeError:  # its processes are still ending
            assert time.monotonic() < deadline
            time.sleep(0.5)
