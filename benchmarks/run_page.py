#!/usr/bin/env python3
"""The page of a run of 20,000 steps while it trains: how soon it is seen, what it asks for, how smoothly it scrolls.

    python benchmarks/run_page.py [--rounds 5] [--seconds 30] [--steps-per-second 10]

A run with 20,000 steps done, as a training would have told them, continues at the given pace before `luthier up` on
loopback; nothing is trained. Chromium opens its page `--rounds` times cold (a context of its own, nothing cached) and
warm (once more in the same tab): first contentful paint in ms, and bytes on the wire with headers, by the
Performance API, without the file that draws charts. Then one page is watched for `--seconds`: bytes a second of its
polls, the first one, which brings all curves, told apart; meanwhile it is scrolled down and up, and the time of every
frame is taken by `requestAnimationFrame`. Asked: 400 ms cold, 100 ms warm, 120 KiB, under 20 KB/s, and at most one
frame in 20 over 33 ms. Prints one JSON document; ends with 1 where it falls short.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from machine import describe
from page_loads import KINDS, in_short, is_soon, launch, open_twice, signed_in
from playwright.sync_api import Browser, sync_playwright

from luthier.core.events import StepDone
from luthier.platform.auth.service import create_key
from luthier.platform.home.context import Context
from luthier.platform.jobs.records import Job
from luthier.testing.records import RUN_ID, events_of, make_plan, make_record, tell
from luthier.testing.servers import RunningServer, running_server

NUM_DONE, NUM_STEPS = 20_000, 40_000
KB_PER_SECOND = 20.0
SLOW_FRAME_MS, MOST_SLOW_FRAMES = 33.4, 0.05
_POLLS = """() => performance.getEntriesByType('resource').filter((one) => /\\/series|part=/.test(one.name))
  .map((one) => ({bytes: one.transferSize, ms: one.duration, at: one.startTime}))"""
_SCROLL = """(seconds) => new Promise((done) => {
  const frames = [], began = performance.now();
  let before = began;
  const frame = (now) => {
    if (now > before) frames.push(now - before);
    before = now;
    const most = document.documentElement.scrollHeight - innerHeight;
    const turn = ((now - began) / 4000) % 2; // down in four seconds, and up again
    scrollTo({top: most * (turn < 1 ? turn : 2 - turn), behavior: 'instant'});
    if (now - began < 1000 * seconds) requestAnimationFrame(frame); else done(frames);
  };
  requestAnimationFrame(frame);
})"""


def main() -> int:
    """Make the run, watch it, and print what came out."""
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--rounds", type=int, default=5)
    cli.add_argument("--seconds", type=float, default=30.0)
    cli.add_argument("--steps-per-second", type=float, default=10.0)
    args = cli.parse_args()
    with tempfile.TemporaryDirectory(prefix="luthier-run-page-") as folder, Context.open(Path(folder) / "home") as home:
        key, seen = _make_run(home), {kind: [] for kind in KINDS}
        with running_server(home.home, num_workers=0) as server, sync_playwright() as playwright:
            chromium = launch(playwright)
            cookies = signed_in(chromium, server.url, key)
            with _Training(home, args.steps_per_second):
                for _ in range(args.rounds):
                    open_twice(chromium, f"{server.url}/runs/{RUN_ID}", cookies, seen)
                opened = in_short(seen)
                watched = _watched(chromium, server, cookies, args.seconds)
            version = chromium.version
            chromium.close()
    is_well = (
        is_soon(opened)
        and watched["kb_per_second"] <= KB_PER_SECOND
        and watched["slow_frames_fraction"] <= MOST_SLOW_FRAMES
    )
    document = {"num_steps": NUM_DONE, "steps_per_second": args.steps_per_second, "opened": opened, "watched": watched}
    print(json.dumps(document | {"is_well": is_well, "chromium": version, "machine": describe()}, indent=2))
    return 0 if is_well else 1


def _make_run(home: Context) -> str:
    home.jobs.submit(Job(job_id="job-20261125-093000-aaaaaa", kind="train", document={"recipe": {}}, run_id=RUN_ID))
    home.runs.create(make_record().model_copy(update={"num_steps": NUM_STEPS}), make_plan())
    tell(home, RUN_ID, events_of(1, NUM_DONE, NUM_STEPS))
    home.jobs.claim("benchmark")
    return create_key(home, "benchmark", scopes=("admin",))[1]


class _Training:
    """Goes on with the run at a steady pace, one event at a time as a training does, until the block ends."""

    def __init__(self, home: Context, steps_per_second: float) -> None:
        self._home, self._pause = home, 1 / steps_per_second
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._go_on)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _go_on(self) -> None:
        due = time.perf_counter()
        for event in events_of(NUM_DONE + 1, NUM_STEPS, NUM_STEPS):
            self._home.runs.append(RUN_ID, event)
            if isinstance(event, StepDone):
                self._home.runs.update(RUN_ID, step=event.step)
                due += self._pause
                if self._stop.wait(max(0.0, due - time.perf_counter())):
                    return


def _watched(chromium: Browser, server: RunningServer, cookies: list[Any], seconds: float) -> dict[str, Any]:
    context = chromium.new_context(viewport={"width": 1280, "height": 900})
    context.add_cookies(cookies)
    page = context.new_page()
    page.goto(f"{server.url}/runs/{RUN_ID}", wait_until="load")
    while not (polls := page.evaluate(_POLLS)):
        page.wait_for_timeout(50)
    page.wait_for_timeout(500)
    first = polls[0]
    began = page.evaluate("performance.now()")
    frames: list[float] = page.evaluate(_SCROLL, seconds)
    took = (page.evaluate("performance.now()") - began) / 1000
    later = [one for one in page.evaluate(_POLLS) if one["at"] >= began]
    context.close()
    return {
        "seconds": round(took, 1),
        "first_poll_kib": round(first["bytes"] / 1024, 1),
        "first_poll_ms": round(first["ms"]),
        "num_polls": len(later),
        "kb_per_second": round(sum(one["bytes"] for one in later) / 1000 / took, 2),
        "poll_ms": round(statistics.median(one["ms"] for one in later)) if later else None,
        "frames_per_second": round(len(frames) / took, 1),
        "frame_ms": {
            "median": round(statistics.median(frames), 1),
            "p95": round(statistics.quantiles(frames, n=20)[-1], 1),
            "most": round(max(frames), 1),
        },
        "slow_frames_fraction": round(sum(one > SLOW_FRAME_MS for one in frames) / len(frames), 4),
    }


if __name__ == "__main__":
    sys.exit(main())
