#!/usr/bin/env python3
"""The queue under fire: jobs of a tiny model, and at random moments everything dies that can die.

    python benchmarks/fault_drill.py [--database sqlite postgresql] [--jobs 52] [--workers 3] [--seed 0]

Killed with SIGKILL: workers, trainings, the guards between them. Stopped past its lease and let go on: workers. Taken
away and given back: the database server (PostgreSQL; started by the drill itself), the room on the disk (a small file
system of its own, as root). Leases are shortened (`LUTHIER_LEASE_SECONDS`) so that many run out in a short time.

Asked: every job succeeds; its adapter has the bytes, and its events the numbers, of the same recipe trained in peace;
no event lost or told twice; no process and no half-written file left. Prints a table and a JSON document; the exit
code is 1 where anything asked does not hold.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from drill_faults import Faults
from drill_judge import leftovers, orphans, problems_of
from drill_world import World, as_document, ended, small_disk, undisturbed, write_recipes
from machine import describe

from luthier.core.errors import LuthierError
from luthier.core.job import Job
from luthier.core.recipe import Recipe
from luthier.testing.postgresql_server import postgresql_server, programs_folder


def main() -> int:
    """Drill each kind of database in turn."""
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--database", nargs="+", choices=["sqlite", "postgresql"], default=["sqlite", "postgresql"])
    cli.add_argument("--jobs", type=int, default=52)
    cli.add_argument("--recipes", type=int, default=4)
    cli.add_argument("--workers", type=int, default=3)
    cli.add_argument("--seed", type=int, default=0)
    cli.add_argument("--lease", type=float, default=20.0, help="seconds")
    cli.add_argument("--pause", type=float, nargs=2, default=(1.0, 5.0), help="seconds between two faults")
    cli.add_argument("--minutes", type=float, default=45.0, help="for one database; what has not ended then has failed")
    cli.add_argument("--work", type=Path, default=None, help="a folder that stays; else one that goes when all is well")
    args = cli.parse_args()
    work = (args.work or Path(tempfile.mkdtemp(prefix="luthier-drill-"))).absolute()
    work.mkdir(parents=True, exist_ok=True)
    recipes = write_recipes(work, args.recipes)
    calm = _world(work / "calm", args, None)
    calm_jobs = undisturbed(calm, recipes)
    drills = [_drill(kind, work / kind, args, recipes, calm, calm_jobs) for kind in args.database]
    is_well = all(drill.get("is_well", True) for drill in drills)
    for drill in drills:
        _show(drill)
    print(json.dumps({"benchmark": "fault_drill", "drills": drills, "machine": describe()}, indent=2))
    if is_well and args.work is None:
        shutil.rmtree(work, ignore_errors=True)
    return 0 if is_well else 1


def _world(folder: Path, args: argparse.Namespace, server: Any) -> World:
    (folder / "logs").mkdir(parents=True, exist_ok=True)
    database = None if server is None else server.new_database()
    return World(
        folder / "disk" / "home",
        folder / "logs",
        random.Random(args.seed),
        args.lease,
        database=database,
        server=server,
    )


def _drill(
    kind: str, folder: Path, args: argparse.Namespace, recipes: list[Recipe], calm: World, calm_jobs: dict[int, Job]
) -> dict[str, Any]:
    with ExitStack() as stack:
        skipped = {}
        server = None
        if kind == "sqlite":
            skipped["database restart"] = "SQLite has no server"
        elif (programs := programs_folder()) is None:
            return {
                "database": kind,
                "skipped": "no PostgreSQL server is installed (Debian: apt-get install postgresql)",
            }
        else:
            server = stack.enter_context(postgresql_server(programs))
        if (reason := stack.enter_context(small_disk(folder / "disk", "256m"))) is not None:
            skipped["disk full"] = reason
        world = _world(folder, args, server)
        began = time.monotonic()
        try:
            return _under_fire(world, args, recipes, skipped, calm, calm_jobs) | {
                "database": kind, "seconds": round(time.monotonic() - began), "skipped_faults": skipped,
            }  # fmt: skip
        finally:
            world.stop_workers()


def _under_fire(
    world: World, args: argparse.Namespace, recipes: list[Recipe], skipped: dict[str, str], calm: World,
    calm_jobs: dict[int, Job],
) -> dict[str, Any]:  # fmt: skip
    asked = world.submit(recipes, args.jobs)
    names = [f"w{number}" for number in range(1, args.workers + 1)]
    give_up_at = time.monotonic() + args.minutes * 60
    with world.context() as context:
        faults = Faults(world, context, skipped)
        next_at = time.monotonic() + 5
        found: list[Job] = []
        while time.monotonic() < give_up_at:
            world.keep_workers(names)
            faults.undo()
            try:
                found = context.jobs.list()
            except LuthierError:
                continue
            if ended(found):
                break
            if time.monotonic() >= next_at:
                faults.one()
                next_at = time.monotonic() + world.draw.uniform(*args.pause)
            time.sleep(0.1)
        faults.undo(all_of_it=True)
        codes = world.stop_workers()
        problems = {}
        with calm.context() as calm_context:
            for job in found:
                wrong = problems_of(context, job, calm_context, calm_jobs[asked[job.job_id]])
                if wrong:
                    problems[job.job_id] = wrong
        attempts = sum(job.attempt for job in found)
    left, living = leftovers(world), orphans(world)
    return {
        "is_well": not problems and not left and not living and not any(codes),
        "seed": args.seed,
        "num_jobs": len(found),
        "num_succeeded": sum(job.status == "succeeded" for job in found),
        "num_as_undisturbed": len(found) - len(problems),
        "num_attempts": attempts,
        "num_worker_starts": world.num_starts,
        "exit_codes_of_workers": codes,
        "faults": dict(faults.counts),
        "problems": problems,
        "orphans": living,
        "partial_files": left,
        "jobs": [as_document(job) for job in found if job.job_id in problems],
        "told": faults.told,
    }


def _show(drill: dict[str, Any]) -> None:
    print(f"\n{drill['database']}")
    if "skipped" in drill:
        print(f"  skipped: {drill['skipped']}")
        return
    rows = [
        ("jobs", f"{drill['num_jobs']}, of which as if undisturbed {drill['num_as_undisturbed']}"),
        ("attempts", drill["num_attempts"]),
        *((fault, times) for fault, times in drill["faults"].items()),
        *((fault, f"skipped: {reason}") for fault, reason in drill["skipped_faults"].items()),
        ("orphans", len(drill["orphans"])),
        ("partial files", len(drill["partial_files"])),
        ("seconds", drill["seconds"]),
    ]
    for name, value in rows:
        print(f"  {name:32} {value}")


if __name__ == "__main__":
    sys.exit(main())
