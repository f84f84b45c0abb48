"""Chromium before a server of pages: signed in, and each page opened cold and warm. For pages.py and run_page.py."""

from __future__ import annotations

import shutil
import statistics
import sys
from typing import Any

from playwright.sync_api import Browser, Playwright

COLD_MS, WARM_MS, KIB = 400.0, 100.0, 120.0
"""What is asked: first contentful paint, and the wire without the file that draws charts and what it draws."""
KINDS = ("cold", "warm")
_SEEN = """() => {
  const paint = performance.getEntriesByName('first-contentful-paint')[0];
  const sent = [...performance.getEntriesByType('navigation'), ...performance.getEntriesByType('resource')];
  const own = sent.filter((one) => !/\\/echarts-|\\/series/.test(one.name));
  return {paint_ms: paint ? paint.startTime : null, page_bytes: sent[0].transferSize,
          bytes: own.reduce((sum, one) => sum + one.transferSize, 0)};
}"""


def launch(playwright: Playwright) -> Browser:
    """Debian's Chromium; ends the program where there is none."""
    found = shutil.which("chromium")
    if found is None:
        sys.exit("no Chromium here: expected Debian's; what to do: bash tests/system_packages.sh")
    return playwright.chromium.launch(executable_path=found, args=["--no-sandbox", "--disable-gpu"])


def signed_in(chromium: Browser, url: str, key: str) -> list[Any]:
    """The cookies of a session that the key has begun."""
    context = chromium.new_context()
    page = context.new_page()
    page.goto(f"{url}/sign-in")
    page.fill("#key", key)
    page.press("#key", "Enter")
    page.wait_for_url(f"{url}/")
    cookies: list[Any] = context.cookies()
    context.close()
    return cookies


def open_twice(chromium: Browser, address: str, cookies: list[Any], seen: dict[str, list[Any]]) -> None:
    """Open a page cold (a browser context of its own) and warm (again in the same tab), and add what was seen."""
    context = chromium.new_context(viewport={"width": 1280, "height": 900})
    context.add_cookies(cookies)
    page = context.new_page()
    for kind in KINDS:
        page.goto(address, wait_until="load")
        while (found := page.evaluate(_SEEN))["paint_ms"] is None:  # `wait_for_function` would need eval
            page.wait_for_timeout(20)
        seen[kind].append(found)
    context.close()


def in_short(seen: dict[str, list[Any]]) -> dict[str, Any]:
    """Medians of what `open_twice` has seen."""
    return {
        "paint_ms": {kind: round(statistics.median(one["paint_ms"] for one in seen[kind])) for kind in KINDS},
        "paint_ms_most": {kind: round(max(one["paint_ms"] for one in seen[kind])) for kind in KINDS},
        "page_kib": round(statistics.median(one["page_bytes"] for one in seen["cold"]) / 1024, 1),
        "kib_cold": round(statistics.median(one["bytes"] for one in seen["cold"]) / 1024, 1),
    }


def is_soon(opened: dict[str, Any]) -> bool:
    """Whether a page keeps to what is asked."""
    paint = opened["paint_ms"]
    return bool(paint["cold"] <= COLD_MS and paint["warm"] <= WARM_MS and opened["kib_cold"] <= KIB)
