#!/usr/bin/env python3
"""What it costs to keep traffic, and how fast a million exchanges are read.

    python benchmarks/traffic.py [--rounds 5] [--per-round 200] [--clients 8] [--model FOLDER] [--exchanges 1000000]

cost     a server over one model; windows of the same requests with the policies off, metadata and full (masked), in an
         order that turns. Requests a second, and processor time a request of all the server's processes, each held
         against `off` of the same round. Without --model a tiny random one answers, 16 tokens each: next to no work,
         so that what is kept weighs as much as it can. Asked: under 2% with a model that people use.
reading  so many exchanges of 30 days, 40 of today's files not joined yet, on two threads: what a dashboard asks
         (requests, errors, tokens, latency and first token by hour of the last day and of all days), and one by its id.
         Asked: under 1 s. Bytes on the disk without words; and, of a tenth of them, with words of 100 tokens a side.

Prints one JSON document.
"""

from __future__ import annotations

import argparse
import http.client
import itertools
import json
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil

os.environ.setdefault("POLARS_MAX_THREADS", "2")

from machine import describe

from luthier.core.access import Caller
from luthier.core.ids import new_id
from luthier.core.ports import SilentProgress
from luthier.core.records.traffic import TrafficPolicy
from luthier.features.traffic.policy import set_traffic_policy
from luthier.ml.inference.models import sources
from luthier.platform.auth.service import create_key
from luthier.platform.home.context import Context
from luthier.testing.servers import running_server

KEEPS = ("off", "metadata", "full")
HEARD_SECONDS = 6.0  # until servers have heard of a policy
SETTLED_SECONDS = 65.0  # until lines have become a file for the first time, which loads what that takes
DAYS, FILES_OF_TODAY, DAY_SECONDS = 30, 40, 86_400.0
WORDS = ("spruce", "was", "felled", "in", "winter", "and", "dried", "for", "nine", "years", "before", "it", "sang")
QUESTION = " ".join(itertools.islice(itertools.cycle(WORDS), 100)) + " write to bob@firm.de or +49 30 9018 20"


def main() -> int:
    """Both parts."""
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--rounds", type=int, default=5, help="0 leaves the costs out")
    cli.add_argument("--per-round", type=int, default=200, help="requests of a window")
    cli.add_argument("--clients", type=int, default=8)
    cli.add_argument("--model", type=Path, help="a folder with a base model; without one a tiny random one is made")
    cli.add_argument("--tokens", type=int, default=16, help="of each answer")
    cli.add_argument("--exchanges", type=int, default=1_000_000, help="0 leaves the reading out")
    args = cli.parse_args()
    document: dict[str, Any] = {"machine": describe()}
    with tempfile.TemporaryDirectory(prefix="luthier-traffic-") as folder:
        if args.rounds:
            document["cost"] = _cost(Path(folder), args)
        if args.exchanges:
            document["reading"] = _reading(Path(folder), args.exchanges)
    print(json.dumps(document, indent=2))
    return 0


def _cost(folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    if args.model is None:
        from luthier.testing.tiny import make_tiny_model

        args.model = make_tiny_model(folder / "tiny")
    home = folder / "home"
    with Context.open(home) as context:
        sources.pull(str(args.model), home, SilentProgress())
        key = create_key(context, "bench", scopes=("admin",))[1]
    environment = {"LUTHIER_SERVING_QUEUE": str(4 * args.clients), "LUTHIER_SERVING_THREADS": "1"}
    rounds: list[dict[str, dict[str, float]]] = []
    with running_server(home, num_workers=0, environment=environment) as server, Context.open(home) as context:
        ask = _Asking(server.url, key, args.tokens)
        set_traffic_policy(context, Caller(), TrafficPolicy(keep="full"))
        ask.window(args.clients, args.clients)  # loads, and warms up
        time.sleep(SETTLED_SECONDS)
        ask.window(args.clients, args.clients)
        for number in range(args.rounds):
            found = {}
            for turn in range(len(KEEPS)):
                keep = KEEPS[(number + turn) % len(KEEPS)]
                set_traffic_policy(context, Caller(), TrafficPolicy(keep=keep))
                time.sleep(HEARD_SECONDS)
                used, begun = _cpu_seconds(server.process.pid), time.perf_counter()
                ask.window(args.clients, args.per_round)
                seconds = time.perf_counter() - begun
                time.sleep(1.0)  # what is written beside the answers counts, too
                cpu = _cpu_seconds(server.process.pid) - used
                found[keep] = {"requests_per_second": args.per_round / seconds, "cpu_ms": 1000 * cpu / args.per_round}
            rounds.append(found)
    return {
        "model": args.model.name,
        "rounds": rounds,
        "percent_of_throughput": {keep: _percent(rounds, keep, "requests_per_second", -1) for keep in KEEPS[1:]},
        "percent_of_cpu": {keep: _percent(rounds, keep, "cpu_ms", 1) for keep in KEEPS[1:]},
    }


def _percent(rounds: list[dict[str, dict[str, float]]], keep: str, figure: str, sign: int) -> dict[str, float]:
    """What it costs against `off` of the same round: the median of the rounds, the least and the most."""
    costs = sorted(sign * 100 * (one[keep][figure] / one["off"][figure] - 1) for one in rounds)
    return {"median": round(statistics.median(costs), 2), "low": round(costs[0], 2), "high": round(costs[-1], 2)}


class _Asking:
    def __init__(self, url: str, key: str, num_tokens: int) -> None:
        self.address, self.headers = (
            urlsplit(url),
            {"Authorization": f"Bearer {key}", "Content-Type": "application/json"},
        )
        self.num_tokens, self.model = num_tokens, ""
        self.model = json.loads(self._send(self._connection(), "GET", "/v1/models", None))["data"][0]["id"]

    def window(self, num_clients: int, num_requests: int) -> None:
        todo, wrong = iter(range(num_requests)), list[Exception]()

        def client() -> None:
            connection = self._connection()
            try:
                for number in todo:
                    messages = [{"role": "user", "content": f"{number} {QUESTION}"}]
                    body = {"model": self.model, "messages": messages, "max_tokens": self.num_tokens, "temperature": 0}
                    self._send(connection, "POST", "/v1/chat/completions", json.dumps(body))
            except (OSError, RuntimeError, http.client.HTTPException) as error:
                wrong.append(error)

        threads = [threading.Thread(target=client) for _ in range(num_clients)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if wrong:
            raise wrong[0]

    def _connection(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection(self.address.hostname or "", self.address.port, timeout=600)

    def _send(self, connection: http.client.HTTPConnection, method: str, path: str, body: str | None) -> bytes:
        connection.request(method, path, body, self.headers)
        answer = connection.getresponse()
        text = answer.read()
        if answer.status != 200:
            raise RuntimeError(f"{answer.status}: {text[:300]!r}")
        return text


def _cpu_seconds(pid: int) -> float:
    top = psutil.Process(pid)
    return sum(sum(one.cpu_times()[:2]) for one in [top, *top.children(recursive=True)])


def _reading(folder: Path, num_exchanges: int) -> dict[str, Any]:
    found: dict[str, Any] = {"num_exchanges": num_exchanges, "bytes_an_exchange": {}}
    for kind, count in (("metadata", num_exchanges), ("with_words", max(1, num_exchanges // 10))):
        with Context.open(folder / f"read-{kind}") as context:
            asked = _fill(context, count, with_words=kind == "with_words")
            files = context.traffic.list("default")
            size, there = sum(one.num_bytes for one in files), sum(one.num_exchanges for one in files)
            found["bytes_an_exchange"][kind] = round(size / there, 1)
            if kind == "metadata":
                found |= {"bytes": size, **_queries(context, asked)}
    return found


def _queries(context: Context, asked: str) -> dict[str, Any]:
    from luthier.features.traffic import service as traffic

    a_day = context.access.now() - DAY_SECONDS
    queries: dict[str, Callable[[], object]] = {
        "dashboard_of_a_day": lambda: _dashboard(context, a_day),
        "dashboard_of_all_days": lambda: _dashboard(context, 0.0),
        "summary_of_all_days": lambda: traffic.summary(context, "default"),
        "all_columns_of_all_days": lambda: traffic.exchanges(context, "default"),
        "one_by_its_id": lambda: traffic.exchange(context, "default", asked),
    }
    seconds = {name: _seconds(query) for name, query in queries.items()}
    return {"num_files": len(context.traffic.list("default")), "seconds": seconds}


def _dashboard(context: Context, since: float) -> object:
    """By model and hour: how many, how many failed, tokens, latency and first token."""
    import polars as pl

    from luthier.features.traffic import service as traffic

    times = ("seconds", "first_token_seconds")
    columns = ("model", "status", "num_new_tokens", *times)
    frame = traffic.exchanges(context, "default", since=since, columns=columns)
    hour = pl.from_epoch(pl.col("at").cast(pl.Int64)).dt.truncate("1h").alias("hour")
    quantiles = [pl.col(name).quantile(q).alias(f"{name}_{q}") for name in times for q in (0.5, 0.95, 0.99)]
    counts = [pl.len(), (pl.col("status") >= 400).sum().alias("failed"), pl.col("num_new_tokens").sum()]
    return frame.group_by("model", hour).agg(*counts, *quantiles).sort("model", "hour")


def _seconds(query: Callable[[], object]) -> dict[str, float]:
    times = []
    for _ in range(7):
        begun = time.perf_counter()
        query()
        times.append(time.perf_counter() - begun)
    return {"first": round(times[0], 3), "median": round(statistics.median(times), 3), "most": round(max(times), 3)}


def _fill(context: Context, num_exchanges: int, *, with_words: bool) -> str:
    """Files as a month leaves them; returns the id of an exchange."""
    from luthier.features.traffic.service import files_folder
    from luthier.ml.drift.traffic.files import by_day, write_file

    now, kept = context.access.now(), ""
    folder = files_folder(context, "default")
    for begin, end, num_files in _spans(now):
        share = max(1, round(num_exchanges * (end - begin) / (DAYS * DAY_SECONDS) / num_files))
        for part in range(num_files):
            step = (end - begin) / num_files
            frame = _made(share, begin + part * step, begin + (part + 1) * step, with_words=with_words)
            files = [write_file(folder, name, day, new_id("traffic"), one) for name, day, one in by_day(frame)]
            context.traffic.replace([], files)
            kept = frame["exchange_id"][0]
    return kept


def _spans(now: float) -> Iterator[tuple[float, float, int]]:
    """Days before today in one file each, today in many."""
    today = now // DAY_SECONDS * DAY_SECONDS
    for back in range(DAYS - 1, 0, -1):
        yield today - back * DAY_SECONDS, today - (back - 1) * DAY_SECONDS, 1
    yield today, today + DAY_SECONDS, FILES_OF_TODAY


def _made(count: int, begin: float, end: float, *, with_words: bool) -> Any:
    import numpy as np
    import polars as pl

    from luthier.ml.drift.traffic.files import SCHEMA

    draw = np.random.default_rng(int(begin))
    drawn = draw.bytes(16 * count).hex()
    ids = [f"chatcmpl-{drawn[32 * place : 32 * place + 32]}" for place in range(count)]
    seconds = draw.lognormal(0.0, 0.6, count)
    columns: dict[str, Any] = {
        "exchange_id": ids,
        "project_id": ["default"] * count,
        "at": np.sort(draw.uniform(begin, end, count)),
        "model": draw.choice(["support", "triage", "drafts"], count, p=[0.7, 0.2, 0.1]),
        "target": draw.choice(["run-20261125-093000-1f2e3d", "run-20261126-101500-9a8b7c"], count, p=[0.9, 0.1]),
        "is_canary": draw.random(count) < 0.1,
        "user_digest": [f"{user:032x}" for user in draw.integers(0, 5000, count).tolist()],
        "status": draw.choice([200, 404, 429, 499], count, p=[0.97, 0.01, 0.01, 0.01]),
        "error_code": [""] * count,
        "finish_reason": draw.choice(["stop", "length"], count),
        "num_prompt_tokens": draw.integers(20, 900, count),
        "num_new_tokens": draw.integers(1, 500, count),
        "seconds": seconds,
        "first_token_seconds": seconds * draw.uniform(0.05, 0.3, count),
        "cost_usd": [None] * count,
        "messages": [None] * count,
        "answer": [None] * count,
        "num_masked": [0] * count,
        "has_text": [with_words] * count,
    }
    if with_words:
        columns["messages"] = [json.dumps([{"role": "user", "content": _text(draw)}]) for _ in range(count)]
        columns["answer"] = [_text(draw) for _ in range(count)]
    return pl.DataFrame(columns, schema=SCHEMA)


def _text(draw: Any) -> str:
    """About 100 tokens of words in chance order: worse to compress than what people write."""
    return " ".join(WORDS[place] + str(place * 7 % 5) for place in draw.integers(0, len(WORDS), 80))


if __name__ == "__main__":
    raise SystemExit(main())
