#!/usr/bin/env python3
"""Many clients that poll a job and its events while it trains: errors, latency, and what it costs the training.

    python benchmarks/load.py [--clients 200] [--paces 0.2 1] [--seconds 20] [--pairs 4]

`luthier up` on the loopback with one worker, which trains one long job of a small model on all cores but for what the
plan leaves to others; 200 clients in a process of their own ask in turn for the job and for its events. Windows with
and without them alternate within the same training (with, without; without, with; ...), so that a machine that drifts
does not decide. Asked: no error, the 99th percentile below 200 ms on 2 cores, less than 5% fewer steps a second. Prints
JSON.

paces: requests a second of each client. 0.2 is the headline: where the openai package polls this API of itself, it
waits five seconds (`files.wait_for_processing(poll_interval=5.0)`, its only helper for what a fine-tuning server has;
for jobs it leaves the loop to its user). 1 is five times that, and the default of its helpers for vector stores.

The clients run on the same two cores: nothing is subtracted for them, what they cost is told beside (`client_...`).
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

import psutil
from machine import describe
from sqlalchemy import select

from luthier.features.models.service import pull_model
from luthier.platform.auth.service import create_key
from luthier.platform.db.tables import job_events
from luthier.platform.home.context import Context
from luthier.testing.servers import RunningServer, running_server
from luthier.testing.tiny import make_tiny_model

NUM_ROWS, NUM_EPOCHS = 100, 50
CLIENTS = Path(__file__).with_name("load_clients.py")


def main() -> int:
    """Start the server and a training, then measure in pairs of windows."""
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--clients", type=int, default=200)
    cli.add_argument("--paces", type=float, nargs="+", default=[0.2, 1.0], help="requests a second of each client")
    cli.add_argument("--seconds", type=float, default=20.0, help="of one window")
    cli.add_argument("--pairs", type=int, default=4)
    cli.add_argument("--hidden", type=int, default=256, help="width of the model that is trained")
    cli.add_argument("--layers", type=int, default=6)
    args = cli.parse_args()
    with tempfile.TemporaryDirectory(prefix="luthier-load-") as folder:
        home = Path(folder) / "home"
        model = make_tiny_model(Path(folder) / "small", hidden=args.hidden, layers=args.layers)
        with Context.open(home) as context:
            pull_model(context, str(model))
            key = create_key(context, "load", scopes=("admin",))[1]
            with running_server(home, num_workers=1) as server:
                document = _measure(context, server, key, args)
    print(json.dumps(document | {"machine": describe()}, indent=2))
    return 0 if document["is_well"] else 1


def _measure(context: Context, server: RunningServer, key: str, args: argparse.Namespace) -> dict[str, Any]:
    job = start_job(server.url, key, post_rows(server.url, key, NUM_ROWS), num_epochs=NUM_EPOCHS)
    _wait_for_steps(context, job, context.jobs.get(job).run_id)
    found = [_at_pace(context, server, key, job, pace, args) for pace in args.paces]
    status = context.jobs.get(job).status
    context.jobs.ask(job, "cancel")
    return {
        "benchmark": "load",
        "clients": args.clients,
        "is_well": found[0]["is_well"] and status == "running",
        "job_at_the_end": status,
        "found": found,
    }


def _at_pace(
    context: Context, server: RunningServer, key: str, job: str, pace: float, args: argparse.Namespace
) -> dict[str, Any]:
    pairs, seen, api = [], [], api_process(server)
    for number in range(args.pairs):
        rates: dict[bool, float] = {}
        for is_loaded in (True, False) if number % 2 == 0 else (False, True):
            began, clock, cpu = context.access.now(), time.monotonic(), _cpu_seconds(api)
            if is_loaded:
                seen.append(_clients(server.url, key, job, pace, args))
            else:
                time.sleep(args.seconds)
            cpu, seconds = _cpu_seconds(api) - cpu, time.monotonic() - clock
            if is_loaded:
                seen[-1]["api_cpu_share"] = round(cpu / seconds, 4)
                seen[-1]["api_cpu_ms_per_request"] = round(cpu / seen[-1]["requests"] * 1000, 3)
            rates[is_loaded] = _steps_per_second(context, job, began, context.access.now())
        pairs.append({"steps_per_second": [round(rates[False], 2), round(rates[True], 2)],
                      "slower": round(1 - rates[True] / rates[False], 4)})  # fmt: skip
    slower = statistics.median(pair["slower"] for pair in pairs)
    errors, p99 = sum(one["errors"] for one in seen), max(one["p99_ms"] for one in seen)
    medians = ("p50_ms", "requests_per_second", "api_cpu_share", "api_cpu_ms_per_request", "client_cpu_share",
               "client_cpu_ms_per_request")  # fmt: skip
    return {
        "pace": pace,
        "is_well": errors == 0 and p99 < 200 and slower < 0.05,
        "errors": errors,
        "worst_p99_ms": p99,
        "training_slower": slower,
        **{name: statistics.median(one[name] for one in seen) for name in medians},
        "pairs": pairs,
        "windows": seen,
    }


def _steps_per_second(context: Context, job: str, began: float, ended: float) -> float:
    """By the times at which the steps of a window were told, from the first of them to the last."""
    query = select(job_events.c.created_at).where(
        job_events.c.job_id == job, job_events.c.code.startswith("step-"), job_events.c.created_at.between(began, ended)
    )
    with context.database.read() as connection:
        times = connection.execute(query.order_by(job_events.c.number)).scalars().all()
    return (len(times) - 1) / (times[-1] - times[0])


def post_rows(url: str, key: str, num_rows: int) -> str:
    """Upload a file of so many rows; returns its id."""
    row = {"messages": [{"role": "user", "content": "a b c " * 20}, {"role": "assistant", "content": "d e f " * 20}]}
    content = (json.dumps(row) + "\n") * num_rows
    edge = "luthier-load"
    body = (
        f'--{edge}\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nfine-tune\r\n--{edge}\r\n'
        f'Content-Disposition: form-data; name="file"; filename="rows.jsonl"\r\n\r\n{content}\r\n--{edge}--\r\n'
    )
    file = _post(f"{url}/v1/files", key, body.encode(), f"multipart/form-data; boundary={edge}")
    return str(file["id"])


def start_job(url: str, key: str, file_id: str, *, num_epochs: int) -> str:
    """Have the model `small` trained on a file, a row a step; returns the id of the job."""
    asked = {
        "model": "small", "training_file": file_id,
        "hyperparameters": {"n_epochs": num_epochs, "batch_size": 1},
    }  # fmt: skip
    return str(_post(f"{url}/v1/fine_tuning/jobs", key, json.dumps(asked).encode(), "application/json")["id"])


def _post(url: str, key: str, body: bytes, kind: str) -> dict[str, Any]:
    request = Request(url, body, {"Authorization": f"Bearer {key}", "Content-Type": kind})
    with urlopen(request) as answer:
        found: dict[str, Any] = json.load(answer)
        return found


def _wait_for_steps(context: Context, job: str, run_id: str) -> None:
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        found = context.jobs.get(job)
        if found.status == "running" and found.lane == "train" and found.step >= 5:
            return
        if found.status in ("failed", "cancelled"):
            raise RuntimeError(f"the job {found.status}: {found.error}")
        time.sleep(0.5)
    raise RuntimeError(f"run {run_id} does not train")


def _clients(url: str, key: str, job: str, pace: float, args: argparse.Namespace) -> dict[str, Any]:
    place = urlsplit(url)
    command = [sys.executable, str(CLIENTS), str(place.hostname), str(place.port), job]
    told = subprocess.run(
        [*command, str(args.seconds), str(args.clients), str(pace)],
        input=key, capture_output=True, text=True, check=True, start_new_session=True,
    )  # fmt: skip
    seen: dict[str, Any] = json.loads(told.stdout)
    return seen


def api_process(server: RunningServer) -> psutil.Process:
    """The process that answers."""
    return next(one for one in psutil.Process(server.process.pid).children() if "luthier.server.home" in one.cmdline())


def _cpu_seconds(process: psutil.Process) -> float:
    used = process.cpu_times()
    return float(used.user + used.system)


if __name__ == "__main__":
    sys.exit(main())
