#!/usr/bin/env python3
"""The queue under fire: jobs of a tiny model, and at random moments everything dies that can die.

    python benchmarks/fault_drill.py [--database sqlite postgresql] [--jobs 52] [--workers 3] [--seed 0]

Most jobs are recipes in the queue; a quarter comes through the API while it is being killed, too. Killed with SIGKILL:
workers, trainings, the guards between them, the process of the API, `luthier up` itself. Stopped past its lease and let
continue: workers. Taken away and given back: the database server (PostgreSQL; started by the drill itself), the room on
the disk (a small file system of its own, as root). Leases are shortened (`LUTHIER_LEASE_SECONDS`) so that many run out
in a short time.

Asked: every job succeeds; its adapter, checkpoints and result file have the bytes, and its events the numbers, of the
same recipe trained in peace; no event lost or told twice, no job made twice; no process and no half-written file left.
Prints a table and a JSON document; the exit code is 1 where anything asked does not hold.
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

from drill_api import Api, submit_in_peace
from drill_faults import Faults
from drill_judge import leftovers, orphans, problems_of
from drill_world import World, as_document, ended, small_disk, undisturbed, write_recipes
from machine import describe

from luthier.core.errors import LuthierError
from luthier.core.recipe import Recipe
from luthier.platform.jobs.records import Job
from luthier.testing.servers import PostgresqlServer, postgresql_server, programs_folder

Calm = dict[tuple[str, int], Job]


def main() -> int:
    """Drill each kind of database in turn."""
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--database", nargs="+", choices=["sqlite", "postgresql"], default=["sqlite", "postgresql"])
    cli.add_argument("--jobs", type=int, default=52)
    cli.add_argument("--recipes", type=int, default=4)
    cli.add_argument("--requests", type=int, default=2, help="different jobs of the API; 0: none of them")
    cli.add_argument("--workers", type=int, default=3)
    cli.add_argument("--seed", type=int, default=0)
    cli.add_argument("--lease", type=float, default=20.0, help="seconds")
    cli.add_argument("--pause", type=float, nargs=2, default=(1.0, 5.0), help="seconds between two faults")
    cli.add_argument("--handed-in", type=float, nargs=2, default=(2.0, 12.0), help="seconds between jobs of the API")
    cli.add_argument("--minutes", type=float, default=45.0, help="for one database; what has not ended then has failed")
    cli.add_argument("--work", type=Path, default=None, help="a folder that stays; else one that goes when all is well")
    args = cli.parse_args()
    work = (args.work or Path(tempfile.mkdtemp(prefix="luthier-drill-"))).absolute()
    work.mkdir(parents=True, exist_ok=True)
    recipes = write_recipes(work, args.recipes)
    calm = _world(work / "calm", args, None)
    calm_jobs = undisturbed(calm, recipes, lambda context: submit_in_peace(context, work, args.requests))
    drills = [_drill(kind, work, args, recipes, calm, calm_jobs) for kind in args.database]
    is_well = all(drill.get("is_well", True) for drill in drills)
    for drill in drills:
        _show(drill)
    print(json.dumps({"benchmark": "fault_drill", "drills": drills, "machine": describe()}, indent=2))
    if is_well and args.work is None:
        shutil.rmtree(work, ignore_errors=True)
    return 0 if is_well else 1


def _world(folder: Path, args: argparse.Namespace, server: PostgresqlServer | None) -> World:
    (folder / "logs").mkdir(parents=True, exist_ok=True)
    database = None if server is None else server.new_database()
    home, draw = folder / "disk" / "home", random.Random(args.seed)
    return World(home, folder / "logs", draw, args.lease, database=database, server=server)


def _drill(
    kind: str, work: Path, args: argparse.Namespace, recipes: list[Recipe], calm: World, calm_jobs: Calm
) -> dict[str, Any]:
    """One database under fire, on a disk of its own where there may be one."""
    skipped = {}
    with ExitStack() as stack:
        server = None
        if kind == "sqlite":
            skipped["database restart"] = "SQLite has no server"
        elif (programs := programs_folder()) is None:
            missing = "no PostgreSQL server is installed (Debian: apt-get install postgresql)"
            return {"database": kind, "skipped": missing}
        else:
            server = stack.enter_context(postgresql_server(programs))
        if (reason := stack.enter_context(small_disk(work / kind / "disk", "384m"))) is not None:
            skipped["disk full"] = reason
        if not args.requests:
            skipped |= dict.fromkeys(("kill -9 API", "kill -9 luthier up"), "no jobs of the API")
        world = _world(work / kind, args, server)
        api, began = Api(world), time.monotonic()
        try:
            seen = _under_fire(world, api, work, args, recipes, skipped, calm, calm_jobs)
        finally:
            world.stop_workers()
            api.stop()
    return seen | {"database": kind, "seconds": round(time.monotonic() - began), "skipped_faults": skipped}


def _under_fire(
    world: World, api: Api, rows: Path, args: argparse.Namespace, recipes: list[Recipe], skipped: dict[str, str],
    calm: World, calm_jobs: Calm,
) -> dict[str, Any]:  # fmt: skip
    num_requests = args.jobs // 4 if args.requests else 0
    asked = {job_id: ("recipe", n) for job_id, n in world.submit(recipes, args.jobs - num_requests).items()}
    if num_requests:
        api.prepare(rows)
        pauses = [world.draw.uniform(*args.handed_in) for _ in range(num_requests)]
        api.submit(rows, [number % args.requests for number in range(num_requests)], pauses)
    found, faults = _until_ended(world, api, args, skipped)
    codes = [*world.stop_workers(), api.stop()]
    asked |= {job_id: ("request", seed) for job_id, seed in api.submitted.items()}
    problems = {} if api.error is None else {"client": [api.error]}
    with world.context() as context, calm.context() as calm_context:
        for job in found:
            if (kind := asked.get(job.job_id)) is None:
                problems[job.job_id] = ["nobody has asked for it: it was made twice"]
            elif wrong := problems_of(context, job, calm_context, calm_jobs[kind]):
                problems[job.job_id] = wrong
    problems |= {job_id: ["it is lost"] for job_id in set(asked) - {job.job_id for job in found}}
    left, living = leftovers(world), orphans(world)
    return {
        "is_well": len(found) == args.jobs and not problems and not left and not living and not any(codes),
        "seed": args.seed,
        "num_jobs": len(found),
        "num_succeeded": sum(job.status == "succeeded" for job in found),
        "num_as_undisturbed": sum(job.job_id not in problems for job in found),
        "num_attempts": sum(job.attempt for job in found),
        "num_starts": {"workers": world.num_starts, "luthier up": api.num_starts},
        "num_requests_sent_again": api.num_retries,
        "exit_codes": codes,
        "faults": dict(faults.counts),
        "problems": problems,
        "orphans": living,
        "partial_files": left,
        "jobs": [as_document(job) for job in found if job.job_id in problems],
        "told": faults.told,
    }


def _until_ended(world: World, api: Api, args: argparse.Namespace, skipped: dict[str, str]) -> tuple[list[Job], Faults]:
    """Keep everything running, and deal one fault after another, until all jobs have ended or the time is over."""
    names = [f"w{number}" for number in range(1, args.workers + 1)]
    give_up_at = time.monotonic() + args.minutes * 60
    found: list[Job] = []
    with world.context() as context:
        faults = Faults(world, context, skipped, lambda: api.is_submitting)
        next_at = time.monotonic() + 5
        while time.monotonic() < give_up_at:
            world.keep_workers(names)
            if args.requests:
                api.keep()
            faults.undo()
            try:
                found = context.jobs.list()
            except LuthierError:
                continue
            if ended(found) and not api.is_submitting:
                break
            if time.monotonic() >= next_at:
                faults.one()
                next_at = time.monotonic() + world.draw.uniform(*args.pause)
            time.sleep(0.1)
        faults.undo(all_of_it=True)
    return found, faults


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
