"""Questions whose answers take heavy libraries and many seconds: each is answered by a child process.

So a server stays small and quick while somebody has a file of a million rows planned: its memory and its threads are
not what that takes. `answer_to` starts a process for one question, a `WarmChild` keeps its own for the next. A server
keeps that of the last question about rows for a minute (`persistent_processes`): people ask for an audit, the tokens
and a repair one after the other, and loading the libraries takes longer than most of the answers.
"""

from __future__ import annotations

import logging
import os
import queue
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from contextvars import Context as Variables
from contextvars import copy_context
from typing import Any, Final, Literal, TypeAlias

from luthier.core.child_process.process import ChildEndedError, ChildProcess
from luthier.core.errors import LuthierError, RequestError, WorkError
from luthier.core.system.files import storage_full
from luthier.core.system.process_setup import start_daemon
from luthier.platform.home.context import Context
from luthier.platform.processes.child_progress import ShownEvents

log = logging.getLogger("luthier.questions")

Question = Literal[
    "wake",
    "plan",
    "audit",
    "look",
    "repair",
    "tokens",
    "map",
    "diff",
    "split",
    "index",
    "watch",
    "remote",
    "machine",
]

_Asked: TypeAlias = "tuple[Future[dict[str, Any]], Variables, tuple[Any, ...]]"
MAX_SECONDS: Final = 600.0
LARGE_BYTES: Final = 2 << 30
"""Libraries alone take a quarter of that: memory beyond it was left behind by rows."""
_SERVE: Final = "luthier.platform.processes.analysis_child:serve"
_MOST_AT_ONCE: Final = 2
_WAIT_SECONDS: Final = 10.0
_GRACE_SECONDS: Final = 5.0
_KEEP_SECONDS: Final = 60.0
_OF_ROWS: Final[frozenset[Question]] = frozenset({"audit", "look", "repair", "tokens", "map", "diff", "split", "index"})
"""Questions whose process may answer another one: what it has cached by then follows from files and their stamps."""
# Each child may take gigabytes: the bound applies to the whole process, for all callers.
_turns = threading.BoundedSemaphore(_MOST_AT_ONCE)


def answer_to(context: Context, question: Question, given: dict[str, Any]) -> dict[str, Any]:
    """The answer of a separate process, as a plain document.

    Args:
        context: of the home that the question is about.
        question: a key of `analysis_child`'s table.
        given: what the question is about, as the function of that table reads it.

    Raises:
        LuthierError: the question cannot be answered; the error is the one of the service that answers it.
        WorkError: it takes too long, ends without an answer, or too many are being answered already.
        StorageFullError: no room was left on the disk.
    """
    if not _turns.acquire(timeout=_WAIT_SECONDS):
        raise WorkError(
            f"{_MOST_AT_ONCE} such questions are being answered already",
            expected="one of them to end soon",
            do="ask again in a moment",
        )
    try:
        if question in _OF_ROWS and (kept := _persistent_for(context)) is not None:
            return _answer_of_persistent(kept, context, question, given)
        with _child(context) as child:
            return _answer_of(child, context, question, given)
    except ChildEndedError as error:
        raise _no_answer(error) from error
    finally:
        _turns.release()


class WarmChild:
    """A process that answers one question after the other: its libraries are loaded once, most of a plan's time.

    It starts with the first question, and again where it has ended. It belongs to the calling thread, and dies with
    it; `kill` may be called by any thread.
    """

    def __init__(self) -> None:
        self._child: ChildProcess | None = None
        self.was_killed = False
        """Whether the process that was last asked was ended by `kill`."""

    def answer_to(self, context: Context, question: Question, given: dict[str, Any]) -> dict[str, Any]:
        """The answer of the module's `answer_to`, from the process that is kept.

        Raises:
            LuthierError: the question cannot be answered; the error is the one of the service that answers it.
            WorkError: the process ends without an answer, or was killed since nobody waits for it any more.
        """
        child = self._child
        if child is None or not child.is_running:
            self.close()
            self.was_killed, self._child = False, (child := _child(context))
        try:
            return _answer_of(child, context, question, given)
        except ChildEndedError as error:
            if self.was_killed:
                raise WorkError(
                    "the request was cancelled", expected="a client that waits for it", do="try again"
                ) from error
            raise _no_answer(error) from error

    def kill(self) -> None:
        """End it immediately: callers that wait for an answer get an error."""
        # Read once: `kill` runs in other threads and `close` sets it to None.
        child = self._child
        if child is not None:
            # Before the kill: the waiting thread may see the child end immediately and then asks why.
            self.was_killed = True
            child.kill()

    def close(self) -> None:
        """Have it end, and wait until it has."""
        child, self._child = self._child, None
        if child is not None:
            child.close(_GRACE_SECONDS)


_keep_lock: Final = threading.Lock()
_is_persistent = False
_idle: _PersistentProcess | None = None
"""The process that waits for the next question; the others are answering one, or ending."""


@contextmanager
def persistent_processes() -> Iterator[None]:
    """In the block, a process that has answered a question about rows waits for the next one.

    For servers: where other processes are forked, a thread that waits would be in the way.
    """
    global _is_persistent
    with _keep_lock:
        _is_persistent = True
    try:
        yield
    finally:
        with _keep_lock:
            _is_persistent, idle = False, _taken()
        if idle is not None:
            idle.close(_GRACE_SECONDS)


class _PersistentProcess:
    """A `WarmChild` with a thread that lives as long as it does; both end where no question has come for a while.

    Args:
        key: What the process was started with: it answers other questions with the same alone.
    """

    def __init__(self, key: object) -> None:
        self.key = key
        self._questions: queue.SimpleQueue[_Asked | None] = queue.SimpleQueue()
        self._thread = start_daemon(self._work, "analysis")

    def answer_to(self, *question: Any) -> dict[str, Any]:
        """As `WarmChild.answer_to`; to be called by one thread at a time."""
        answer: Future[dict[str, Any]] = Future()
        # With the context variables of the caller: what the process reports is shown where the caller's progress is.
        self._questions.put((answer, copy_context(), question))
        return answer.result()

    def close(self, wait_seconds: float = 0.0) -> None:
        """Have it end, and wait for that as long."""
        self._questions.put(None)
        self._thread.join(wait_seconds)

    def _work(self) -> None:
        child = WarmChild()
        try:
            while self._answer_next(child):
                pass
        finally:
            child.close()

    def _answer_next(self, child: WarmChild) -> bool:
        """Answer the next question; false where none is to come."""
        try:
            asked = self._questions.get(timeout=_KEEP_SECONDS)
        except queue.Empty:
            if _forgotten(self):
                return False
            asked = self._questions.get()  # somebody has just taken it, for a question or to close it
        if asked is None:
            return False
        answer, variables, question = asked
        try:
            answer.set_result(variables.run(child.answer_to, *question))
        except BaseException as error:  # noqa: BLE001 - whoever asked gets it
            answer.set_exception(error)
        return True


def _persistent_for(context: Context) -> _PersistentProcess | None:
    """A process for a question about this home, which nobody else asks now; None where none is kept here.

    Raises:
        BusyError: The system starts no more threads.
    """
    # The process has read its settings from the environment that it was started with.
    key = (context.home, dict(os.environ))
    with _keep_lock:
        if not _is_persistent:
            return None
        found = _taken()
    if found is not None and found.key == key:
        return found
    if found is not None:
        found.close()
    return _PersistentProcess(key)


def _answer_of_persistent(
    kept: _PersistentProcess, context: Context, question: Question, given: dict[str, Any]
) -> dict[str, Any]:
    """Its answer; afterwards it is the one that waits for the next question."""
    try:
        return kept.answer_to(context, question, given)
    finally:
        _give_back(kept)


def _give_back(kept: _PersistentProcess) -> None:
    global _idle
    with _keep_lock:
        former, _idle = (_taken(), kept) if _is_persistent else (kept, None)
    if former is not None:
        former.close()


def _forgotten(kept: _PersistentProcess) -> bool:
    """Whether it was the one that waits; nobody finds it from here on."""
    with _keep_lock:
        return _idle is kept and _taken() is kept


def _taken() -> _PersistentProcess | None:
    """The process that waits, which nobody else finds from here on. Called with the lock held."""
    global _idle
    found, _idle = _idle, None
    return found


def _child(context: Context) -> ChildProcess:
    return ChildProcess(_SERVE, {"large_bytes": LARGE_BYTES}, environment={"LUTHIER_HOME": str(context.home)})


def _answer_of(child: ChildProcess, context: Context, question: Question, given: dict[str, Any]) -> dict[str, Any]:
    asked = {"question": question, **given}
    try:
        with ShownEvents(context.progress) as shown:
            answer: dict[str, Any] = child.request(asked, timeout_seconds=MAX_SECONDS, on_event=shown.take)
    except RecursionError as error:
        raise RequestError(
            "the request holds values in values in values", expected="a plain document", do="write it out flat"
        ) from error
    except OSError as error:  # a full disk is the only one that the protocol carries
        raise storage_full(error) from error
    return answer


def _no_answer(error: ChildEndedError) -> LuthierError:
    """The error of a process that was late or died; its last output goes only to the log."""
    if error.is_late:
        return WorkError(
            f"it took longer than {MAX_SECONDS:.0f} s",
            expected="a question about fewer rows",
            do="choose fewer rows, or use the commands on the server",
        )
    log.error("a question ended %s: %s", error.how, "\n".join(error.log_lines))
    return WorkError(
        "the process that was to answer ended without an answer",
        expected="enough memory, and no bug in Luthier",
        do="see the server's log",
    )
