"""Run jobs in child processes, any of which may crash, hang or run out of memory without affecting the others.

concurrent.futures gives up all jobs when one process dies, and does not say which job it was. Here the parent knows
what each worker holds: one that dies or is late is replaced, and its job is answered for with the reason.

A worker is a warm child (`core.child_process`). Its function sends the event "ready", then answers a job a request.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from luthier.core.child_process.process import ChildProcess, result_of, wait_any
from luthier.core.errors import WorkError

Job = Mapping[str, Any]
Answer = dict[str, Any]
START_SECONDS = 120.0


@dataclass
class _Worker:
    child: ChildProcess
    deadline: float
    is_ready: bool = False
    job: int | None = None


class WorkerPool:
    """Child processes that carry out jobs.

    Args:
        function: what a worker runs, as "module:function".
        settings: the document of every worker.
        num_workers: at most that many in parallel, one thread each.
        timeout_seconds: for one job.
        memory_bytes: address space of one worker; a job that needs more has failed, and its worker is replaced.
    """

    def __init__(
        self, function: str, settings: Job, *, num_workers: int, timeout_seconds: float, memory_bytes: int
    ) -> None:
        self._function, self._settings = function, settings
        self._num_workers, self._timeout, self._memory_bytes = num_workers, timeout_seconds, memory_bytes
        self._workers: list[_Worker] = []

    def run(self, jobs: Sequence[Job], done: Callable[[int, Answer], None]) -> None:
        """Carry out all jobs; `done` gets each job's position and answer, in the order in which they end.

        A job whose worker died or was late is answered {"failed": reason}.

        Raises:
            WorkError: a worker cannot even be started.
        """
        waiting = deque(range(len(jobs)))
        num_open = len(jobs)
        try:
            for _ in range(min(self._num_workers, len(jobs))):
                self._start()
            while num_open:
                # Events are collected first: workers start and end while they are handled.
                for worker, answer in self._events():
                    job, worker.job = worker.job, None
                    if answer is not None and job is not None:
                        num_open -= 1
                        done(job, answer)
                    # A worker that was ended or has died is replaced below, since its process holds an unknown state.
                    if worker in self._workers and not worker.child.is_running:
                        self._end(worker)
                    elif worker in self._workers and worker.is_ready:
                        self._give(worker, jobs, waiting)
                for _ in range(min(self._num_workers, num_open) - len(self._workers)):
                    self._start()
        finally:
            for worker in list(self._workers):
                self._end(worker)

    def _start(self) -> None:
        child = ChildProcess(
            self._function,
            self._settings,
            title="a process for reading documents",
            environment={"TOKENIZERS_PARALLELISM": "false"},
            num_threads=1,
            memory_bytes=self._memory_bytes,
        )
        self._workers.append(_Worker(child, time.monotonic() + START_SECONDS))

    def _give(self, worker: _Worker, jobs: Sequence[Job], waiting: deque[int]) -> None:
        if not waiting:
            self._end(worker)
            return
        worker.job = waiting.popleft()
        worker.deadline = time.monotonic() + self._timeout
        worker.child.send(jobs[worker.job])

    def _events(self) -> list[tuple[_Worker, Answer | None]]:
        """Replies or failures of workers; None where there was no reply (a worker became ready)."""
        events: list[tuple[_Worker, Answer | None]] = []
        wait = max(0.0, min(worker.deadline for worker in self._workers) - time.monotonic())
        of_child = {id(worker.child): worker for worker in self._workers}
        for child in wait_any([worker.child for worker in self._workers], wait):
            worker, messages = of_child[id(child)], child.receive(0)
            if not messages and child.has_hung_up:
                events.append((worker, self._died(worker)))
            for message in messages:
                worker.is_ready = True
                events.append((worker, None if "event" in message else _answer(message)))
        # Answers were read first, so a job that ends at its deadline counts as done.
        now = time.monotonic()
        reported = {id(worker) for worker, _ in events}
        for worker in [one for one in self._workers if one.deadline <= now and id(one) not in reported]:
            self._end(worker)
            if not worker.is_ready:
                raise _cannot_start(f"was not ready after {START_SECONDS:g} s")
            events.append((worker, {"failed": f"not done after {self._timeout:g} s: given up"}))
        return events

    def _died(self, worker: _Worker) -> Answer | None:
        error = worker.child.ended()
        self._end(worker)
        if not worker.is_ready:
            said = [f"ended with exit code {error.returncode}; its output:", *error.log_lines]
            raise _cannot_start("\n    ".join(said))
        # Nobody here sends SIGKILL to a worker with a job before its deadline; the kernel does when memory is short.
        hint = " (memory ran out?)" if error.is_killed else ""
        return {"failed": f"the process that read it ended {error.how}{hint}"}

    def _end(self, worker: _Worker) -> None:
        if worker in self._workers:
            self._workers.remove(worker)
            worker.child.kill()
            worker.child.close()


def _answer(message: dict[str, Any]) -> Answer:
    try:
        answer: Answer = result_of(message)
    except MemoryError as error:
        return {"failed": f"needs {error} of memory"}
    return answer


def _cannot_start(how: str) -> WorkError:
    return WorkError(
        f"a process for reading documents {how}",
        expected="a worker that starts",
        do="check free memory (`free -m`) and the installation (`luthier doctor`)",
    )
