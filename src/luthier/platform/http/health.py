"""GET /healthz and /readyz, which need no key: can this process still answer, and can this server do its work?

Most routes need one of the event loop's threads for requests (40 by anyio's default). A process whose threads all wait
forever still accepts connections, and answers what needs none. So a thread is requested to do nothing: how long that
takes distinguishes a busy process from one that is gone. The liveness check covers the event loop, these threads and
those that hash. Readiness is polled by load balancers, so it is cached.
"""

from __future__ import annotations

import asyncio
import shutil
import threading
import time
from collections.abc import Callable
from typing import Final, Generic, Literal, TypeVar

from anyio.to_thread import current_default_thread_limiter, run_sync
from fastapi import APIRouter, Request, Response
from pydantic import BaseModel

from luthier.core.errors import LuthierError, UnreachableError, WorkError
from luthier.core.frozen_model import FrozenModel
from luthier.platform.home.context import Context

Found = TypeVar("Found")
THREAD_SECONDS: Final = 5.0
"""How long a thread may take to come free before the process counts as unhealthy."""
HASH_SECONDS: Final = 120.0
"""The same for what hashes a password, and begins a session in a database that may be locked for a while."""


class InThread(Generic[Found]):
    """Something done in one of the threads for requests, at most once at a time: all who ask meanwhile share it.

    So frequent probes use only one thread.
    """

    def __init__(self, do: Callable[[], Found], *, clock: Callable[[], float] = time.monotonic) -> None:
        self._do, self._clock = do, clock
        self._task: asyncio.Task[Found] | None = None
        self._began = 0.0

    async def found(self, within_seconds: float) -> Found:
        """What it returns or raises.

        Args:
            within_seconds: How long it may have been running.

        Raises:
            TimeoutError: It has been running for longer than that.
        """
        task = self._task
        # A task of a loop that has ended, as in tests, would never finish.
        if task is None or task.done() or task.get_loop() is not asyncio.get_running_loop():
            task = self._task = asyncio.create_task(run_sync(self._do))
            self._began = self._clock()
        # asyncio.wait does not cancel on time-out, as wait_for would: the others who share the task continue to wait.
        await asyncio.wait({task}, timeout=max(0.0, within_seconds - self.seconds))
        if not task.done():
            raise TimeoutError
        return task.result()

    @property
    def seconds(self) -> float:
        """How long ago it began."""
        return self._clock() - self._began


class Liveness:
    """Looks whether the process can still answer."""

    def __init__(self, context: Context, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._context, self._thread = context, InThread(_nothing, clock=clock)

    async def problems(self) -> dict[str, str]:
        """What has failed, each with the reason; empty where all is well. Takes at most `THREAD_SECONDS`."""
        found: dict[str, str] = {}
        try:
            await self._thread.found(THREAD_SECONDS)
        except TimeoutError:
            limiter = current_default_thread_limiter()
            found["threads"] = (
                f"no thread was free for {self._thread.seconds:.0f} s: {limiter.borrowed_tokens} of "
                f"{limiter.total_tokens:g} are busy"
            )
        seconds = self._context.password_threads.longest_seconds()
        if seconds >= HASH_SECONDS:
            found["passwords"] = f"a sign-in has not ended for {seconds:.0f} s"
        return found


def _nothing() -> None:
    pass


LEAST_FREE_BYTES: Final = 256 * 1024**2
WRITE_SECONDS: Final = 2.0
"""How long a transaction that writes may have to wait in a database that is ready."""
_REMEMBERED_SECONDS: Final = 3.0


class Check(FrozenModel):
    """One thing that work needs.

    Attributes:
        name: What it is.
        problem: What is wrong with it; None if nothing is.
    """

    name: str
    problem: str | None = None


class Readiness:
    """Looks whether a home can be worked in, at most every few seconds, however often it is called."""

    def __init__(self, context: Context) -> None:
        self._context, self._lock = context, threading.Lock()
        self._checks: tuple[Check, ...] = ()
        self._looked = -_REMEMBERED_SECONDS
        self.is_stopping = False
        """Set once the server is about to end: from then on it is not ready, without any check."""

    def checks(self) -> tuple[Check, ...]:
        """All checks, each with what is wrong."""
        if self.is_stopping:
            return (Check(name="server", problem="it is shutting down"),)
        # Held during the look: all who ask meanwhile share its result instead of looking as well.
        with self._lock:
            if time.monotonic() - self._looked >= _REMEMBERED_SECONDS:
                self._checks, self._looked = look(self._context), time.monotonic()
            return self._checks


def look(context: Context) -> tuple[Check, ...]:
    """Whether the database answers with this version's tables, files can be written, and there is room for them."""
    checks: tuple[tuple[str, Callable[[Context], None]], ...] = (
        ("database", _database), ("artifacts", _artifacts), ("disk", _disk),
    )  # fmt: skip
    return tuple(Check(name=name, problem=_problem(check, context)) for name, check in checks)


def free_bytes(context: Context) -> int:
    """What is free on the disk that holds the home."""
    return shutil.disk_usage(context.home).free


def _problem(check: Callable[[Context], None], context: Context) -> str | None:
    try:
        check(context)
    except LuthierError as error:
        return error.came
    except OSError as error:
        return error.strerror or str(error)
    return None


def _database(context: Context) -> None:
    from luthier.platform.db.tables import SCHEMA_VERSION

    found = context.database.schema_version()
    if found != SCHEMA_VERSION:
        raise WorkError(f"its tables are of version {found}", expected=SCHEMA_VERSION, do="update Luthier")
    try:
        context.database.check_write(WRITE_SECONDS)
    except UnreachableError as error:  # without its name: the client has shown no key
        raise WorkError(
            f"no transaction that writes gets a turn within {WRITE_SECONDS:g} s", expected=error.expected, do=error.do
        ) from error


def _artifacts(context: Context) -> None:
    """Every file passes through this machine's disk, for any store."""
    from luthier.platform.files.service import IncomingFile

    with IncomingFile(context.artifacts.incoming) as probe:
        probe.write(b"probe")
    context.artifacts.look()


def _disk(context: Context) -> None:
    free = free_bytes(context)
    if free < LEAST_FREE_BYTES:
        raise WorkError(
            f"{free / 1024**2:.0f} MiB are free", expected=f"{LEAST_FREE_BYTES >> 20} MiB", do="free some disk space"
        )


router = APIRouter(tags=["operation"])

_READINESS_SECONDS: Final = 10.0


class LivenessView(BaseModel):
    """problems: why the process should be started again; there only where there are any."""

    status: Literal["ok", "unhealthy"]
    problems: dict[str, str] | None = None


class ReadinessView(BaseModel):
    """checks: of each thing that work needs `ok`, or what is wrong with it."""

    status: Literal["ok", "unavailable"]
    checks: dict[str, str]


@router.get(
    "/healthz",
    summary="The process can answer",
    response_model_exclude_none=True,
    responses={503: {"model": LivenessView}},
)
async def healthz(request: Request, response: Response) -> LivenessView:
    """503, with the reasons, where the threads that answer requests are gone: the process should be started again.

    It answers regardless of the database.
    """
    liveness: Liveness = request.app.state.liveness
    problems = await liveness.problems()
    if problems:
        response.status_code = 503
    return LivenessView(status="unhealthy" if problems else "ok", problems=problems or None)


@router.get("/readyz", summary="The server can do its work", responses={503: {"model": ReadinessView}})
async def readyz(request: Request, response: Response) -> ReadinessView:
    """503 with the reasons while it should be sent no requests: also while it shuts down."""
    checks = await _checks(request)
    is_ready = all(check.problem is None for check in checks)
    response.status_code = 200 if is_ready else 503
    return ReadinessView(
        status="ok" if is_ready else "unavailable", checks={check.name: check.problem or "ok" for check in checks}
    )


async def _checks(request: Request) -> tuple[Check, ...]:
    readiness: Readiness = request.app.state.readiness
    if readiness.is_stopping:
        return readiness.checks()
    looking: InThread[tuple[Check, ...]] = request.app.state.looking
    try:
        return await looking.found(_READINESS_SECONDS)
    except TimeoutError:
        return (Check(name="server", problem=f"its checks have not ended for {looking.seconds:.0f} s"),)
