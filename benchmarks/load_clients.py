"""Clients that poll: as cheap as they can be, so that what they cost does not fall on what is measured.

    python benchmarks/load_clients.py HOST PORT JOB SECONDS CLIENTS PACE < KEY

Each client keeps one connection and asks PACE times a second, in turn for the job and for its events. Prints one JSON
object: requests, errors, and milliseconds from the moment a request was due to the end of its answer.
"""

from __future__ import annotations

import asyncio
import json
import random
import resource
import sys
import time


async def client(
    host: str, port: int, key: str, paths: list[str], until: float, pause: float, out: list[float], wrong: list[str]
) -> None:
    """One client until its time is over. A connection that breaks is an error and is opened again."""
    turn, streams = random.randrange(len(paths)), None
    due = time.monotonic() + random.random() * pause
    while due < until:
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        path, turn = paths[turn % len(paths)], turn + 1
        try:
            if streams is None:
                streams = await asyncio.open_connection(host, port)
            status = await _ask(*streams, f"GET {path} HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {key}\r\n\r\n")
            out.append((time.monotonic() - due) * 1000)
            if status != 200:
                wrong.append(f"{path}: {status}")
        except (OSError, asyncio.IncompleteReadError) as error:
            wrong.append(repr(error))
            streams = None
        due = max(due + pause, time.monotonic())
    if streams is not None:
        streams[1].close()


async def _ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: str) -> int:
    writer.write(request.encode())
    head = await reader.readuntil(b"\r\n\r\n")
    lines = head.decode("latin-1").lower().split("\r\n")
    length = next(int(line.partition(":")[2]) for line in lines if line.startswith("content-length:"))
    await reader.readexactly(length)
    return int(lines[0].split()[1])


async def main(host: str, port: int, job_id: str, seconds: float, num_clients: int, pace: float) -> None:
    """All clients at once; then what they saw."""
    key = sys.stdin.read().strip()
    random.seed(0)
    milliseconds: list[float] = []
    wrong: list[str] = []
    job = f"/v1/fine_tuning/jobs/{job_id}"
    paths = [job, f"{job}/events?limit=20"]
    until = time.monotonic() + seconds
    tasks = [client(host, port, key, paths, until, 1 / pace, milliseconds, wrong) for _ in range(num_clients)]
    await asyncio.gather(*tasks)
    milliseconds.sort()
    used = resource.getrusage(resource.RUSAGE_SELF)

    def quantile(share: float) -> float:
        return round(milliseconds[min(len(milliseconds) - 1, int(share * len(milliseconds)))], 1)

    document = {
        "requests": len(milliseconds), "errors": len(wrong), "first_errors": wrong[:5],
        "p50_ms": quantile(0.5), "p90_ms": quantile(0.9), "p99_ms": quantile(0.99), "max_ms": quantile(1.0),
        "requests_per_second": round(len(milliseconds) / seconds, 1),
        "cpu_seconds": round(used.ru_utime + used.ru_stime, 2),
    }  # fmt: skip
    print(json.dumps(document))


if __name__ == "__main__":
    place, port_number, job, how_long, how_many, how_often = sys.argv[1:7]
    asyncio.run(main(place, int(port_number), job, float(how_long), int(how_many), float(how_often)))
