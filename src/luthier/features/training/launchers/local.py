"""Multi-process training on this machine: processes are started, monitored, stopped together, and restarted.

If a process dies, only the current step is lost: all processes are stopped and restarted from the newest checkpoint, a
limited number of times. Errors raised by Luthier (a full disk, a diverged loss, changed rows) would recur and are not
retried.

The environment variables of a child are those of torchrun. Rank 0 sends {"event": ...} as the loop emits them and at
the end {"result": ..., "refused_by": ...}. All other output goes to a log.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from luthier.core.child_process.channel import Channel
from luthier.core.child_process.process import ChildProcess, result_of, signal_name, wait_any
from luthier.core.errors import LuthierError, PeerLostError, RequestError, WorkError, error_from
from luthier.core.events import Event, RunStarted, StepDone, WarningRaised, event_adapter
from luthier.core.plan import Plan
from luthier.core.ports import EventSink, ProgressTask
from luthier.core.registry import STORED
from luthier.core.run import StopReason, TrainResult
from luthier.core.system import facilities
from luthier.core.system.files import storage_full
from luthier.features.planning.service import Prepared
from luthier.platform.home.context import Context
from luthier.platform.processes.stop_signals import AGAIN, stop_signals

if TYPE_CHECKING:
    from luthier.ml.training.budget import Meter


@dataclass(slots=True)
class Answers:
    """The messages of one start of all processes. began_at: the step from which it resumed, once known."""

    emit: EventSink
    bar: ProgressTask
    result: TrainResult | None = None
    refused_by: str | None = None
    error: LuthierError | None = None
    began_at: int | None = None

    def take(self, document: dict[str, Any]) -> None:
        """Record one message; of several errors the first counts."""
        if "error" in document:
            self.error = self.error or error_from(document["error"])
        if "result" in document:
            self.result = TrainResult.model_validate(document["result"])
            self.refused_by = document["refused_by"]
        if "event" not in document:
            return
        event = event_adapter.validate_python(document["event"])
        self.emit(event)
        if isinstance(event, RunStarted):
            self.began_at = event.from_step
        elif isinstance(event, StepDone):
            self.bar.advance()
            self.bar.note(f"loss {event.loss:.3f}  {event.num_tokens / event.seconds:,.0f} tokens/s")


def train_share(document: dict[str, Any], channel: Channel) -> None:
    """Train one share of a run in a child process; its messages are the events of the channel.

    Args:
        document: `home`, `run_id`, `plan`, `began` (seconds since the epoch; time is billed from then on).
        channel: of the child process.

    Raises:
        LuthierError: the run failed in a way that a retry would repeat.
        SystemExit: another process of the run was lost, which is not an error of this one.
    """
    from luthier.core.system.process_setup import keep_few_kernels

    keep_few_kernels()
    try:
        with stop_signals() as stop_requested:
            work(document, channel.emit, _or_orphaned(stop_requested))
    except PeerLostError as error:
        sys.stderr.write(f"{error}\n")
        raise SystemExit(error.exit_code) from error


def work(job: dict[str, Any], answer: Callable[[dict[str, Any]], None], stop: Callable[[], str | None]) -> None:
    """One process's share of a job, in the process group that the environment names.

    Args:
        job: `home`, `cache_project_id`, `run_id`, `plan`, `began` (seconds since 1970; time is billed from then on),
            maybe `collective_timeout_seconds`.
            Where the same job starts lost processes again, also `seconds_before`: what the run had spent when it began.
        answer: Receives the messages of rank 0: events, and at the end the result.
        stop: Returns a reason to stop; None to continue.

    Raises:
        DivergedError: The loss or a gradient is not a number.
        ConflictError: the model or the rows of this machine differ from the plan.
        PeerLostError: Another process of the group was lost.
    """
    from luthier.core.plan import Plan
    from luthier.core.ports import SilentProgress
    from luthier.features.planning.budgets import metered
    from luthier.features.planning.judges import replies_of
    from luthier.features.planning.service import prepare_share
    from luthier.features.training.launchers.here import Hooks, silent_hooks, train_worker
    from luthier.ml.training.distributed import joined
    from luthier.platform.home.context import Context

    plan = Plan.model_validate(job["plan"], context=STORED)

    def emit(event: Event) -> None:
        answer({"event": event.model_dump(mode="json")})

    with (
        Context.open(Path(job["home"])) as context,
        joined(plan.training.device, timeout_seconds=_collective_timeout(job, context)) as world,
    ):
        folder = context.settings.run_folder(job["run_id"])
        context.cache_project_id = job.get("cache_project_id", context.cache_project_id)
        replies = replies_of(context)
        # Only rank 0 writes the ledger and reports: two writers would bill the same seconds twice.
        if not world.is_first:
            train_worker(prepare_share(context, plan), silent_hooks(folder, stop, replies), world)
            return
        with metered(folder, plan, seconds_before=_unbilled_seconds(job, folder)) as meter:
            hooks = Hooks(folder, emit, SilentProgress(), meter, stop, replies=replies)
            result = train_worker(prepare_share(context, plan), hooks, world)
            refused_by = meter.refused_by
    # After `metered` has closed the ledger: the parent continues it as soon as it has the result.
    answer({"result": result.model_dump(mode="json"), "refused_by": refused_by})


def _collective_timeout(job: dict[str, Any], context: Context) -> float:
    """How long processes wait for each other: as long as the one that started them would, which may be elsewhere."""
    return float(job.get("collective_timeout_seconds", context.settings.collective_timeout_seconds))


def _unbilled_seconds(job: dict[str, Any], folder: Path) -> float:
    """Seconds since a job began that are not in the ledger: none where an earlier start of it has written there."""
    from luthier.ml.training.ledger import Ledger

    if Ledger(folder).last().settled().seconds > job.get("seconds_before", float("inf")):
        return 0.0
    return max(0.0, time.time() - float(job["began"]))


def _newest_checkpoint(context: Context, run_id: str) -> int:
    """The step from which a run continues; 0 before its first checkpoint."""
    from luthier.ml.training.checkpoint import CheckpointStore

    folder = context.settings.run_folder(run_id) / "checkpoints"
    return max(CheckpointStore(folder, num_kept=1).steps(), default=0)


def _or_orphaned(stop_requested: Callable[[], str | None]) -> Callable[[], str | None]:
    """The stop request, also set if the parent has exited: no one would receive the messages."""
    is_there = facilities.starter_lives(os.getppid())
    gone = StopReason("the process that started it is gone", "interrupted")
    return lambda: stop_requested() or (None if is_there() else gone)


MAX_RESTARTS: Final = 3
"""Maximum restarts in a row without a new checkpoint."""
_TRAIN: Final = "luthier.features.training.launchers.local:train_share"
_GRACE_SECONDS: Final = 10.0
# Windows names its interfaces otherwise; there gloo looks for one by itself.
_LOOPBACK: Final = {} if os.name == "nt" else {"GLOO_SOCKET_IFNAME": "lo" if facilities.is_linux() else "lo0"}
_LOOK_SECONDS: Final = 0.2


@dataclass(slots=True)
class _Attempt:
    """The outcome of one start of all processes."""

    answers: Answers
    died: str = ""
    processes: list[ChildProcess] = field(default_factory=list)


class LocalLauncher:
    """Trains a run with `num_processes` processes on this machine; a `launchers.here.Launcher`.

    Each process also holds the run's lock, so that no other may take over the run while one of them is alive.
    """

    def __init__(self, num_processes: int) -> None:
        self.num_processes, self._lock = num_processes, -1
        self.flags = f" --devices {num_processes}"

    def check(self, plan: Plan) -> None:
        """Raise RequestError for a batch that cannot be divided evenly, and for more processes than GPUs."""
        from luthier.ml.inference.accelerator import device_count
        from luthier.ml.training.distributed import refuse_unequal_shares

        if self.num_processes < 1:
            raise RequestError(f"{self.num_processes} devices", expected="1 or more", do="correct the number")
        refuse_unequal_shares(plan.training.global_batch_size, self.num_processes)
        if plan.training.device != "cpu" and (count := device_count()) < self.num_processes:
            raise RequestError(
                f"{self.num_processes} devices on a machine with {count} GPUs",
                expected="at most one process a GPU",
                do=f"write --devices {count}, or use more machines (docs/devices.md)"
                if count
                else "resume it on a machine with GPUs, or start a new run of its recipe here",
            )

    def train(
        self, context: Context, run_id: str, prepared: Prepared, meter: Meter, emit: EventSink, lock: int
    ) -> TrainResult:
        """Train to the end of the plan or to a request to stop.

        Raises:
            LuthierError: the run failed in a way that a retry would repeat.
            WorkError: processes died too often without a new checkpoint.
        """
        self._lock = lock
        # The training processes write the ledger meanwhile; `take_up` below reads their entries.
        meter.close()
        training, restarts, last_began = prepared.plan.training, 0, -1
        with (
            stop_signals(
                lambda: (
                    "every process ends its step and writes a checkpoint, and the run is paused; resume with `luthier "
                    f"train --resume {run_id}`. {AGAIN}: steps since the last checkpoint are then computed again"
                )
            ) as stop_requested,
            context.progress.task("training", training.num_steps, "step") as bar,
        ):
            while True:
                attempt = self._attempt(context, run_id, prepared.plan, emit, stop_requested, bar)
                answers = attempt.answers
                if answers.error is not None:
                    raise answers.error
                if answers.result is not None:
                    break
                if (wish := stop_requested()) is not None:
                    # Processes end at a signal until they listen to it: another start would end in the same way.
                    answers.result = _paused(context, run_id, prepared, wish)
                    break
                began = answers.began_at or 0
                # The count is reset only after progress: the attempt began from a newer checkpoint than any before.
                restarts = restarts + 1 if began <= last_began or restarts == 0 else 1
                last_began = max(last_began, began)
                step = context.runs.get(run_id).step
                if restarts > MAX_RESTARTS:
                    raise WorkError(
                        f"{attempt.died}; {MAX_RESTARTS} restarts in a row reached no new checkpoint",
                        expected="processes that live until the next checkpoint",
                        do=f"see {_logs(context, run_id)}; ended by SIGKILL often means that memory ran out: fewer "
                        "devices or a smaller training.micro_batch_tokens help. Then resume the run",
                    )
                message = f"{attempt.died} after step {step}: all continue from the newest checkpoint"
                # At the step of that checkpoint: the next attempt drops all events after it.
                emit(WarningRaised(step=_newest_checkpoint(context, run_id), code="process_died", message=message))
        meter.take_up()
        meter.refused_by = answers.refused_by  # type: ignore[assignment]
        return answers.result

    def _attempt(
        self,
        context: Context,
        run_id: str,
        plan: Plan,
        emit: EventSink,
        stop_requested: Callable[[], str | None],
        bar: ProgressTask,
    ) -> _Attempt:
        """Start all processes and read their messages until all have ended."""
        attempt = _Attempt(Answers(emit, bar))
        with self._started(context, run_id, plan, attempt):
            is_told, deadline = False, float("inf")
            while time.monotonic() < deadline:
                alive = [process for process in attempt.processes if not process.has_hung_up]
                if not alive:
                    break
                for process in wait_any(alive, _LOOK_SECONDS):
                    for message in process.receive(0):
                        _take(attempt.answers, message)
                if not is_told and (wish := stop_requested()) is not None:
                    is_told = True
                    for process in attempt.processes:
                        # The request starts with the name of its signal, such as "SIGTERM ...".
                        process.request_stop(signal.Signals[wish.split()[0]])
                if deadline == float("inf") and any(process.returncode for process in attempt.processes):
                    attempt.died = _who_died(attempt.processes)
                    # The others block in a collective call without the dead process: they get this long to notice it
                    # themselves.
                    deadline = time.monotonic() + _GRACE_SECONDS
            for process in attempt.processes:
                if process.has_hung_up:  # it is ending by itself, with an informative exit code
                    process.wait(_GRACE_SECONDS)
            if attempt.answers.result is None and not attempt.died:
                attempt.died = _who_died(attempt.processes)
        return attempt

    @contextmanager
    def _started(self, context: Context, run_id: str, plan: Plan, attempt: _Attempt) -> Iterator[None]:
        """All processes, for the duration of the block; none outlives it."""
        import torch.distributed as dist

        folder = _logs(context, run_id)
        folder.mkdir(parents=True, exist_ok=True)
        document = {
            "home": str(context.home),
            "cache_project_id": context.cache_project_id,
            "run_id": run_id,
            "began": time.time(),
            "plan": plan.model_dump(mode="json"),
        }
        # Port 0: the kernel picks a free port and keeps it bound. Choosing one first and binding it later could lose
        # it.
        store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # type: ignore[attr-defined]
        try:
            for rank in range(self.num_processes):
                attempt.processes.append(
                    ChildProcess(
                        _TRAIN,
                        document,
                        environment=self._place(rank, store.port),
                        log=folder / f"rank-{rank}.log",
                        pass_fds=facilities.inheritable(self._lock),
                        has_session=True,
                        # If this process is killed, the children detect it, finish their step and write a checkpoint,
                        # which a kill would lose.
                        dies_with_parent=False,
                    )
                )
            yield
        finally:
            for process in attempt.processes:
                process.kill()
            for process in attempt.processes:
                process.close()

    def _place(self, rank: int, port: int) -> dict[str, str]:
        size = str(self.num_processes)
        return {
            "RANK": str(rank), "WORLD_SIZE": size, "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": size,
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_USE_AGENT_STORE": "True",
            **_LOOPBACK, **{name: os.environ[name] for name in _LOOPBACK if name in os.environ},
        }  # fmt: skip


def _paused(context: Context, run_id: str, prepared: Prepared, wish: str) -> TrainResult:
    """The result of a run whose processes ended after a wish to stop, and without a checkpoint of their last step."""
    from luthier.features.planning.objective_inputs import not_begun

    return not_begun(prepared, wish).model_copy(update={"num_steps": context.runs.get(run_id).step})


def _take(answers: Answers, message: dict[str, Any]) -> None:
    """Record a message of a process; of several errors the first counts."""
    if "event" in message:
        answers.take(message["event"])
        return
    try:
        result_of(message)
    except LuthierError as error:
        answers.error = answers.error or error
    except OSError as error:  # a full disk
        answers.error = answers.error or storage_full(error)


def _who_died(processes: list[ChildProcess]) -> str:
    """The process that failed first: by a signal, otherwise by an error, otherwise because it lost another."""
    ended = {rank: process.returncode for rank, process in enumerate(processes)}
    by_signal = {rank: code for rank, code in ended.items() if code is not None and code < 0}
    if by_signal:
        rank, code = next(iter(by_signal.items()))
        return f"the process of rank {rank} was ended by {signal_name(-code)}"
    of_itself = [rank for rank, code in ended.items() if code and code != PeerLostError.exit_code]
    # PeerLostError is a consequence: another process died first.
    rank = next(iter(of_itself or [rank for rank, code in ended.items() if code]), 0)
    return f"the process of rank {rank} ended with exit code {ended[rank]}"


def _logs(context: Context, run_id: str) -> Path:
    return context.settings.run_folder(run_id) / "processes"
