#!/usr/bin/env python3
"""Draws docs/screenshots again: the pages on a desk in light, and the main ones on a phone in dark.

    make screenshots        (about 15 minutes on 2 cores: SmolLM2 is trained twice on rows of the shop)
    python -m tests.browser.screenshots --work DIR --only run,runs     (these pages again, of homes that are kept)
    python -m tests.browser.screenshots --work DIR --to DIR --every-way --whole      (to look at all there is)

What is shown is made by `shown_homes.py`: a shop whose models are trained, records of work that takes hours, and a
home in which nothing is yet. Nothing is drawn that a server did not show. Every page of the navigation is drawn by
--every-way; the pictures that are kept are fewer, since a repository should stay small, and none is left over
(`tests/browser/test_screenshots.py`).
"""

from __future__ import annotations

import argparse
import io
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from PIL import Image
from playwright.sync_api import Browser, BrowserContext, Page, ViewportSize, sync_playwright

from luthier.platform.auth.members import make_link
from luthier.platform.home.context import Context
from luthier.testing.servers import home_server, running_server
from tests.browser.shown_homes import MODEL, NOTHING_THERE, QUESTION, RECORDED, ROOT, Shown, fill_records, fill_shop

Theme = Literal["light", "dark"]
Size = Literal["desk", "phone"]
Way = tuple[Theme, Size]
SIZES: Final[Mapping[Size, ViewportSize]] = {
    "desk": {"width": 1280, "height": 860},
    "phone": {"width": 390, "height": 844},
}
EVERY_WAY: Final[Sequence[Way]] = (("light", "desk"), ("light", "phone"), ("dark", "desk"), ("dark", "phone"))
KEPT_WAYS: Final[Sequence[Way]] = (("light", "desk"), ("dark", "phone"))
"""Both themes and both sizes at half the pictures: a repository should stay small."""
_PATIENT: Final = 600_000
_SETTINGS: Final = (
    "account", "members", "sign-in", "projects", "webhooks", "gate", "alerts", "audit-log", "usage", "traffic",
    "prices", "machine",
)  # fmt: skip
_FORMS: Final = ("compare-models", "automl", "distill", "retrain")
_ONLY_TO_LOOK_AT: Final = frozenset(
    {
        *(f"settings-{name}" for name in _SETTINGS), *(f"new-{name}" for name in _FORMS), "not-found", "dataset-repair",
        "dataset-compare", "panel-new", "model-base", "exchange", "workflow-comparison", "safety", "invitation",
        "run-import", "judges", "export-benchmarks", "panel-import",
    }
)  # fmt: skip
"""Pages that look like others: they are drawn by --every-way, and not kept."""
_ON_A_PHONE: Final = frozenset(
    {
        "home", "inbox", "start", "datasets", "dataset-new", "dataset", "dataset-annotate", "dataset-job", "review",
        "run-new", "runs", "run", "compare", "evaluations", "evaluation", "worth", "playground", "models", "model",
        "deployment", "monitor-model", "glossary", "sign-in", "rate", "run-live", "study", "first-home",
    }
)  # fmt: skip
"""Pages of which the picture of a phone is kept, too."""
_WITHOUT_SESSION: Final = ("sign-in", "invitation", "rate")
_ASKED: Final = {
    "dataset-audit": ("Audit version", "#grade-title"),
    "dataset-tokens": ("Show the tokens", "#tokens-title"),
    "dataset-repair": ("Preview", "#outcome-title"),
    "dataset-compare": ("Compare", "#answer .tiles"),
    "dataset-split": ("Split", "#answer .tiles"),
}
"""Pages that answer when somebody asks: the button, and what an answer shows."""
_AWAITED: Final = {
    "run-new": "[data-state=planned]",
    "dataset-map": "figure.prompt-map svg",
    "start": ".plan-figures >> nth=1",
    "run-live": "#run-charts .canvas",
    "study": "figure.chart.live-drawn canvas",
}
"""Pages that show what they are for once it is computed or drawn."""


@dataclass(frozen=True, slots=True)
class Orders:
    """What is to be drawn, and how.

    Attributes:
        target: The folder of the pictures.
        ways: Of each page.
        only: Names of pages; none for all.
        is_whole: Whether a picture reaches as far down as its page, in place of one window.
    """

    target: Path
    ways: Sequence[Way]
    only: frozenset[str]
    is_whole: bool

    def wants(self, name: str, way: Way) -> bool:
        """Whether a page is to be drawn in a way."""
        is_kept = name in _ON_A_PHONE if way[1] == "phone" else name not in _ONLY_TO_LOOK_AT
        return (self.ways is EVERY_WAY or is_kept) and (not self.only or name in self.only)


def main() -> int:
    """Make the homes, fill them, and draw their pages."""
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--rows", type=int, default=120, help="of the shop")
    cli.add_argument("--to", type=Path, default=ROOT / "docs" / "screenshots")
    cli.add_argument("--work", type=Path, help="a folder to keep the homes in: a second call draws without training")
    cli.add_argument("--only", type=lambda names: names.split(","), default=[], help="names of pages: run,runs")
    cli.add_argument("--every-way", action="store_true", help="light and dark, desk and phone, of every page")
    cli.add_argument("--whole", action="store_true", help="pages as far down as they go")
    args = cli.parse_args()
    names = all_pages()
    if unknown := sorted(set(args.only) - set(names)):
        cli.error(f"--only {','.join(unknown)}: expected names of pages: {', '.join(names)}")
    orders = Orders(args.to, EVERY_WAY if args.every_way else KEPT_WAYS, frozenset(args.only), args.whole)
    orders.target.mkdir(parents=True, exist_ok=True)
    found = shutil.which("chromium")
    if found is None:
        sys.exit("no Chromium here: expected Debian's; what to do: bash tests/system_packages.sh")
    with tempfile.TemporaryDirectory(prefix="luthier-screenshots-") as scratch, sync_playwright() as playwright:
        folder = args.work or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        chromium = playwright.chromium.launch(executable_path=found, args=["--no-sandbox", "--disable-gpu"])
        if not orders.only or orders.only & set(pages(Shown({}))):
            _draw_shop(folder, args.rows, chromium, orders)
        _draw_made(folder, chromium, orders)
        chromium.close()
    return 0


def _draw_shop(folder: Path, num_rows: int, chromium: Browser, orders: Orders) -> None:
    home = folder / "home"
    subprocess.run([sys.executable, "-m", "luthier", "models", "pull", MODEL, "--home", str(home)], check=True)
    with running_server(home) as server, Context.open(home) as context:
        shown = fill_shop(context, server.url, folder, num_rows)
        _draw(chromium, server.url, context, pages(shown), orders)


def _draw_made(folder: Path, chromium: Browser, orders: Orders) -> None:
    """The home of records, and the one in which nothing is."""
    for name, drawn, fill in (("records", record_pages(), fill_records), ("empty", empty_pages(), None)):
        home = folder / name
        if orders.only and not orders.only & set(drawn):
            continue
        is_new = not home.exists()
        with Context.open(home) as context:
            if is_new and fill is not None:
                fill(context)
        with home_server(home) as server, Context.open(home) as context:
            _draw(chromium, server.url, context, drawn, orders)


def all_pages() -> list[str]:
    """The names of all pictures, without theme and size."""
    return [*pages(Shown({})), *record_pages(), *empty_pages()]


def kept_pictures() -> set[str]:
    """The names of the files in docs/screenshots."""
    orders = Orders(Path(), KEPT_WAYS, frozenset(), is_whole=False)
    ways = [(name, way) for name in all_pages() for way in KEPT_WAYS if orders.wants(name, way)]
    return {f"{name}-{'-'.join(way)}.png" for name, way in ways}


def pages(shown: Shown) -> dict[str, str]:
    """The addresses of the shop, by the names of their pictures."""
    data, first, second = f"/datasets/{shown['dataset']}", shown["run-1"], shown["run-2"]
    return {
        "home": "/",
        "inbox": "/inbox?show=open",
        "start": f"/start?dataset={shown['dataset']}&version=2",
        "datasets": "/datasets",
        "dataset-new": "/datasets/new",
        "dataset-import": "/datasets/import",
        "dataset-job": f"/datasets/jobs/{shown['import']}",
        "dataset-questions": f"/datasets/{shown['passages']}/questions",
        "dataset": data,
        "dataset-annotate": f"{data}/annotate?version=2",
        "dataset-split": f"{data}/split",
        "dataset-map": f"{data}/map",
        "dataset-audit": f"{data}/audit",
        "dataset-repair": f"{data}/repair",
        "dataset-compare": f"{data}/compare",
        "dataset-tokens": f"{data}/tokens",
        "review": "/review",
        "run-new": f"/runs/new?dataset={shown['dataset']}&version=2",
        "run-import": "/runs/import",
        "runs": "/runs",
        "run": f"/runs/{second}",
        "run-curves": f"/runs/{second}#curves",
        "compare": f"/runs/compare?run={first}&run={second}",
        "tune": "/pipelines/new/tune",
        **{f"new-{name}": f"/pipelines/new/{name}" for name in _FORMS},
        "evaluations": "/evaluations",
        "evaluation-new": "/evaluations/new",
        "panels": "/evaluations/panels",
        "judges": "/evaluations/judges",
        "panel": f"/evaluations/panels/{shown['panel']}",
        "panel-import": f"/evaluations/panels/{shown['panel']}/import",
        "panel-new": f"/evaluations/panels/new?evaluation={shown['evaluation']}",
        "worth": f"/worth?evaluation={shown['evaluation']}",
        "evaluation": f"/evaluations/{shown['evaluation']}",
        "playground": f"/playground?model={second}&model={MODEL}",
        "models": "/models",
        "models-base": "/models?show=base",
        "model": f"/models/{second}",
        "model-base": f"/models/{MODEL}",
        "model-removal": f"/models/removal?name={MODEL}",
        "dataset-forget": "/datasets/forget",
        "feedback-import": "/review/import",
        "evals-import": "/evaluations/import",
        "account": "/settings/account",
        "export": f"/exports/{shown['export']}",
        "export-benchmarks": "/exports/benchmarks",
        "deployments": "/deployments",
        "deployment": "/deployments/shop",
        "batches": "/batches",
        "batch": f"/batches/{shown['batch']}",
        "monitor": "/monitor",
        "monitor-model": "/monitor/model?name=shop",
        "exchanges": "/monitor/exchanges",
        "exchange": f"/monitor/exchanges/{shown['exchange']}",
        "alerts": "/monitor/alerts",
        "glossary": "/glossary",
        "settings": "/settings/keys",
        **{f"settings-{name}": f"/settings/{name}" for name in _SETTINGS},
        "not-found": f"/runs/{NOTHING_THERE}",
        # The last ones: they are drawn without a session.
        "sign-in": "/sign-in",
        "invitation": f"/invite/{shown['invitation']}",
        "rate": f"/rate/{shown['rater']}",
    }


def record_pages() -> dict[str, str]:
    """The addresses of the records."""
    return {
        "run-live": f"/runs/{RECORDED['run']}",
        "studies": "/studies",
        "study": f"/studies/{RECORDED['study']}",
        "workflow-comparison": f"/pipelines/{RECORDED['comparison']}",
        "workflow-automl": f"/pipelines/{RECORDED['automl']}",
        "workflow-retraining": f"/pipelines/{RECORDED['retraining']}",
        "suite": f"/evaluations/suites/{RECORDED['suite']}",
        "safety": f"/evaluations/safety/{RECORDED['safety']}",
    }


def empty_pages() -> dict[str, str]:
    """The addresses of a home in which nothing is yet."""
    return {"first-home": "/"}


def _draw(chromium: Browser, url: str, context: Context, drawn: Mapping[str, str], orders: Orders) -> None:
    for theme, size in orders.ways:
        wanted = {name: path for name, path in drawn.items() if orders.wants(name, (theme, size))}
        if not wanted:
            continue
        is_phone = size == "phone"
        browser = chromium.new_context(
            viewport=SIZES[size], color_scheme=theme, reduced_motion="reduce", is_mobile=is_phone, has_touch=is_phone
        )
        browser.set_default_timeout(_PATIENT)
        page = browser.new_page()
        page.goto(f"{url}/welcome/{make_link(context)}")
        for name, path in wanted.items():
            _open(browser, page, name, f"{url}{path}")
            _save(page, orders.target / f"{name}-{theme}-{size}.png", is_whole=orders.is_whole)
        browser.close()


def _open(browser: BrowserContext, page: Page, name: str, address: str) -> None:
    """Go to a page and wait until it shows what it is for; some are asked something first."""
    if name in _WITHOUT_SESSION:
        browser.clear_cookies()
    page.goto(address, wait_until="load")
    page.wait_for_timeout(900)
    if name in _ASKED:
        button, answer = _ASKED[name]
        if page.locator(answer).count() == 0:
            page.get_by_role("main").get_by_role("button", name=button).first.click()
            page.wait_for_selector(answer, timeout=_PATIENT)
    elif name in _AWAITED:
        page.wait_for_selector(_AWAITED[name], timeout=_PATIENT)
    elif name == "run-curves":
        page.locator("figure.chart").first.evaluate("one => one.scrollIntoView({block: 'start'})")
    elif name == "rate":
        page.click("#begin")
    elif name == "playground":
        page.fill("[name=temperature]", "0")
        page.fill("[name=max_tokens]", "24")
        page.fill("#message", QUESTION)
        page.press("#message", "Enter")
        page.locator(".facts-line", has_text="tokens read").nth(1).wait_for(timeout=_PATIENT)
    page.wait_for_timeout(700)


def _save(page: Page, path: Path, *, is_whole: bool) -> None:
    """As a picture of few colours: these pages have few, and a repository should stay small."""
    image = Image.open(io.BytesIO(page.screenshot(full_page=is_whole)))
    image.convert("RGB").quantize(48, dither=Image.Dither.NONE).save(path, optimize=True)


if __name__ == "__main__":
    sys.exit(main())
