#!/usr/bin/env python3
"""A large upload to a real server, and how much memory the server takes for it.

    python benchmarks/big_upload.py [--gib 2]

Once as one file (`POST /v1/files`) and once in parts (`POST /v1/uploads`), each streamed by the client from a generator
and read back as a stream. Sampled: the resident memory of the process that answers, ten times a second. Asked: memory
that does not grow with the file. Prints JSON.
"""

from __future__ import annotations

import argparse
import hashlib
import http.client
import json
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
from machine import describe

from luthier.testing.servers import RunningServer, running_server

MIB = 1 << 20
PART_BYTES = 64 * MIB
MOST_GROWTH_BYTES = 64 * MIB
EDGE = "luthier-upload"


def main() -> int:
    """Upload both ways while memory is sampled."""
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--gib", type=float, default=2.0)
    cli.add_argument("--folder", type=Path, default=None, help="of the home: on a disk with three times the room")
    args = cli.parse_args()
    num_mib = round(args.gib * 1024)
    with (
        tempfile.TemporaryDirectory(prefix="luthier-upload-", dir=args.folder) as folder,
        running_server(Path(folder) / "home", num_workers=0) as server,
    ):
        client = Client(server)
        ways = {"one file": client.one_file, "in parts": client.in_parts}
        seen = {name: _sampled(server, way, num_mib) for name, way in ways.items()}
    growth = max(one["growth_mib"] for one in seen.values())
    is_well = growth * MIB <= MOST_GROWTH_BYTES and all(one["same_bytes"] for one in seen.values())
    document = {"benchmark": "big_upload", "gib": args.gib, "is_well": is_well, "ways": seen, "machine": describe()}
    print(json.dumps(document, indent=2))
    return 0 if is_well else 1


def block(number: int) -> bytes:
    """One MiB of rows, different for each number."""
    head = json.dumps({"number": number, "text": ""})[:-2]
    return (head + "x" * (MIB - len(head) - 3) + '"}\n').encode()


class Client:
    """Sends and reads streams, and holds no more than a MiB of them itself."""

    def __init__(self, server: RunningServer) -> None:
        place = urlsplit(server.url)
        self.host, self.port, self.key = str(place.hostname), place.port or 80, server.key

    def one_file(self, num_mib: int) -> str:
        """`POST /v1/files`; returns the file's id."""
        return str(self._multipart("/v1/files", "file", 0, num_mib, {"purpose": "fine-tune"})["id"])

    def in_parts(self, num_mib: int) -> str:
        """`POST /v1/uploads` and all that follows; returns the file's id."""
        asked = {"filename": "rows.jsonl", "purpose": "fine-tune", "bytes": num_mib * MIB, "mime_type": "text/jsonl"}
        upload = self.post("/v1/uploads", json.dumps(asked).encode(), "application/json")["id"]
        parts = []
        for first in range(0, num_mib, PART_BYTES // MIB):
            number = min(PART_BYTES // MIB, num_mib - first)
            parts.append(self._multipart(f"/v1/uploads/{upload}/parts", "data", first, number, {})["id"])
        done = self.post(f"/v1/uploads/{upload}/complete", json.dumps({"part_ids": parts}).encode(), "application/json")
        return str(done["file"]["id"])

    def digest(self, file_id: str) -> str:
        """SHA-256 of what the server gives back."""
        connection = http.client.HTTPConnection(self.host, self.port)
        connection.request("GET", f"/v1/files/{file_id}/content", headers={"Authorization": f"Bearer {self.key}"})
        answer, found = connection.getresponse(), hashlib.sha256()
        while part := answer.read(MIB):
            found.update(part)
        connection.close()
        return found.hexdigest()

    def delete(self, file_id: str) -> None:
        """Make room for the next."""
        connection = http.client.HTTPConnection(self.host, self.port)
        connection.request("DELETE", f"/v1/files/{file_id}", headers={"Authorization": f"Bearer {self.key}"})
        connection.getresponse().read()
        connection.close()

    def _multipart(self, path: str, field: str, first: int, num_mib: int, fields: dict[str, str]) -> dict[str, Any]:
        before = "".join(
            f'--{EDGE}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'
            for name, value in fields.items()
        )
        before += f'--{EDGE}\r\nContent-Disposition: form-data; name="{field}"; filename="rows.jsonl"\r\n\r\n'
        after = f"\r\n--{EDGE}--\r\n"

        def body() -> Iterator[bytes]:
            yield before.encode()
            for number in range(first, first + num_mib):
                yield block(number)
            yield after.encode()

        length = len(before) + num_mib * MIB + len(after)
        return self.post(path, body(), f"multipart/form-data; boundary={EDGE}", length)

    def post(self, path: str, body: Any, kind: str, length: int | None = None) -> dict[str, Any]:
        """Send a body, streamed where it is an iterator."""
        connection = http.client.HTTPConnection(self.host, self.port)
        headers = {"Authorization": f"Bearer {self.key}", "Content-Type": kind}
        if length is not None:
            headers["Content-Length"] = str(length)
        connection.request("POST", path, body, headers)
        answer = connection.getresponse()
        text = answer.read()
        connection.close()
        if answer.status >= 300:
            raise RuntimeError(f"POST {path}: {answer.status} {text[:500]!r}")
        found: dict[str, Any] = json.loads(text)
        return found


def _sampled(server: RunningServer, way: Any, num_mib: int) -> dict[str, Any]:
    """Do it, and how much memory it took beyond what the server had before."""
    api = next(c for c in psutil.Process(server.process.pid).children() if "luthier.server.home" in c.cmdline())
    before, most, is_done = api.memory_info().rss, [0], threading.Event()

    def sample() -> None:
        while not is_done.wait(0.1):
            most[0] = max(most[0], api.memory_info().rss)

    sampler = threading.Thread(target=sample)
    sampler.start()
    client, began = Client(server), time.monotonic()
    file_id = way(num_mib)
    seconds, peak_after_upload = time.monotonic() - began, most[0]
    digest = client.digest(file_id)
    is_done.set()
    sampler.join()
    expected = hashlib.sha256()
    for number in range(num_mib):
        expected.update(block(number))
    client.delete(file_id)
    return {
        "rss_before_mib": round(before / MIB, 1),
        "peak_rss_while_uploading_mib": round(peak_after_upload / MIB, 1),
        "peak_rss_with_reading_back_mib": round(most[0] / MIB, 1),
        "growth_mib": round((most[0] - before) / MIB, 1),
        "seconds": round(seconds, 1),
        "mib_per_second": round(num_mib / seconds, 1),
        "same_bytes": digest == expected.hexdigest(),
    }


if __name__ == "__main__":
    sys.exit(main())
