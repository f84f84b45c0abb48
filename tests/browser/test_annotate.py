"""The annotation desk by keys alone, and the map of prompts by the mouse, in a browser before a real server."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from luthier.core.access import Caller
from luthier.features.datasets import service as dataset_versions
from luthier.features.datasets.annotations import decide, open_queue
from luthier.platform.home.context import Context
from luthier.testing.servers import HomeServer, home_server
from tests.browser.conftest import PHONE, sign_in_by_form, violations
from tests.fixtures.questions import answers_in_this_process

MakePage = Callable[..., Page]
TOPICS = ("soup bread cheese tasty kitchen", "engine wheel brake fuel tyre", "python loop class import list")


@dataclass(frozen=True)
class Desk:
    """A server with a dataset of sixty rows."""

    server: HomeServer
    dataset_id: str

    def open(
        self, make_page: MakePage, path: str, *, scheme: str = "light", viewport: dict[str, int] | None = None
    ) -> Page:
        page = make_page(color_scheme=scheme, **({} if viewport is None else {"viewport": viewport}))
        sign_in_by_form(page, self.server.url, self.server.key, f"/datasets/{self.dataset_id}/{path}")
        return page


def bring(home: Path, name: str) -> str:
    draw, lines = random.Random(1), []
    for n in range(60):
        prompt = " ".join(draw.choices(TOPICS[n % 3].split(), k=12)) if n else "<script>alert(1)</script>"
        messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": f"Answer {n + 1}."}]
        lines.append(json.dumps({"messages": messages}).encode() + b"\n")
    with Context.open(home) as context:
        file = dataset_versions.keep_rows(context, Caller(), lines, "rows.jsonl")
        return dataset_versions.create_dataset(context, Caller(), name, file)[0].dataset_id


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HomeServer]:
    home = tmp_path_factory.mktemp("annotate") / "home"
    with answers_in_this_process(), home_server(home) as running:
        yield running


@pytest.fixture
def desk(server: HomeServer, request: pytest.FixtureRequest) -> Desk:
    return Desk(server, bring(server.home, request.node.name[:80]))


def test_ten_rows_by_keys_alone(desk: Desk, make_page: MakePage) -> None:
    page = desk.open(make_page, "annotate")
    progress, title = page.locator(".desk-progress"), page.locator("#row-title")
    for number, key in enumerate("aaraaaraa", start=1):
        expect(title).to_have_text(f"Row {number}")
        page.keyboard.press(key)
        expect(progress).to_contain_text(f"{number} of 60 rows decided")
    page.keyboard.press("e")
    answer = page.locator("textarea[name='text:/messages/1/content']")
    expect(answer).to_be_focused()
    page.keyboard.press("a")  # a letter of the text, no decision
    page.keyboard.press("Control+A")
    page.keyboard.type("A better answer.")
    page.keyboard.press("Control+Enter")
    expect(progress).to_contain_text("10 of 60 rows decided, 2 rejected")
    expect(page.locator("#said")).to_contain_text("row 10 is edited")
    assert "row=11" in page.url, "the address is that of the row"

    page.keyboard.press("u")
    expect(title).to_have_text("Row 10")
    page.keyboard.press("j")
    expect(title).to_have_text("Row 11")
    page.keyboard.press("k")
    expect(title).to_have_text("Row 10")
    page.keyboard.press("e")
    expect(answer).to_be_focused()
    page.keyboard.type("half an edit")
    asked: list[str] = []
    page.once("dialog", lambda dialog: (asked.append(dialog.message), dialog.dismiss()))
    page.keyboard.press("Escape")
    expect(answer).to_be_visible()
    page.once("dialog", lambda dialog: dialog.accept())
    page.keyboard.press("Escape")
    expect(page.locator("#accept")).to_be_visible()
    assert asked == ["Leave without saving the edit?"]
    page.route("**/runs", lambda route: route.fulfill(body="runs", content_type="text/plain"))
    for key in ("g", "r"):  # leads to the runs, and rejects nothing
        page.keyboard.press(key)
    page.wait_for_url("**/runs")
    with Context.open(desk.server.home) as context:
        decided = context.datasets.decisions(desk.dataset_id, 1)
    assert [one.decision for one in decided] == [
        "accept",
        "accept",
        "reject",
        *["accept"] * 3,
        "reject",
        *["accept"] * 2,
    ]


def test_a_refused_edit_and_a_server_that_does_not_answer_leave_the_row_and_the_text(
    desk: Desk, make_page: MakePage
) -> None:
    page = desk.open(make_page, "annotate")
    alert, title = page.locator("[data-refusal]"), page.locator("#row-title")
    page.route("**/annotate/decide", lambda route: route.abort())
    page.keyboard.press("a")
    expect(alert).to_contain_text("The server does not answer.")
    expect(title).to_have_text("Row 1")
    page.unroute("**/annotate/decide")
    page.keyboard.press("a")
    expect(title).to_have_text("Row 2")
    expect(alert).to_have_count(0)
    page.keyboard.press("e")
    answer = page.locator("textarea[name='text:/messages/1/content']")
    answer.fill("An answer that took long to write.")
    with Context.open(desk.server.home) as context:
        dataset_versions.remove_dataset(context, Caller(), desk.dataset_id)
    page.keyboard.press("Control+Enter")
    expect(alert).to_contain_text("no dataset")
    expect(answer).to_have_value("An answer that took long to write.")
    assert violations(page) == []
    errors = make_page.errors  # type: ignore[attr-defined]
    assert [one for one in errors if "net::" not in one and "htmx:" not in one and "404" not in one] == []
    errors.clear()
    page.evaluate("document.querySelector('#desk').remove()")  # nothing is left that asks before the page is closed


def test_what_somebody_else_says_of_the_row_appears(desk: Desk, make_page: MakePage) -> None:
    page = desk.open(make_page, "annotate")
    page.clock.install()
    page.reload()
    with Context.open(desk.server.home) as context:
        ben = Caller(name="Ben")
        decide(context, ben, open_queue(context, ben, desk.dataset_id, 1), 1, "reject")
    page.clock.run_for(11_000)
    expect(page.locator("#news")).to_contain_text("Ben has rejected this row")
    page.keyboard.press("a")
    expect(page.locator(".desk-progress")).to_contain_text("Ben had rejected it in the meantime")


def test_a_point_of_the_map_says_its_prompt_and_opens_its_group(desk: Desk, make_page: MakePage) -> None:
    page = desk.open(make_page, "map")
    plane = page.locator(".prompt-map svg")
    expect(plane).to_be_visible(timeout=60_000)
    found = page.request.get(f"{desk.server.url}/datasets/{desk.dataset_id}/map/points").json()
    left, across, top, down = found["scale"]
    point = next(one for one in found["points"] if one["group"] >= 0)
    box = plane.bounding_box()
    assert box is not None
    x = box["x"] + (left + point["x"] * across) * box["width"] / 960
    y = box["y"] + (top + point["y"] * down) * box["height"] / 560
    expect(page.locator(".prompt-map")).to_have_attribute("data-started", "")
    page.mouse.move(x, y)
    page.mouse.move(x + 1, y)
    expect(page.locator(".hovered")).to_be_visible()
    page.mouse.click(x, y)
    expect(page.locator("#rows-title")).to_be_visible()
    assert page.url.endswith(f"group={point['group']}")
    assert violations(page) == []


@pytest.mark.parametrize(
    "path", ["annotate", "annotate?edit=text&row=2", "annotate?edit=json&row=2", "split", "compare"]
)
def test_pages_are_for_everybody(desk: Desk, make_page: MakePage, path: str) -> None:
    page = desk.open(make_page, path, scheme="dark", viewport=PHONE)
    assert violations(page) == []
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "nothing to scroll sideways"
