"""Parts of rows on the cores of this machine: one process a core, results in the order of the parts.

This process reads the file and keeps rows, keys and flags, as without other processes; a worker gets a part of the
rows and returns what was found in it. So results are those of one process, and the path behind is the same function
in this process: it works on parts while no worker is ready, and on those of a worker that has died.

Parts and results are pickled into files of a scratch folder, which stay in the page cache for the second that they
live, and the channel of the child (`core.child_process`) carries only their names.
"""

from __future__ import annotations

import itertools
import pickle
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any, Final, TypeVar

from luthier.core.child_process.channel import Channel
from luthier.core.child_process.process import ChildProcess, result_of, wait_any
from luthier.core.system.files import disk_full_explained, scratch_folder
from luthier.core.system.machine_memory import memory_bytes
from luthier.core.system.process_setup import num_usable_cores
from luthier.ml.data.files.spill import default_folder

Result = TypeVar("Result")

MIN_FILE_BYTES: Final = 8 << 20
"""Files below it are worked on in one process: workers need about a second of a core each to load their libraries."""
MAX_WORKERS: Final = 8
"""More than this one process can supply with parts."""
MEMORY_BYTES: Final = 1 << 30
"""Available memory for each worker: its libraries, word lists and models, and the parts that it holds."""

_SERVE: Final = "luthier.ml.data.files.process_workers:serve"
_PARTS_PER_WORKER: Final = 2
_MAX_SHARED: Final = 8
_PREFIX: Final = "luthier-rows-"
# Libraries with their own threads would take all cores for each worker.
_ONE_THREAD: Final = {"POLARS_MAX_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
_END: Final = object()


def num_process_workers(num_bytes: int, most: int = 0) -> int:
    """How many workers rows of a file are shared among; 1 for this process alone.

    Args:
        num_bytes: size of the files.
        most: number that the user sets; 0 for one a core that this process may use, at most `MAX_WORKERS`, as far as
            there is memory for them.
    """
    if num_bytes < MIN_FILE_BYTES:
        return 1
    if most:
        return most
    return max(1, min(num_usable_cores(), MAX_WORKERS, memory_bytes()[1] // MEMORY_BYTES))


@contextmanager
def process_workers(num: int, folder: Path | None = None, modules: Sequence[str] = ()) -> Iterator[ProcessWorkers]:
    """Workers on this machine, until the block ends; they load their libraries while the block continues.

    Args:
        num: processes, at least 1.
        folder: where the scratch folder for parts is made; None for `spill.default_folder`.
        modules: what workers import before the first part; this process works while they do.

    Raises:
        StorageFullError: there is no room for the folder.
    """
    place = folder or default_folder()
    with ExitStack() as stack:
        with disk_full_explained(place):
            place.mkdir(parents=True, exist_ok=True)
            scratch = stack.enter_context(scratch_folder(place, _PREFIX))
        children = []
        for _ in range(num):
            child = ChildProcess(
                _SERVE, list(modules), title="a process that works on rows", environment=_ONE_THREAD, num_threads=1
            )
            children.append(child)
            # An error or an interrupt does not wait for parts that nobody needs any more.
            stack.callback(child.close)
            stack.callback(child.kill)
        yield ProcessWorkers(children, scratch)


@dataclass(slots=True, eq=False)
class _Task:
    """A part that is to be worked on, as a file, and the message of the worker that has done it."""

    file: Path
    shared: tuple[str, ...]
    message: dict[str, Any] | None = None
    is_lost: bool = False


@dataclass(slots=True, eq=False)
class _Worker:
    child: ChildProcess
    is_ready: bool = False
    tasks: deque[_Task] = field(default_factory=deque)


class ProcessWorkers:
    """Processes of this machine; a `row_workers.RowWorkers`. To be used by one thread.

    Args:
        children: run `serve`.
        folder: for parts and results.
    """

    def __init__(self, children: Iterable[ChildProcess], folder: Path) -> None:
        self._workers = [_Worker(child) for child in children]
        self._most = _PARTS_PER_WORKER * len(self._workers)
        self._folder = folder
        self._numbers = itertools.count()
        self._queue: deque[_Task] = deque()

    @property
    def are_remote(self) -> bool:
        """Always."""
        return True

    @property
    def num_cores(self) -> int:
        """Workers that have not died."""
        return len(self._workers)

    def map(self, function: Callable[..., Result], items: Iterable[Any], *shared: Any) -> Iterator[Result]:
        """See `row_workers.RowWorkers`.

        Raises:
            LuthierError: the function raised it.
            StorageFullError: the disk has no room for the parts that are under way.
        """
        kept = tuple(str(self._written(one)) for one in shared)
        waiting: deque[_Task] = deque()
        parts = iter(items)
        try:
            while True:
                while len(waiting) < self._most and (item := next(parts, _END)) is not _END:
                    waiting.append(task := _Task(self._written((function, item)), kept))
                    self._queue.append(task)
                    self._deal()
                if not waiting:
                    return
                yield self._result(waiting.popleft(), shared)
        finally:
            # After an error, or where the caller needs no more. Workers end the parts that they have, so files stay
            # until the folder is deleted.
            for task in waiting:
                if task in self._queue:
                    self._queue.remove(task)
            if not waiting:
                for name in kept:
                    Path(name).unlink()

    def _written(self, value: Any) -> Path:
        path = self._folder / str(next(self._numbers))
        with disk_full_explained(self._folder):
            path.write_bytes(pickle.dumps(value, pickle.HIGHEST_PROTOCOL))
        return path

    def _result(self, task: _Task, shared: tuple[Any, ...]) -> Any:
        self._deal()
        if task in self._queue:  # no worker is ready yet, or none is left
            self._queue.remove(task)
        else:
            while task.message is None and not task.is_lost:
                self._receive(None)
        if task.message is None:
            function, item = _loaded(task.file)
            found = function(item, *shared)
        else:
            with disk_full_explained(self._folder):
                place = Path(result_of(task.message))
            found = _loaded(place)
            place.unlink()
        task.file.unlink()
        return found

    def _receive(self, timeout_seconds: float | None) -> None:
        """Take in what workers have sent, or that one has died: its parts are left for this process."""
        of_child = {id(worker.child): worker for worker in self._workers}
        for child in wait_any([worker.child for worker in self._workers], timeout_seconds):
            worker = of_child[id(child)]
            for message in child.receive(0.0):
                if "event" in message:
                    worker.is_ready = True
                else:
                    worker.tasks.popleft().message = message
            if child.has_hung_up:
                self._workers.remove(worker)
                for task in worker.tasks:
                    task.is_lost = True

    def _deal(self) -> None:
        """Give queued parts to workers that are ready, the least busy first."""
        self._receive(0.0)
        while self._queue:
            free = [one for one in self._workers if one.is_ready and len(one.tasks) < _PARTS_PER_WORKER]
            if not free:
                return
            worker, task = min(free, key=lambda one: len(one.tasks)), self._queue.popleft()
            worker.tasks.append(task)
            worker.child.send([str(task.file), task.shared])


def serve(modules: list[str], channel: Channel) -> None:
    """A worker: works on the parts that it is sent until the channel is closed.

    Args:
        modules: what the work needs beside the libraries of tables.
        channel: to the process that has the rows.
    """
    # What every check needs, before the first part comes.
    import polars as pl  # noqa: F401

    for name in modules:
        import_module(name)
    channel.emit("ready")
    channel.serve(_answer)


def _answer(request: list[Any]) -> str:
    """Work on a part, and write the result beside it; returns the name of that file."""
    file, shared = request
    function, item = _loaded(Path(file))
    found = function(item, *map(_shared_value, shared))
    place = Path(f"{file}.result")
    # The parent hears of the file when it is complete, so it needs no other name before.
    place.write_bytes(pickle.dumps(found, pickle.HIGHEST_PROTOCOL))
    return str(place)


@lru_cache(maxsize=_MAX_SHARED)
def _shared_value(file: str) -> Any:
    return _loaded(Path(file))


def _loaded(file: Path) -> Any:
    return pickle.loads(file.read_bytes())  # noqa: S301 - of this user's own processes, in a folder of this user alone
