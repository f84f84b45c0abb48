"""A real server, seen from outside: its memory, and what breaks off."""

from __future__ import annotations

import hashlib
import http.client
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("file_server.py")
BLOCK = bytes(range(256)) * 4096
NUM_BLOCKS = 64
MOST_GROWTH_BYTES = 48 << 20
HEAD = b'--B\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nfine-tune\r\n--B\r\n'
HEAD += b'Content-Disposition: form-data; name="file"; filename="a.jsonl"\r\n\r\n'
TAIL = b"\r\n--B--\r\n"


class Server:
    def __init__(self, folder: Path) -> None:
        self.home, files = folder / "home", (folder / "key", folder / "port")
        self.process = subprocess.Popen([sys.executable, str(SCRIPT), str(self.home), *map(str, files)])
        wait_until(lambda: files[1].exists() or self.process.poll() is not None)
        self.key, self.port = files[0].read_text(), int(files[1].read_text())

    def most_memory_bytes(self) -> int:
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))

    def send(self, num_blocks: int) -> bytes:
        """Upload a file of so many blocks, never whole in this process either; the answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        blocks = (part for part in [HEAD, *[BLOCK] * num_blocks, TAIL])
        connection.request("POST", "/v1/files", body=blocks, headers=self.headers, encode_chunked=True)
        answer = connection.getresponse()
        text = answer.read()
        connection.close()
        assert answer.status == 200, text
        return text

    @property
    def headers(self) -> dict[str, str]:
        return {
            "Authorization": f"Bearer {self.key}",
            "Content-Type": "multipart/form-data; boundary=B",
            "Transfer-Encoding": "chunked",
        }

    def kept_files(self) -> list[Path]:
        return [path for path in (self.home / "artifacts").rglob("*") if path.is_file()]


def wait_until(is_so: Callable[[], bool]) -> None:
    for _ in range(1200):
        if is_so():
            return
        time.sleep(0.05)
    raise AssertionError("it did not become so within a minute")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    started = Server(tmp_path_factory.mktemp("server"))
    try:
        yield started
    finally:
        started.process.kill()
        started.process.wait()


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc to see the memory of a process")
def test_a_large_file_comes_in_and_goes_out_in_constant_memory(server: Server) -> None:
    server.send(1)
    before = server.most_memory_bytes()
    text = server.send(NUM_BLOCKS).decode()
    file_id = text.split('"id":"')[1].split('"')[0]
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=120)
    connection.request("GET", f"/v1/files/{file_id}/content", headers={"Authorization": f"Bearer {server.key}"})
    answer, digest = connection.getresponse(), hashlib.sha256()
    while block := answer.read(1 << 20):
        digest.update(block)
    connection.close()
    assert digest.hexdigest() == hashlib.sha256(BLOCK * NUM_BLOCKS).hexdigest()
    assert server.most_memory_bytes() - before < MOST_GROWTH_BYTES


def test_a_client_that_goes_away_leaves_nothing(server: Server) -> None:
    head = "".join(f"{name}: {value}\r\n" for name, value in server.headers.items() if "Transfer" not in name)
    request = f"POST /v1/files HTTP/1.1\r\nHost: localhost\r\n{head}Content-Length: 100000000\r\n\r\n"
    before = server.kept_files()
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(request.encode() + HEAD + BLOCK * 2)
        wait_until(lambda: len(server.kept_files()) > len(before))
    wait_until(lambda: server.kept_files() == before)
    server.send(1)
