"""How long a short chat of one key takes while another key sends prompts of megabytes.

    python benchmarks/long_prompts.py [MODEL_FOLDER] [--chats 60] [--bytes 4000000]

Starts `luthier up` over a home of its own with one model (a tiny random one without MODEL_FOLDER), warms it up, and has
one client ask for 2 tokens again and again: first alone, then while two processes send prompts of so many bytes without
a pause. Prints the 50th and 99th percentile and the longest of the short chats, and how the long prompts ended.
"""

from __future__ import annotations

import argparse
import http.client
import json
import multiprocessing
import shutil
import statistics
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import openai

from luthier.core.ports import SilentProgress
from luthier.ml.inference.models import sources
from luthier.platform.auth.service import create_key
from luthier.platform.home.context import Context
from luthier.testing.servers import running_server
from luthier.testing.tiny import make_tiny_model

_NUM_SENDERS = 2


def main() -> None:
    """Measure, and print."""
    reader = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    reader.add_argument("model", nargs="?", type=Path)
    reader.add_argument("--chats", type=int, default=60)
    reader.add_argument("--bytes", type=int, default=4_000_000)
    given = reader.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder) / "home"
        with Context.open(home) as context:
            name = _bring(context, given.model, Path(folder))
            keys = [create_key(context, f"key {number}", scopes=("infer",))[1] for number in range(2)]
        # A request may be larger than the default by what surrounds the prompt.
        with running_server(home, environment={"LUTHIER_MAX_REQUEST_BYTES": str(given.bytes + 100_000)}) as server:
            _measure(server.url, name, keys, given.chats, given.bytes)


def _bring(context: Context, model: Path | None, folder: Path) -> str:
    if model is None:
        model = make_tiny_model(folder / "tiny")
        sources.pull(str(model), context.home, SilentProgress())
        return model.name
    shutil.copytree(model, context.settings.models_folder / model.name)
    return model.name


def _measure(url: str, model: str, keys: list[str], num_chats: int, num_bytes: int) -> None:
    client = openai.OpenAI(base_url=f"{url}/v1", api_key=keys[0], max_retries=0, timeout=600)
    _chat(client, model)  # the model is loaded
    _print("alone", [_chat(client, model) for _ in range(num_chats)])
    processes = multiprocessing.get_context("spawn")
    stop, sent, ends = processes.Event(), processes.Barrier(_NUM_SENDERS + 1), processes.Queue()
    given = (url, model, keys[1], num_bytes, stop, sent, ends)
    senders = [processes.Process(target=_send, args=given, daemon=True) for _ in range(_NUM_SENDERS)]
    for sender in senders:
        sender.start()
    sent.wait()
    _print("beside", [_chat(client, model) for _ in range(num_chats)])
    stop.set()
    told = sum((ends.get(timeout=600) for _ in senders), Counter[str]())
    for sender in senders:
        sender.join()
    print(f"{_NUM_SENDERS} senders of {num_bytes:,} bytes: {dict(told)}")


def _send(url: str, model: str, key: str, num_bytes: int, stop: Any, sent: Any, ends: Any) -> None:
    messages = [{"role": "user", "content": "wood and more " * (num_bytes // 14)}]
    body = json.dumps({"model": model, "messages": messages, "max_tokens": 2}).encode()
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    found, address = Counter[str](), urlsplit(url)
    connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=600)
    sent.wait()
    while not stop.is_set():
        connection.request("POST", "/v1/chat/completions", body, headers)
        answer = connection.getresponse()
        error = json.loads(answer.read()).get("error") or {}
        found[f"{answer.status} {error.get('code', '')}".strip()] += 1
    ends.put(found)


def _chat(client: openai.OpenAI, model: str) -> float:
    began = time.perf_counter()
    client.chat.completions.create(model=model, messages=[{"role": "user", "content": "Which wood?"}], max_tokens=2)
    return time.perf_counter() - began


def _print(title: str, seconds: list[float]) -> None:
    cuts = statistics.quantiles(seconds, n=100, method="inclusive")
    numbers = f"p50 {cuts[49]:.3f} s, p99 {cuts[98]:.3f} s, longest {max(seconds):.3f} s"
    print(f"{title}: {len(seconds)} chats of 2 tokens, {numbers}", flush=True)


if __name__ == "__main__":
    main()
