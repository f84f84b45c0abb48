"""Work of a form that may take long: no request waits for it longer than a moment; /working/NAME follows it.

POST --> a thread begins --> done within 0.25 s: on to where it leads
                         `-> else /working/NAME: shows how far it is until it is done, then leads on or says why not
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Final, Self

from fastapi import APIRouter, Request
from starlette.responses import Response

from luthier.core.errors import BusyError, ConflictError, LuthierError, NotFoundError, WorkError
from luthier.core.ports import Progress, ProgressTask
from luthier.core.system.process_setup import start_daemon
from luthier.platform.auth.service import digest_of
from luthier.platform.ui.errors import status_of
from luthier.platform.ui.render import redirect, render
from luthier.platform.ui.visitor import COOKIE, Visitor
from luthier.platform.ui.work_progress import WorkProgress, reporting_to

log = logging.getLogger("luthier.web")

WAIT_SECONDS: Final = 0.25
"""So long a request waits for work that is mostly short."""
_MAX_RUNNING: Final = 8
_KEEP_SECONDS: Final = 3600.0


@dataclass(frozen=True, slots=True)
class Led:
    """Where work leads when it is done, and what the page there says on top.

    Attributes:
        address: A path of this server.
        notice: One sentence; empty for none.
    """

    address: str
    notice: str = ""


@dataclass(slots=True)
class Work:
    """One piece of work.

    Attributes:
        owner: Digest of the session that began it.
        title: What is done, for people.
        back: The page that it was begun from.
        since: When it began, in seconds since 1970.
        done: Set at its end.
        led: Where it leads; None until it has succeeded.
        error: Why it failed; None unless it did.
        stop: Set to have it end early; None for work that cannot.
        progress: How far it is.
    """

    owner: str
    title: str
    back: str
    since: float = field(default_factory=time.time)
    done: threading.Event = field(default_factory=threading.Event)
    led: Led | None = None
    error: LuthierError | None = None
    stop: threading.Event | None = None
    progress: WorkProgress = field(default_factory=WorkProgress)

    @property
    def seconds(self) -> float:
        """How long it has taken so far."""
        return max(0.0, time.time() - self.since)

    @property
    def is_stopping(self) -> bool:
        """Whether it was asked to end early, and has not ended."""
        return self.stop is not None and self.stop.is_set() and not self.done.is_set()


class CancellableProgress:
    """A progress at whose next step the work ends, where a person has cancelled it.

    Args:
        progress: What shows the steps.
        stop: Set where the work is cancelled.
        cancelled: The error with which it ends then.
    """

    def __init__(self, progress: Progress, stop: threading.Event, cancelled: LuthierError) -> None:
        self._progress, self._stop, self._cancelled = progress, stop, cancelled

    def task(self, title: str, total: float | None, unit: str, done: float = 0) -> ProgressTask:
        """A task of it."""
        self.check()
        return _CancellableTask(self._progress.task(title, total, unit, done), self)

    def check(self) -> None:
        """Raise the error where the work is cancelled."""
        if self._stop.is_set():
            raise self._cancelled


class _CancellableTask:
    def __init__(self, task: ProgressTask, progress: CancellableProgress) -> None:
        self._task, self._progress = task, progress

    def advance(self, amount: float = 1) -> None:
        self._progress.check()
        self._task.advance(amount)

    def note(self, text: str) -> None:
        self._progress.check()
        self._task.note(text)

    def __enter__(self) -> Self:
        self._task.__enter__()
        return self

    def __exit__(self, kind: object, error: object, trace: object, /) -> None:
        self._task.__exit__(kind, error, trace)


class PageWork:
    """The work of all sessions of this process. Methods may be called by any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._works: OrderedDict[str, Work] = OrderedDict()

    def answer(
        self,
        request: Request,
        title: str,
        work: Callable[[], Led],
        *,
        back: str,
        stop: threading.Event | None = None,
    ) -> Response:
        """Do the work, and answer with where it leads, or with the page that waits for it.

        An error of the work within a moment is raised here; a later one is shown by that page.

        Args:
            request: The request with the form.
            title: What is done, for people.
            work: Does it, in a separate thread.
            back: The page that the form is on.
            stop: What the work looks at between its parts: it is set where a person cancels it, and the work raises why
                it has ended. None for work that cannot be cancelled.

        Raises:
            BusyError: Too much work is running, or the system starts no more threads.
        """
        name, made = secrets.token_urlsafe(16), Work(_owner(request), title, back, stop=stop)
        with self._lock:
            self._forget_old()
            # Each running piece is a thread, and each may start a child process with gigabytes.
            if sum(not one.done.is_set() for one in self._works.values()) >= _MAX_RUNNING:
                raise BusyError(
                    f"{_MAX_RUNNING} tasks of this kind are already running",
                    expected="one of them to end soon",
                    do="send the form again in a moment",
                )
            self._works[name] = made
        try:
            start_daemon(partial(_carry_out, made, work), "page-work")
        except BusyError:
            with self._lock:
                del self._works[name]  # else it would take a place among the running ones forever
            raise
        if not made.done.wait(WAIT_SECONDS):
            return redirect(request, f"/working/{name}")
        if made.error is not None:
            raise made.error
        assert made.led is not None
        return redirect(request, made.led.address, made.led.notice)

    def find(self, request: Request, name: str) -> Work:
        """The work of this name that this session has begun.

        Raises:
            NotFoundError: This session has begun no such work.
        """
        with self._lock:
            found = self._works.get(name)
        # Another session's work is as if it were not there: names of work must not be tried out.
        if found is None or found.owner != _owner(request):
            raise NotFoundError(
                "no such task is running here",
                expected="a task that this browser started since the server was started",
                do="see on the page that you came from whether it is done",
            )
        return found

    def has_failed(self, name: str) -> bool:
        """Whether the work of this name has ended with an error."""
        with self._lock:
            found = self._works.get(name)
        return found is not None and found.error is not None

    def _forget_old(self) -> None:
        limit = time.time() - _KEEP_SECONDS
        # Work that still runs is kept however old it is: its page must find it.
        for name in [name for name, one in self._works.items() if one.done.is_set() and one.since < limit]:
            del self._works[name]


def page_work(request: Request) -> PageWork:
    """Of the app."""
    found: PageWork = request.app.state.page_work
    return found


def _carry_out(made: Work, work: Callable[[], Led]) -> None:
    try:
        with reporting_to(made.progress):
            made.led = work()
    except LuthierError as error:
        made.error = error
    except Exception:
        log.exception("the work of a form failed: %s", made.title)
        made.error = WorkError("it ended by an internal error", expected="no bug in Luthier", do="see the server's log")
    finally:
        # In any case, or the page would wait forever and its place among the running would stay taken.
        made.done.set()


def _owner(request: Request) -> str:
    # The digest: secrets of sessions are not held in memory longer than a request.
    return digest_of(request.cookies.get(COOKIE, ""))


router = APIRouter(prefix="/working")


@router.get("/{name}")
def look(request: Request, _caller: Visitor, name: str) -> Response:
    """The state of the work; done work leads on."""
    work = page_work(request).find(request, name)
    if work.led is not None:
        return redirect(request, work.led.address, work.led.notice)
    status = 200 if work.error is None else status_of(work.error)
    return render(request, "working.html", {"work": work, "name": name}, status=status)


@router.post("/{name}/cancel")
def cancel(request: Request, name: str, _caller: Visitor) -> Response:
    """Have the work end early; what it has done by then is said on its page."""
    work = page_work(request).find(request, name)
    if work.stop is None:
        raise ConflictError(
            "this task cannot be cancelled", expected="one that has a button for it", do="wait until it has ended"
        )
    work.stop.set()
    return redirect(request, f"/working/{name}")
