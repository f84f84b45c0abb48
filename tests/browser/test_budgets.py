"""What a page may cost: layout shift under 0.01, and 120 KiB on the wire without charts where nothing is cached."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page

from luthier.core.access import SCOPES
from luthier.platform.auth.service import create_key
from luthier.platform.home.context import Context
from luthier.testing.servers import home_server
from tests.browser.conftest import PHONE, WIDE, sign_in, violations
from tests.full_home import FullHome, fill_home

MAX_SHIFT = 0.01
MAX_KIB = 120.0
_WATCH = """
  window.shifts = [];
  new PerformanceObserver((list) => {
    for (const one of list.getEntries()) if (!one.hadRecentInput) window.shifts.push(one.value);
  }).observe({ type: "layout-shift", buffered: true });
"""
_NEXT_FRAMES = "() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))"
_SHIFT = "() => window.shifts.reduce((sum, one) => sum + one, 0)"
_SENT = """() => {
  const all = [...performance.getEntriesByType("navigation"), ...performance.getEntriesByType("resource")];
  const own = all.filter((one) => !/\\/echarts-|\\/series/.test(one.name));
  return { num: own.length, bytes: own.reduce((sum, one) => sum + one.transferSize, 0) };
}"""
PATHS = (
    "/",
    "/start?dataset={dataset_id}",
    "/datasets",
    "/datasets/{dataset_id}",
    "/runs",
    "/runs/{run_id}",
    "/evaluations/{evaluation_id}",
    "/playground",
    "/models",
    "/inbox",
    "/batches",
    "/batches/{batch_id}",
)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[tuple[str, str, FullHome]]:
    """A home with one of everything: its address, a key of all scopes, and what is there."""
    folder = tmp_path_factory.mktemp("budgets")
    base = folder / "bases" / "tiny"
    base.parent.mkdir()
    base.symlink_to(tiny_model)
    with Context.open(folder / "home") as context:
        made = fill_home(context, folder, base)
        key = create_key(context, "me", scopes=SCOPES)[1]
        with home_server(folder / "home") as server:
            yield server.url, key, made


def at_rest(page: Page) -> None:
    page.wait_for_load_state("networkidle")
    page.evaluate(_NEXT_FRAMES)


def test_pages_are_small_and_do_not_move_while_they_load(
    served: tuple[str, str, FullHome], chromium: Browser, make_page: Callable[..., Page]
) -> None:
    url, key, made = served
    first = make_page()
    sign_in(first, url, key)
    cookies: list[Any] = first.context.cookies()
    first.close()
    too_much = []
    for path in PATHS:
        context = chromium.new_context(viewport=WIDE)  # cold: nothing is cached
        context.add_cookies(cookies)
        context.add_init_script(_WATCH)
        page = context.new_page()
        page.goto(f"{url}{made.address(path)}")
        at_rest(page)
        shift, sent = page.evaluate(_SHIFT), page.evaluate(_SENT)
        assert sent["num"] > 3, f"{path}: styles and scripts are counted, too"
        if shift >= MAX_SHIFT or sent["bytes"] > MAX_KIB * 1024:
            too_much.append(f"{path}: shift {shift:.4f}, {sent['bytes'] / 1024:.0f} KiB")
        if path == PATHS[0]:
            _is_measured(page)
        context.close()
    assert too_much == []


def test_batches_fit_a_phone_and_axe_finds_nothing(
    served: tuple[str, str, FullHome], make_page: Callable[..., Page]
) -> None:
    url, key, made = served
    for options in ({"viewport": WIDE}, {"viewport": PHONE, "color_scheme": "dark"}):
        page = make_page(**options)
        sign_in(page, url, key)
        for path in ("/batches", "/batches/{batch_id}", "/monitor/model?name={name}"):
            page.goto(f"{url}{made.address(path)}")
            at_rest(page)
            if path.startswith("/batches"):
                page.evaluate("for (const one of document.querySelectorAll('details')) one.open = true")
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), (path, options)
            assert violations(page) == [], (path, options)
        page.close()


def _is_measured(page: Page) -> None:
    """What moves is counted: else a page that moves would pass as one that does not."""
    page.evaluate("document.getElementById('main').before(Object.assign(document.createElement('hr'), {height: 200}))")
    page.evaluate("document.querySelector('h1').style.marginTop = '300px'")
    page.evaluate(_NEXT_FRAMES)
    page.evaluate(_NEXT_FRAMES)
    assert page.evaluate(_SHIFT) > MAX_SHIFT
