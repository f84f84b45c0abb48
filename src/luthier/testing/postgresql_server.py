"""A private PostgreSQL server in a temporary folder: for tests of code that uses a database.

The server's programs come from the system (Debian: the package `postgresql`); it listens on 127.0.0.1 alone.
"""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

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
        # into a file: the server goes on writing to what it inherits, and a pipe would never end
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
    return os.geteuid() == 0


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
            account = pwd.getpwnam(_SERVER_ACCOUNT)
            os.chown(folder, account.pw_uid, account.pw_gid)
        server = PostgresqlServer(programs, folder, _free_port())
        secret = folder / "secret"
        secret.write_text(PASSWORD, encoding="ascii")
        if _is_root():
            shutil.chown(secret, _SERVER_ACCOUNT)
        data = str(folder / "data")
        server._run(
            "initdb", "-D", data, "-U", USER, f"--pwfile={secret}", "-A", "scram-sha-256", "-E", "UTF8", "--no-sync"
        )
        server.start()
        try:
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _free_port() -> int:
    with socket.socket() as found:
        # Another program may take it before the server does; that is rare, and the start then fails loudly.
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
