"""A study in a real browser: charts drawn by scripts, what comes while one watches, and its recipe in a form."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from luthier.core.system.files import file_lock
from luthier.platform.auth.service import create_key
from luthier.platform.home.context import Context
from luthier.testing.servers import home_server
from tests.homes import STUDY_ID, add_study, trial_of

from .conftest import PHONE, WIDE, look_often, sign_in, violations_in_light_and_dark

MakePage = Callable[..., Page]


@dataclass(frozen=True, slots=True)
class Served:
    url: str
    key: str
    home: Path


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    home = tmp_path_factory.mktemp("studies") / "home"
    with Context.open(home) as context:
        add_study(context)
        key = create_key(context, "Ada", scopes=("admin",))[1]
    with home_server(home) as server:
        yield Served(server.url, key, home)


@pytest.mark.parametrize("size", [WIDE, PHONE], ids=["desk", "phone"])
def test_the_pages_break_no_rule_and_fit(make_page: MakePage, served: Served, size: dict[str, int]) -> None:
    page = make_page(viewport=size)
    sign_in(page, served.url, served.key)
    for path in ("/studies", f"/studies/{STUDY_ID}"):
        page.goto(f"{served.url}{path}")
        if path != "/studies":
            expect(page.locator("figure.chart.live-drawn canvas")).to_have_count(3)
        assert page.evaluate("document.documentElement.scrollWidth") <= size["width"]
        assert violations_in_light_and_dark(page) == [], path


def test_a_trial_that_ends_is_seen_by_who_watches(make_page: MakePage, served: Served) -> None:
    page = look_often(make_page())
    sign_in(page, served.url, served.key)
    lock = served.home / "studies" / STUDY_ID / "lock"
    with file_lock(lock, what="it", timeout_seconds=1), Context.open(served.home) as context:
        page.goto(f"{served.url}/studies/{STUDY_ID}")
        expect(page.locator("#study-now .badge").first).to_have_text("searching")
        context.studies.put_trial(STUDY_ID, trial_of(11, {"method.rank": 16}, 0, 0.875, state="paused"))
        expect(page.get_by_role("cell", name="1.9688")).to_be_visible()
        expect(page.locator("figure.chart.live-drawn canvas")).to_have_count(3)
