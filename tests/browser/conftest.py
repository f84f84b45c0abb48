"""Debian's Chromium before a real server: what a page does where scripts run, and what it says of itself meanwhile."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from playwright.sync_api import Browser, BrowserContext, Error, Page, expect, sync_playwright

from luthier.testing.servers import BEFORE_STOP

ROOT = Path(__file__).resolve().parents[2]
AXE = ROOT / "frontend" / "node_modules" / "axe-core" / "axe.min.js"
WIDE, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
_COLOURS = ("color-contrast", "link-in-text-block")
"""The rules of axe-core that look at colours."""
_AT_REST = """
  const ends = document.getAnimations().filter((one) => Number.isFinite(one.effect?.getComputedTiming().endTime));
  await Promise.all(ends.map((one) => one.finished.catch(() => null)));
"""
"""Waits for what moves or fades to its end: half way, colours are those of neither state."""
_STILL = """
  document.addEventListener("animationstart", () => {
    for (const one of document.getAnimations())
      if (!Number.isFinite(one.effect?.getComputedTiming().endTime)) one.pause();
  }, true);
"""
"""Holds what pulses without an end: it is drawn 60 times a second, for as long as a test waits for a training."""
_LOOK_OFTEN = """
  for (const name of ["setTimeout", "setInterval"]) {
    const real = window[name].bind(window);
    window[name] = (run, after = 0, ...given) => real(run, after >= 2000 ? after / 8 : after, ...given);
  }
"""
_REPLACED = ("Execution context was destroyed", "Cannot find context with specified id")
_PATIENCE_MS = 120_000
"""For whatever a page is expected to do: on a machine with other work the usual five seconds say nothing."""
expect.set_options(timeout=_PATIENCE_MS)
_PROGRAMS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
"""The first one that is installed is used: a shell without windows takes two fifths less time than a whole browser."""
_ARGUMENTS = [
    *("--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", "--disable-software-rasterizer"),
    # A page is replaced before it has paid off that its scripts and axe-core were optimised: a fourth of all time.
    "--js-flags=--no-turbofan --no-maglev",
]


@pytest.fixture(scope="package")  # while it is open, a loop runs in this thread, and tests elsewhere need their own
def chromium() -> Iterator[Browser]:
    found = next(filter(None, map(shutil.which, _PROGRAMS)), None)
    if found is None:
        pytest.skip("no Chromium is installed (tests/system_packages.sh installs Debian's)")
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=found, args=_ARGUMENTS)
        yield launched
        launched.close()


@pytest.fixture
def make_page(chromium: Browser) -> Iterator[Callable[..., Page]]:
    """Makes a page of its own browser context; the test fails where a page writes an error into its console.

    Pages are closed before their server is stopped: one that is still loading would find nobody and write an error.
    """
    contexts: list[BrowserContext] = []
    errors: list[str] = []

    def make(**options: Any) -> Page:
        context = chromium.new_context(**({"viewport": WIDE} | options))
        context.set_default_timeout(_PATIENCE_MS)
        context.add_init_script(_STILL)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda told: errors.append(told.text) if told.type == "error" else None)
        page.on("pageerror", lambda error: errors.append(str(error)))
        return page

    def close() -> None:
        while contexts:
            contexts.pop().close()

    make.errors = errors  # type: ignore[attr-defined]
    BEFORE_STOP.append(close)
    yield make
    BEFORE_STOP.remove(close)
    close()
    assert errors == [], "the console stays empty"


def sign_in(page: Page, address: str, key: str | None, then: str = "") -> None:
    """Have the browser of a page signed in by a key, without its form (`sign_in_by_form`).

    Args:
        page: The page.
        address: Of the server.
        key: The key.
        then: A path of the server to lead the page to; none leaves it where it is.
    """
    answer = page.context.request.post(
        f"{address}/sign-in", form={"key": key or ""}, headers={"Sec-Fetch-Site": "same-origin"}, max_redirects=0
    )
    assert answer.status == 303, answer.text()
    if then:
        page.goto(f"{address}{then}")


def sign_in_by_form(page: Page, address: str, key: str | None, then: str = "/") -> None:
    """Come in by a key as a person does, and be led to a path of this server."""
    page.goto(f"{address}/sign-in?next={quote(then)}")
    page.fill("#key", key or "")
    page.press("#key", "Enter")
    page.wait_for_url(f"{address}{then}")


def in_page(page: Page, script: str, argument: Any = None) -> Any:
    """What a script says of a loaded page.

    A click returns before the page that it leads to has replaced this one. A script that a navigation interrupts says
    nothing about either page: it is run again in the new one.
    """
    while True:
        page.wait_for_load_state()
        try:
            return page.evaluate(script, argument)
        except Error as error:
            if not any(words in error.message for words in _REPLACED):
                raise


def wait_until(page: Page, is_so: Callable[[], bool], what: str) -> None:
    """Ask again and again; a page that is being replaced, or has not drawn yet, has no answer and is asked again.

    The page's own `wait_for_function` would need eval, which the policy forbids.
    """
    last = ""
    for _ in range(_PATIENCE_MS // 100):
        try:
            if is_so():
                return
        except Error as error:
            last = error.message
        page.wait_for_timeout(100)
    raise AssertionError(f"never came: {what} {last}")


def look_often(page: Page) -> Page:
    """Have the pages of this one look for news eight times as often: every two to twenty seconds they do otherwise."""
    page.add_init_script(_LOOK_OFTEN)
    return page


@cache
def _axe() -> tuple[str, str]:
    """Scripts that run axe-core with options: null where it is not there; and one that brings its 650 kB along.

    They are the same for all options and pages: Chromium compiles a text once a process.
    """
    run = f"{_AT_REST} return (await axe.run(document, options)).violations;"
    library = AXE.read_text(encoding="utf-8")
    begun = "async (options) => {"
    return f"{begun} if (!window.axe) return null; {run} }}", f"{begun} {library}\n {run} }}"


def violations(page: Page, rules: Sequence[str] = ()) -> list[str]:
    """What axe-core finds on a page, one line each; it is run beside the page's own policy, which lets no script in.

    rules: Those that are looked at; none for all.
    """
    options = {"resultTypes": ["violations"]} | ({"runOnly": {"type": "rule", "values": list(rules)}} if rules else {})
    found = in_page(page, _axe()[0], options)
    if found is None:  # the first time on this page
        found = in_page(page, _axe()[1], options)
    return [f"{one['id']}: {one['help']}: {json.dumps([n['target'] for n in one['nodes']][:5])}" for one in found]


def violations_in_light_and_dark(page: Page) -> list[str]:
    """What axe-core finds on a page in light, and what its rules for colours find in dark: no other looks at them."""
    page.emulate_media(color_scheme="light")
    found = violations(page)
    page.emulate_media(color_scheme="dark")
    return [*found, *(f"in dark: {one}" for one in violations(page, _COLOURS))]
