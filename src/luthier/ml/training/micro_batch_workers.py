"""Processes that compute the micro-batches of a step side by side on the cores of a CPU, each with one thread.

    training process  --step, number of a micro-batch, divisor-->  workers, forked from it
                      <--losses; gradients in shared memory--

Threads that share a matrix product wait for the slowest of them after each of the thousands of products in a step: a
core that a neighbour uses for a moment stops them all. Micro-batches need nothing of one another until their gradients
are added. So each worker computes whole ones with one thread, and takes the next as soon as it is free.

The weights of the base are those of the training process (copy on write, never written). Trained weights lie in memory
that all of them share: the optimizer moves them between two steps, while no worker computes. Each micro-batch draws its
random numbers from (seed, step, number), and gradients are added in the order of the numbers. So the result does not
depend on how many workers there are, nor on which of them computes what.

The path behind is `step.accumulate` in the training process with one thread. Workers are held against it when they
start, to the bit, and it goes on alone where one of them dies.

Sources: Amdahl, 1967, "Validity of the single processor approach to achieving large scale computing capabilities";
Graham, 1969, "Bounds on multiprocessing timing anomalies", section 3 (whoever is free takes the next).
"""

from __future__ import annotations

import contextlib
import gc
import json
import mmap
import os
import selectors
import signal
import socket
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple, NoReturn

import torch
from torch import Tensor

from luthier.core.child_process.forked_program import ForkedChild
from luthier.core.child_process.process import signal_name
from luthier.core.plan import Plan
from luthier.core.system.process_setup import end_with
from luthier.ml.training.device import forget_peak, peak_memory_bytes, resident_bytes
from luthier.ml.training.distributed import World
from luthier.ml.training.model import TrainableModel
from luthier.ml.training.objective_protocol import Losses, Objective, PlainObjective, Unit
from luthier.ml.training.optimizers.rules import gradient_buffers
from luthier.ml.training.step import Counted, StepSchedule, accumulate, seed_random

TakeSums = Callable[[Losses, Counted], None]
Warn = Callable[[int, str, str], None]
"""Called with the step, the code and the text of a warning."""

_CLOSE_SECONDS: Final = 5.0
_PAUSE_SECONDS: Final = 0.005


def why_not_side_by_side(plan: Plan, model: TrainableModel, objective: Objective) -> str | None:
    """Why the micro-batches of a run cannot be computed by workers; None where they can."""
    kind = type(objective)
    if model.device != "cpu" or not hasattr(os, "fork"):
        return "workers are forked and compute on a CPU"
    if getattr(kind, "draw", None) is not PlainObjective.draw or getattr(kind, "look", None) is not PlainObjective.look:
        return f"objective {plan.objective.name} sees the rows of a step together"
    if plan.training.compile or model.uses_flex_attention:
        return "compiled code starts threads of its own"
    return None


@contextlib.contextmanager
def micro_batch_workers(
    plan: Plan,
    model: TrainableModel,
    objective: Objective,
    units: Sequence[Unit],
    schedule: StepSchedule,
    first_step: int,
    world: World,
    warn: Warn,
) -> Iterator[MicroBatchWorkers | None]:
    """The workers of a run, proved, for as long as the block runs; None where the plan has none.

    Where workers differ from the training process it goes on alone, with one thread: the result is the same.

    Args:
        first_step: the step that comes next; its shortest micro-batch is what they are proved on.
        warn: called where they cannot be had, or are lost.
    """
    # Several processes share the steps of a run, and the cores, already.
    if plan.training.micro_batch_workers < 2 or world.size > 1:
        yield None
        return
    why_not = why_not_side_by_side(plan, model, objective)
    if why_not is not None:
        warn(first_step, "no_micro_batch_workers", f"micro-batches are computed one after the other: {why_not}")
        yield None
        return
    workers = MicroBatchWorkers(plan, model, objective, units, schedule, warn)
    try:
        workers.start()
        workers.prove(first_step)
        yield workers
    finally:
        workers.close()


class _Counts(NamedTuple):
    num_tokens: int
    num_trained_tokens: int


@dataclass(slots=True)
class _Worker:
    process: ForkedChild
    connection: socket.socket
    lines: Any
    free: list[int]
    """Numbers of its slots that hold nothing."""
    given: tuple[int, int] | None = None
    """Number of the micro-batch that it computes, and the slot for it."""
    peak_bytes: int = 0
    """The most memory that it had for itself so far."""


class MicroBatchWorkers:
    """The workers of one run. `close` ends them; without any, micro-batches are computed here.

    Args:
        plan: of the run; `training.micro_batch_workers` says how many.
        model: what is trained; its trained weights are moved into shared memory by `start`.
        objective: one that looks at each micro-batch by itself.
        units: what is trained, by the indices of `schedule`.
        schedule: the micro-batches of each step.
        warn: called where workers are lost.
    """

    def __init__(
        self,
        plan: Plan,
        model: TrainableModel,
        objective: Objective,
        units: Sequence[Unit],
        schedule: StepSchedule,
        warn: Warn,
    ) -> None:
        self._plan, self._model, self._objective = plan, model, objective
        self._units, self._schedule, self._warn = units, schedule, warn
        self._weights = [p for p in model.module.parameters() if p.requires_grad]
        self._workers: list[_Worker] = []
        # Room for the gradients of one micro-batch each, in shared memory: a tensor for each trained weight.
        self._slots: list[list[Tensor]] = []
        self._lost_bytes = 0

    @property
    def peak_bytes(self) -> int:
        """The most memory that the workers had beside what they share with the training process, added up."""
        return self._lost_bytes + sum(worker.peak_bytes for worker in self._workers)

    def start(self) -> None:
        """Move what is trained into shared memory and fork the workers.

        Must be called by a thread that lives as long as they do: the kernel ends them with it.
        """
        size = sum(w.numel() * w.element_size() for w in self._weights)
        each = gradient_buffers(size)
        with torch.no_grad():
            for weight in self._weights:
                shared = _shared_like(weight)
                weight.data = shared.copy_(weight.data)
        num = self._plan.training.micro_batch_workers
        self._slots = [[_shared_like(w) for w in self._weights] for _ in range(num * each)]
        # Objects of now are left out of later collections: a collection in a worker would write to their pages, and
        # each written page is copied.
        were_frozen = gc.get_freeze_count() > 0
        gc.collect()
        gc.freeze()
        try:
            for number in range(num):
                self._workers.append(self._fork(list(range(number * each, (number + 1) * each))))
        finally:
            if not were_frozen:
                gc.unfreeze()

    def _fork(self, slots: list[int]) -> _Worker:
        ours, theirs = socket.socketpair()
        parent = os.getpid()
        pid = os.fork()
        if pid == 0:
            # Ends of other workers' channels: held open here, their closing would not be seen there.
            for other in self._workers:
                other.connection.close()
            ours.close()
            self._run_child(parent, theirs)
        theirs.close()
        return _Worker(ForkedChild(pid), ours, ours.makefile("rb"), free=slots)

    def _run_child(self, parent: int, connection: socket.socket) -> NoReturn:
        """What a worker does until its channel is closed; never returns into the code of the training process."""
        code = 1
        try:
            end_with(parent)
            # Wishes to stop are for the training process, which ends its step first; it closes the channel afterwards.
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, signal.SIG_IGN)
            # One thread: that of OpenMP's pool did not survive the fork, and none is needed.
            torch.set_num_threads(1)
            self._model.module.train()
            forget_peak()
            before = resident_bytes()
            for line in connection.makefile("rb"):
                step, number, slot, divisor = json.loads(line)
                answer = self._answer(step, number, slot, divisor)
                answer["peak_bytes"] = _own_peak_bytes(before)
                connection.sendall(json.dumps(answer).encode() + b"\n")
            code = 0
        except (BrokenPipeError, ConnectionResetError):
            code = 0  # nobody waits for the answer any more
        finally:
            if code:
                traceback.print_exc()
            # Not sys.exit: open databases, temporary folders and locks belong to the training process.
            os._exit(code)

    def _answer(self, step: int, number: int, slot: int, divisor: float) -> dict[str, Any]:
        losses, counts = self._computed(step, number, divisor)
        missing = []
        for position, (weight, view) in enumerate(zip(self._weights, self._slots[slot], strict=True)):
            if weight.grad is None:
                missing.append(position)
            else:
                view.copy_(weight.grad)
                weight.grad = None
        return {
            "total": losses.total.item(),
            "measures": {name: value.item() for name, value in losses.measures.items()},
            "counts": list(counts),
            "missing": missing,
        }

    def _computed(self, step: int, number: int, divisor: float) -> tuple[Losses, _Counts]:
        """The losses of a micro-batch, with the gradients in `.grad` of the weights."""
        indices = self._schedule.share(step, 0, 1)[number]
        seed_random(self._plan, step, micro_batch=number)
        micro_batch, prefixes = [self._units[i] for i in indices], self._schedule.shared_tokens(indices)
        losses, batch = accumulate(self._plan, self._model, self._objective, micro_batch, prefixes, divisor)
        return losses, _Counts(batch.num_tokens, batch.num_trained_tokens)

    def compute(self, step: int, num: int, divisor: float, gradients: Sequence[Tensor], take: TakeSums) -> None:
        """Add the gradients of all micro-batches of a step, in the order of their numbers.

        Args:
            step: counted from 0.
            num: of its micro-batches.
            divisor: of each loss.
            gradients: the fp32 sums of the optimizer, in the order of the trained weights.
            take: called with the losses and counts of each micro-batch, in the same order.
        """
        if num == 1:  # nothing to share: all threads work on it
            self._compute_here(step, 0, divisor, gradients, take, self._plan.training.num_threads)
            return
        waiting = deque(range(num))
        found: dict[int, _Answer] = {}
        for number in range(num):
            while number not in found and self._workers:
                try:
                    self._hand_out(step, waiting, divisor)
                    found |= self._answers()
                except (OSError, EOFError) as error:
                    self._lose(step, str(error) or type(error).__name__)
            if number in found:
                self._take(found.pop(number), gradients, take)
            else:  # all workers are gone: what they had not finished is computed here
                self._compute_here(step, number, divisor, gradients, take)

    def prove(self, step: int) -> None:
        """Compare a worker with this process on the shortest micro-batch of a step; end all where they differ."""
        sizes = [sum(row.num_tokens for i in batch for row in self._units[i]) for batch in self._schedule.step(step)]
        number = sizes.index(min(sizes))
        here, there = ([torch.zeros(w.shape, dtype=torch.float32) for w in self._weights] for _ in range(2))
        seen: list[tuple[Any, ...]] = []

        def take(losses: Losses, counts: Counted) -> None:
            measures = sorted((name, value.item()) for name, value in losses.measures.items())
            seen.append((losses.total.item(), measures, counts.num_tokens, counts.num_trained_tokens))

        self._compute_here(step, number, 1.0, here, take)
        try:
            self._hand_out(step, deque([number]), 1.0)
            while number not in (found := self._answers()):
                pass
        except (OSError, EOFError) as error:
            self._lose(step, str(error) or type(error).__name__)
            return
        self._take(found[number], there, take)
        if seen[0] != seen[1] or not all(torch.equal(a, b) for a, b in zip(here, there, strict=True)):
            self._lose(step, "a worker computes another loss or gradient than the training process")

    def close(self) -> None:
        """End the workers and wait until they have ended."""
        workers, self._workers = self._workers, []
        for worker in workers:
            worker.lines.close()
            worker.connection.close()
        for worker in workers:
            self._lost_bytes += worker.peak_bytes
            _end(worker.process)

    def _hand_out(self, step: int, waiting: deque[int], divisor: float) -> None:
        """Give each worker that is free, and has room for the result, the next micro-batch."""
        # In the order of the numbers, so that the one which is added next is always under way.
        for worker in self._workers:
            if waiting and worker.free and worker.given is None:
                number, slot = waiting.popleft(), worker.free.pop()
                # JSON keeps every bit of a double.
                worker.connection.sendall(json.dumps([step, number, slot, divisor]).encode() + b"\n")
                worker.given = (number, slot)

    def _answers(self) -> dict[int, _Answer]:
        """What workers have finished by now, by the number of the micro-batch; waits for the first."""
        found = {}
        with selectors.DefaultSelector() as selector:
            for worker in self._workers:
                if worker.given is not None:
                    selector.register(worker.connection, selectors.EVENT_READ, worker)
            for key, _ in selector.select():
                worker = key.data
                line = b""
                with contextlib.suppress(ConnectionResetError):  # killed with a request unread
                    line = worker.lines.readline()
                if not line.endswith(b"\n"):
                    raise EOFError(f"a worker of micro-batches {_how_it_ended(worker.process.wait())}")
                (number, slot), worker.given = worker.given, None
                message = json.loads(line)
                worker.peak_bytes = max(worker.peak_bytes, message["peak_bytes"])
                found[number] = _Answer(worker, slot, message)
        return found

    def _lose(self, step: int, why: str) -> None:
        self.close()
        message = f"{why}: the rest is computed by the training process alone, with one thread; the result is the same"
        self._warn(step, "micro_batch_workers_lost", message)

    def _compute_here(
        self, step: int, number: int, divisor: float, gradients: Sequence[Tensor], take: TakeSums, threads: int = 1
    ) -> None:
        self._model.module.train()
        with _num_threads(threads):
            losses, counts = self._computed(step, number, divisor)
        with torch.no_grad():
            for weight, gradient in zip(self._weights, gradients, strict=True):
                if weight.grad is not None:
                    gradient.add_(weight.grad)
                    weight.grad = None
        take(losses, counts)

    @torch.no_grad()
    def _take(self, answer: _Answer, gradients: Sequence[Tensor], take: TakeSums) -> None:
        """Add the gradients of an answer and give its place back."""
        missing = set(answer.message["missing"])
        for position, (gradient, view) in enumerate(zip(gradients, self._slots[answer.slot], strict=True)):
            if position not in missing:
                gradient.add_(view)
        answer.worker.free.append(answer.slot)
        sums = {name: torch.tensor(value, dtype=torch.float64) for name, value in answer.message["measures"].items()}
        total = torch.tensor(answer.message["total"], dtype=torch.float64)
        take(Losses(total, sums), _Counts(*answer.message["counts"]))


class _Answer(NamedTuple):
    worker: _Worker
    slot: int
    message: dict[str, Any]


@contextlib.contextmanager
def _num_threads(num: int) -> Iterator[None]:
    """Compute with so many threads within the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(num)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _shared_like(weight: Tensor) -> Tensor:
    """An empty tensor of the same shape and kind in memory that a forked process shares."""
    # Anonymous memory, not /dev/shm: containers often give that 64 MB.
    memory = mmap.mmap(-1, max(1, weight.numel()) * weight.element_size())
    return torch.frombuffer(memory, dtype=weight.dtype, count=weight.numel()).view(weight.shape)


def _own_peak_bytes(at_fork: int) -> int:
    """The most memory that this process has had beside what it shares with its parent.

    Args:
        at_fork: its resident bytes when it was forked, all of them shared.
    """
    private = 0
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/smaps_rollup").read_text(encoding="ascii").splitlines():
            if line.startswith("Private_Dirty:"):
                private = int(line.split()[1]) * 1024
    # A shared page that is written to becomes a copy without a change of the resident size.
    copied = max(0, private - max(0, resident_bytes() - at_fork))
    return max(0, peak_memory_bytes() - at_fork) + copied


def _end(process: ForkedChild) -> None:
    """Wait for a worker whose channel is closed; one that is still in the middle of a micro-batch is killed."""
    deadline = time.monotonic() + _CLOSE_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        time.sleep(_PAUSE_SECONDS)
    if process.poll() is None:
        os.kill(process.pid, signal.SIGKILL)
    process.wait()


def _how_it_ended(code: int) -> str:
    return f"was ended by {signal_name(-code)}" if code < 0 else f"ended with exit code {code}"
