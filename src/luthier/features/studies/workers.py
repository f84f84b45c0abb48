"""Who trains the trials of a study: this process, one after the other, or several of their own at the same time.

The search decides alone and hands out tasks; a worker takes a trial to its rung and says how it is then. A worker that
dies takes nothing with it but the steps since the last checkpoint: its trial is handed out again. All workers die with
the process that has started them, and hold the study's lock as long as one of them lives.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from typing import IO, Any, Final, Protocol

from luthier.core.errors import error_from
from luthier.core.ports import ProgressTask
from luthier.core.workflows.study import Study, Trial
from luthier.features.studies.trials import Priced, train_to
from luthier.ml.search.extrapolation import Finished
from luthier.platform.home.context import Context
from luthier.platform.processes.stop_signals import AGAIN, stop_signals

_LOOK_SECONDS: Final = 0.2


@dataclass(frozen=True, slots=True)
class Task:
    """A trial that is to be trained up to a rung. finished: those it is held against on the way."""

    trial: Trial
    rung: int
    priced: Priced
    finished: Finished = field(default_factory=lambda: Finished(()))


@dataclass(frozen=True, slots=True)
class FinishedTask:
    """What came of a task. trial: as it is then, None where its worker died, and `died` says of what.

    worker: its number. seconds: what it has spent on the trial itself, which the trial's hours count.
    """

    task: Task
    worker: int
    seconds: float
    trial: Trial | None = None
    died: str = ""


class WorkerPool(Protocol):
    """Who trains. size: how many tasks at once."""

    size: int

    def stop_requested(self) -> str | None:
        """Why no more tasks are to be begun; None where they may."""
        ...

    @property
    def has_room(self) -> bool:
        """Whether another task may begin now."""
        ...

    def begin(self, task: Task) -> None:
        """Have a task done. There must be room."""
        ...

    def wait(self) -> FinishedTask:
        """The next task that is done. Raises what its training raised on purpose. One must have begun."""
        ...


class InProcessPool:
    """This process trains, one trial after the other; a `WorkerPool`. A wish to stop is heard while it trains."""

    size = 1

    def __init__(self, context: Context) -> None:
        self._context = context
        self._task: Task | None = None

    def stop_requested(self) -> str | None:
        """Nothing is heard between two trainings: a signal ends the process there, and nothing is lost."""
        return None

    @property
    def has_room(self) -> bool:
        """Whether nothing is to be trained yet."""
        return self._task is None

    def begin(self, task: Task) -> None:
        """Note it: it is trained when its end is waited for."""
        self._task = task

    def wait(self) -> FinishedTask:
        """Train it."""
        task, self._task = self._task, None
        assert task is not None
        began = time.perf_counter()
        trained = train_to(self._context, task.trial, task.rung, task.priced, finished=task.finished)
        return FinishedTask(task, 0, time.perf_counter() - began, trained)


@dataclass(slots=True)
class _Worker:
    """One process. heard: the beginning of a line that it has not yet said to its end."""

    number: int
    process: subprocess.Popen[bytes] | None = None
    answers: int = -1
    heard: bytearray = field(default_factory=bytearray)
    task: Task | None = None
    began: float = 0.0
    step: int = 0


class ProcessPool:
    """Processes of this machine that each train one trial at a time (`studies/child.py`); a `WorkerPool`.

    lock: the descriptor that holds the study's lock. signalled: a wish to stop that came as a signal. A process starts
    with its first task and lives on for others, so that libraries are loaded and rows are read once.
    """

    def __init__(
        self, context: Context, study: Study, lock: int, signalled: Callable[[], str | None], bar: ProgressTask
    ) -> None:
        self.size, self._signalled = study.spec.workers, signalled
        self._context, self._lock, self._bar = context, lock, bar
        self._folder = context.settings.home / "studies" / study.study_id / "workers"
        self._workers = [_Worker(number) for number in range(self.size)]
        self._selector = selectors.DefaultSelector()
        self._is_told = False

    def stop_requested(self) -> str | None:
        """A signal that came since."""
        return self._signalled()

    @property
    def has_room(self) -> bool:
        """Whether a worker has nothing to do."""
        return any(worker.task is None for worker in self._workers)

    def begin(self, task: Task) -> None:
        """Hand it to the first worker that has nothing to do; one that died meanwhile is started again."""
        worker = next(worker for worker in self._workers if worker.task is None)
        if worker.process is None or worker.process.poll() is not None:
            self._end(worker)
            self._start(worker, max(1, task.priced.prepared.plan.training.num_threads))
        worker.task, worker.began, worker.step = task, time.perf_counter(), 0
        document = {
            "trial": task.trial.model_dump(mode="json"),
            "rung": task.rung,
            "steps": task.priced.steps,
            "machine_share": task.priced.machine_share,
            "finished": task.finished.curves,
            "plan": task.priced.prepared.plan.model_dump(mode="json"),
        }
        assert worker.process is not None
        with suppress(BrokenPipeError):  # it has just died, which is noticed where it is listened to
            _pipe(worker.process.stdin).write(json.dumps(document).encode() + b"\n")
            _pipe(worker.process.stdin).flush()

    def wait(self) -> FinishedTask:
        """Listen to all until one is done; a wish to stop is told to those that train."""
        while True:
            self._pass_on_wish()
            for key, _ in self._selector.select(_LOOK_SECONDS):
                worker: _Worker = key.data
                chunk = os.read(worker.answers, 1 << 16)
                if not chunk:
                    died = self._end(worker)
                    if worker.task is not None:
                        return self._done(worker, died=died)
                worker.heard.extend(chunk)
                while b"\n" in worker.heard:
                    line, _, rest = bytes(worker.heard).partition(b"\n")
                    worker.heard[:] = rest
                    if (done := self._hear(worker, json.loads(line))) is not None:
                        return done  # the rest of what was heard is of other tasks, of which it has none

    def close(self) -> None:
        """End all processes."""
        for worker in self._workers:
            if worker.process is not None:
                worker.process.kill()
            self._end(worker)
        self._selector.close()

    def _hear(self, worker: _Worker, said: dict[str, Any]) -> FinishedTask | None:
        if "error" in said:
            raise error_from(said["error"])
        if "trial" in said:
            return self._done(worker, said["seconds"], Trial.model_validate(said["trial"]))
        worker.step = said["step"]
        self._bar.note("  ".join(_how_far(w.task, w.step) for w in self._workers if w.task is not None))
        return None

    def _done(
        self, worker: _Worker, seconds: float | None = None, trial: Trial | None = None, died: str = ""
    ) -> FinishedTask:
        task, worker.task = worker.task, None
        assert task is not None
        if seconds is None:
            seconds = time.perf_counter() - worker.began
        return FinishedTask(task, worker.number, seconds, trial, died)

    def _pass_on_wish(self) -> None:
        if self._is_told or self.stop_requested() is None:
            return
        self._is_told = True
        for worker in self._workers:
            if worker.process is not None:
                worker.process.send_signal(signal.SIGTERM)

    def _start(self, worker: _Worker, num_threads: int) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        worker.answers, writing = os.pipe()
        arguments = [str(self._context.home), str(os.getpid()), str(writing)]
        with (self._folder / f"{worker.number}.log").open("ab") as log:
            worker.process = subprocess.Popen(
                [sys.executable, "-m", "luthier.features.studies.child", *arguments],
                env=os.environ | {"OMP_NUM_THREADS": str(num_threads)} | device_of(worker.number, os.environ),
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                pass_fds=(writing, self._lock),
                start_new_session=True,  # Ctrl-C goes to us alone, and we tell them
            )
        os.close(writing)
        self._selector.register(worker.answers, selectors.EVENT_READ, worker)

    def _end(self, worker: _Worker) -> str:
        """Clear away a process that has died or is to; how it ended, in words."""
        process, worker.process = worker.process, None
        if process is None:
            return ""
        self._selector.unregister(worker.answers)
        os.close(worker.answers)
        worker.heard.clear()
        with suppress(BrokenPipeError):
            _pipe(process.stdin).close()
        code = process.wait()
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        return f"its process {how} (see {self._folder / f'{worker.number}.log'})"


def study_notice(study: Study) -> str:
    """What a search that is asked to stop does now, and how to go on with it."""
    return (
        "every trial ends its step and writes a checkpoint, and the study is paused; go on with `luthier tune --resume "
        f"{study.study_id}`. {AGAIN}"
    )


@contextmanager
def worker_pool(context: Context, study: Study, lock: int) -> Iterator[WorkerPool]:
    """The worker pool of a study, for the duration of the block; no process outlives it."""
    if study.spec.workers == 1:
        yield InProcessPool(context)
        return
    with ExitStack() as stack:
        signalled = stack.enter_context(stop_signals(lambda: study_notice(study)))
        bar = stack.enter_context(context.progress.task(f"{study.spec.workers} workers", None, ""))
        workers = ProcessPool(context, study, lock, signalled, bar)
        stack.callback(workers.close)
        yield workers


def device_of(worker: int, environment: Mapping[str, str]) -> dict[str, str]:
    """Which GPU a worker sees, as the environment says it: they are dealt out in turn, where there are several."""
    import torch

    count = torch.cuda.device_count()
    if count < 2:
        return {}
    visible = [name for name in environment.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    names = visible or [str(number) for number in range(count)]
    return {"CUDA_VISIBLE_DEVICES": names[worker % len(names)]}


def _how_far(task: Task, step: int) -> str:
    return f"trial {task.trial.number}: step {step:,} of {task.priced.steps[task.rung]:,}"


def _pipe(stream: IO[bytes] | None) -> IO[bytes]:
    assert stream is not None
    return stream
