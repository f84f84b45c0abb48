"""Showdowns, autos and retrainings in a real browser: rules and widths kept, a stage that ends while one watches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from luthier.core.system.files import file_lock
from luthier.core.workflows.pipeline import Stage
from luthier.platform.auth.service import create_key
from luthier.platform.home.context import Context
from luthier.platform.workflows.engine import lock_of
from luthier.testing.servers import home_server
from tests.homes import AUTO_ID, RETRAIN_ID, SHOWDOWN_ID, add_auto, add_model_comparison, add_retrain

from .conftest import PHONE, WIDE, look_often, sign_in, violations_in_light_and_dark

MakePage = Callable[..., Page]
REASON = "the audit refuses reviewed rows: line 251 holds a key of a service (sk-live-5f2c…), line 260 another one"


@dataclass(frozen=True, slots=True)
class Served:
    url: str
    key: str
    home: Path


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    home = tmp_path_factory.mktemp("pipelines") / "home"
    with Context.open(home) as context:
        add_model_comparison(context)
        add_auto(context, {"status": "running"})
        add_retrain(context, {"status": "refused", "reason": REASON})
        key = create_key(context, "Ada", scopes=("admin",))[1]
    with home_server(home) as server:
        yield Served(server.url, key, home)


@pytest.mark.parametrize("size", [WIDE, PHONE], ids=["desk", "phone"])
def test_the_pages_break_no_rule_and_fit(make_page: MakePage, served: Served, size: dict[str, int]) -> None:
    page = make_page(viewport=size)
    sign_in(page, served.url, served.key)
    shown = [f"/pipelines/{one}" for one in (SHOWDOWN_ID, AUTO_ID, RETRAIN_ID)]
    for path in ("/studies", *shown, f"/pipelines/{SHOWDOWN_ID}/report"):
        page.goto(f"{served.url}{path}")
        assert page.evaluate("document.documentElement.scrollWidth") <= size["width"]
        assert violations_in_light_and_dark(page) == [], path


def test_a_stage_that_ends_is_seen_by_who_watches(make_page: MakePage, served: Served) -> None:
    page = look_often(make_page())
    sign_in(page, served.url, served.key)
    with Context.open(served.home) as context:
        with file_lock(lock_of(context, AUTO_ID), what="it", timeout_seconds=1):
            page.goto(f"{served.url}/studies")
            page.get_by_role("link", name="Answer with one SQL query").click()
            now = page.locator("li[aria-current=step]")
            expect(now.get_by_role("heading")).to_have_text("tune")
            made = context.pipelines.get(AUTO_ID)
            ended = Stage(name="tune", status="done", came={"skipped": "prompting is enough", "run_id": None})
            made = made.changed(ended).changed(Stage(name="judge", status="running", began_at=made.created_at))
            context.pipelines.save(made)
            expect(now.get_by_role("heading")).to_have_text("judge")
            expect(page.get_by_text("prompting is enough")).to_be_visible()
        context.pipelines.save(made.changed(Stage(name="judge", status="failed", reason="no memory left")))
        expect(page.get_by_text("It stopped at judge")).to_be_visible()
        expect(page.locator("#pipeline-now[hx-get]")).to_have_count(0)
