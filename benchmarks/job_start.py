#!/usr/bin/env python3
"""How long a job takes to begin: from its place in the queue to its own first answer, with a fork server and without.

A job whose base model does not exist ends with its first answer: queue, guard, libraries and the home are all that it
takes. `python benchmarks/job_start.py [--servers 3]` starts servers by turns, with and without a fork server. Each gets
one job the moment that it answers, and then, once that has ended and the server is at rest, some more.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import psutil
from machine import describe

from luthier.core.recipe import Recipe
from luthier.features.training import jobs
from luthier.platform.home.context import Context
from luthier.testing.servers import running_server, wait_for

_REST_SECONDS = 15.0
_NUM_LATER = 4


def job_seconds(context: Context, folder: Path) -> float:
    """Queue a job that ends with its first answer; returns its time from the queue to its end."""
    recipe = Recipe.model_validate({"base_model": "no/such-model", "data": {"train": "rows.jsonl"}})
    (folder / "rows.jsonl").write_text('{"messages": []}\n', encoding="utf-8")
    job_id = jobs.submit(context, recipe, base_dir=folder).job_id
    wait_for(lambda: context.jobs.get(job_id).finished_at is not None)
    job = context.jobs.get(job_id)
    assert job.status == "failed", job
    assert job.finished_at is not None
    return job.finished_at - job.created_at


def memory_bytes(server_pid: int) -> dict[str, int]:
    """Of the fork server of a running server; empty where there is none."""
    for process in psutil.Process(server_pid).children(recursive=True):
        if "luthier.core.child_process.fork_server" in process.cmdline():
            memory = process.memory_full_info()
            return {"resident_bytes": memory.rss, "proportional_bytes": memory.pss, "own_bytes": memory.uss}
    return {}


def measured(is_forking: bool) -> dict[str, object]:
    """One server: its first job, later ones, and the memory of its fork server at rest."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        environment = {"LUTHIER_FORK_SERVER": str(int(is_forking))}
        home = folder / "home"
        with running_server(home, environment=environment) as server, Context.open(home) as context:
            first = job_seconds(context, folder)
            time.sleep(_REST_SECONDS)
            memory = memory_bytes(server.process.pid)
            later = [job_seconds(context, folder) for _ in range(_NUM_LATER)]
    return {"first_seconds": first, "later_seconds": later, "memory": memory}


def main() -> None:
    """Measure by turns, and print medians."""
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--servers", type=int, default=3)
    args = cli.parse_args()
    found = {name: list[dict[str, object]]() for name in ("forked", "executed")}
    for _ in range(args.servers):
        for name in found:
            found[name].append(measured(name == "forked"))
    medians = {
        name: {
            "first_seconds": statistics.median(one["first_seconds"] for one in each),  # type: ignore[type-var]
            "later_seconds": statistics.median(second for one in each for second in one["later_seconds"]),  # type: ignore[attr-defined]
        }
        for name, each in found.items()
    }
    print(json.dumps({"benchmark": "job_start", "medians": medians, "runs": found, "machine": describe()}, indent=2))


if __name__ == "__main__":
    main()
