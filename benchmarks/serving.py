#!/usr/bin/env python3
"""Many clients, many adapters, one base: the gateway, the bare engine, and one request at a time; interleaved.

    python benchmarks/serving.py [--rounds 5] [--clients 16] [--adapters 8] [--per-round 64] [--requests 0]

SmolLM2-135M-Instruct with random adapters (rank 16, all linear layers) whose product is small, so that answers stay
text. Each round has three windows of the same requests, in an order that turns: each request has its own prompt, one of
the adapters, greedy, 64 new tokens at most.

    gateway    16 clients that stream from `luthier up` over HTTP, a request each, the next when one has ended
    bare       the engine of the server in a process without one: 16 requests under way, the next when one has ended
    alone      transformers' own generate with the adapter of the request (PEFT), one at a time; an eighth of them

All with as many threads. Asked: gateway at least 0.95 of bare and 3 times alone (tokens a second, median of rounds).
--requests N: afterwards N short requests through the gateway, with nothing lost. Prints one JSON document.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import psutil
from machine import describe, luthier_command, run_json

from luthier.features.models.store import TunedModel
from luthier.platform.auth.service import create_key
from luthier.platform.home.context import Context
from luthier.testing.records import make_plan, make_record
from luthier.testing.servers import running_server

ROOT = Path(__file__).resolve().parents[1]
BASE = "smollm2-135m-instruct"
RUN_ID = "run-20261125-093000-5e5e5e"
SIDES = ("gateway", "bare", "alone")
PRECISION = "bfloat16"


def main() -> int:
    """Make the adapters, start everything once, and measure by turns."""
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--rounds", type=int, default=5)
    cli.add_argument("--clients", type=int, default=16)
    cli.add_argument("--adapters", type=int, default=8)
    cli.add_argument("--per-round", type=int, default=64, help="requests of a window")
    cli.add_argument("--requests", type=int, default=0, help="so many short ones afterwards, of which none may be lost")
    cli.add_argument("--threads", type=int, default=1, help="of the engine, on each side")
    cli.add_argument("--model", type=Path, help="a folder with the base; without one it is pulled")
    cli.add_argument("--work", type=Path, default=ROOT / ".bench")
    args = cli.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    if args.model is None:
        home = args.work / "home"
        pulled = run_json([*luthier_command(), "models", "pull", BASE, "--home", str(home), "--json"], cwd=args.work)
        args.model = Path(pulled.document["path"])
    with tempfile.TemporaryDirectory(prefix="luthier-serving-") as folder:
        document = _measure(Path(folder), args)
    print(json.dumps(document | {"machine": describe()}, indent=2))
    return 0 if document["is_well"] else 1


def _measure(folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    adapters = folder / "adapters"
    run_json([sys.executable, _script("bare"), "make", str(args.model), str(adapters), str(args.adapters)], cwd=folder)
    home = folder / "home"
    with Context.open(home) as context:
        key = _register(context, args.model, adapters)
    environment = {
        "LUTHIER_SERVING_THREADS": str(args.threads),
        "LUTHIER_SERVING_QUEUE": str(4 * args.clients),
        "LUTHIER_SERVING_QUEUE_PER_KEY": str(4 * args.clients),
    }
    with running_server(home, num_workers=0, environment=environment) as server:
        common = [str(args.clients), str(args.per_round), str(args.adapters)]
        sides = {
            "gateway": _Side("clients", server.url, key, *common),
            "bare": _Side("bare", "bare", str(args.model), str(adapters), str(args.threads), *common),
            "alone": _Side("bare", "alone", str(args.model), str(adapters), str(args.threads), *common),
        }
        try:
            for side in sides.values():
                side.window()  # loads, and warms up
            rounds = []
            for number in range(args.rounds):
                order = SIDES[number % 3 :] + SIDES[: number % 3]
                rounds.append({name: _window(sides[name], name, server.process.pid) for name in order})
                print(f"round {number + 1}: {json.dumps(rounds[-1])}", file=sys.stderr, flush=True)
            many = sides["gateway"].window(f"many {args.requests}") if args.requests else None
        finally:
            for side in sides.values():
                side.close()
    return _summary(rounds, many)


def _window(side: _Side, name: str, server_pid: int) -> dict[str, Any]:
    """A window; of the gateway also what its processes used of the processor."""
    if name != "gateway":
        return side.window()
    before = _cpu_seconds(server_pid)
    found = side.window()
    after = _cpu_seconds(server_pid)
    return found | {"cpu_seconds": {part: round(after[part] - before.get(part, 0.0), 3) for part in after}}


def _cpu_seconds(server_pid: int) -> dict[str, float]:
    """Of the engine's process, and of all others of the server."""
    used = {"engine": 0.0, "server": 0.0}
    for process in [psutil.Process(server_pid), *psutil.Process(server_pid).children(recursive=True)]:
        times = process.cpu_times()
        part = "engine" if "luthier.features.serving.engine_process:serve" in process.cmdline() else "server"
        used[part] += times.user + times.system
    return used


def _summary(rounds: list[dict[str, dict[str, Any]]], many: dict[str, Any] | None) -> dict[str, Any]:
    def median(of: list[float]) -> float:
        return round(statistics.median(of), 3)

    speeds = {side: median([one[side]["tokens_per_second"] for one in rounds]) for side in SIDES}
    to_bare = [one["gateway"]["tokens_per_second"] / one["bare"]["tokens_per_second"] for one in rounds]
    to_alone = [one["gateway"]["tokens_per_second"] / one["alone"]["tokens_per_second"] for one in rounds]
    of_server = [one["gateway"]["cpu_seconds"]["server"] / one["gateway"]["cpu_seconds"]["engine"] for one in rounds]
    lost = sum(one["gateway"]["lost"] for one in rounds) + (0 if many is None else many["lost"])
    return {
        "tokens_per_second": speeds,
        "gateway_to_bare": {"median": median(to_bare), "all": [round(one, 3) for one in to_bare]},
        "gateway_to_alone": {"median": median(to_alone), "all": [round(one, 2) for one in to_alone]},
        "first_token_seconds_p50": {
            side: median([one[side]["first_token_seconds_p50"] for one in rounds]) for side in ("gateway", "bare")
        },
        "server_cpu_to_engine_cpu": {"median": median(of_server)},
        "lost": lost,
        "many": many,
        "is_well": median(to_bare) >= 0.95 and median(to_alone) >= 3 and lost == 0,
        "rounds": rounds,
    }


def _register(context: Context, model: Path, adapters: Path) -> str:
    """Put the base and its adapters into the home, as jobs would have; returns a key."""
    (context.settings.models_folder).mkdir(parents=True, exist_ok=True)
    (context.settings.models_folder / BASE).symlink_to(model.resolve())
    plan = make_plan()
    plan = plan.model_copy(
        update={
            "base_model": plan.base_model.model_copy(update={"name": BASE, "path": str(model), "template": "chat"}),
            "training": plan.training.model_copy(update={"precision": PRECISION}),
        }
    )
    context.runs.create(make_record(RUN_ID), plan)
    for folder in sorted(adapters.iterdir()):
        context.tuned_models.add(
            TunedModel(
                model_id=f"ft:{BASE}:default::{folder.name}",
                project_id="default",
                job_id=f"ftjob-{folder.name}",
                run_id=RUN_ID,
                base_model=BASE,
                adapter_path=str(folder),
            )
        )
    return create_key(context, "serving", scopes=("infer",))[1]


class _Side:
    """A process that is warm between the windows: it is told to go, and answers with figures."""

    def __init__(self, script: str, *words: str) -> None:
        command = [sys.executable, _script(script), *words]
        # In a session of its own, as the server's processes are: else Linux may share the processor out unevenly.
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
        )

    def window(self, what: str = "go") -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{what}\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("a side of the benchmark has ended")
        found: dict[str, Any] = json.loads(line)
        return found

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


def _script(name: str) -> str:
    return str(Path(__file__).with_name(f"serving_{name}.py"))


if __name__ == "__main__":
    sys.exit(main())
