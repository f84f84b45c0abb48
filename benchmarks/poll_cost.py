#!/usr/bin/env python3
"""What one poll costs the process that answers it, in milliseconds of processor time, route by route.

    python benchmarks/poll_cost.py [--requests 1000] [--rounds 3]

`luthier up` without a worker, and a job that looks as if it were being trained: it has a run, a bill and 60 steps told.
One client over one connection that is kept, one request after the other. Processor time is that of the process, so a
busy machine moves it less than it moves seconds. Each request once after nothing has changed, and once after a step was
told of the job, in the commits of a real training: an answer that was kept is then no longer right. Prints JSON.
"""

from __future__ import annotations

import argparse
import json
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
from load import api_process, post_rows, start_job
from machine import describe
from sqlalchemy import update

from luthier.core.events import BillUpdated
from luthier.features.finetuning_api.job import carry_out
from luthier.features.models.service import pull_model
from luthier.platform.auth.service import create_key
from luthier.platform.db.tables import jobs, runs
from luthier.platform.home.context import Context
from luthier.testing.servers import RunningServer, running_server
from luthier.testing.tiny import make_tiny_model

HOUR = 3600.0


def main() -> int:
    """Start the server, make the job, and ask."""
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--requests", type=int, default=1000, help="of one route in one round")
    cli.add_argument("--rounds", type=int, default=3)
    args = cli.parse_args()
    with tempfile.TemporaryDirectory(prefix="luthier-poll-") as folder:
        home = Path(folder) / "home"
        model = make_tiny_model(Path(folder) / "small")
        with Context.open(home) as context:
            pull_model(context, str(model))
            key = create_key(context, "load", scopes=("admin",))[1]
            with running_server(home, num_workers=0) as server:
                job = _job_in_training(context, server.url, key)
                found = {
                    "nothing_has_changed": _measured(server, key, job, args, None),
                    "a_step_was_told": _measured(server, key, job, args, Teller(context, job).tell),
                }
    print(json.dumps({"benchmark": "poll_cost", **found, "machine": describe()}, indent=2))
    return 0


def _job_in_training(context: Context, url: str, key: str) -> str:
    """A job that has been trained, set back to where it still was."""
    job = start_job(url, key, post_rows(url, key, 20), num_epochs=3)
    for lane in ("validate", "train"):
        held = context.jobs.claim("bench", (lane,))
        assert held is not None
        outcome = carry_out(context, held)
        if lane == "validate":
            context.jobs.advance(job, held.attempt, outcome.found)
    with context.database.write() as connection:
        as_running = {"status": "running", "lease_until": time.time() + HOUR}
        connection.execute(update(jobs).where(jobs.c.job_id == job).values(**as_running))
        connection.execute(update(runs).values(num_steps=1_000_000, status="running"))
    return job


class Teller:
    """Tells one step after another of the job, as a training does."""

    def __init__(self, context: Context, job: str) -> None:
        self._context, self._job, self._step = context, job, 1000
        self._run_id = context.jobs.get(job).run_id
        bill = context.runs.last(self._run_id, "bill")
        assert isinstance(bill, BillUpdated)
        self._bill, self._data = bill, context.job_events.page(job, limit=30)[0][-1].data

    def tell(self) -> None:
        """A step, with its commits."""
        self._step += 1
        message = f"Step {self._step}/1000000: training loss=1.00"
        self._context.job_events.append(self._job, f"step-{self._step}", message, data=self._data)
        self._context.runs.append(self._run_id, self._bill.model_copy(update={"step": self._step}))
        self._context.runs.update(self._run_id, step=self._step)


def _measured(
    server: RunningServer, key: str, job: str, args: argparse.Namespace, before_each: Callable[[], None] | None
) -> dict[str, Any]:
    base = "/v1/fine_tuning/jobs"
    routes = {"job": f"{base}/{job}", "events": f"{base}/{job}/events?limit=20", "list": f"{base}?limit=20"}
    process = api_process(server)
    taken: dict[str, list[float]] = {name: [] for name in routes}
    for number in range(-1, args.rounds):  # the first one warms up
        for name, path in routes.items():
            num_requests = args.requests if number >= 0 else 50
            one = _cost_ms(process, server.url, key, path, num_requests, before_each)
            if number >= 0:
                taken[name].append(one)
    return {
        "cpu_ms_per_request": {name: round(statistics.median(those), 3) for name, those in taken.items()},
        "rounds": {name: [round(one, 3) for one in those] for name, those in taken.items()},
    }


def _cost_ms(
    process: psutil.Process,
    url: str,
    key: str,
    path: str,
    num_requests: int,
    before_each: Callable[[], None] | None,
) -> float:
    place = urlsplit(url)
    asked = f"GET {path} HTTP/1.1\r\nHost: {place.netloc}\r\nAuthorization: Bearer {key}\r\n\r\n".encode()
    with socket.create_connection((place.hostname, place.port)) as connection:
        before = _cpu(process)
        for _ in range(num_requests):
            if before_each is not None:
                before_each()
            connection.sendall(asked)
            _read_answer(connection)
        return (_cpu(process) - before) / num_requests * 1000


def _read_answer(connection: socket.socket) -> None:
    given = connection.recv(65536)
    while b"\r\n\r\n" not in given:
        given += connection.recv(65536)
    head, _, body = given.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200"), head
    missing = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0]) - len(body)
    while missing > 0:
        missing -= len(connection.recv(65536))


def _cpu(process: psutil.Process) -> float:
    used = process.cpu_times()
    return float(used.user + used.system)


if __name__ == "__main__":
    sys.exit(main())
