#!/usr/bin/env python3
"""Engines for one model by turns: 1, 4 and 16 clients that stream answers, of the base and of adapters over it.

    python benchmarks/serving_engines.py --prepare        # model, adapters and proved GGUF copies; measures nothing
    python benchmarks/serving_engines.py [--quick] [--rounds 3] [--minutes 25] [--adapters 8] [--threads 2]
                                         [--model FOLDER] [--work FOLDER] [--speculative-config JSON]
                                         [--vllm-python PATH] [--vllm-dtype auto]

SmolLM2-135M-Instruct with random adapters (rank 16, all linear layers) whose product is small, so that answers stay
text. All sides hold their models for the whole time, and each window asks every side the same greedy questions, in an
order that turns; no question comes twice. Before its window a side rests until no other's work is in its samples of
busy cores, and answers one short request.

    auto            `luthier serve`: each request goes to the engine that is faster at the load
    transformers    `luthier serve --engine transformers`
    llama_cpp       `luthier serve --engine llama_cpp`: the proved GGUF copies that `auto` takes where they are faster
    llama-server    the same files in llama.cpp's own HTTP server (xllamacpp), without Luthier
    with drafts     with --speculative-config: the side llama_cpp, with what `luthier serve` takes by that option
    vllm            with --vllm-python: `vllm serve` of the environment of that interpreter

First `luthier serve` with `auto` makes, proves and times the copies; what it has chosen, and why, is in the document,
and how many requests each of its engines has answered. Both are in memory before the first window.
Of each window: new tokens a second of all clients together, and seconds to the first token. Of each side at the end:
proportional memory of its processes. No round begins that would not be over after `--minutes`. Prints one JSON
document: of each cell the median rate of the rounds, its share of the best side's, first tokens (p50, p95) of all
rounds together, and the windows themselves. Exit code 1 where an answer was lost.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import psutil
from machine import describe, luthier_command, run_json
from serving_clients import read_answer, wishes

from luthier.features.serving.engine_balance import PEAK_SECONDS

ROOT: Final = Path(__file__).resolve().parents[1]
BASE: Final = "smollm2-135m-instruct"
CLIENTS: Final = (1, 4, 16)
RANK: Final = 16
_SLOTS, _SLOT_TOKENS = 16, 2048
_VLLM_SECONDS: Final = 600.0
_LOAD_SECONDS: Final = 120.0
_KEY: Final = "benchmark-of-engines"
# A server takes the side that computed last for a busy neighbour: `free_cores` raises threads after quiet samples only.
_REST_SECONDS: Final = 14.0


def main() -> int:
    """Make everything once, start the sides, and measure by turns."""
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--quick", action="store_true", help="one round of shorter answers, within 8 minutes")
    cli.add_argument("--prepare", action="store_true", help="make what is measured later, and stop")
    cli.add_argument("--rounds", type=int, help="by default 3, quick 1")
    cli.add_argument("--minutes", type=float, help="no round begins that would end later; by default 25, quick 8")
    cli.add_argument("--clients", type=int, nargs="+", default=CLIENTS)
    cli.add_argument("--adapters", type=int, default=8)
    cli.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="of the engine, on each side")
    cli.add_argument("--model", type=Path, help="a folder with the base; without one it is pulled")
    cli.add_argument("--work", type=Path, default=ROOT / ".bench", help="keeps model, adapters and copies")
    cli.add_argument("--speculative-config", metavar="JSON", help="one more side: llama_cpp with these drafts")
    cli.add_argument("--vllm-python", type=Path, help="the interpreter of an environment with vLLM in it")
    cli.add_argument("--vllm-dtype", default="auto", help="as vLLM names it; auto: the type of the model's files")
    cli.add_argument("--llama-server", nargs="*", help=argparse.SUPPRESS)
    args = cli.parse_args()
    if args.llama_server is not None:
        return _run_llama_server(args.llama_server, args.threads)
    args.rounds = args.rounds or (1 if args.quick else 3)
    args.minutes = args.minutes or (8.0 if args.quick else 25.0)
    args.began = time.monotonic()
    args.work = args.work.resolve()
    args.work.mkdir(parents=True, exist_ok=True)
    args.home = args.work / "home"
    _prepare(args)
    if args.prepare:
        print(json.dumps({"files": _copies(args), "seconds": round(time.monotonic() - args.began, 1)}, indent=2))
        return 0
    document = _measure(args)
    print(json.dumps(document | {"machine": describe(), "threads": args.threads}, indent=2))
    return 0 if document["lost"] == 0 else 1


def _prepare(args: argparse.Namespace) -> None:
    """The model and its adapters; what is there already is taken."""
    command = [*luthier_command(), "models", "pull", str(args.model or BASE), "--home", str(args.home), "--json"]
    pulled = run_json(command, cwd=args.work).document
    args.model, args.name = Path(pulled["path"]), str(pulled["name"])
    # By the weights that they were made for. Kept among runs, so that their proved copies are found again.
    args.adapters_folder = args.work / f"adapters-{pulled['sha256'][:12]}-{args.adapters}"
    if not args.adapters_folder.is_dir():
        made = args.adapters_folder.with_suffix(".making")
        shutil.rmtree(made, ignore_errors=True)
        command = [sys.executable, str(ROOT / "benchmarks" / "serving_bare.py"), "make"]
        run_json([*command, str(args.model), str(made), str(args.adapters)], cwd=args.work)
        made.rename(args.adapters_folder)


def _names(args: argparse.Namespace) -> list[str]:
    """The models as `luthier serve` takes them."""
    adapters = [f"a{number}={args.adapters_folder / str(number)}" for number in range(args.adapters)]
    return [f"base={args.name}", *adapters]


def _copies(args: argparse.Namespace) -> list[str]:
    """The proved GGUF files: of the base, then of each adapter. They are made where they are not there; none is timed.

    Raises:
        RequestError: llama.cpp cannot serve one of them.
    """
    from luthier.features.serving.loaded import choose_models
    from luthier.platform.cli.command import open_context

    with open_context(args.home) as context:
        served = choose_models(context, _names(args), "llama_cpp")
    adapters = [served[f"a{number}"].adapter_path for number in range(args.adapters)]
    return [served["base"].path, *map(str, adapters)]


def _measure(args: argparse.Namespace) -> dict[str, Any]:
    began = time.perf_counter()
    auto = _luthier(args, "auto")
    chosen = {name: {"engine": one["engine"], "reason": one["reason"]} for name, one in auto.started["models"].items()}
    sides = {"auto": auto}
    try:
        files = _copies(args)
        preparation = round(time.perf_counter() - began, 1)
        sides["transformers"] = _luthier(args, "transformers")
        sides["llama_cpp"] = _luthier(args, "llama_cpp")
        if args.speculative_config is not None:
            sides["with drafts"] = _luthier(args, "llama_cpp", "--speculative-config", args.speculative_config)
        sides["llama-server"] = _llama_server(files, args)
        if args.vllm_python is not None:
            sides["vllm"] = _vllm(args)
        rounds = asyncio.run(_rounds(sides, args))
        memory = {name: side.memory_bytes() for name, side in sides.items()}
        requests = _requests_by_engine(auto)
    finally:
        for side in sides.values():
            side.close()
    return _summary(rounds) | {
        "memory_mb": {name: round(num / 1e6) for name, num in memory.items()},
        "auto": chosen,
        "auto_requests": requests,
        "preparation_seconds": preparation,
        "minutes": round((time.monotonic() - args.began) / 60, 1),
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


def _luthier(args: argparse.Namespace, engine: str, *options: str) -> _Side:
    command = [*luthier_command(), "serve", *_names(args), "--engine", engine, *options, "--port", "0", "--json"]
    environment = {
        "LUTHIER_SERVING_THREADS": str(args.threads),
        "LUTHIER_SERVING_IDLE_SECONDS": "86400",
        "LUTHIER_MAX_LOADED_MODELS": "4",
    }
    process = subprocess.Popen(
        [*command, "--home", str(args.home)], stdout=subprocess.PIPE, text=True, env=os.environ | environment
    )
    started, ready = _line(process), _line(process)
    if "ready" not in ready:
        raise RuntimeError(f"luthier serve --engine {engine} said {ready}")
    return _Side(process, started["url"], started)


def _requests_by_engine(side: _Side) -> dict[str, int]:
    """Requests of this server by engine and reason, those of the warm-up among them."""
    from prometheus_client.parser import text_string_to_metric_families

    with urllib.request.urlopen(f"{side.url}/metrics", timeout=30) as answer:
        families = text_string_to_metric_families(answer.read().decode())
    return {
        f"{sample.labels['engine']}, {sample.labels['reason']}": int(sample.value)
        for family in families
        for sample in family.samples
        if sample.name == "luthier_serving_requests_total"
    }


async def _load_both(side: _Side, numbers: range, num_adapters: int) -> None:
    """Ask as many at once as there are clients at most, until the engine for a crowd is in memory, too."""
    deadline = time.monotonic() + _LOAD_SECONDS
    while True:
        await _window(side, numbers, max(CLIENTS), num_adapters, 4)
        with urllib.request.urlopen(f"{side.url}/v1/models/base", timeout=30) as answer:
            engines = json.loads(answer.read())["engines"]
        if all(one["is_loaded"] for one in engines if one["tokens_per_second"]):
            return
        if time.monotonic() > deadline:
            raise RuntimeError(f"not both engines are in memory after {_LOAD_SECONDS:g} s: {engines}")


def _llama_server(files: list[str], args: argparse.Namespace) -> _Side:
    """The same files as the side llama_cpp, adapters in the order of their numbers."""
    command = [sys.executable, __file__, "--threads", str(args.threads), "--llama-server", *files]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    started = _line(process)
    return _Side(process, started["url"], started, _KEY, args.adapters)


def _run_llama_server(files: list[str], threads: int) -> int:
    """In a process of its own: llama.cpp's HTTP server over a model and its adapters, until it is interrupted."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = files[0]
    params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(file, 0.0) for file in files[1:]]
    params.n_parallel, params.n_ctx, params.kv_unified = _SLOTS, _SLOTS * _SLOT_TOKENS, True
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    params.hostnames, params.port, params.api_keys = ["127.0.0.1"], 0, [_KEY]
    params.ui, params.verbosity = False, -1
    server = xllamacpp.Server(params)
    print(json.dumps({"url": server.listening_address}), flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        signal.pause()
    return 0


def _vllm(args: argparse.Namespace) -> _Side:
    """`vllm serve` with as many answers at once, context and threads as the other sides have."""
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    names = [f"a{number}={args.adapters_folder / str(number)}" for number in range(args.adapters)]
    options = {
        "--served-model-name": "base", "--host": "127.0.0.1", "--port": str(port), "--dtype": args.vllm_dtype,
        "--max-model-len": str(_SLOT_TOKENS), "--max-num-seqs": str(_SLOTS),
    }  # fmt: skip
    command = [str(args.vllm_python), "-m", "vllm.entrypoints.cli.main", "serve", str(args.model)]
    command += [word for option in options.items() for word in option]
    if names:
        command += ["--enable-lora", "--max-loras", str(len(names)), "--max-lora-rank", str(RANK)]
        command += ["--lora-modules", *names]
    environment = os.environ | {
        "VLLM_API_KEY": _KEY,
        "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB: more than all slots of this model take
        # The others are not bound to cores either.
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": str(args.threads),
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
    }
    environment.pop("PYTHONPATH", None)  # names this environment's packages
    with (args.work / "vllm.log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, text=True, env=environment)
    side = _Side(process, f"http://127.0.0.1:{port}", {}, _KEY)
    try:
        _wait_for_vllm(side, args.work / "vllm.log")
    except BaseException:
        side.close()
        raise
    return side


def _wait_for_vllm(side: _Side, log: Path) -> None:
    deadline = time.monotonic() + _VLLM_SECONDS
    while time.monotonic() < deadline and side.process.poll() is None:
        with contextlib.suppress(OSError, urllib.error.URLError):
            if urllib.request.urlopen(f"{side.url}/health", timeout=5).status == 200:
                return
        time.sleep(1)
    raise RuntimeError(f"vLLM does not answer after {_VLLM_SECONDS:g} s, or has ended: see {log}")


def _line(process: subprocess.Popen[str]) -> dict[str, Any]:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise RuntimeError(f"{process.args} has ended with {process.wait()}")
    found: dict[str, Any] = json.loads(line)
    return found


async def _rounds(sides: dict[str, _Side], args: argparse.Namespace) -> list[dict[str, Any]]:
    num_new = 32 if args.quick else 64
    adapters_of_cells = sorted({0, args.adapters})
    cells = [(clients, adapters) for clients in args.clients for adapters in adapters_of_cells]
    num_warm = 2 * (args.adapters + 1)
    for side in sides.values():  # loads what is opened by a first request, and every adapter
        for place, adapters in enumerate(adapters_of_cells):
            await _window(side, range(-(place + 1) * num_warm, -place * num_warm), 1, adapters, 2)
    await _load_both(sides["auto"], range(-3 * num_warm - 2 * max(CLIENTS), -3 * num_warm), args.adapters)
    order = tuple(sides)
    found, first, longest = list[dict[str, Any]](), 0, 0.0
    num_warmed = 4 * num_warm + 2 * max(CLIENTS)
    for number in range(args.rounds):
        begun = time.monotonic()
        if found and begun - args.began + longest > 60 * args.minutes:
            print(f"round {number + 1} would end after {args.minutes:g} minutes", file=sys.stderr)
            break
        windows: dict[str, Any] = {}
        for place, (clients, adapters) in enumerate(cells):
            num_requests = max(3, clients) if args.quick else max(4, 2 * clients)
            turn = (number + place) % len(order)
            for name in order[turn:] + order[:turn]:
                numbers = range(first, first + num_requests)
                await asyncio.sleep(_REST_SECONDS)
                # Whoever opens its model again for another number of threads does so at this request.
                num_warmed += 1
                await _window(sides[name], range(-num_warmed, 1 - num_warmed), 1, adapters, 2)
                # Its load would still count for `auto`; all sides rest as long.
                await asyncio.sleep(PEAK_SECONDS + 0.5)
                cell = f"{clients} clients, {f'{adapters} adapters' if adapters else 'base'}"
                windows.setdefault(cell, {})[name] = await _window(sides[name], numbers, clients, adapters, num_new)
            first += num_requests
        found.append(windows)
        longest = max(longest, time.monotonic() - begun)
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
        "tokens": tokens,
        "first_token_seconds": [round(one, 4) for one in sorted(firsts)],
        "lost": len(numbers) - len(firsts),
        "wrong": wrong[:5],
    }


def _quantile(values: list[float], percent: int) -> float:
    """The least value that at least this percentage of all does not exceed; 0 without values."""
    ordered = sorted(values)
    return ordered[max(0, -(-percent * len(ordered) // 100) - 1)] if ordered else 0.0


def _summary(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """By cell and side: the median rate of the rounds, its share of the best, and first tokens of all rounds."""
    table: dict[str, Any] = {}
    for cell, windows in rounds[0].items():
        rates = {side: statistics.median(one[cell][side]["tokens_per_second"] for one in rounds) for side in windows}
        best = max(rates.values())
        table[cell] = {}
        for side, rate in rates.items():
            firsts = [seconds for one in rounds for seconds in one[cell][side]["first_token_seconds"]]
            table[cell][side] = {
                "tokens_per_second": round(rate, 2),
                "of_best": round(rate / best, 3) if best else 0.0,
                "first_token_seconds_p50": _quantile(firsts, 50),
                "first_token_seconds_p95": _quantile(firsts, 95),
            }
    lost = sum(window["lost"] for one in rounds for cell in one.values() for window in cell.values())
    return {"medians": table, "lost": lost}


if __name__ == "__main__":
    sys.exit(main())
