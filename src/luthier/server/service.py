"""Use case: be the server of a home, by one process for the API and one for each worker, looked after by this one.

    luthier up ---- python -m luthier.server.home    answers requests; never trains
               ---- luthier worker --name up-1       trains, in separate processes

The processes are started by name, since no layer may know the one above it. This one holds the socket that is listened
on: a port that is taken is reported immediately, and no request is refused while the API is being started again. What
the processes need to know is in the environment (`LUTHIER_HOME`, `LUTHIER_DATABASE`, ...), where no list of processes
shows the password of a database.
"""

from __future__ import annotations

import http.client
import os
import platform
import re
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from luthier.core.errors import RequestError, WorkError
from luthier.core.ids import sha256_bytes
from luthier.core.system import facilities
from luthier.core.system.process_setup import environment_with
from luthier.features.exports.folders import remove_abandoned
from luthier.platform.auth.members import make_link
from luthier.platform.db.server_version import record_server_version
from luthier.platform.home.context import Context
from luthier.platform.home.permissions import exposed_paths
from luthier.platform.http.socket import Listener, lend, listen
from luthier.platform.processes.supervisor import HealthCheck, Program, Supervisor

API_GRACE_SECONDS: Final = 20.0
"""Of the process that answers HTTP, with the default of `drain_seconds`."""
_BESIDE_DRAIN_SECONDS: Final = 10.0
"""Of that: until it listens no longer, and to end what is in memory."""
WORKER_GRACE_SECONDS: Final = 75.0
"""A little more than a worker gives its training for a last checkpoint."""
_START_SECONDS: Final = 120.0
_LOCK_SECONDS: Final = 1.0
STACKS_SIGNAL: Final = facilities.stacks_signal()
"""The signal that makes a process that answers HTTP write the stacks of its threads to stderr; None without one."""
API: Final = "api"
"""The name of the program that answers HTTP."""


@dataclass(frozen=True, slots=True)
class ServerRequest:
    """The requested kind of server.

    Attributes:
        host: The address to listen on.
        port: The port; 0 takes any that is free.
        num_workers: Worker processes; 0 leaves the jobs to others.
        shows_key: Whether `started` shows what signs in: a link, and the first key where it is made now; else that goes
            into a file.
    """

    host: str = "127.0.0.1"
    port: int = 8520
    num_workers: int = 1
    shows_key: bool = True


@dataclass(frozen=True, slots=True)
class Started:
    """A server that answers.

    Attributes:
        url: Where clients find it, without `/v1`.
        home: The home folder.
        database: The database for people, without a password.
        workers: The names of its workers.
        key: The first key of this home, if it was made just now and is to be shown; it cannot be shown again.
        is_loopback: Whether only this machine can reach it.
        link: Signs the person who opens it in, once; None where others can reach the address, or read what is shown.
        key_file: The file with the first key, if it was made just now and is not to be shown.
    """

    url: str
    home: Path
    database: str
    workers: tuple[str, ...]
    key: str | None
    is_loopback: bool
    link: str | None = None
    key_file: Path | None = None

    def as_json(self) -> dict[str, Any]:
        """The line of `luthier up --json`."""
        shown = {"url": self.url, "pid": os.getpid(), "home": str(self.home), "database": self.database}
        return (
            shown
            | {"workers": list(self.workers)}
            | ({} if self.key is None else {"key": self.key})
            | ({} if self.key_file is None else {"key_file": str(self.key_file)})
            | ({} if self.link is None else {"link": self.link})
        )


def worker_names(context: Context, num_workers: int) -> tuple[str, ...]:
    """The names of the workers of a server: the same at each start, so that each takes up again what it held.

    Where others may share the database, none of theirs may be the same: then machine and home are part of the name.
    """
    first = "up"
    if context.settings.database is not None:
        # Names of workers are parts of paths.
        machine = re.sub(r"[^A-Za-z0-9]+", "-", platform.node()).strip("-")[:50] or "machine"
        first = f"{machine}-{sha256_bytes(os.fsencode(context.home))[:6]}"
    return tuple(f"{first}-{number}" for number in range(1, num_workers + 1))


def serve(
    context: Context,
    request: ServerRequest,
    *,
    stop_requested: Callable[[], str | None],
    tell: Callable[[str], None],
    started: Callable[[Started], None],
) -> None:
    """Start the server of this home, call `started` once it answers, and look after it until a stop is requested.

    Shuts down cleanly: active requests are answered, trainings write a checkpoint and go back into the
    queue. A KeyboardInterrupt meanwhile ends everything immediately; only steps since the last checkpoint are lost.

    Args:
        context: The home.
        request: Where to listen, and how many workers to start.
        stop_requested: Returns why to stop; None to continue.
        tell: Called with each line of the log.
        started: Called once the server answers.

    Raises:
        RequestError: The address cannot be used, or others can reach it while there is no key.
        ConflictError: The port is taken, or the home has a server already.
        WorkError: The process of the API does not start.
    """
    from luthier.core.system.files import SHORT_TEMPORARY, file_lock, remove_abandoned_temporary

    what = f"the home {context.home} as a server"
    with (
        file_lock(context.home / "server.lock", what=what, timeout_seconds=_LOCK_SECONDS),
        listen(request.host, request.port) as listener,
    ):
        # Before anything is started: an open server must never be reachable, not even for a moment.
        if not listener.is_loopback and not has_key(context):
            raise RequestError(
                f"{listener.host} can be reached by others, and this home has no key",
                expected="a key before anybody else can come in, or an address of this machine alone",
                do="make one first: luthier keys create --name NAME --scopes admin",
            )
        for place in exposed_paths(context.settings):
            tell(f"warning: {place.message}; {place.do}")
        for folder in remove_abandoned(context):
            tell(f"removed {folder}: an export that was killed had left it")
        for folder in remove_abandoned_temporary(Path(tempfile.gettempdir()), SHORT_TEMPORARY):
            tell(f"removed {folder}: a process that was killed had left it")
        # Workers of an older version end before they take jobs of this one.
        record_server_version(context.watches)
        workers = worker_names(context, request.num_workers)
        # One worker a process: each holds one training and the memory of its models.
        supervisor = Supervisor([_api(context, listener), *map(_worker, workers)], tell=tell)
        try:
            with environment_with(_environment(context)):
                supervisor.start()
                wait_until_it_answers(supervisor, listener, stop_requested)
                if stop_requested() is None:
                    started(_started(context, request, listener, workers))
                    context.close()  # what is looked after needs no connection of ours
                tell(f"stopping: {supervisor.watch(stop_requested)}")
        finally:
            supervisor.stop()


def _api(context: Context, listener: Listener) -> Program:
    return api_program("luthier.server.home", context, listener)


def api_program(module: str, context: Context, listener: Listener) -> Program:
    """The process that answers HTTP on a socket: `python -m MODULE SOCKET`, started again where it hangs."""
    seconds = context.settings.unhealthy_restart_seconds
    health = HealthCheck(listener.near_host, listener.port, unhealthy_seconds=seconds) if seconds else None
    argument, descriptors = lend(listener)
    command = (sys.executable, "-m", module, argument)
    grace = context.settings.drain_seconds + _BESIDE_DRAIN_SECONDS
    return Program(API, command, grace, descriptors, health=health, stacks=STACKS_SIGNAL)


def _worker(name: str) -> Program:
    return Program(name, (sys.executable, "-m", "luthier", "worker", "--name", name), WORKER_GRACE_SECONDS)


def _environment(context: Context) -> dict[str, str]:
    """The environment of the processes."""
    return {"LUTHIER_HOME": str(context.home), "LUTHIER_LOG_FORMAT": context.settings.log_format}


def wait_until_it_answers(supervisor: Supervisor, listener: Listener, stop_requested: Callable[[], str | None]) -> None:
    """Wait until the process of the API answers, or a stop is requested.

    Raises:
        WorkError: The process has ended, or does not answer in time.
    """
    deadline = time.monotonic() + _START_SECONDS
    while stop_requested() is None and not _answers(listener):
        time.sleep(0.05)
        # Looked at here, since the supervisor does not restart anything before `watch`.
        code = supervisor.exit_code(API)
        if code is not None or time.monotonic() >= deadline:
            how = f"ended with exit code {code}" if code is not None else f"gave no answer within {_START_SECONDS:g} s"
            raise WorkError(
                f"the process of the API {how}",
                expected="it to start and to answer",
                do="see its output above; `luthier doctor` shows what this machine lacks",
            )


def _answers(listener: Listener) -> bool:
    connection = http.client.HTTPConnection(listener.near_host, listener.port, timeout=1.0)
    try:
        connection.request("GET", "/healthz")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


def has_key(context: Context) -> bool:
    """Whether the home has a key that lets somebody in now."""
    now = context.access.now()
    keys = context.access.keys()
    return any(key.revoked_at is None and (key.expires_at is None or key.expires_at > now) for key in keys)


def _started(context: Context, request: ServerRequest, listener: Listener, workers: tuple[str, ...]) -> Started:
    from luthier.platform.auth.first_key import FirstKey, make_first_key

    name = context.database.name
    if not listener.is_loopback:  # a key is there already: that was checked before it was listened
        return Started(listener.url, context.home, name, workers, None, is_loopback=False)
    made = make_first_key(context, is_shown=request.shows_key) or FirstKey()
    # Who reads a journal must not be signed in as an admin by it.
    link = f"{listener.url}/welcome/{make_link(context)}" if request.shows_key else None
    return Started(listener.url, context.home, name, workers, made.key, True, link, made.file)
