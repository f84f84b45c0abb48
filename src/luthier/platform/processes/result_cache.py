"""A cache of slow computations about files, keyed by the file's digest and run in background threads.

A page requests the cached result, starts the computation if there is none, and polls while it runs. Cached files may be
deleted at any time. An error in the file itself is cached too; an error of the machine is shown once and not cached.
"""

from __future__ import annotations

import contextlib
import json
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, Literal

from luthier.core.errors import BusyError, LuthierError, RequestError, WorkError, error_from
from luthier.core.ids import sha256_document
from luthier.core.system.files import replace_text
from luthier.core.system.process_setup import start_daemon
from luthier.platform.home.context import Context

log = logging.getLogger("luthier.answers")

State = Literal["unasked", "running", "answered", "failed"]
_KEY_DIGITS: Final = 16
_lock = threading.Lock()
_running: dict[Path, float] = {}
_failed: dict[Path, tuple[float, LuthierError]] = {}


@dataclass(frozen=True, slots=True)
class CachedResult:
    """The state of a computation.

    Attributes:
        state: Whether it was started, and how it ended.
        at: When it started, or when it finished, in seconds since 1970.
        answer: Its result; None unless it was answered.
        error: Why it failed; None unless it did.
    """

    state: State
    at: float = 0.0
    answer: dict[str, Any] | None = None
    error: LuthierError | None = None


@dataclass(frozen=True, slots=True)
class Subject:
    """What an answer is about.

    Attributes:
        sha256: The digest of the file.
        kind: The kind of question.
        given: All other things that the answer depends on.
    """

    sha256: str
    kind: str
    given: dict[str, Any]

    @property
    def key(self) -> str:
        """Names the answer among those about the file; another version of Luthier may answer otherwise."""
        return sha256_document({"given": self.given, "version": _version()})[:_KEY_DIGITS]

    def path(self, context: Context) -> Path:
        """Where the answer is kept."""
        return context.settings.answers_folder / self.sha256 / f"{self.kind}-{self.key}.json"


@cache
def _version() -> str:
    # Read from a file of the installed package: once a process, and not for each row of a list of datasets.
    return version("luthier")


def cached_result(context: Context, subject: Subject) -> CachedResult:
    """The state of a computation; does not start it."""
    path = subject.path(context)
    with _lock:
        # Running is looked up before the file: a computation that ends in between is found as its file.
        since, failed = _running.get(path), _failed.get(path)
    if since is not None:
        return CachedResult("running", since)
    with contextlib.suppress(OSError, ValueError, KeyError):  # gone, or cut short by a disk that was full
        document = json.loads(path.read_text(encoding="utf-8"))
        if "error" in document:
            return CachedResult("failed", document["at"], error=error_from(document["error"]))
        return CachedResult("answered", document["at"], document["answer"])
    return CachedResult("unasked") if failed is None else CachedResult("failed", failed[0], error=failed[1])


def store_result(context: Context, subject: Subject, answer: Callable[[], dict[str, Any]]) -> CachedResult:
    """Compute now and cache the result, for quick computations. Errors in the file are cached, others are raised."""
    _compute_and_store(context, subject, answer)
    return cached_result(context, subject)


def start_computation(context: Context, subject: Subject, answer: Callable[[], dict[str, Any]]) -> CachedResult:
    """Compute in a background thread, unless the computation is running already.

    Raises:
        BusyError: The system starts no more threads.
    """
    path = subject.path(context)
    with _lock:
        if path in _running:
            return CachedResult("running", _running[path])
        _running[path] = since = time.time()
        # Errors of the machine are forgotten by trying again; those of the file itself are in its cached result.
        _failed.pop(path, None)

    def work() -> None:
        error: LuthierError | None = None
        try:
            _compute_and_store(context, subject, answer)
        except LuthierError as raised:
            error = raised
        except Exception:
            log.exception("finding out %s of %s failed", subject.kind, subject.sha256)
            error = WorkError("it ended by an internal error", expected="no bug in Luthier", do="see the server's log")
        with _lock:
            # In one step with the error, or a page would see neither and start it again.
            del _running[path]
            if error is not None:
                _failed[path] = (time.time(), error)

    try:
        start_daemon(work, f"answer-{subject.kind}")
    except BusyError:
        with _lock:
            del _running[path]  # else it would count as running for as long as the server does
        raise
    return CachedResult("running", since)


def _compute_and_store(context: Context, subject: Subject, answer: Callable[[], dict[str, Any]]) -> None:
    try:
        found: dict[str, Any] = {"answer": answer()}
    # The file is wrong, and stays so: the same digest gives the same error.
    except RequestError as error:
        document = {"type": type(error).__name__, "came": error.came, "expected": error.expected, "do": error.do}
        found = {"error": document}
    path = subject.path(context)
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_text(path, json.dumps({"at": time.time(), **found}))
