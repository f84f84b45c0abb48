"""Run jobs in child processes of which any may crash, hang or run out of memory without harm to the others.

concurrent.futures gives up all jobs when one process dies, and does not say which job it was. Here the parent knows
what each worker holds: one that dies or is late is replaced, and its job is answered for with the reason.

A worker is `python -m MODULE SETTINGS`, where SETTINGS is one JSON object. It writes a line "ready", then reads a JSON
object a line (a job) and answers each with one line of JSON; it ends when its input does. See `serve`.
"""

from __future__ import annotations

import json
import os
import resource
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import IO, Any

from luthier.core.errors import WorkError
from luthier.core.system.parent_death import dying_with_parent

Job = Mapping[str, Any]
Answer = dict[str, Any]
START_SECONDS = 120.0
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "RAYON_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")


@dataclass
class _Worker:
    process: subprocess.Popen[bytes]
    log: IO[bytes]
    deadline: float
    is_ready: bool = False
    job: int | None = None
    buffer: bytes = b""


class WorkerPool:
    """Child processes that carry out jobs.

    module: what a worker runs. settings: what every worker is told. timeout_seconds: for one job. memory_bytes: address
    space of one worker; what needs more fails with MemoryError there.
    """

    def __init__(
        self, module: str, settings: Job, *, num_workers: int, timeout_seconds: float, memory_bytes: int
    ) -> None:
        self._command = [sys.executable, "-m", module, json.dumps({**settings, "memory_bytes": memory_bytes})]
        self._num_workers, self._timeout = num_workers, timeout_seconds
        self._workers: list[_Worker] = []
        self._selector = selectors.DefaultSelector()

    def run(self, jobs: Sequence[Job], done: Callable[[int, Answer], None]) -> None:
        """Carry out all jobs; `done` gets each job's position and answer, in the order in which they end.

        A job whose worker died or was late is answered {"failed": reason}.

        Raises WorkError where a worker cannot even be started.
        """
        waiting = deque(range(len(jobs)))
        num_open = len(jobs)
        try:
            for _ in range(min(self._num_workers, len(jobs))):
                self._start()
            while num_open:
                for worker, answer in self._events():
                    job, worker.job = worker.job, None
                    if answer is not None and job is not None:
                        num_open -= 1
                        done(job, answer)
                    if answer is not None and answer.get("is_last"):
                        self._end(worker)
                    elif worker in self._workers and worker.is_ready:
                        self._give(worker, jobs, waiting)
                for _ in range(min(self._num_workers, num_open) - len(self._workers)):
                    self._start()
        finally:
            for worker in list(self._workers):
                self._end(worker)
            self._selector.close()

    def _start(self) -> None:
        log = tempfile.TemporaryFile()  # noqa: SIM115 - closed with its worker
        process = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            env={**os.environ, **_ONE_THREAD, "TOKENIZERS_PARALLELISM": "false"},
        )
        worker = _Worker(process, log, time.monotonic() + START_SECONDS)
        self._workers.append(worker)
        self._selector.register(_pipe(process.stdout), selectors.EVENT_READ, worker)

    def _give(self, worker: _Worker, jobs: Sequence[Job], waiting: deque[int]) -> None:
        if not waiting:
            _pipe(worker.process.stdin).close()
            worker.deadline = float("inf")
            return
        worker.job = waiting.popleft()
        worker.deadline = time.monotonic() + self._timeout
        try:
            pipe = _pipe(worker.process.stdin)
            pipe.write(json.dumps(jobs[worker.job]).encode() + b"\n")
            pipe.flush()
        except BrokenPipeError:  # it died between two jobs, which reading its output will show
            waiting.appendleft(worker.job)
            worker.job = None

    def _events(self) -> list[tuple[_Worker, Answer | None]]:
        """What workers said or suffered; None where nothing was answered (a worker became ready)."""
        events: list[tuple[_Worker, Answer | None]] = []
        deadline = min(worker.deadline for worker in self._workers)
        wait = None if deadline == float("inf") else max(0.0, deadline - time.monotonic())
        for key, _ in self._selector.select(wait):
            worker: _Worker = key.data
            data = os.read(key.fd, 2**16)
            if not data:
                events.append((worker, self._died(worker)))
                continue
            worker.buffer += data
            while b"\n" in worker.buffer:
                line, worker.buffer = worker.buffer.split(b"\n", 1)
                events.append((worker, None if line == b"ready" else json.loads(line)))
                worker.is_ready = True
        now = time.monotonic()
        told = {id(worker) for worker, _ in events}
        for worker in [one for one in self._workers if one.deadline <= now and id(one) not in told]:
            self._end(worker)
            if not worker.is_ready:
                raise _cannot_start(f"was not ready after {START_SECONDS:g} s")
            events.append((worker, {"failed": f"not done after {self._timeout:g} s: given up"}))
        return events

    def _died(self, worker: _Worker) -> Answer | None:
        code = worker.process.wait()
        worker.log.seek(0)
        said = worker.log.read().decode(errors="replace").strip().splitlines()
        self._end(worker)
        if not worker.is_ready:
            raise _cannot_start("\n    ".join([f"ended with exit code {code}; it said:", *said[-8:]]))
        how = f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
        hint = " (memory ran out?)" if code == -signal.SIGKILL else ""
        return {"failed": f"the process that read it ended {how}{hint}"}

    def _end(self, worker: _Worker) -> None:
        if worker not in self._workers:
            return
        self._workers.remove(worker)
        self._selector.unregister(_pipe(worker.process.stdout))
        worker.process.kill()
        worker.process.wait()
        for pipe in (worker.process.stdin, worker.process.stdout, worker.log):
            with suppress(BrokenPipeError):  # a job that it did not read any more
                _pipe(pipe).close()


def serve(answer: Callable[[Any], Answer], memory_bytes: int) -> None:
    """The worker's side: limits, then answer jobs until the input ends. Ends after a job that ran out of memory.

    Stdout is kept for answers; what libraries print goes to stderr. The worker dies with its parent.
    """
    dying_with_parent()()
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    most = memory_bytes if hard == resource.RLIM_INFINITY else min(memory_bytes, hard)
    resource.setrlimit(resource.RLIMIT_AS, (most, hard))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as out:
        os.dup2(2, 1)
        out.write("ready\n")
        out.flush()
        for line in sys.stdin:
            try:
                said = answer(json.loads(line))
            except MemoryError:
                said = {"failed": f"needs more than {memory_bytes / 2**30:g} GiB of memory", "is_last": True}
            out.write(json.dumps(said) + "\n")
            out.flush()
            if said.get("is_last"):
                return  # what is left of that memory may be in pieces: a new process begins afresh


def _pipe(pipe: IO[bytes] | None) -> IO[bytes]:
    assert pipe is not None, "every worker has its pipes"
    return pipe


def _cannot_start(how: str) -> WorkError:
    return WorkError(
        f"a process for reading documents {how}",
        expected="a worker that starts",
        do="check free memory (`free -m`) and the installation (`luthier doctor`)",
    )
