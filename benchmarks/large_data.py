#!/usr/bin/env python3
"""Audit, repair and split of files from 100,000 to 10 million rows: time, peak memory, and working files on disk.

    python benchmarks/large_data.py [--num-rows 100000 1000000 10000000] [--works audit repair split]
                                    [--memory-gib 2] [--scratch DIR] [--threads 2] [--files DIR]

The rows are those of benchmarks/reviews.py. Each work runs in a fresh process with a budget of memory for rows
(`LUTHIER_DATA_MEMORY_BYTES`). Two peaks are shown: of anonymous memory (sampled every 0.2 s), which the kernel cannot
take back and which decides whether a work fits, and of all resident memory, which counts mapped files as well; and the
most that working files took at one time. Prints one JSON document.
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
from typing import Any

from machine import describe, run_json
from reviews import write_reviews

HERE = Path(__file__).resolve()
ROOT = HERE.parents[1]
WORKS = ("audit", "repair", "split")
_PAUSE_SECONDS = 0.2


class Peaks:
    """The most anonymous memory of this process, and the most bytes of files in a folder, while it runs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.anonymous_bytes = self.folder_bytes = 0

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Look at both until the block ends."""
        done = threading.Event()

        def watch() -> None:
            while not done.wait(_PAUSE_SECONDS):
                self.anonymous_bytes = max(self.anonymous_bytes, status_bytes("RssAnon"))
                self.folder_bytes = max(self.folder_bytes, bytes_in(self.folder))

        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()


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


def work_once(work: str, file: Path, scratch: Path) -> dict[str, Any]:
    """One work on a file in this process."""
    from luthier.features.datasets import data_files
    from luthier.platform.home.context import Context

    with tempfile.TemporaryDirectory(dir=scratch) as home:
        context = Context.open(Path(home))
        peaks = Peaks(scratch)
        start = time.perf_counter()
        with peaks.watched():
            if work == "audit":
                done = data_files.audit(context, file, data_files.AuditOptions())
                outcome: dict[str, Any] = {"grade": done.audit.grade, "num_findings": len(done.audit.findings)}
            elif work == "repair":
                document = data_files.repair(context, file, file.with_name("clean.jsonl")).document
                outcome = {"fates": document["fates"], "grade_after": document["grade_after"]}
            else:
                made = data_files.split(context, file, data_files.SplitOptions(folder=file.with_name("split")))
                outcome = {"proof": made.document["proof"]}
        seconds = time.perf_counter() - start
    return {
        "work": work,
        "seconds": round(seconds, 1),
        "peak_anonymous_bytes": peaks.anonymous_bytes,
        "peak_resident_bytes": status_bytes("VmHWM"),
        "peak_scratch_bytes": peaks.folder_bytes,
        **outcome,
    }


def main() -> None:
    """Run all works on all sizes, each in a process of its own."""
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--num-rows", type=int, nargs="+", default=[100_000, 1_000_000, 10_000_000])
    cli.add_argument("--works", nargs="+", choices=WORKS, default=list(WORKS))
    cli.add_argument("--memory-gib", type=float, default=2.0)
    cli.add_argument("--scratch", type=Path, default=Path(tempfile.gettempdir()))
    cli.add_argument("--files", type=Path, help="where rows are written; by default in --scratch")
    cli.add_argument("--threads", type=int, default=2)
    cli.add_argument("--seed", type=int, default=0)
    cli.add_argument("--one", nargs=2, metavar=("WORK", "FILE"), help=argparse.SUPPRESS)
    args = cli.parse_args()
    if args.one is not None:
        print(json.dumps(work_once(args.one[0], Path(args.one[1]), args.scratch)))
        return
    runs = []
    for num_rows in args.num_rows:
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
                    found = run_json(command, cwd=ROOT, environment=environment).document
                run = {"num_rows": num_rows, "num_bytes": file.stat().st_size} | found
                runs.append(run | {"microseconds_per_row": round(1e6 * found["seconds"] / num_rows, 1)})
                print(json.dumps(runs[-1]), file=sys.stderr)
    document = {"machine": describe(), "load": os.getloadavg(), "memory_gib": args.memory_gib, "runs": runs}
    print(json.dumps(document, indent=2))


if __name__ == "__main__":
    main()
