"""Debian's Chromium before a real server: what a page does where scripts run, and what it says of itself meanwhile."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, Error, Page, sync_playwright

ROOT = Path(__file__).resolve().parents[2]
AXE = ROOT / "frontend" / "node_modules" / "axe-core" / "axe.min.js"
WIDE, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
_AXE = "{resultTypes: ['violations']}"
_ARGUMENTS = ["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"]


@pytest.fixture(scope="module")  # while it is open, a loop runs in this thread, and tests of other files need their own
def chromium() -> Iterator[Browser]:
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None:
        pytest.skip("no Chromium is installed (tests/system_packages.sh installs Debian's)")
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=found, args=_ARGUMENTS)
        yield launched
        launched.close()


@pytest.fixture
def make_page(chromium: Browser) -> Iterator[Callable[..., Page]]:
    """Makes a page of its own browser context; the test fails where a page writes an error into its console."""
    contexts: list[BrowserContext] = []
    errors: list[str] = []

    def make(**options: Any) -> Page:
        context = chromium.new_context(**({"viewport": WIDE} | options))
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda told: errors.append(told.text) if told.type == "error" else None)
        page.on("pageerror", lambda error: errors.append(str(error)))
        return page

    make.errors = errors  # type: ignore[attr-defined]
    yield make
    for context in contexts:
        context.close()
    assert errors == [], "the console stays empty"


def sign_in(page: Page, address: str, key: str | None, then: str = "/") -> None:
    """Come in by a key, and be led to a path of this server."""
    page.goto(f"{address}/sign-in?next={then}")
    page.fill("#key", key or "")
    page.press("#key", "Enter")
    page.wait_for_url(f"{address}{then}")


def violations(page: Page) -> list[str]:
    """What axe-core finds on a page, one line each; it is run beside the page's own policy, which lets no script in.

    A click returns before the page that it leads to has replaced this one. A run that a navigation interrupts
    says nothing about either page: it is repeated on the new one.
    """
    run = f"async () => {{ {AXE.read_text(encoding='utf-8')}\n return (await axe.run(document, {_AXE})).violations; }}"
    while True:
        page.wait_for_load_state()
        document = page.evaluate("performance.timeOrigin")
        try:
            found = page.evaluate(run)
            break
        except Error:
            page.wait_for_load_state()
            if page.evaluate("performance.timeOrigin") == document:
                raise
    return [f"{one['id']}: {one['help']}: {json.dumps([n['target'] for n in one['nodes']][:5])}" for one in found]
