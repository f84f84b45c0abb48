#!/usr/bin/env python3
"""A batch under kill -9: again and again its process, its engine or its worker dies; no answer is lost or doubled.

    python benchmarks/batch_kill.py [--requests 10000] [--every 20] [--model FOLDER] [--seed 0]

A real server with one worker and a tiny model (or the one named) answers one batch through the unmodified `openai`
client. `--every` seconds after the batch has got further since the last kill comes the next one: three crashes of a
job without progress between them fail it, and on a full machine loading takes longer than a fixed pause. Each kill
takes one of: the process that carries the batch out, the engine that it has started, the worker.
Asked: the batch completes, its output file has every custom_id once, and the counts are right. Prints a JSON document;
the exit code is 1 where anything asked does not hold. `seconds_to_progress` has the time from each kill to the next
answer: a batch has a ninth of the usual weight, and its engine takes about 5 s of processor time to start, so that on
a machine with other work this is most of the time.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import openai
import psutil
from machine import describe

from luthier.features.models.service import pull_model
from luthier.platform.auth.service import create_key
from luthier.platform.home.context import Context
from luthier.testing.servers import RunningServer, running_server
from luthier.testing.tiny import make_tiny_model

_KINDS = {
    "attempt": "luthier.platform.jobs.child",
    "engine": "luthier.core.child_process",
    "worker": "",
}


def main() -> int:
    """Run the drill."""
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--requests", type=int, default=10_000)
    cli.add_argument("--every", type=float, default=20.0, help="seconds from progress to the next kill")
    cli.add_argument("--tokens", type=int, default=4, help="of each answer")
    cli.add_argument("--model", type=Path, default=None, help="a folder; else a tiny model")
    cli.add_argument("--minutes", type=float, default=120.0, help="what has not ended then has failed")
    cli.add_argument("--seed", type=int, default=0)
    args = cli.parse_args()
    with tempfile.TemporaryDirectory(prefix="luthier-batch-") as folder:
        work = Path(folder)
        model = args.model or make_tiny_model(work / "tiny")
        with Context.open(work / "home") as context:
            pull_model(context, str(model))
            _, key = create_key(context, "drill", scopes=("admin",))
        environment = {"LUTHIER_FORK_SERVER": "0", "LUTHIER_LEASE_SECONDS": "20"}
        with (
            running_server(work / "home", num_workers=1, environment=environment) as server,
            openai.OpenAI(api_key=key, base_url=f"{server.url}/v1") as client,
        ):
            found = _drill(client, server, Path(model).name, args)
    print(json.dumps({"benchmark": "batch_kill", **found, "machine": describe()}, indent=2))
    return 0 if found["is_well"] else 1


def _drill(client: openai.OpenAI, server: RunningServer, model: str, args: argparse.Namespace) -> dict[str, Any]:
    lines = [
        {
            "custom_id": f"request-{number}",
            "method": "POST",
            "url": "/v1/completions",
            "body": {"model": model, "prompt": f"Number {number} is", "max_tokens": args.tokens, "seed": number},
        }
        for number in range(args.requests)
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines).encode()
    file = client.files.create(file=("requests.jsonl", text), purpose="batch")
    began = time.monotonic()
    batch = client.batches.create(input_file_id=file.id, endpoint="/v1/completions", completion_window="24h")
    draw, kills, next_kill = random.Random(args.seed), Counter[str](), float("inf")
    num_before, killed_at, waits = 0, began, list[float]()
    while batch.status not in ("completed", "failed", "expired") and time.monotonic() < began + args.minutes * 60:
        time.sleep(0.5)
        if time.monotonic() >= next_kill:
            next_kill = float("inf")
            kind = draw.choice(sorted(_KINDS))
            kills[kind] += _kill(server.process.pid, kind, draw)
            killed_at, num_before = time.monotonic(), _num_done(client.batches.retrieve(batch.id))
        batch = client.batches.retrieve(batch.id)
        if next_kill == float("inf") and _num_done(batch) > num_before:
            waits.append(round(time.monotonic() - killed_at, 1))
            next_kill = time.monotonic() + args.every
    seconds = time.monotonic() - began
    answers = [] if batch.output_file_id is None else client.files.content(batch.output_file_id).text.splitlines()
    errors = [] if batch.error_file_id is None else client.files.content(batch.error_file_id).text.splitlines()
    times = Counter(json.loads(line)["custom_id"] for line in [*answers, *errors])
    lost = [line["custom_id"] for line in lines if times[line["custom_id"]] == 0]
    doubled = [name for name, num in times.items() if num > 1]
    counts = batch.request_counts
    return {
        "status": batch.status,
        "requests": args.requests,
        "completed": 0 if counts is None else counts.completed,
        "answered": len(answers),
        "failed": len(errors),
        # Before its end a batch has no files to look into.
        "lost": len(lost) if batch.status == "completed" else None,
        "doubled": len(doubled),
        "kills": dict(kills),
        # The first one counts from the start of the batch.
        "seconds_to_progress": waits,
        "seconds": round(seconds, 1),
        "requests_per_second": round(args.requests / seconds, 1),
        "is_well": batch.status == "completed"
        and not (lost or doubled or errors)
        and counts is not None
        and counts.completed == args.requests,
    }


def _num_done(batch: openai.types.Batch) -> int:
    counts = batch.request_counts
    return 0 if counts is None else counts.completed + counts.failed


def _kill(server: int, kind: str, draw: random.Random) -> int:
    """Kill one process of a kind below the server; returns how many were killed."""
    found = [one for one in psutil.Process(server).children(recursive=True) if _is(one, kind)]
    if not found:
        return 0
    try:
        os.kill(draw.choice(found).pid, signal.SIGKILL)
    except ProcessLookupError:
        return 0
    return 1


def _is(process: psutil.Process, kind: str) -> bool:
    try:
        line = " ".join(process.cmdline())
    except psutil.Error:
        return False
    if kind == "worker":
        return "worker" in line and "platform.processes.guard" not in line and "jobs.child" not in line
    if kind == "attempt":
        return _KINDS[kind] in line and "platform.processes.guard" not in line
    return _KINDS[kind] in line and "engine_process" in line


if __name__ == "__main__":
    sys.exit(main())
