#!/usr/bin/env python3
"""Draws docs/screenshots again: each page in light and dark, on a desk and on a phone, with a real small model.

    make screenshots        (about 15 minutes on 2 cores: two trainings of SmolLM2 on the shop's rows stand behind it)
    python tests/browser/screenshots.py --work DIR --only run,runs     (these pages again, of a home that is kept)

What is shown is made here: the rows of examples/shop, a version with a row that somebody has rejected, two runs that
differ in one thing, their verdicts, a deployment with a canary, a batch with a request that failed, work that is
assigned. Nothing is drawn that a server did not show. Every page of the navigation is drawn
(`tests/browser/test_screenshots.py`); the tabs of the settings in two of the four ways.
"""

from __future__ import annotations

import argparse
import io
import json
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from PIL import Image
from playwright.sync_api import Page, sync_playwright

from luthier.core.access import Caller
from luthier.features.batches import service as batches
from luthier.features.batches.records import BatchRequest
from luthier.features.datasets import service as dataset_versions
from luthier.features.datasets.store import RowDecision
from luthier.features.deployments import service as deployments
from luthier.features.inbox import service as inbox
from luthier.features.training import recipe_job
from luthier.platform.auth.members import add_member
from luthier.platform.files import service as files
from luthier.platform.home.context import Context
from luthier.testing.servers import RunningServer, running_server

ROOT: Final = Path(__file__).resolve().parents[2]
SIZES: Final = {"desk": {"width": 1280, "height": 860}, "phone": {"width": 390, "height": 844}}
MODEL: Final = "smollm2-135m-instruct"
_CHAT: Final = "/v1/chat/completions"
_MOST_SECONDS: Final = 3600.0
_PATIENT: Final = 180_000
_QUESTION: Final = "A customer has just bought a bread knife and a walnut board. What comes next?"


@dataclass(frozen=True, slots=True)
class Shown:
    """What the pages are about."""

    dataset_id: str
    run_ids: tuple[str, str]
    evaluation_id: str
    batch_id: str


def main() -> int:
    """Make a home, fill it, and draw its pages."""
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--rows", type=int, default=300, help="of the shop")
    cli.add_argument("--to", type=Path, default=ROOT / "docs" / "screenshots")
    cli.add_argument("--work", type=Path, help="a folder to keep the home in: a second call draws it without training")
    cli.add_argument("--only", type=lambda names: names.split(","), default=[], help="names of pages: run,runs")
    args = cli.parse_args()
    names = pages(Shown("", ("", ""), "", ""))
    if unknown := sorted(set(args.only) - set(names)):
        cli.error(f"--only {','.join(unknown)}: expected names of pages: {', '.join(names)}")
    with tempfile.TemporaryDirectory(prefix="luthier-screenshots-") as scratch:
        folder = args.work or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        known = folder / "shown.json"
        subprocess.run(
            [sys.executable, "-m", "luthier", "models", "pull", MODEL, "--home", str(folder / "home")], check=True
        )
        with running_server(folder / "home") as server, Context.open(folder / "home") as context:
            if not known.is_file():
                known.write_text(json.dumps(_fill(context, folder, args.rows)), encoding="utf-8")
            values = json.loads(known.read_text(encoding="utf-8"))
            shown = Shown(values["dataset_id"], tuple(values["run_ids"]), values["evaluation_id"], values["batch_id"])
            drawn = {name: path for name, path in pages(shown).items() if not args.only or name in args.only}
            _draw(server, context, drawn, args.to)
    return 0


def _fill(context: Context, folder: Path, num_rows: int) -> dict[str, Any]:
    caller, rows = Caller(), folder / "orders.jsonl"
    made = [sys.executable, str(ROOT / "examples" / "shop" / "make_data.py"), str(rows), str(num_rows)]
    subprocess.run(made, check=True)
    file = dataset_versions.keep_rows(context, caller, [rows.read_bytes()], "orders.jsonl")
    dataset, first = dataset_versions.create_dataset(context, caller, "Shop orders", file, note="Orders of three years")
    context.datasets.decide(dataset.dataset_id, first.number, RowDecision(row=1, decision="accept", author="Ada"))
    context.datasets.decide(dataset.dataset_id, first.number, RowDecision(row=2, decision="reject", author="Ada"))
    run_ids = []
    for rank in (8, 27):
        recipe = {
            "base_model": MODEL,
            "data": {"train": file.file_id, "validation": 0.1, "held_out": 0.2},
            "method": {"name": "lora", "rank": rank},
            "training": {"epochs": 2, "learning_rate": 5e-4},
            "evaluation": {"metrics": ["label_accuracy", "exact_match"], "few_shot": 4, "max_new_tokens": 12},
            "budget": {"usd": 1.0},
        }
        job = recipe_job.start(context, caller, recipe)
        run_ids.append(job.run_id)
        _wait(context, job.job_id)
    deployments.deploy(context, caller, "shop", run_ids[0])
    deployments.deploy(context, caller, "shop", run_ids[1], canary=0.1)
    evaluation = context.evaluations.list(run_id=run_ids[1], limit=1)[0]
    found = {"dataset_id": dataset.dataset_id, "run_ids": run_ids, "evaluation_id": evaluation.evaluation_id}
    _assign(context, caller, dataset.dataset_id)
    return found | {"batch_id": _batch(context, caller)}


def _assign(context: Context, caller: Caller, dataset_id: str) -> None:
    """Somebody who annotates the dataset within three days."""
    add_member(context, caller, "Ben", "correct horse battery", "trainer")
    due = datetime.now(UTC).date() + timedelta(days=3)
    inbox.ask_to_annotate(context, caller, dataset_id, "Ben", due=due)


def _batch(context: Context, caller: Caller) -> str:
    """A batch of questions to the base model, one of which no route would take."""
    lines = []
    for number in range(24):
        body: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": f"{_QUESTION} ({number})"}]}
        body |= {"max_tokens": 8, "temperature": 9 if number == 5 else 0}
        lines.append({"custom_id": f"order-{number}", "method": "POST", "url": _CHAT, "body": body})
    with files.incoming_file(context) as incoming:
        incoming.write("".join(f"{json.dumps(line)}\n" for line in lines).encode())
        stored = files.keep_file(context, caller.project_id, incoming, filename="orders.jsonl", purpose="batch")
    wanted = {"input_file_id": stored.file_id, "endpoint": _CHAT, "completion_window": "24h"}
    made = batches.start(context, caller, BatchRequest.model_validate(wanted))
    _wait(context, made.job.job_id)
    return made.batch.batch_id


def _wait(context: Context, job_id: str) -> None:
    deadline = time.monotonic() + _MOST_SECONDS
    while (job := context.jobs.get(job_id)).status not in ("succeeded", "failed", "cancelled"):
        if time.monotonic() > deadline:
            raise RuntimeError(f"job {job_id} has not ended within {_MOST_SECONDS:.0f} s")
        sys.stderr.write(f"\r{job_id}: {job.shown_status}, step {job.step}   ")
        time.sleep(2)
    if job.status != "succeeded":
        raise RuntimeError(f"job {job_id} ended as {job.status}: {job.error}")


def pages(shown: Shown) -> dict[str, str]:
    """The addresses to draw, by the names of their pictures."""
    data, (first, second) = f"/datasets/{shown.dataset_id}", shown.run_ids
    return {
        "home": "/",
        "inbox": "/inbox?show=open",
        "start": f"/start?dataset={shown.dataset_id}&version=1",
        "datasets": "/datasets",
        "dataset-new": "/datasets/new",
        "dataset-import": "/datasets/import",
        "dataset": data,
        "dataset-annotate": f"{data}/annotate?version=1",
        "dataset-split": f"{data}/split",
        "dataset-map": f"{data}/map",
        "dataset-audit": f"{data}/audit",
        "dataset-tokens": f"{data}/tokens",
        "review": "/review",
        "run-new": f"/runs/new?dataset={shown.dataset_id}&version=1",
        "runs": "/runs",
        "run": f"/runs/{second}",
        "run-curves": f"/runs/{second}#curves",
        "compare": f"/runs/compare?run={first}&run={second}",
        "studies": "/studies",
        "tune": "/pipelines/new/tune",
        "evaluations": "/evaluations",
        "evaluation-new": "/evaluations/new",
        "panels": "/evaluations/panels",
        "worth": f"/worth?evaluation={shown.evaluation_id}",
        "evaluation": f"/evaluations/{shown.evaluation_id}",
        "playground": f"/playground?model={second}&model={MODEL}",
        "models": "/models",
        "models-base": "/models?show=base",
        "model": f"/models/{second}",
        "deployments": "/deployments",
        "deployment": "/deployments/shop",
        "batches": "/batches",
        "batch": f"/batches/{shown.batch_id}",
        "monitor": "/monitor",
        "monitor-model": "/monitor/model?name=shop",
        "exchanges": "/monitor/exchanges",
        "alerts": "/monitor/alerts",
        "glossary": "/glossary",
        "settings": "/settings/keys",
        **{f"settings-{name}": f"/settings/{name}" for name in _SETTINGS},
        "sign-in": "/sign-in",
    }


_SETTINGS: Final = (
    "account", "members", "sign-in", "projects", "webhooks", "gate", "alerts", "audit-log", "usage", "traffic",
    "prices",
)  # fmt: skip
_TWO_WAYS: Final = (("light", "desk"), ("dark", "phone"))
"""How the tabs of the settings are drawn: they are many, and look alike."""


def _draw(server: RunningServer, context: Context, drawn: dict[str, str], target: Path) -> None:
    from luthier.platform.auth.members import make_link

    target.mkdir(parents=True, exist_ok=True)
    found = shutil.which("chromium")
    if found is None:
        sys.exit("no Chromium here: expected Debian's; what to do: bash tests/system_packages.sh")
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=found, args=["--no-sandbox", "--disable-gpu"])
        for theme in ("light", "dark"):
            for size, viewport in SIZES.items():
                browser = chromium.new_context(viewport=viewport, color_scheme=theme, reduced_motion="reduce")
                page = browser.new_page()
                page.goto(f"{server.url}/welcome/{make_link(context)}")
                for name, path in drawn.items():
                    if name.startswith("settings-") and (theme, size) not in _TWO_WAYS:
                        continue
                    if name == "sign-in":
                        browser.clear_cookies()
                    page.goto(f"{server.url}{path}", wait_until="load")
                    _prepare(page, name)
                    _save(page, target / f"{name}-{theme}-{size}.png")
                browser.close()
        chromium.close()


def _prepare(page: Page, name: str) -> None:
    """Wait until the page shows what it is for; in the playground something is asked first."""
    page.wait_for_timeout(900)
    if name == "run-new":
        page.wait_for_selector("[data-state=planned]", timeout=_PATIENT)
    elif name == "dataset-map":
        page.wait_for_selector("figure.prompt-map svg", timeout=_PATIENT)
    elif name == "run-curves":
        page.locator("figure.chart").first.scroll_into_view_if_needed()
        page.locator("figure.chart").first.evaluate("one => one.scrollIntoView({block: 'start'})")
    elif name == "playground":
        page.fill("[name=temperature]", "0")
        page.fill("[name=max_tokens]", "24")
        page.fill("#message", _QUESTION)
        page.press("#message", "Enter")
        page.locator(".facts-line", has_text="tokens read").nth(1).wait_for(timeout=_PATIENT)
    page.wait_for_timeout(700)


def _save(page: Page, path: Path) -> None:
    """As a picture of few colours: these pages have few, and a repository should stay small."""
    image = Image.open(io.BytesIO(page.screenshot()))
    image.convert("RGB").quantize(96, dither=Image.Dither.NONE).save(path, optimize=True)


if __name__ == "__main__":
    sys.exit(main())
