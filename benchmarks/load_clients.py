"""Clients that poll: as cheap as they can be, so that what they cost does not fall on what is measured.

    python benchmarks/load_clients.py HOST PORT JOB SECONDS CLIENTS PACE < KEY

Each client keeps one connection and asks PACE times a second, in turn for the job and for its events. One thread, one
epoll, requests as bytes that are made once. The process gives way to others (`luthier.core.system.process_setup`):
real clients are
on other machines, and one that comes too late makes the answer seem slow and nothing else. Prints one JSON object:
requests, errors, milliseconds from the moment a request was due to the end of its answer, and its own processor time.
"""

from __future__ import annotations

import heapq
import json
import random
import resource
import selectors
import socket
import sys
import time
from dataclasses import dataclass, field

from luthier.core.system.process_setup import lower_session_priority

_END_OF_HEAD = b"\r\n\r\n"
_LAST_ANSWER_SECONDS = 5.0


@dataclass(slots=True)
class Client:
    """One connection. due: when the request under way was due; None while none is."""

    connection: socket.socket
    turn: int
    due: float | None = None
    given: bytearray = field(default_factory=bytearray)
    missing: int = -1  # bytes of the answer; -1 while its head is not there yet


class Load:
    """All clients of one process."""

    def __init__(self, host: str, port: int, key: str, paths: list[str]) -> None:
        self._place = (host, port)
        head = f" HTTP/1.1\r\nHost: {host}:{port}\r\nAuthorization: Bearer {key}\r\n\r\n"
        self._requests = [f"GET {path}{head}".encode() for path in paths]
        self._selector = selectors.DefaultSelector()
        self.milliseconds: list[float] = []
        self.wrong: list[str] = []

    def run(self, seconds: float, num_clients: int, pause: float) -> None:
        """Poll for so long. A connection that breaks is an error and is opened again."""
        clients = [self._connected(number, random.randrange(len(self._requests))) for number in range(num_clients)]
        began = time.monotonic()
        waiting = [(began + random.random() * pause, number) for number in range(num_clients)]
        heapq.heapify(waiting)
        until, num_open = began + seconds, 0
        while True:
            now = time.monotonic()
            while waiting and waiting[0][0] <= now and waiting[0][0] < until:
                due, number = heapq.heappop(waiting)
                heapq.heappush(waiting, (due + pause, number))
                if clients[number].due is not None:
                    self.wrong.append("the answer before is not there yet")  # a client that falls behind
                    continue
                num_open += self._ask(clients, number, due)
            next_due = waiting[0][0]
            if next_due >= until and num_open == 0:
                break
            if now > until + _LAST_ANSWER_SECONDS:
                self.wrong += ["no answer at the end"] * num_open
                break
            limit = min(next_due, until) if next_due < until else until + _LAST_ANSWER_SECONDS
            for key, _ in self._selector.select(max(0.0, limit - now) + 0.0001):
                num_open -= self._read(clients, key.data)
        for client in clients:
            client.connection.close()

    def _connected(self, number: int, turn: int) -> Client:
        connection = socket.create_connection(self._place)
        self._selector.register(connection, selectors.EVENT_READ, number)
        return Client(connection, turn)

    def _ask(self, clients: list[Client], number: int, due: float) -> int:
        client = clients[number]
        client.due, client.missing = due, -1
        client.given.clear()
        request = self._requests[client.turn % len(self._requests)]
        client.turn += 1
        try:
            client.connection.sendall(request)
        except OSError as error:
            self._broken(clients, number, repr(error))
            return 0
        return 1

    def _read(self, clients: list[Client], number: int) -> int:
        """How many answers (0 or 1) have come to their end."""
        client = clients[number]
        try:
            chunk = client.connection.recv(65536)
        except OSError as error:
            chunk, why = b"", repr(error)
        else:
            why = "closed by the server"
        if not chunk:
            was_open = client.due is not None
            self._broken(clients, number, why if was_open else "")
            return int(was_open)
        client.given += chunk
        if client.missing < 0:
            end = client.given.find(_END_OF_HEAD)
            if end < 0:
                return 0
            head = bytes(client.given[:end]).lower()
            client.missing = int(head.partition(b"content-length:")[2].partition(b"\r\n")[0]) + end + 4
        if len(client.given) < client.missing or client.due is None:
            return 0
        self.milliseconds.append((time.monotonic() - client.due) * 1000)
        client.due = None
        if not client.given.startswith(b"HTTP/1.1 200"):
            self.wrong.append(bytes(client.given[:60]).decode("latin-1"))
        return 1

    def _broken(self, clients: list[Client], number: int, why: str) -> None:
        if why:
            self.wrong.append(why)
        client = clients[number]
        self._selector.unregister(client.connection)
        client.connection.close()
        clients[number] = self._connected(number, client.turn)


def main(host: str, port: int, job_id: str, seconds: float, num_clients: int, pace: float) -> None:
    """All clients at once; then what they saw."""
    lower_session_priority()
    key = sys.stdin.read().strip()
    random.seed(0)
    job = f"/v1/fine_tuning/jobs/{job_id}"
    load = Load(host, port, key, [job, f"{job}/events?limit=20"])
    before = resource.getrusage(resource.RUSAGE_SELF)
    load.run(seconds, num_clients, 1 / pace)
    used, milliseconds = resource.getrusage(resource.RUSAGE_SELF), sorted(load.milliseconds)

    def quantile(share: float) -> float:
        return round(milliseconds[min(len(milliseconds) - 1, int(share * len(milliseconds)))], 1)

    cpu_seconds = used.ru_utime + used.ru_stime - before.ru_utime - before.ru_stime
    document = {
        "requests": len(milliseconds), "errors": len(load.wrong), "first_errors": load.wrong[:5],
        "p50_ms": quantile(0.5), "p90_ms": quantile(0.9), "p99_ms": quantile(0.99), "max_ms": quantile(1.0),
        "requests_per_second": round(len(milliseconds) / seconds, 1),
        "client_cpu_share": round(cpu_seconds / seconds, 4),
        "client_cpu_ms_per_request": round(cpu_seconds / len(milliseconds) * 1000, 3),
    }  # fmt: skip
    print(json.dumps(document))


if __name__ == "__main__":
    place, port_number, job, how_long, how_many, how_often = sys.argv[1:7]
    main(place, int(port_number), job, float(how_long), int(how_many), float(how_often))
