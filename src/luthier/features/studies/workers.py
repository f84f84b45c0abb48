"""The workers that train the trials of a study: this process, one after the other, or several child processes.

The search decides alone and hands out tasks; a worker trains a trial to its rung and reports its state. A worker that
dies loses only the steps since the last checkpoint: its trial is handed out again. All workers die with the process
that has started them, and hold the study's lock as long as one of them lives.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

from luthier.core.child_process.channel import Channel
from luthier.core.child_process.process import ChildProcess, how_it_ended, result_of, wait_any
from luthier.core.ports import ProgressTask
from luthier.core.registry import STORED
from luthier.core.run import StopReason
from luthier.core.system import facilities
from luthier.core.workflows.study import Study, Trial
from luthier.features.studies.trials import Priced, train_to
from luthier.ml.search.rungs import Finished
from luthier.platform.home.context import Context
from luthier.platform.processes.stop_signals import AGAIN, stop_signals

if TYPE_CHECKING:
    from luthier.features.planning.training_data import TrainingDataLoader

_TRAIN: Final = "luthier.features.studies.workers:train_trials"
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
    """The result of a task.

    Attributes:
        task: The task.
        worker: The number of the worker.
        seconds: Spent on the trial itself.
        trial: The updated trial; None where its worker died.
        died: How its worker died, as text.
    """

    task: Task
    worker: int
    seconds: float
    trial: Trial | None = None
    died: str = ""


class WorkerPool(Protocol):
    """The workers that train. size: how many tasks in parallel."""

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
        """The next task that is done; one must have begun. A LuthierError that its training raised passes through."""
        ...


class InProcessPool:
    """This process trains, one trial after the other; a `WorkerPool`. A request to stop is handled while it trains."""

    size = 1

    def __init__(self, context: Context) -> None:
        self._context = context
        self._task: Task | None = None

    def stop_requested(self) -> str | None:
        """Signals are not handled between two trainings: one ends the process there, and nothing is lost."""
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
    """One process, its task, when that began (`time.perf_counter`), and the step that it has reached."""

    number: int
    child: ChildProcess | None = None
    task: Task | None = None
    began: float = 0.0
    step: int = 0


class ProcessPool:
    """Processes of this machine that each train one trial at a time (`studies/child.py`); a `WorkerPool`.

    A process starts with its first task and lives on for others, so that libraries are loaded and rows are read once.

    Args:
        context: The home.
        study: The study.
        lock: The descriptor that holds the study's lock; workers inherit it.
        signalled: Which signal has requested a stop; None as long as none has.
        bar: Shows how far the trials are.
    """

    def __init__(
        self, context: Context, study: Study, lock: int, signalled: Callable[[], str | None], bar: ProgressTask
    ) -> None:
        self.size, self._signalled = study.spec.workers, signalled
        self._context, self._lock, self._bar = context, lock, bar
        self._folder = context.settings.home / "studies" / study.study_id / "workers"
        self._workers = [_Worker(number) for number in range(self.size)]
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
        if worker.child is None or not worker.child.is_running:
            self._end(worker)
            worker.child = self._start(worker.number, max(1, task.priced.prepared.plan.training.num_threads))
        worker.task, worker.began, worker.step = task, time.perf_counter(), 0
        # The plan travels with the trial: both processes then train byte for byte what was priced here.
        worker.child.send(
            {
                "trial": task.trial.model_dump(mode="json"),
                "rung": task.rung,
                "steps": task.priced.steps,
                "machine_share": task.priced.machine_share,
                "finished": task.finished.curves,
                "plan": task.priced.prepared.plan.model_dump(mode="json"),
            }
        )

    def wait(self) -> FinishedTask:
        """Listen to all until one is done; a wish to stop is passed on to those that train."""
        while True:
            self._pass_on_wish()
            of_child = {worker.child: worker for worker in self._workers if worker.child is not None}
            # Children that are not read now keep their messages in the pipe until the next call.
            for child in wait_any(list(of_child), _LOOK_SECONDS):
                worker, messages = of_child[child], child.receive(0)
                # Messages first: a child may send its result and then end.
                if not messages and child.has_hung_up:
                    died = self._end(worker)
                    if worker.task is not None:
                        return self._done(worker, died=died)
                for message in messages:
                    if (done := self._hear(worker, message)) is not None:
                        return done  # it sends nothing more until it has another task

    def close(self) -> None:
        """End all processes."""
        for worker in self._workers:
            if worker.child is not None:
                worker.child.kill()
            self._end(worker)

    def _hear(self, worker: _Worker, message: dict[str, Any]) -> FinishedTask | None:
        if "event" in message:
            worker.step = message["event"]["step"]
            self._bar.note("  ".join(_how_far(w.task, w.step) for w in self._workers if w.task is not None))
            return None
        found = result_of(message)
        return self._done(worker, found["seconds"], Trial.model_validate(found["trial"]))

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
            if worker.child is not None:
                # Each child leads its own session, so Ctrl-C in the terminal does not reach it.
                worker.child.request_stop()

    def _start(self, number: int, num_threads: int) -> ChildProcess:
        self._folder.mkdir(parents=True, exist_ok=True)
        return ChildProcess(
            _TRAIN,
            {
                "home": str(self._context.home),
                "project_id": self._context.owner_project_id,
                "cache_project_id": self._context.cache_project_id,
            },
            environment=device_of(number, os.environ),
            num_threads=num_threads,
            log=self._log(number),
            # as long as a worker lives, no other process takes up the study
            pass_fds=facilities.inheritable(self._lock),
            has_session=True,
        )

    def _log(self, number: int) -> Path:
        return self._folder / f"{number}.log"

    def _end(self, worker: _Worker) -> str:
        """Clear away a process that has died or has to; how it ended, as text."""
        child, worker.child = worker.child, None
        if child is None:
            return ""
        child.close()
        return f"its process {how_it_ended(child.wait())} (see {self._log(worker.number)})"


def study_notice(study: Study) -> str:
    """What a search does when it is stopped, and how to resume it."""
    return (
        "every trial ends its step and writes a checkpoint, and the study is paused; resume: `luthier tune --resume "
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
        # Registered last, so it runs first: processes end before the bar and the signal handlers go.
        stack.callback(workers.close)
        yield workers


def device_of(worker: int, environment: Mapping[str, str]) -> dict[str, str]:
    """Which GPU a worker sees, as set in the environment: they are assigned in turn, where there are several."""
    from luthier.ml.inference.accelerator import one_device

    return one_device(worker, environment)


def _how_far(task: Task, step: int) -> str:
    return f"trial {task.trial.number}: step {step:,} of {task.priced.steps[task.rung]:,}"


_PATIENCE_SECONDS: Final = 60.0
_TELL_SECONDS: Final = 0.5


def train_trials(document: dict[str, Any], channel: Channel) -> None:
    """Train a trial a request, until there are no more; stops in good order after SIGTERM.

    Args:
        document: `home`, `project_id` of the runs, and `cache_project_id` of generations. A request has `trial`,
            `rung`, `steps` (of the rungs), `machine_share`, `finished` (the curves of other trials) and `plan`; its
            result has `trial` and `seconds`.
        channel: of the child process. Events are {"step": ...} while it trains.
    """
    from luthier.core.system.process_setup import keep_few_kernels
    from luthier.features.planning.training_data import TrainingDataLoader

    keep_few_kernels()
    # Taken before anything slow: a parent that dies later changes it, one that died earlier cannot be noticed.
    is_there = facilities.starter_lives(os.getppid())
    gone = StopReason("the process that started it is gone", "interrupted")
    home = Path(document["home"])
    with Context.open(home, database_patience_seconds=_PATIENCE_SECONDS) as context, stop_signals() as signalled:
        context.owner_project_id = document.get("project_id")
        context.cache_project_id = document["cache_project_id"]

        def stop_requested() -> str | None:  # where the kernel does not end this process with its parent
            return signalled() or (None if is_there() else gone)

        data_loader = TrainingDataLoader()
        channel.serve(lambda task: _carry_out(context, task, data_loader, channel, stop_requested))


def _carry_out(
    context: Context,
    task: dict[str, Any],
    data_loader: TrainingDataLoader,
    channel: Channel,
    stop_requested: Callable[[], str | None],
) -> dict[str, Any]:
    """Train one trial; what is to be answered."""
    from luthier.core.plan import Plan
    from luthier.core.workflows.study import Trial
    from luthier.features.planning.service import prepare_again
    from luthier.features.studies.trials import Priced, train_to
    from luthier.ml.search.rungs import Finished

    told = 0.0

    def tell(step: int) -> None:
        nonlocal told
        # Steps of small models take milliseconds: the parent only needs enough for its progress bar.
        if time.monotonic() - told >= _TELL_SECONDS:
            told = time.monotonic()
            channel.emit({"step": step})

    plan = Plan.model_validate(task["plan"], context=STORED)
    prepared = replace(prepare_again(context, plan, data_loader=data_loader), held_out=None)
    priced = Priced(prepared, 0.0, tuple(task["steps"]), True, task["machine_share"])
    began, trial = time.perf_counter(), Trial.model_validate(task["trial"])
    finished = Finished(tuple(tuple((share, loss) for share, loss in curve) for curve in task["finished"]))
    trained = train_to(
        context, trial, task["rung"], priced, stop_requested=stop_requested, tell_step=tell, finished=finished
    )
    return {"trial": trained.model_dump(mode="json"), "seconds": time.perf_counter() - began}
