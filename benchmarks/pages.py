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
import sys
import tempfile
from pathlib import Path
from typing import Any

from machine import describe
from page_loads import KINDS, in_short, is_soon, launch, open_twice, signed_in
from playwright.sync_api import sync_playwright

from luthier.testing.servers import running_server

PATHS = (
    "/sign-in,/,/inbox,/start,/datasets,/datasets/new,/runs,/runs/new,/evaluations,/playground,/models,/batches,"
    "/settings"
)


def main() -> int:
    """Open every page, and print what came out."""
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--rounds", type=int, default=5)
    cli.add_argument("--paths", default=PATHS, help="with commas between them")
    args = cli.parse_args()
    paths = args.paths.split(",")
    seen: dict[str, dict[str, list[Any]]] = {path: {kind: [] for kind in KINDS} for path in paths}
    with (
        tempfile.TemporaryDirectory(prefix="luthier-pages-") as folder,
        running_server(Path(folder) / "home", num_workers=0) as server,
        sync_playwright() as playwright,
    ):
        assert server.key is not None
        chromium = launch(playwright)
        cookies = signed_in(chromium, server.url, server.key)
        for turn in range(args.rounds):
            for path in paths[turn % len(paths) :] + paths[: turn % len(paths)]:
                open_twice(chromium, f"{server.url}{path}", cookies if path != "/sign-in" else [], seen[path])
        version = chromium.version
        chromium.close()
    pages = {path: in_short(both) for path, both in seen.items()}
    document = {"pages": pages, "is_well": all(map(is_soon, pages.values())), "chromium": version}
    print(json.dumps(document | {"machine": describe()}, indent=2))
    return 0 if document["is_well"] else 1


if __name__ == "__main__":
    sys.exit(main())
