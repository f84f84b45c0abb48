#!/usr/bin/env python3
"""Engines for one model by turns: 1, 4 and 16 clients that stream answers, of the base and of adapters over it.

    python benchmarks/serving_engines.py [--quick] [--rounds 3] [--adapters 8] [--threads 2] [--model FOLDER]

SmolLM2-135M-Instruct with random adapters (rank 16, all linear layers) whose product is small, so that answers stay
text. All sides hold their models for the whole time, and each window asks every side the same greedy questions, in an
order that turns; no question comes twice.

    transformers    `luthier serve --engine transformers`
    llama_cpp       `luthier serve --engine llama_cpp`: the proved GGUF copy that `auto` would take
    llama-server    the same files in llama.cpp's own HTTP server (xllamacpp), without Luthier

First `luthier serve` with `auto` makes, proves and times the copies; what it has chosen is in the document. Of each
window: new tokens a second of all clients together, seconds to the first token (p50, p95). Of each side at the end:
proportional memory of its processes. Prints one JSON document: medians of the rounds, and all of them.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
from machine import describe, luthier_command, run_json
from serving_clients import read_answer, wishes

ROOT = Path(__file__).resolve().parents[1]
BASE = "smollm2-135m-instruct"
SIDES = ("transformers", "llama_cpp", "llama-server")
CLIENTS = (1, 4, 16)
_SLOTS, _SLOT_TOKENS = 16, 2048


def main() -> int:
    """Make everything once, start the sides, and measure by turns."""
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--quick", action="store_true", help="one round of few short answers, two adapters")
    cli.add_argument("--rounds", type=int, default=3)
    cli.add_argument("--adapters", type=int, default=8)
    cli.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="of the engine, on each side")
    cli.add_argument("--model", type=Path, help="a folder with the base; without one it is pulled")
    cli.add_argument("--work", type=Path, default=ROOT / ".bench")
    cli.add_argument("--llama-server", nargs="*", help=argparse.SUPPRESS)
    args = cli.parse_args()
    if args.llama_server is not None:
        return _run_llama_server(args.llama_server, args.threads)
    if args.quick:
        args.rounds, args.adapters = 1, 2
    args.work.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="luthier-engines-") as folder:
        document = _measure(Path(folder), args)
    print(json.dumps(document | {"machine": describe(), "threads": args.threads}, indent=2))
    return 0 if document["lost"] == 0 else 1


def _measure(folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    home = args.work / "home"
    command = [*luthier_command(), "models", "pull", str(args.model or BASE), "--home", str(home), "--json"]
    pulled = run_json(command, cwd=args.work).document
    args.model, args.name = Path(pulled["path"]), Path(pulled["name"]).name
    adapters = folder / "adapters"
    made = [sys.executable, str(ROOT / "benchmarks" / "serving_bare.py"), "make"]
    run_json([*made, str(args.model), str(adapters), str(args.adapters)], cwd=folder)
    began = time.perf_counter()
    auto = _luthier(home, adapters, args, "auto")
    chosen = {name: {"engine": one["engine"], "reason": one["reason"]} for name, one in auto.started["models"].items()}
    auto.close()
    preparation = round(time.perf_counter() - began, 1)
    sides = {name: _luthier(home, adapters, args, name) for name in SIDES[:2]}
    copies = sides["llama_cpp"].started["models"]
    sides["llama-server"] = _llama_server(home, copies["base"]["path"], args)
    try:
        rounds = asyncio.run(_rounds(sides, args))
        memory = {name: side.memory_bytes() for name, side in sides.items()}
    finally:
        for side in sides.values():
            side.close()
    return _summary(rounds) | {
        "memory_mb": {name: round(num / 1e6) for name, num in memory.items()},
        "auto": chosen,
        "preparation_seconds": preparation,
        "rounds": rounds,
    }


@dataclass(slots=True)
class _Side:
    """A server that is running.

    Attributes:
        process: Its first process.
        url: Where it answers.
        started: What it has said of itself.
        key: Of the header Authorization.
        num_loras: Adapters that each request has to name with a scale; 0 where a model's name says it.
    """

    process: subprocess.Popen[str]
    url: str
    started: dict[str, Any]
    key: str = ""
    num_loras: int = 0

    def body(self, adapter: str | None, question: str, num_new: int) -> dict[str, Any]:
        """What is asked of this server."""
        asked: dict[str, Any] = {
            "model": "base" if adapter is None else f"a{adapter}",
            "messages": [{"role": "user", "content": question}],
            "max_tokens": num_new,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if self.num_loras:
            asked["lora"] = [{"id": n, "scale": float(str(n) == adapter)} for n in range(self.num_loras)]
        return asked

    def memory_bytes(self) -> int:
        """Of all its processes; what they share is counted once."""
        first = psutil.Process(self.process.pid)
        return sum(one.memory_full_info().pss for one in [first, *first.children(recursive=True)])

    def close(self) -> None:
        """End it, and wait."""
        self.process.send_signal(signal.SIGINT)
        try:
            self.process.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.communicate()


def _luthier(home: Path, adapters: Path, args: argparse.Namespace, engine: str) -> _Side:
    names = [f"base={args.name}", *(f"a{number}={adapters / str(number)}" for number in range(args.adapters))]
    command = [*luthier_command(), "serve", *names, "--engine", engine, "--port", "0", "--json", "--home", str(home)]
    environment = {
        "LUTHIER_SERVING_THREADS": str(args.threads),
        "LUTHIER_SERVING_IDLE_SECONDS": "86400",
        "LUTHIER_MAX_LOADED_MODELS": "4",
    }
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | environment)
    started, ready = _line(process), _line(process)
    if "ready" not in ready:
        raise RuntimeError(f"luthier serve --engine {engine} said {ready}")
    return _Side(process, started["url"], started)


def _llama_server(home: Path, model: str, args: argparse.Namespace) -> _Side:
    """The same files as the side llama_cpp, adapters in the order of their numbers."""
    found = sorted(Path(model).parent.glob("adapters/*/adapter.gguf"), key=lambda file: file.stat().st_mtime)
    # Made in the order of their names, by this very run: older ones are of other runs.
    files = [str(file) for file in found[len(found) - args.adapters :]]
    command = [sys.executable, __file__, "--threads", str(args.threads), "--llama-server", model, *files]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=home)
    started = _line(process)
    return _Side(process, started["url"], started, started["key"], args.adapters)


def _run_llama_server(files: list[str], threads: int) -> int:
    """In a process of its own: llama.cpp's HTTP server over a model and its adapters, until it is interrupted."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = files[0]
    params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(file, 0.0) for file in files[1:]]
    params.n_parallel, params.n_ctx, params.kv_unified = _SLOTS, _SLOTS * _SLOT_TOKENS, True
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    params.hostnames, params.port, params.api_keys = ["127.0.0.1"], 0, ["benchmark"]
    params.ui, params.verbosity = False, -1
    server = xllamacpp.Server(params)
    print(json.dumps({"url": server.listening_address, "key": "benchmark"}), flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        signal.pause()
    return 0


def _line(process: subprocess.Popen[str]) -> dict[str, Any]:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise RuntimeError(f"{process.args} has ended with {process.wait()}")
    found: dict[str, Any] = json.loads(line)
    return found


async def _rounds(sides: dict[str, _Side], args: argparse.Namespace) -> list[dict[str, Any]]:
    num_new = 16 if args.quick else 64
    cells = [(clients, adapters) for clients in CLIENTS for adapters in (0, args.adapters)]
    for side in sides.values():  # loads what is opened by a first request, and every adapter
        numbers = range(-2 * (args.adapters + 1), 0)
        await _window(side, numbers, 1, args.adapters, 2)
        await _window(side, range(-4 * (args.adapters + 1), -2 * (args.adapters + 1)), 1, 0, 2)
    found, first = [], 0
    for number in range(args.rounds):
        windows: dict[str, Any] = {}
        for place, (clients, adapters) in enumerate(cells):
            num_requests = max(2, clients) if args.quick else max(4, 2 * clients)
            turn = (number + place) % len(SIDES)
            for name in SIDES[turn:] + SIDES[:turn]:
                numbers = range(first, first + num_requests)
                cell = f"{clients} clients, {f'{adapters} adapters' if adapters else 'base'}"
                windows.setdefault(cell, {})[name] = await _window(sides[name], numbers, clients, adapters, num_new)
            first += num_requests
        found.append(windows)
        print(f"round {number + 1}: {json.dumps(windows)}", file=sys.stderr, flush=True)
    return found


async def _window(side: _Side, numbers: range, num_clients: int, num_adapters: int, num_new: int) -> dict[str, Any]:
    """All requests, so many at once."""
    todo, firsts, tokens, wrong = iter(numbers), list[float](), 0, list[str]()
    address = urlsplit(side.url)

    async def client() -> None:
        nonlocal tokens
        for number in todo:
            adapter, question = wishes(number, max(num_adapters, 1))
            body = json.dumps(side.body(adapter if num_adapters else None, question, num_new)).encode()
            head = (
                f"POST /v1/chat/completions HTTP/1.1\r\nHost: {address.hostname}\r\nConnection: close\r\n"
                f"Authorization: Bearer {side.key}\r\nContent-Type: application/json\r\n"
                f"Content-Length: {len(body)}\r\n\r\n"
            )
            reader, writer = await asyncio.open_connection(address.hostname, address.port)
            begun = time.perf_counter()
            try:
                writer.write(head.encode() + body)
                first, num = await read_answer(reader)
                tokens += num
                firsts.append(first - begun)
            except (OSError, ValueError, asyncio.IncompleteReadError) as error:
                wrong.append(f"{number}: {error!r}")
            finally:
                writer.close()

    begun = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(num_clients)))
    seconds = time.perf_counter() - begun
    return {
        "tokens_per_second": round(tokens / seconds, 2),
        "first_token_seconds_p50": round(_quantile(firsts, 0.5), 4),
        "first_token_seconds_p95": round(_quantile(firsts, 0.95), 4),
        "lost": len(numbers) - len(firsts),
        "wrong": wrong[:5],
    }


def _quantile(values: list[float], share: float) -> float:
    """The least value that at least this share of all does not exceed; 0 without values."""
    ordered = sorted(values)
    return ordered[max(0, -(-int(share * 100) * len(ordered) // 100) - 1)] if ordered else 0.0


def _summary(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians by cell and side, and how far each side is from the best of the others."""
    table: dict[str, Any] = {}
    for cell in rounds[0]:
        names = ("tokens_per_second", "first_token_seconds_p50", "first_token_seconds_p95")
        table[cell] = {
            side: {name: round(statistics.median(one[cell][side][name] for one in rounds), 4) for name in names}
            for side in SIDES
        }
    lost = sum(window["lost"] for one in rounds for cell in one.values() for window in cell.values())
    return {"medians": table, "lost": lost}


if __name__ == "__main__":
    sys.exit(main())
