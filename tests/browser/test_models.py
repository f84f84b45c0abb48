"""Models in a real browser: a canary by keyboard alone, a slider, an export that is watched until it is made."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from luthier.platform.auth.service import create_key
from luthier.platform.home.context import Context
from luthier.testing.servers import home_server
from tests.homes import Made, add_export, fill

from .conftest import PHONE, WIDE, look_often, sign_in, violations

MakePage = Callable[..., Page]


@dataclass(frozen=True, slots=True)
class Served:
    url: str
    key: str
    made: Made
    home: Path


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    home = tmp_path_factory.mktemp("models") / "home"
    with Context.open(home) as context:
        made, key = fill(context, name="<script>alert(1)</script>"), create_key(context, "Ada", scopes=("admin",))[1]
    with home_server(home) as server:
        yield Served(server.url, key, made, home)


def come_in(make_page: MakePage, served: Served, **options: object) -> Page:
    page = make_page(**options)
    sign_in(page, served.url, served.key)
    return page


def tab_to(page: Page, name: str) -> None:
    """Press Tab until the thing of this name has the focus."""
    for _ in range(80):
        page.keyboard.press("Tab")
        if page.evaluate("n => [document.activeElement.id, document.activeElement.innerText].includes(n)", name):
            return
    raise AssertionError(f"Tab does not reach {name!r}")


def test_a_canary_is_deployed_promoted_and_rolled_back_by_keyboard(make_page: MakePage, served: Served) -> None:
    first, second = served.made.runs
    with Context.open(served.home) as context:
        name = context.run_labels.names([first])[first]
    older, newer = f"{name} ({first[-6:]})", f"{name} ({second[-6:]})"
    page = come_in(make_page, served)
    page.goto(f"{served.url}/deployments/support?target={second}")
    tab_to(page, "target")
    page.keyboard.press("Tab")
    slider = page.locator("[data-slides]")
    expect(slider).to_be_focused()
    page.keyboard.press("ArrowRight")
    expect(page.locator("#percent")).to_have_value("11")
    tab_to(page, "percent")
    page.keyboard.press("ArrowUp")
    expect(slider).to_have_value("12")
    page.keyboard.press("Enter")
    expect(page.locator(".notice")).to_have_text(f"{newer} answers 12% of the users of support now.")
    expect(page.get_by_text("had not been evaluated.")).to_contain_text(older)
    expect(page.locator("tr", has_text="canary").first).to_contain_text("12")
    tab_to(page, "Promote the canary")
    page.keyboard.press("Enter")
    expect(page.locator(".notice")).to_have_text(f"{name} answers all users of support now.")
    tab_to(page, "Roll back to revision 2")
    page.keyboard.press("Enter")
    expect(page.locator(".notice")).to_contain_text(f"Rolled back: support goes to {older}, {newer} again.")
    expect(page.locator("#history + .scroll tbody tr")).to_have_count(4)
    expect(page.locator("#history + .scroll tbody tr").first).to_contain_text("Ada")


def test_lineage_is_walked_by_keyboard_within_its_own_region(make_page: MakePage, served: Served) -> None:
    page = come_in(make_page, served, viewport=PHONE)
    page.goto(f"{served.url}/models?show=lineage")
    frame = page.get_by_role("region", name="Lineage of the project")
    assert frame.evaluate("e => e.scrollWidth > e.clientWidth")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    frame.focus()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.closest('svg.lineage') !== null")
    page.get_by_role("link", name=re.compile("merged float16")).focus()
    page.keyboard.press("Enter")
    page.wait_for_url(f"{served.url}/exports/{served.made.export_id}")


def test_an_export_is_watched_until_it_is_made(make_page: MakePage, served: Served) -> None:
    with Context.open(served.home) as context:
        export_id = add_export(context, served.made.runs[0], "c", is_made=False)
        page = come_in(make_page, served)
        look_often(page).goto(f"{served.url}/exports/{export_id}")
        expect(page.get_by_text("Waiting for a worker")).to_be_visible()
        job = context.jobs.claim("w")
        assert job is not None
        context.job_events.append(job.job_id, "progress-1-1", "Running the source: 3 of 32 prompts")
        expect(page.locator(".now")).to_contain_text("Running the source: 3 of 32 prompts")
        expect(page.locator("#export-word")).to_contain_text("running: Running the source")
        context.jobs.finish(job.job_id, job.attempt, "failed", {"type": "E", "came": "no", "expected": "y", "do": "z"})
        expect(page.get_by_text("The export failed")).to_be_visible()
        page.on("dialog", lambda asked: asked.accept())
        page.get_by_role("button", name="Remove").click()
        page.wait_for_url(f"{served.url}/models/{served.made.runs[0]}")


@pytest.mark.parametrize(("viewport", "scheme"), [(WIDE, "light"), (PHONE, "dark")], ids=["wide", "phone"])
def test_the_pages_are_accessible_and_fit(
    make_page: MakePage, served: Served, viewport: dict[str, int], scheme: str
) -> None:
    page = come_in(make_page, served, viewport=viewport, color_scheme=scheme)
    shows = [f"/models?show={tab}" for tab in ("tuned", "deployments", "base", "lineage")]
    own = (f"/models/{served.made.tuned}", f"/exports/{served.made.export_id}", "/deployments/support")
    for address in (*shows, *own, "/models/gemma3-270m"):
        page.goto(f"{served.url}{address}")
        assert violations(page) == [], address
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), address
