#!/usr/bin/env python3
"""Audit, repair, split and plan of files from 100,000 to 10 million rows: time, peak memory, and files on disk.

    python benchmarks/large_data.py [--rows 100000 1000000 10000000] [--works audit repair split plan]
                                    [--memory-gib 2] [--scratch DIR] [--threads 2] [--files DIR] [--on ray]

The rows are those of benchmarks/reviews.py; `plan` reads and tokenises what `repair` has left of them, for a tiny
model, and makes the order of an epoch and the rows of 100 steps. Each work runs in a fresh process with a budget of
memory for rows (`LUTHIER_DATA_MEMORY_BYTES`). Two peaks are shown: of anonymous memory (sampled every 0.2 s), which the
kernel cannot take back and which decides whether a work fits, and of all resident memory, which counts mapped files as
well; and the most that working files took at one time. Each stage of a work has its seconds and the peak of anonymous
memory while it ran. Audit, repair and split use worker processes (`LUTHIER_DATA_WORKERS=1`: none); with `--on ray`
they share the work on a cluster. The memory of workers is not counted. `growth` compares microseconds a row with those
of the fewest rows: 1 is linear. Prints one JSON document.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from machine import describe, run_json
from reviews import write_reviews

if TYPE_CHECKING:
    from luthier.platform.home.context import Context

HERE = Path(__file__).resolve()
ROOT = HERE.parents[1]
WORKS = ("audit", "repair", "split", "plan")
_PAUSE_SECONDS = 0.2
_NUM_STEPS = 100


class Stages:
    """A progress that notes the seconds and the peak of anonymous memory of each stage, and of files in a folder.

    Time belongs to the innermost task that is under way; of the audit to the check that it has noted.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.seconds: dict[str, float] = {}
        self.peaks: dict[str, int] = {}
        self.folder_bytes = 0
        self._running = ["other"]
        self._since = time.perf_counter()

    def task(self, title: str, total: float | None, unit: str, done: float = 0) -> Stage:  # noqa: ARG002
        return Stage(self, title)

    def enter(self, name: str) -> None:
        """Another stage begins inside the one that is under way."""
        self._lap()
        self._running.append(name)

    def leave(self) -> None:
        """The innermost stage ends."""
        self._lap()
        self._running.pop()

    def _lap(self) -> None:
        now = time.perf_counter()
        name = self._running[-1]
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self._since
        self._since = now
        self._look()

    def _look(self) -> None:
        name = self._running[-1]
        self.peaks[name] = max(self.peaks.get(name, 0), status_bytes("RssAnon"))

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Look at memory and files until the block ends."""
        done = threading.Event()

        def watch() -> None:
            while not done.wait(_PAUSE_SECONDS):
                self._look()
                self.folder_bytes = max(self.folder_bytes, bytes_in(self.folder))

        thread = threading.Thread(target=watch, daemon=True)
        self._since = time.perf_counter()
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()
            self._lap()

    def as_json(self) -> dict[str, dict[str, float]]:
        """Seconds and peak of each stage, the longest first."""
        order = sorted(self.seconds, key=lambda name: -self.seconds[name])
        return {
            name: {"seconds": round(self.seconds[name], 1), "peak_anonymous_bytes": self.peaks.get(name, 0)}
            for name in order
        }


class Stage:
    """One task."""

    def __init__(self, stages: Stages, title: str) -> None:
        self.stages, self.title = stages, title

    def note(self, text: str) -> None:
        if self.title == "audit":
            self.stages.leave()
            self.stages.enter(text)

    def advance(self, amount: float = 1) -> None:
        pass

    def __enter__(self) -> Self:
        self.stages.enter(self.title)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stages.leave()


def status_bytes(name: str) -> int:
    """One figure of /proc/self/status, in bytes."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {name}")


def bytes_in(folder: Path) -> int:
    """The bytes of all files in a folder; those that go meanwhile do not count."""
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except FileNotFoundError:
            continue
    return total


def work_once(work: str, file: Path, scratch: Path, on: str | None) -> dict[str, Any]:
    """One work on a file in this process."""
    from luthier.features.datasets import data_files
    from luthier.platform.home.context import Context

    clean = file.with_name("clean.jsonl")
    with tempfile.TemporaryDirectory(dir=scratch) as home:
        stages = Stages(scratch)
        context = Context.open(Path(home), progress=stages)
        start = time.perf_counter()
        with stages.watched():
            if work == "audit":
                done = data_files.audit(context, file, data_files.AuditOptions(on=on))
                outcome: dict[str, Any] = {"grade": done.audit.grade, "num_findings": len(done.audit.findings)}
            elif work == "repair":
                document = data_files.repair(context, file, clean, data_files.RepairOptions(on=on)).document
                outcome = {"fates": document["fates"], "grade_after": document["grade_after"]}
            elif work == "split":
                options = data_files.SplitOptions(folder=file.with_name("split"), on=on)
                made = data_files.split(context, file, options)
                outcome = {"proof": made.document["proof"]}
            else:
                outcome = planned(context, clean, stages)
        seconds = time.perf_counter() - start
    return {
        "work": work,
        "seconds": round(seconds, 1),
        "peak_anonymous_bytes": max(stages.peaks.values()),
        "peak_resident_bytes": status_bytes("VmHWM"),
        "peak_scratch_bytes": stages.folder_bytes,
        "stages": stages.as_json(),
        **outcome,
    }


def planned(context: Context, file: Path, stages: Stages) -> dict[str, Any]:
    """Read and tokenise the rows as a training does, plan it, and make the rows of its first steps."""
    from luthier.features.planning import batch_schedules
    from luthier.features.planning.service import prepare
    from luthier.features.recipes.service import recipe_from
    from luthier.testing.tiny import make_tiny_model

    document = {
        "base_model": str(make_tiny_model(context.home / "tiny")),
        "data": {"train": str(file)},
        "method": {"name": "lora", "rank": 4},
        "training": {"max_steps": _NUM_STEPS, "global_batch_size": 16, "precision": "float32", "num_threads": 1},
    }
    prepared = prepare(context, recipe_from(document, base_dir=file.parent), base_dir=file.parent)
    with stages.task("order of the rows", None, "step"):
        schedule = batch_schedules.of_training(prepared, shares_prefix=True)
        schedule.step(0)
    with stages.task("rows of steps", _NUM_STEPS, "step"):
        drawn = [prepared.trained_units[i] for n in range(_NUM_STEPS) for batch in schedule.step(n) for i in batch]
    profile = prepared.plan.data.train
    return {
        "num_examples": profile.num_examples,
        "num_tokens": profile.num_tokens,
        "num_drawn_tokens": sum(row.num_tokens for unit in drawn for row in unit),
        "plan_hash": prepared.plan.hash,
    }


def growth_of(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of each work and size the microseconds a row, as a multiple of those of the fewest rows."""
    least: dict[str, float] = {}
    found = []
    for run in sorted(runs, key=lambda run: run["num_rows"]):
        microseconds = 1e6 * run["seconds"] / run["num_rows"]
        times = microseconds / least.setdefault(run["work"], microseconds)
        found.append({name: run[name] for name in ("work", "num_rows", "seconds", "peak_anonymous_bytes")})
        found[-1] |= {"microseconds_per_row": round(microseconds, 1), "times_the_fewest": round(times, 2)}
    return found


def main() -> None:
    """Run all works on all sizes, each in a process of its own."""
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--rows", "--num-rows", type=int, nargs="+", default=[100_000, 1_000_000, 10_000_000])
    cli.add_argument("--works", nargs="+", choices=WORKS, default=list(WORKS))
    cli.add_argument("--memory-gib", type=float, default=2.0)
    cli.add_argument("--scratch", type=Path, default=Path(tempfile.gettempdir()))
    cli.add_argument("--files", type=Path, help="where rows are written; by default in --scratch")
    cli.add_argument("--threads", type=int, default=2)
    cli.add_argument("--on", choices=("ray",), help="share the work on a cluster")
    cli.add_argument("--seed", type=int, default=0)
    cli.add_argument("--one", nargs=2, metavar=("WORK", "FILE"), help=argparse.SUPPRESS)
    args = cli.parse_args()
    if args.one is not None:
        print(json.dumps(work_once(args.one[0], Path(args.one[1]), args.scratch, args.on)))
        return
    if "plan" in args.works and "repair" not in args.works:
        cli.error("plan trains on the rows that repair has left: name repair among --works, too")
    runs = []
    for num_rows in args.rows:
        with tempfile.TemporaryDirectory(dir=args.files or args.scratch) as folder:
            file = Path(folder) / "reviews.jsonl"
            write_reviews(file, num_rows, args.seed)
            for work in args.works:
                with tempfile.TemporaryDirectory(dir=args.scratch) as scratch:
                    environment = dict.fromkeys(
                        ("OMP_NUM_THREADS", "POLARS_MAX_THREADS", "RAYON_NUM_THREADS"), str(args.threads)
                    ) | {
                        "LUTHIER_DATA_MEMORY_BYTES": str(int(args.memory_gib * 2**30)),
                        "LUTHIER_SCRATCH": scratch,
                    }
                    command = [sys.executable, str(HERE), "--scratch", scratch, "--one", work, str(file)]
                    command += ["--on", args.on] if args.on else []
                    found = run_json(command, cwd=ROOT, environment=environment).document
                run = {"num_rows": num_rows, "num_bytes": file.stat().st_size} | found
                runs.append(run)
                print(json.dumps(runs[-1]), file=sys.stderr)
    document = {"machine": describe(), "load": os.getloadavg(), "memory_gib": args.memory_gib, "on": args.on}
    print(json.dumps(document | {"growth": growth_of(runs), "runs": runs}, indent=2))


if __name__ == "__main__":
    main()
