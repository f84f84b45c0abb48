#!/usr/bin/env python3
"""How soon a page is seen and how much of it is sent: Chromium on this machine, before `luthier up` on loopback.

    python benchmarks/pages.py [--rounds 5] [--paths /,/datasets,...]

Each page is opened `--rounds` times cold (a browser context of its own: nothing cached, no connection open; only the
session's cookie is carried over) and warm (once more in the same tab), in an order that turns. Measured in the page
by the Performance API: first contentful paint, in ms after navigation began, and bytes on the wire (headers included)
without the file that draws charts, which a page does not wait for. Asked: medians of at most 400 ms cold and 100 ms
warm, and 120 KiB cold. Prints one JSON document; ends with 1 where a page falls short.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from machine import describe
from playwright.sync_api import Browser, Page, sync_playwright

from luthier.testing.running_server import running_server

PATHS = "/sign-in,/,/datasets,/datasets/new,/runs,/runs/new,/evaluations,/playground,/models,/settings"
COLD_MS, WARM_MS, KIB = 400.0, 100.0, 120.0
_SEEN = """() => {
  const paint = performance.getEntriesByName('first-contentful-paint')[0];
  const sent = [...performance.getEntriesByType('navigation'), ...performance.getEntriesByType('resource')];
  const bytes = sent.filter((one) => !/\\/echarts-/.test(one.name)).map((one) => one.transferSize);
  return {paint_ms: paint ? paint.startTime : null, bytes: bytes.reduce((a, b) => a + b, 0)};
}"""


def main() -> int:
    """Open every page, and print what came out."""
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--rounds", type=int, default=5)
    cli.add_argument("--paths", default=PATHS, help="with commas between them")
    args = cli.parse_args()
    found = shutil.which("chromium")
    if found is None:
        sys.exit("no Chromium here: expected Debian's; what to do: bash tests/system_packages.sh")
    paths = args.paths.split(",")
    seen: dict[str, dict[str, list[Any]]] = {path: {"cold": [], "warm": []} for path in paths}
    with (
        tempfile.TemporaryDirectory(prefix="luthier-pages-") as folder,
        running_server(Path(folder) / "home", num_workers=0) as server,
        sync_playwright() as playwright,
    ):
        assert server.key is not None
        chromium = playwright.chromium.launch(executable_path=found, args=["--no-sandbox", "--disable-gpu"])
        cookies = _signed_in(chromium, server.url, server.key)
        for turn in range(args.rounds):
            for path in paths[turn % len(paths) :] + paths[: turn % len(paths)]:
                _open(chromium, server.url, path, cookies if path != "/sign-in" else [], seen[path])
        version = chromium.version
        chromium.close()
    pages = {path: _summary(both) for path, both in seen.items()}
    document = {"pages": pages, "is_well": all(page["is_well"] for page in pages.values()), "chromium": version}
    print(json.dumps(document | {"machine": describe()}, indent=2))
    return 0 if document["is_well"] else 1


def _signed_in(chromium: Browser, url: str, key: str) -> list[Any]:
    context = chromium.new_context()
    page = context.new_page()
    page.goto(f"{url}/sign-in")
    page.fill("#key", key)
    page.press("#key", "Enter")
    page.wait_for_url(f"{url}/")
    cookies: list[Any] = context.cookies()
    context.close()
    return cookies


def _open(chromium: Browser, url: str, path: str, cookies: list[Any], seen: dict[str, list[Any]]) -> None:
    context = chromium.new_context(viewport={"width": 1280, "height": 900})
    context.add_cookies(cookies)
    page: Page = context.new_page()
    for kind in ("cold", "warm"):
        page.goto(f"{url}{path}", wait_until="load")
        while (found := page.evaluate(_SEEN))["paint_ms"] is None:  # `wait_for_function` would need eval
            page.wait_for_timeout(20)
        seen[kind].append(found)
    context.close()


def _summary(both: dict[str, list[Any]]) -> dict[str, Any]:
    cold, warm = (statistics.median(one["paint_ms"] for one in both[kind]) for kind in ("cold", "warm"))
    kib = statistics.median(one["bytes"] for one in both["cold"]) / 1024
    return {
        "paint_ms": {"cold": round(cold), "warm": round(warm)},
        "paint_ms_most": {kind: round(max(one["paint_ms"] for one in both[kind])) for kind in both},
        "kib_cold": round(kib, 1),
        "is_well": cold <= COLD_MS and warm <= WARM_MS and kib <= KIB,
    }


if __name__ == "__main__":
    sys.exit(main())
