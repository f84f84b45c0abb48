"""`luthier up` as a separate process, for tests of what a client sees."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_STOP_SECONDS = 100.0


@dataclass(frozen=True, slots=True)
class RunningServer:
    """A server that answers.

    Attributes:
        process: its process.
        url: without a path.
        key: the first key of its home; None where there were keys before.
        home: its home.
        log: the file with its stderr.
        link: signs a browser in, once.
    """

    process: subprocess.Popen[str]
    url: str
    key: str | None
    home: Path
    log: Path
    link: str = ""

    def stop(self) -> int:
        """End it in good order, as Ctrl-C does; returns its exit code."""
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()


@contextmanager
def running_server(
    home: Path, *, num_workers: int = 1, environment: Mapping[str, str] | None = None, port: int = 0
) -> Iterator[RunningServer]:
    """Start the server of a home on the loopback; it is stopped when the block ends.

    Args:
        home: The home; its log is written beside it.
        num_workers: Worker processes.
        environment: Added to that of this process.
        port: The port; 0 takes a free one.

    Raises:
        RuntimeError: It does not start; the end of the log is in the message.
    """
    log = home.with_name(f"{home.name}-server.log")
    command = [sys.executable, "-m", "luthier", "up", "--port", str(port), "--workers", str(num_workers), "--json"]
    with log.open("ab") as said:
        process = subprocess.Popen(
            [*command, "--home", str(home)],
            stdout=subprocess.PIPE,
            stderr=said,
            text=True,
            env=os.environ | dict(environment or {}),
        )
    assert process.stdout is not None
    line = process.stdout.readline()
    # The first line of stdout comes once the server answers: no polling is needed.
    if not line.startswith('{"url"'):  # else it ends with an error message of several lines
        process.stdout.close()
        process.wait(_STOP_SECONDS)
        raise RuntimeError(f"the server did not start: {log.read_text(encoding='utf-8')[-3000:]}")
    started: dict[str, Any] = json.loads(line)
    server = RunningServer(process, started["url"], started.get("key"), home, log, started.get("link", ""))
    try:
        yield server
    finally:
        if process.poll() is None:
            server.stop()
        process.stdout.close()
