"""Processes that compute the micro-batches of a step side by side on the cores of a CPU, each with one thread.

    training process  --step, number of a micro-batch, divisor-->  workers, forked from it
                      <--losses; gradients in shared memory--
                      --number of a validation micro-batch-->
                      <--losses--

Threads that share a matrix product wait for the slowest of them after each of the thousands of products in a step: a
core that a neighbour uses for a moment stops them all. Micro-batches need nothing of one another until their gradients
are added. So each worker computes whole ones with one thread, and takes the next as soon as it is free.

The weights of the base are those of the training process (copy on write, never written). Trained weights lie in memory
that all of them share: the optimizer moves them between two steps, while no worker computes. Each micro-batch draws its
random numbers from (seed, step, number), and gradients and losses are added in the order of the numbers. So the result
does not depend on how many workers there are, nor on which of them computes what. Validation is the same without
gradients.

The path behind is `step.accumulate` (`step.validation_losses`) in the training process with one thread. Workers are
compared with it when they start, to the bit, and it continues alone where one of them dies.

Sources: Amdahl, 1967, "Validity of the single processor approach to achieving large scale computing capabilities";
Graham, 1969, "Bounds on multiprocessing timing anomalies", section 3 (whoever is free takes the next).
"""

from __future__ import annotations

import contextlib
import gc
import mmap
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from luthier.core.child_process.forked_workers import ForkedWorkers, LostWorkerError, Note, Worker
from luthier.core.data_sources import sources_of
from luthier.core.plan import Plan
from luthier.core.system import facilities, process_memory
from luthier.ml.inference.side_by_side import torch_threads
from luthier.ml.training.distributed import World
from luthier.ml.training.model import TrainableModel
from luthier.ml.training.objective_protocol import Batch, Losses, Objective, Unit, sees_all_together
from luthier.ml.training.optimizers.rules import gradient_buffers
from luthier.ml.training.step import Counted, StepSchedule, accumulate, seed_random, validation_losses

TakeSums = Callable[[Losses, Counted], None]
Warn = Callable[[int, str, str], None]
"""Called with the step, the code and the text of a warning."""

_KIND = "a worker of micro-batches"


def why_not_side_by_side(plan: Plan, model: TrainableModel, objective: Objective) -> str | None:
    """Why the micro-batches of a run cannot be computed by workers; None where they can.

    Args:
        plan: of the run.
        model: prepared for training.
        objective: of the plan.
    """
    if model.device != "cpu" or not facilities.can_fork():
        return "workers are forked and compute on a CPU, on Linux"
    if sees_all_together(objective):
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
    validation: Sequence[Batch],
    schedule: StepSchedule,
    own: Iterable[Tensor],
    first_step: int,
    world: World,
    warn: Warn,
) -> Iterator[MicroBatchWorkers | None]:
    """The workers of a run, proved, for as long as the block runs; None where the plan has none.

    Where workers differ from the training process it continues alone, with one thread: the result is the same.

    Args:
        own: what the training process alone uses, such as the state of the optimizer; workers do not inherit it.
        first_step: the step that comes next; its shortest micro-batch is what they are proved on.
        warn: called where they cannot be had, or are lost.
        plan: of the run, with the number of workers.
        model: which workers inherit by fork.
        objective: which workers inherit, too.
        units: of the training split.
        validation: micro-batches of the validation split.
        schedule: which units each step takes.
        world: the ranks of the run; workers are for one rank alone.
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
    workers = MicroBatchWorkers(plan, model, objective, units, validation, schedule, warn)
    try:
        workers.start(first_step, own)
        workers.prove(first_step)
        yield workers
    finally:
        workers.close()


class _Counts(NamedTuple):
    num_tokens: int
    num_trained_tokens: int


class MicroBatchWorkers:
    """The workers of one run. `close` ends them; without any, micro-batches are computed here.

    Args:
        plan: of the run; `training.micro_batch_workers` says how many.
        model: what is trained; its trained weights are moved into shared memory by `start`.
        objective: one that looks at each micro-batch by itself.
        units: what is trained, by the indices of `schedule`.
        validation: the micro-batches of a validation; empty for none.
        schedule: the micro-batches of each step.
        warn: called where workers are lost.
    """

    def __init__(
        self,
        plan: Plan,
        model: TrainableModel,
        objective: Objective,
        units: Sequence[Unit],
        validation: Sequence[Batch],
        schedule: StepSchedule,
        warn: Warn,
    ) -> None:
        self._plan, self._model, self._objective = plan, model, objective
        self._units, self._validation, self._schedule, self._warn = units, validation, schedule, warn
        self._weights = [p for p in model.module.parameters() if p.requires_grad]
        # One thread: that of OpenMP's pool did not survive the fork, and none is needed.
        self._pool = ForkedWorkers(self._answer, kind=_KIND, prepare=lambda: torch.set_num_threads(1))
        # Room for the gradients of one micro-batch each, in shared memory: a tensor for each trained weight.
        self._slots: list[list[Tensor]] = []
        self._free: list[list[int]] = []
        """Of each worker the numbers of its slots that hold nothing."""
        self._is_training: bool | None = None
        """The mode that this process has set the model to; None where something else may have set it."""
        self._computed_for: tuple[bool, int] | None = None
        """In a worker: whether its last micro-batch was of a training step, and after how many steps."""

    def start(self, step: int, own: Iterable[Tensor] = ()) -> None:
        """Move what is trained into shared memory and fork the workers.

        Must be called by a thread that lives as long as they do: the kernel ends them with it.

        Args:
            step: that a warning names where the system has no room for them.
            own: what workers do not inherit.
        """
        # Bytes of one set of gradients. Two slots a worker, where memory allows: it computes while one is being added.
        size = sum(w.numel() * w.element_size() for w in self._weights)
        each = gradient_buffers(size)
        with torch.no_grad():
            for weight in self._weights:
                shared = _shared_like(weight)
                # In place of the tensor: after the fork a step of this process is seen by all workers at once.
                weight.data = shared.copy_(weight.data)
                # The optimizer's sum, where the weight is as wide: workers do not inherit it, and have their own.
                weight.grad = None
        num = self._plan.training.micro_batch_workers
        # Zeroed, which touches their pages: until this process has, they would count as a worker's own memory.
        self._slots = [[_shared_like(w).zero_() for w in self._weights] for _ in range(num * each)]
        self._free = [list(range(number * each, (number + 1) * each)) for number in range(num)]
        gc.collect()  # before the fork, so that no worker holds what nobody needs
        blocks = [(one.data_ptr(), one.nbytes) for one in own if one.is_contiguous()]
        try:
            with process_memory.not_inherited(blocks):
                self._pool.start(num)
        except LostWorkerError as error:
            self._lose(step, str(error))

    def _answer(self, request: dict[str, Any], _note: Note) -> dict[str, Any]:
        """What a worker does with one micro-batch."""
        number = request["number"]
        self._count_changes(is_step="slot" in request, step=request["step"])
        if "slot" not in request:
            return _as_message(*self._validated(number))
        losses, counts = self._computed(request["step"], number, request["divisor"])
        missing = []
        for position, (weight, view) in enumerate(zip(self._weights, self._slots[request["slot"]], strict=True)):
            if weight.grad is None:
                # A weight that the micro-batch did not touch, such as an expert without tokens: its slot holds an older
                # one.
                missing.append(position)
            else:
                view.copy_(weight.grad)
                weight.grad = None
        return _as_message(losses, counts) | {"missing": missing}

    def _count_changes(self, *, is_step: bool, step: int) -> None:
        """Count the weights as changed where the training process may have changed them since the last micro-batch.

        It changes them in shared memory, and each process has its own counters: what a layer keeps of its weights
        (the norms of DoRA) would stay as it was at the fork. A validation may be of averaged weights.
        """
        if self._computed_for != (is_step, step):
            self._computed_for = (is_step, step)
            for weight in self._weights:
                torch.autograd.graph.increment_version(weight)

    def _computed(self, step: int, number: int, divisor: float) -> tuple[Losses, _Counts]:
        """The losses of a micro-batch, with the gradients in `.grad` of the weights."""
        self._set_mode(is_training=True)
        # From step and number alone: a message holds no rows, and a worker reads the ones that it inherited.
        indices = self._schedule.share(step, 0, 1)[number]
        seed_random(self._plan, step, self._model.device, micro_batch=number)
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
            self._make_room()
            return

        def request(worker: Worker, number: int) -> dict[str, Any] | None:
            # A worker without a free slot is not asked: its gradients would overwrite some that were not added yet.
            free = self._free[worker.number]
            return {"step": step, "number": number, "slot": free.pop(), "divisor": divisor} if free else None

        self._in_order(
            step,
            num,
            request,
            lambda answer: self._take(answer, gradients, take),
            lambda number: self._compute_here(step, number, divisor, gradients, take),
        )

    def validate(self, step: int, take: TakeSums) -> None:
        """The losses of all validation micro-batches, in the order of their numbers.

        Args:
            step: after which it is.
            take: called with the losses and counts of each micro-batch, in the same order.
        """

        def here(number: int, threads: int = 1) -> None:
            self._is_training = None
            with torch_threads(threads):
                take(*self._validated(number))

        if len(self._validation) == 1:
            here(0, self._plan.training.num_threads)
            self._make_room()
            return
        self._in_order(
            step,
            len(self._validation),
            lambda _worker, number: {"step": step, "number": number},
            lambda answer: take(*_from_message(answer.message)),
            here,
        )

    def _in_order(
        self,
        step: int,
        num: int,
        request: Callable[[Worker, int], dict[str, Any] | None],
        take: Callable[[_Answer], None],
        here: Callable[[int], None],
    ) -> None:
        """Have `num` micro-batches computed, and take the answers in the order of their numbers.

        Args:
            step: that a warning names where workers are lost.
            num: of micro-batches.
            request: what a free worker is asked for a number; None where it has no room for the answer.
            take: called with each answer.
            here: computes a number in this process, where there are no workers any more.
        """
        waiting = deque(range(num))
        found: dict[int, _Answer] = {}
        for number in range(num):
            while number not in found and self._pool.workers:
                try:
                    # In the order of the numbers, so that the one which is taken next is always under way.
                    for worker in self._pool.workers:
                        if waiting and worker.request is None and (asked := request(worker, waiting[0])) is not None:
                            waiting.popleft()
                            self._pool.give(worker, asked)
                    for worker, asked, message in self._pool.answers(_ignore):
                        found[asked["number"]] = _Answer(worker, asked, message)
                except LostWorkerError as error:
                    self._lose(step, str(error))
            if number in found:
                take(found.pop(number))
            else:
                here(number)

    def prove(self, step: int) -> None:
        """Compare a worker with this process on the shortest micro-batch of a step; end all where they differ."""
        if not self._pool.workers:
            return
        sizes = [sum(row.num_tokens for i in batch for row in self._units[i]) for batch in self._schedule.step(step)]
        number = sizes.index(min(sizes))
        here, there = ([torch.zeros(w.shape, dtype=torch.float32) for w in self._weights] for _ in range(2))
        seen: list[tuple[Any, ...]] = []

        def take(losses: Losses, counts: Counted) -> None:
            measures = sorted((name, value.item()) for name, value in losses.measures.items())
            seen.append((losses.total.item(), measures, counts.num_tokens, counts.num_trained_tokens))

        self._compute_here(step, number, 1.0, here, take)
        # From here on this process computes nothing: what it took for the proof must not stay beside the workers. The
        # proof is of a whole micro-batch, the largest of all where rows are of one length.
        process_memory.release_free_pages()
        process_memory.begin_workers()
        first = self._pool.workers[0]
        try:
            self._pool.give(first, {"step": step, "number": number, "slot": self._free[0].pop(), "divisor": 1.0})
            while not (answers := self._pool.answers(_ignore)):
                pass
        except LostWorkerError as error:
            self._lose(step, str(error))
            return
        self._take(_Answer(*answers[0]), there, take)
        if seen[0] != seen[1] or not all(torch.equal(a, b) for a, b in zip(here, there, strict=True)):
            self._lose(step, "a worker computes another loss or gradient than the training process")

    def _make_room(self) -> None:
        """Return what this process took for a micro-batch, where workers keep as much for themselves."""
        if self._pool.workers:
            process_memory.release_free_pages()

    def close(self) -> None:
        """End the workers and wait until they have ended."""
        self._pool.close()

    def _lose(self, step: int, why: str) -> None:
        self.close()
        message = f"{why}: the rest is computed by the training process alone, with one thread; the result is the same"
        self._warn(step, "micro_batch_workers_lost", message)

    def _validated(self, number: int) -> tuple[Losses, _Counts]:
        """The losses of a validation micro-batch."""
        self._set_mode(is_training=False)
        with torch.no_grad():
            sources = sources_of(self._plan.data, self._plan.data.validation)
            losses, batch = validation_losses(self._model, self._objective, self._validation[number], sources)
        return losses, _Counts(batch.num_tokens, batch.num_trained_tokens)

    def _set_mode(self, *, is_training: bool) -> None:
        # Kept, since the walk over all modules takes milliseconds, and a worker alone decides what its own are set to.
        if self._is_training is not is_training:
            self._model.module.train(is_training)
            self._is_training = is_training

    def _compute_here(
        self, step: int, number: int, divisor: float, gradients: Sequence[Tensor], take: TakeSums, threads: int = 1
    ) -> None:
        self._is_training = None
        with torch_threads(threads):
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
        for position, (gradient, view) in enumerate(zip(gradients, self._slots[answer.request["slot"]], strict=True)):
            if position not in missing:
                gradient.add_(view)
        self._free[answer.worker.number].append(answer.request["slot"])
        take(*_from_message(answer.message))


class _Answer(NamedTuple):
    worker: Worker
    request: dict[str, Any]
    message: dict[str, Any]


def _as_message(losses: Losses, counts: _Counts) -> dict[str, Any]:
    measures = {name: value.item() for name, value in losses.measures.items()}
    return {"total": losses.total.item(), "measures": measures, "counts": list(counts)}


def _from_message(message: dict[str, Any]) -> tuple[Losses, _Counts]:
    sums = {name: torch.tensor(value, dtype=torch.float64) for name, value in message["measures"].items()}
    return Losses(torch.tensor(message["total"], dtype=torch.float64), sums), _Counts(*message["counts"])


def _ignore(_note: Any) -> None:
    """Workers of micro-batches say nothing before their answers."""


def _shared_like(weight: Tensor) -> Tensor:
    """An empty tensor of the same shape and kind in memory that a forked process shares."""
    # Anonymous memory, not /dev/shm: containers often give that 64 MB.
    memory = mmap.mmap(-1, max(1, weight.numel()) * weight.element_size())
    return torch.frombuffer(memory, dtype=weight.dtype, count=weight.numel()).view(weight.shape)
