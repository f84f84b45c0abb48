"""Datasets where scripts run: a dropped file, how far it is, cancelled and broken uploads, and the whole way."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, Route, expect

from luthier.features.models.service import pull_model
from luthier.platform.home.context import Context
from luthier.platform.ui.assets import Assets
from luthier.testing.servers import HomeServer, home_server, wait_for
from luthier.testing.tiny import make_tiny_model
from tests.browser.conftest import PHONE, sign_in, violations, violations_in_light_and_dark
from tests.features.datasets.conftest import jsonl, qa, work_once
from tests.fixtures.questions import answers_in_this_process
from tests.hub_server import Hub, serving

HOSTILE = '<script>alert(1)</script>"><img src=x onerror=alert(1)>'
_DROP = """([name, text]) => {
  const data = new DataTransfer();
  data.items.add(new File([text], name));
  document.querySelector("[data-drop]").dispatchEvent(new DragEvent("drop", { bubbles: true, dataTransfer: data }));
}"""
_FITS = "document.documentElement.scrollWidth <= innerWidth"


def chat(question: str, answer: str) -> str:
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return json.dumps({"messages": turns}) + "\n"


GOOD = "".join(chat(f"What comes after {n}?", f"After {n} comes {n + 1}.") for n in range(30))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HomeServer]:
    folder = tmp_path_factory.mktemp("datasets")
    with Context.open(folder / "home") as context:
        pull_model(context, str(make_tiny_model(folder / "tiny")))
    with answers_in_this_process(), home_server(folder / "home") as running:
        yield running


@pytest.fixture
def page(server: HomeServer, make_page: Callable[..., Page]) -> Page:
    made = make_page()
    sign_in(made, server.url, server.key)
    return made


def check(page: Page) -> None:
    """Nothing that axe-core knows of, and no sideways scrolling on a phone."""
    assert violations(page) == []
    size = page.viewport_size
    page.set_viewport_size(PHONE)  # type: ignore[arg-type]
    wait_for(lambda: bool(page.evaluate(_FITS)))  # a chart follows in a moment
    assert size is not None
    page.set_viewport_size(size)


def partials(server: HomeServer) -> list[Path]:
    return list(server.home.rglob("*.partial"))


def test_from_a_dropped_file_to_a_repaired_version_and_its_tokens(server: HomeServer, page: Page) -> None:
    page.goto(f"{server.url}/datasets")
    check(page)
    page.get_by_role("link", name="Add data").click()
    page.wait_for_url("**/datasets/new")
    check(page)
    bad = GOOD + chat("What comes after 3?", "After 3 comes 4.") + chat(HOSTILE, HOSTILE) + chat("Say it", "")
    page.evaluate(_DROP, ["First questions.jsonl", bad])
    expect(page.locator("#name")).to_have_value("First questions")
    page.get_by_role("button", name="Add", exact=True).click()
    page.wait_for_url("**/datasets/data-*")
    address = page.url
    expect(page.get_by_text(HOSTILE).first).to_be_hidden()  # on the next page of rows
    check(page)
    page.get_by_role("link", name="Next 20").click()
    expect(page.get_by_text(HOSTILE).first).to_be_visible()

    page.goto(f"{address}/audit")
    check(page)
    page.get_by_role("button", name="Audit version 1").click()
    expect(page.locator(".audit-head .grade")).to_be_visible(timeout=120_000)
    check(page)
    page.locator("summary", has_text="empty completion").locator("..").get_by_role("link", name="See the row").click()
    expect(page.get_by_text("Say it")).to_be_visible()
    check(page)

    page.goto(f"{address}/repair")
    check(page)
    page.get_by_role("button", name="Preview the repair").click()
    expect(page.get_by_text("What it would do")).to_be_visible(timeout=120_000)
    check(page)
    page.get_by_role("button", name="Keep this as a new version").click()
    expect(page.get_by_role("status").first).to_contain_text("Version 2 is the repaired one.")
    check(page)

    page.goto(f"{address}/tokens")
    page.get_by_role("button", name="Show the tokens").click()
    expect(page.locator("mark.token").first).to_be_visible(timeout=120_000)
    expect(page.locator("figure .canvas")).to_be_visible()
    check(page)


def test_a_short_wait_is_looked_at_soon_and_a_long_one_every_second(server: HomeServer, page: Page) -> None:
    note = """window.pauses = []; const later = window.setTimeout;
      window.setTimeout = (run, pause) => { window.pauses.push(pause); return later(run, 0); };
      window.Luthier = { ask: fetch.bind(window), t: String };"""
    script = f'<script type="module" src="{Assets().address("datasets.js")}"></script>'
    waits = f'<title>Waits</title><div id="answer"><p data-look-again>In progress</p></div>{script}'
    looks: list[str] = []

    def answer(route: Route) -> None:
        looks.append(route.request.url)
        is_done = len(looks) == 9
        route.fulfill(body=waits.replace(" data-look-again", "") if is_done else waits, content_type="text/html")

    page.add_init_script(note)
    page.route("**/datasets/waits", answer)
    page.goto(f"{server.url}/datasets/waits")
    expect(page.locator("[data-look-again]")).to_have_count(0)
    assert [round(pause) for pause in page.evaluate("window.pauses")] == [150, 225, 338, 506, 759, 1000, 1000, 1000]


def slowed(page: Page, bytes_per_second: int) -> None:
    session = page.context.new_cdp_session(page)
    slow = {"offline": False, "latency": 0, "downloadThroughput": -1, "uploadThroughput": bytes_per_second}
    session.send("Network.enable")
    session.send("Network.emulateNetworkConditions", slow)


def test_an_upload_shows_how_far_it_is_and_can_be_cancelled(server: HomeServer, page: Page, tmp_path: Path) -> None:
    large = tmp_path / "large.jsonl"
    large.write_text(GOOD * 8000, encoding="utf-8")  # minutes at this pace: it does not end by itself
    page.goto(f"{server.url}/datasets/new")
    slowed(page, 200_000)
    page.set_input_files("#file", str(large))
    page.get_by_role("button", name="Add", exact=True).click()
    expect(page.locator("[data-progress-words]")).to_contain_text("left")
    assert 0 < page.evaluate("document.querySelector('[data-upload] progress').value") < 1
    assert violations(page) == []
    page.get_by_role("button", name="Cancel").click()
    expect(page.locator("[data-progress-words]")).to_have_text("It was cancelled. Nothing was kept.")
    wait_for(lambda: partials(server) == [])
    page.goto(f"{server.url}/datasets")
    expect(page.get_by_text("large")).to_have_count(0)


def test_what_cannot_be_read_is_refused_before_it_is_sent(server: HomeServer, page: Page) -> None:
    page.goto(f"{server.url}/datasets/new")
    sent: list[str] = []
    page.on("request", lambda request: sent.append(request.method))
    page.evaluate(_DROP, ["program.exe", "MZ"])
    expect(page.get_by_text("program.exe: not a supported kind of file")).to_be_visible()
    page.get_by_role("button", name="Add", exact=True).click()
    page.get_by_role("button", name="Remove all").click()
    page.evaluate(_DROP, ["empty.jsonl", ""])
    expect(page.get_by_text("empty.jsonl is empty")).to_be_visible()
    assert "POST" not in sent


def test_a_mail_archive_of_apple_mail_is_taken_by_its_bare_name(server: HomeServer, page: Page) -> None:
    page.goto(f"{server.url}/datasets/new")
    page.evaluate(_DROP, ["mbox", "From a"])
    expect(page.locator("[data-chosen]")).to_contain_text("mbox · 6 B")
    expect(page.locator("#upload-error")).to_be_empty()
    expect(page.locator("#name")).to_have_value("mbox")
    page.get_by_role("button", name="Remove all").click()
    page.evaluate(_DROP, ["mbox.exe", "MZ"])
    expect(page.get_by_text("mbox.exe: not a supported kind of file")).to_be_visible()


def test_a_connection_that_breaks_leaves_nothing(server: HomeServer, page: Page) -> None:
    cookies: list[Any] = page.context.cookies()
    secret = next(cookie["value"] for cookie in cookies if cookie["name"] == "luthier_session")
    host, _, port = server.url.removeprefix("http://").partition(":")
    head = (
        f"POST /datasets/new HTTP/1.1\r\nHost: {host}:{port}\r\nCookie: luthier_session={secret}\r\n"
        "Sec-Fetch-Site: same-origin\r\nContent-Type: multipart/form-data; boundary=B\r\n"
        "Content-Length: 90000000\r\n\r\n"
    )
    part = '--B\r\nContent-Disposition: form-data; name="file"; filename="a.jsonl"\r\n\r\n'
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall((head + part).encode() + b"x" * 3_000_000)
        wait_for(lambda: partials(server) != [])
    wait_for(lambda: partials(server) == [])
    page.goto(f"{server.url}/datasets/new")
    assert "a.jsonl" not in page.content()


def test_documents_are_dropped_followed_and_their_columns_and_questions_chosen(server: HomeServer, page: Page) -> None:
    page.goto(f"{server.url}/datasets/new")
    for name, text in (("a.txt", "The front of a violin is spruce."), ("program.exe", "MZ")):
        page.evaluate(_DROP, [name, text])
    expect(page.locator("[data-chosen] li")).to_have_text(["a.txt · 32 B", "program.exe · 2 B"])
    page.fill("#name", "Violins")
    page.get_by_role("button", name="Add", exact=True).click()
    page.wait_for_url("**/datasets/jobs/job-*")
    expect(page.get_by_text("Waiting for a worker")).to_be_visible()
    check(page)
    with Context.open(server.home) as context:
        job = work_once(context)
    assert job.status == "succeeded"
    expect(page.get_by_role("button", name="Generate questions")).to_be_visible()  # without a reload
    expect(page.get_by_text("program.exe")).to_be_visible()
    check(page)
    page.get_by_role("button", name="Update the estimate").click()
    page.wait_for_url("**/questions?**")
    check(page)
    page.goto(f"{server.url}/datasets/new")
    page.evaluate(_DROP, ["fragen.csv", "Frage;Antwort\nWer?;Ich.\n"])
    page.get_by_role("button", name="Add", exact=True).click()
    page.wait_for_url("**/columns?**")
    check(page)
    page.get_by_role("button", name="Use these columns").click()
    expect(page.get_by_role("link", name="Train on it")).to_be_visible()


def test_rows_of_the_hub_are_previewed_imported_and_shown_with_their_source(
    server: HomeServer, page: Page, make_page: Callable[..., Page], monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {"train.jsonl": jsonl(*map(qa, range(20)))}
    with serving(Hub(files, repo="org/qa", kind="dataset", licence="cc-by-4.0")) as address:
        monkeypatch.setenv("HF_ENDPOINT", address)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        page.goto(f"{server.url}/datasets")
        page.get_by_role("link", name="Import").click()
        page.wait_for_url("**/datasets/import")
        check(page)
        page.fill("#address", "org/qa")
        page.fill("#split", "dev")
        page.get_by_role("button", name="Preview").click()
        expect(page.get_by_text("one of: train")).to_be_visible()
        check(page)
        errors = make_page.errors  # type: ignore[attr-defined]
        assert len(errors) == 1, "Chromium itself writes of a page with the status 404"
        errors.clear()
        page.fill("#split", "")
        page.fill("#name", "Questions of the hub")
        page.get_by_role("button", name="Preview").click()
        expect(page.get_by_role("heading", name="Preview of hub:org/qa")).to_be_visible()
        assert page.input_value("#name") == "Questions of the hub"
        check(page)
        page.get_by_role("checkbox", name="source").press("Space")
        page.get_by_role("button", name="Import", exact=True).click()
        page.wait_for_url("**/datasets/jobs/job-*")
        expect(page.get_by_text("Waiting for a worker")).to_be_visible()
        check(page)
        with Context.open(server.home) as context:
            assert work_once(context).status == "succeeded"
        expect(page.get_by_text("All rows are imported.")).to_be_visible()  # without a reload
        check(page)
        page.get_by_role("link", name="See the rows").click()
        expect(page.get_by_role("heading", name="Imported from")).to_be_visible()
        expect(page.get_by_text("cc-by-4.0")).to_be_visible()
        assert page.get_by_role("columnheader", name="source").count() == 0
        assert violations_in_light_and_dark(page) == []
        page.get_by_role("button", name="Import again").click()
        page.wait_for_url("**/datasets/jobs/job-*")
        with Context.open(server.home) as context:
            work_once(context)
        expect(page.get_by_text("Nothing has changed since version 1")).to_be_visible()
