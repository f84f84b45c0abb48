"""Servers for tests: `luthier up` as processes or in a thread, and a private PostgreSQL; and waiting for them.

PostgreSQL's programs come from the system (Debian: the package `postgresql`); it listens on 127.0.0.1 alone.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from luthier.core.system.facilities import posix

if TYPE_CHECKING:
    from fastapi import FastAPI

    from luthier.platform.home.context import Context

_FIRST_LOOK_SECONDS = 0.001
_LOOK_SECONDS = 0.05


def wait_for(seen: Callable[[], bool], seconds: float = 120.0) -> None:
    """Return as soon as it is seen; raises TimeoutError where it is not within `seconds`."""
    end = time.monotonic() + seconds
    pause = _FIRST_LOOK_SECONDS
    while not seen():
        if time.monotonic() > end:
            raise TimeoutError(f"not seen within {seconds:.0f} s")
        time.sleep(pause)
        pause = min(2 * pause, _LOOK_SECONDS)


_STOP_SECONDS = 100.0

BEFORE_STOP: list[Callable[[], None]] = []
"""Called before a running server is stopped: clients that send requests by themselves, as pages do, leave first."""


def _leave() -> None:
    for leave in BEFORE_STOP:
        leave()


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
    home: Path,
    *,
    num_workers: int = 1,
    environment: Mapping[str, str] | None = None,
    port: int = 0,
    popen: Callable[..., Any] = subprocess.Popen,
) -> Iterator[RunningServer]:
    """Start the server of a home on the loopback; it is stopped when the block ends.

    Args:
        home: The home; its log is written beside it.
        num_workers: Worker processes.
        environment: Added to that of this process.
        port: The port; 0 takes a free one.
        popen: Starts its process, as `subprocess.Popen` does.

    Raises:
        RuntimeError: It does not start; the end of the log is in the message.
    """
    log = home.with_name(f"{home.name}-server.log")
    command = [sys.executable, "-m", "luthier", "up", "--port", str(port), "--workers", str(num_workers), "--json"]
    with log.open("ab") as said:
        process = popen(
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
            _leave()
            server.stop()
        process.stdout.close()


@dataclass(frozen=True, slots=True)
class HomeServer:
    """A server in a thread of this process.

    Attributes:
        url: without a path.
        key: the first key of its home; None where there were keys before.
        home: its home.
    """

    url: str
    key: str | None
    home: Path


@contextmanager
def home_server(home: Path) -> Iterator[HomeServer]:
    """Serve the pages and the API of a home by a thread of this process while the block runs.

    Clients see what `running_server` without workers shows them; the two processes and their imports are saved. It has
    its own context: what the caller changes reaches it by the database and the disk alone, as from outside.
    """
    from luthier.features.monitoring.loop import MonitorThreads
    from luthier.platform.auth.service import first_key
    from luthier.platform.home.context import Context
    from luthier.platform.notifications.webhooks import WebhookSender
    from luthier.server.home import create_home_app

    with (
        Context.open(home) as context,
        WebhookSender(context),
        MonitorThreads(context),
        app_server(create_home_app(context), context) as url,
    ):
        yield HomeServer(url, first_key(context), home)


@contextmanager
def app_server(app: FastAPI, context: Context) -> Iterator[str]:
    """Serve an app on the loopback by a thread of this process; yields its URL.

    Args:
        app: made by `server.api.create_app` or `server.home.create_home_app`.
        context: the open home that it was made for.

    Raises:
        RuntimeError: It does not start.
    """
    import asyncio

    from luthier.core.system.process_setup import start_daemon
    from luthier.platform.http.server import make_server
    from luthier.platform.http.socket import listen

    with listen("127.0.0.1", 0) as listener:
        server = make_server(app, context, app.state.readiness)

        def serve() -> None:
            with suppress(SystemExit):  # uvicorn's end where the lifespan of the app raises; it has logged why
                asyncio.run(server.serve(sockets=[listener.socket]))

        thread = start_daemon(serve, "app-server")
        try:
            wait_for(lambda: server.started or not thread.is_alive())
            if not server.started:
                raise RuntimeError("the app did not start: the thread that serves it has ended")
            yield listener.url
        finally:
            _leave()
            server.should_exit = True
            thread.join(_STOP_SECONDS)


USER, PASSWORD = "luthier", "tuning"
# Durability is of no use to data that is gone after the test, and costs most of the time.
_SETTINGS = "fsync=off full_page_writes=off max_connections=60 shared_buffers=32MB"
_SERVER_ACCOUNT = "postgres"  # a server of root's own would refuse to start


def programs_folder() -> Path | None:
    """Where the server's programs lie, the newest version first; None where PostgreSQL is not installed."""
    if (found := shutil.which("initdb")) is not None:
        return Path(found).resolve().parent
    installed = [path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/initdb")]
    # By number: as text, 9 would come after 16.
    return max(installed, key=lambda folder: int(folder.parent.name), default=None)


@dataclass(frozen=True, slots=True)
class PostgresqlServer:
    """A running server. `stop` and `start` are for tests of what happens when it goes away and comes back."""

    programs: Path
    folder: Path
    port: int

    def url(self, database: str) -> str:
        """The URL of a database on it."""
        return f"postgresql://{USER}:{PASSWORD}@127.0.0.1:{self.port}/{database}"

    def new_database(self, copy_of: str | None = None) -> str:
        """Make an empty database, or a copy of another one without open connections; takes and returns URLs."""
        name = f"test_{uuid4().hex[:12]}"
        # A template copies files and is many times faster than migrating an empty database.
        template = "template1" if copy_of is None else copy_of.rpartition("/")[2]
        where = ("-h", "127.0.0.1", "-p", str(self.port), "-U", USER)
        self._run("createdb", *where, "-T", template, name, password=PASSWORD)
        return self.url(name)

    def start(self) -> None:
        """Start it and wait until it takes connections."""
        settings = " ".join(
            f"-c {setting}" for setting in (*_SETTINGS.split(), f"unix_socket_directories={self.folder}")
        )
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 {settings}"
        log = str(self.folder / "log")
        self._run("pg_ctl", "-D", str(self.folder / "data"), "-w", "-t", "60", "-l", log, "-o", options, "start")

    def stop(self, mode: str = "immediate") -> None:
        """Stop it.

        Args:
            mode: `immediate` as in a crash, `fast` as an administrator does it.
        """
        self._run("pg_ctl", "-D", str(self.folder / "data"), "-w", "-m", mode, "stop")

    def _run(self, program: str, *arguments: str, password: str | None = None) -> None:
        command = [*_as_server_account(), str(self.programs / program), *arguments]
        environment = os.environ | ({"PGPASSWORD": password} if password else {})
        # into a file: the server continues writing to what it inherits, and a pipe would never end
        with (self.folder / "said").open("w+") as said:
            done = subprocess.run(command, cwd=self.folder, env=environment, stdout=said, stderr=said, check=False)
            said.seek(0)
            if done.returncode:
                raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}: {said.read()[-2000:]}")


def _as_server_account() -> list[str]:
    return (
        ["setpriv", f"--reuid={_SERVER_ACCOUNT}", f"--regid={_SERVER_ACCOUNT}", "--clear-groups"] if _is_root() else []
    )


def _is_root() -> bool:
    return bool(posix.geteuid() == 0)


@contextmanager
def postgresql_server(programs: Path) -> Iterator[PostgresqlServer]:
    """A new, empty server for the block; its data is gone afterwards.

    Args:
        programs: The folder of the server's programs, from `programs_folder`.
    """
    # the path of its socket must be short, and its account must reach it: not below a test's own folder
    folder = Path(tempfile.mkdtemp(prefix="luthier-pg-"))
    try:
        if _is_root():
            shutil.chown(folder, _SERVER_ACCOUNT)
        server = PostgresqlServer(programs, folder, _free_port())
        secret = folder / "secret"
        secret.write_text(PASSWORD, encoding="ascii")
        if _is_root():
            shutil.chown(secret, _SERVER_ACCOUNT)
        data = str(folder / "data")
        server._run(
            "initdb", "-D", data, "-U", USER, f"--pwfile={secret}", "-A", "scram-sha-256", "-E", "UTF8", "--no-sync"
        )
        server = _started(server)
        try:
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _started(server: PostgresqlServer) -> PostgresqlServer:
    """The server on a port that it got: another program may take a free one before the server does."""
    for _ in range(_NUM_PORTS - 1):
        with suppress(RuntimeError):
            server.start()
            return server
        server = replace(server, port=_free_port())
    server.start()
    return server


_NUM_PORTS = 3
"""Ports that are tried; the error of the last one is raised."""


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
