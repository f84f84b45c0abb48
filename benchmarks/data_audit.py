#!/usr/bin/env python3
"""The whole audit of generated reviews: seconds a check, peak memory, and how much of what was planted it finds.

    python benchmarks/data_audit.py [--num-rows 50000 150000 500000] [--model NAME] [--home DIR] [--threads 2]

Each size runs in a fresh process, from the file on disk to the graded audit and its HTML report. Peak memory is that of
the process (VmHWM). Found is compared with the truth of benchmarks/reviews.py: recall is the share of planted rows that
the check of that name lists; rows that it lists beside them are counted apart, since a row may have a fault that nobody
planted (a copy of a row with personal data has personal data, too). Prints one JSON document.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from machine import describe, run_json
from reviews import write_reviews

HERE = Path(__file__).resolve()
ROOT = HERE.parents[1]
PLANTED = (
    "exact_duplicate",
    "near_duplicate",
    "conflicting_completion",
    "personal_data",
    "secret",
    "encoding",
    "refusal",
    "empty_completion",
    "repeated_completion",
    "language",
    "prompt_injection",
    "toxicity",
)


class Stopwatch:
    """A progress that notes how long each stage and each check took, in seconds."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def task(self, title: str, total: float | None, unit: str, done: float = 0) -> Laps:  # noqa: ARG002
        return Laps(self, title)


class Laps:
    """One task; where it is the audit itself, the time since the last note goes to the check noted before."""

    def __init__(self, watch: Stopwatch, title: str) -> None:
        self.watch, self.title, self.running = watch, title, title
        self.start = 0.0

    def note(self, text: str) -> None:
        if self.title == "audit":
            self._lap()
            self.running = text

    def advance(self, amount: float = 1) -> None:
        pass

    def _lap(self) -> None:
        now = time.perf_counter()
        if self.running != "audit":
            self.watch.seconds[self.running] = self.watch.seconds.get(self.running, 0.0) + now - self.start
        self.start = now

    def __enter__(self) -> Self:
        self.start = time.perf_counter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lap()


def audit_once(file: Path, model: str | None, home: Path | None) -> dict[str, Any]:
    """Audit the file in this process; what was found is compared with its truth."""
    from luthier.features.datasets.data_files import AuditOptions, audit
    from luthier.platform.home.context import Context

    watch = Stopwatch()
    context = Context.open(home, progress=watch)
    start = time.perf_counter()
    done = audit(context, file, AuditOptions(model=model), html=file.with_suffix(".html"))
    seconds = time.perf_counter() - start
    truth = json.loads(file.with_suffix(".truth.json").read_text(encoding="utf-8"))
    lines: dict[str, set[int]] = {}
    for finding in done.audit.findings:
        if finding.severity != "info" or finding.check in ("toxicity", "language"):
            lines.setdefault(finding.check, set()).update(finding.lines)
    found = {kind: compare(set(truth[kind]), lines.get(kind, set())) for kind in PLANTED}
    own = {name: round(value, 2) for name, value in watch.seconds.items()}
    return {
        "num_rows": done.audit.num_rows,
        "num_bytes": done.audit.num_bytes,
        "grade": done.audit.grade,
        "seconds": round(seconds, 1),
        "seconds_by_stage": dict(sorted(own.items(), key=lambda item: -item[1])),
        "peak_memory_bytes": peak_memory_bytes(),
        "found": found,
    }


def compare(planted: set[int], found: set[int]) -> dict[str, float | int]:
    """How much of what was planted is listed, and how much is listed beside it."""
    return {
        "num_planted": len(planted),
        "recall": round(len(planted & found) / len(planted), 4) if planted else 1.0,
        "num_beside": len(found - planted),
    }


def peak_memory_bytes() -> int:
    """Largest resident memory of this process so far."""
    from luthier.core.system.process_memory import peak_memory_bytes as peak

    return peak()


def main() -> None:
    """Run all sizes, each in a process of its own."""
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--num-rows", type=int, nargs="+", default=[50_000, 150_000, 500_000])
    cli.add_argument("--model", help="count tokens of this base model, too")
    cli.add_argument("--home", type=Path)
    cli.add_argument("--threads", type=int, default=2)
    cli.add_argument("--seed", type=int, default=0)
    cli.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    args = cli.parse_args()
    if args.one is not None:
        print(json.dumps(audit_once(args.one, args.model, args.home)))
        return
    threads = str(args.threads)
    environment = dict.fromkeys(
        ("OMP_NUM_THREADS", "POLARS_MAX_THREADS", "RAYON_NUM_THREADS", "OPENBLAS_NUM_THREADS"), threads
    ) | {"TOKENIZERS_PARALLELISM": "true"}
    runs = []
    with tempfile.TemporaryDirectory() as folder:
        for num_rows in args.num_rows:
            file = Path(folder) / f"reviews-{num_rows}.jsonl"
            write_reviews(file, num_rows, args.seed)
            command = [sys.executable, str(HERE), "--one", str(file)]
            command += ["--model", args.model] if args.model else []
            command += ["--home", str(args.home)] if args.home else []
            runs.append(run_json(command, cwd=ROOT, environment=environment).document)
            print(json.dumps(runs[-1]), file=sys.stderr)
            file.unlink()
    growth = [
        {
            "num_rows": run["num_rows"],
            "seconds": run["seconds"],
            "microseconds_per_row": round(1e6 * run["seconds"] / run["num_rows"], 1),
        }
        for run in runs
    ]
    print(json.dumps({"machine": describe(), "load": os.getloadavg(), "growth": growth, "runs": runs}, indent=2))


if __name__ == "__main__":
    main()
