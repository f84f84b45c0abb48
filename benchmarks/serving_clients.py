"""Clients that stream answers: as cheap as they can be, so that what they cost does not fall on what is measured.

    python benchmarks/serving_clients.py URL KEY CLIENTS REQUESTS ADAPTERS

For each line on stdin a window: `go` runs REQUESTS requests, `many N` runs N short ones; prints one JSON object each.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import sys
import time
from typing import Any
from urllib.parse import urlsplit

BASE, MAX_TOKENS, MANY_TOKENS = "smollm2-135m-instruct", 64, 4
SUBJECTS = ("spruce", "maple", "a violin", "a cello", "the sound post", "hide glue", "gut strings", "a lute", "varnish")
ASKS = ("What is {} good for?", "Tell a beginner about {}, in plain words.", "Write a short story about {}.")


def wishes(number: int, num_adapters: int) -> tuple[str, str]:
    """The adapter and the question of a request: every side asks the same."""
    question = ASKS[number % len(ASKS)].format(SUBJECTS[number % len(SUBJECTS)])
    return f"{number % num_adapters}", f"{question} It is question number {number}."


async def window(url: str, key: str, num_clients: int, numbers: range, num_adapters: int, limit: int) -> dict[str, Any]:
    """All requests, so many at once."""
    todo, firsts, tokens, wrong = iter(numbers), list[float](), 0, list[str]()
    address = urlsplit(url)

    async def client() -> None:
        nonlocal tokens
        streams = await asyncio.open_connection(address.hostname, address.port)
        for number in todo:
            adapter, question = wishes(number, num_adapters)
            body = json.dumps(
                {
                    "model": f"ft:{BASE}:default::{adapter}",
                    "messages": [{"role": "user", "content": question}],
                    "max_tokens": limit,
                    "temperature": 0,
                    "stream": True,
                    "stream_options": {"include_usage": True},
                }
            ).encode()
            head = (
                f"POST /v1/chat/completions HTTP/1.1\r\nHost: {address.hostname}\r\nAuthorization: Bearer {key}\r\n"
                f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
            )
            begun = time.perf_counter()
            try:
                streams[1].write(head.encode() + body)
                first, num = await read_answer(streams[0])
                tokens += num
                firsts.append(first - begun)
            except (OSError, ValueError, asyncio.IncompleteReadError) as error:
                wrong.append(f"{number}: {error!r}")
                streams[1].close()
                streams = await asyncio.open_connection(address.hostname, address.port)
        streams[1].close()

    begun = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(num_clients)))
    seconds = time.perf_counter() - begun
    return {
        "tokens_per_second": round(tokens / seconds, 2),
        "tokens": tokens,
        "seconds": round(seconds, 3),
        "first_token_seconds_p50": round(statistics.median(firsts or [0.0]), 4),
        "requests": len(numbers),
        "lost": len(numbers) - len(firsts),
        "wrong": wrong[:5],
    }


async def read_answer(reader: asyncio.StreamReader) -> tuple[float, int]:
    """Read one answer: when its first piece came, and how many tokens it has. Raises ValueError where it is none."""
    status = await reader.readline()
    if b" 200 " not in status:
        raise ValueError(status.decode("latin-1").strip())
    while (await reader.readline()) != b"\r\n":
        pass
    first, usage, is_done = 0.0, None, False
    while True:
        line = await reader.readline()
        if not line:
            raise ValueError("the answer breaks off")
        if line.startswith(b"data: "):
            # Some servers send the role of the answer before they have read the prompt: that is no token.
            if b'"content":"' in line and b'"content":""' not in line:
                first = first or time.perf_counter()
            if line.startswith(b"data: [DONE]"):
                is_done = True
            elif b'"usage":{' in line:
                usage = json.loads(line[6:])["usage"]["completion_tokens"]
        elif line == b"0\r\n":
            await reader.readline()
            break
    if not is_done or usage is None:
        raise ValueError("an answer without an end")
    return first or time.perf_counter(), usage  # an answer of the end token alone has no text


def main() -> None:
    """A window a line."""
    url, key, num_clients, num_requests, num_adapters = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:6])
    for line in sys.stdin:
        word, _, count = line.strip().partition(" ")
        numbers, limit = (range(int(count)), MANY_TOKENS) if word == "many" else (range(num_requests), MAX_TOKENS)
        print(json.dumps(asyncio.run(window(url, key, num_clients, numbers, num_adapters, limit))), flush=True)


if __name__ == "__main__":
    main()
