"""Batches that processes compute side by side on the cores of a CPU, each with one thread.

Threads that share a matrix product wait for the slowest of them after each one: a core that a neighbour uses for a
moment stops them all. Batches are independent. So workers are forked from the process that has the model,
share its weights (copy on write, never written), and each takes the next batch as soon as it is free.

The batches are those of one process, and results come back in their order, so they depend neither on how many workers
there are nor on which of them computes what. They are computed with one thread; the last bits of a product may differ
from those of several threads.

The path behind is the same work in this process with one thread: for what is left when a worker ends or fails, which
also raises what the worker has met. A worker whose logits differ in any bit from those of this process is not used.

Source: Graham, 1969, "Bounds on multiprocessing timing anomalies", section 3 (a free worker takes the next).
"""

from __future__ import annotations

import contextlib
import hashlib
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Generic, Protocol, TypeVar

import torch

from luthier.core.child_process.forked_workers import ForkedWorkers, LostWorkerError, Note
from luthier.core.system import facilities

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Made = TypeVar("Made")
Advance = Callable[[int], None]
"""Called with how many rows are done."""
Compute = Callable[[int, Advance], Made]
"""Computes the batch of a number, and advances as its rows are done."""

MIN_FLOPS: Final = 5e10
"""Operations below which no worker is forked: they take less than a second on one core, and a fork does not pay."""
_KIND: Final = "a worker of batches"
_PROBE: Final = -1
"""The number of the batch that represents the proof."""
_PROBE_TOKENS: Final = 8


@dataclass(frozen=True, slots=True)
class Form(Generic[Made]):
    """How the result of a batch is sent from the process that made it: as JSON, or in shared memory.

    Attributes:
        encode: gets the number of the batch and what was made of it; returns JSON.
        decode: gets the number and that JSON.
    """

    encode: Callable[[int, Made], Any]
    decode: Callable[[int, Any], Made]


MakeForm = Callable[[], Form[Made]]
Done = Callable[[int, Made], None]
"""Called with a batch, by its number, and what was made of it, as soon as it is there."""


class BatchRunner(Protocol):
    """Has batches computed, here or side by side."""

    def __call__(
        self,
        num: int,
        compute: Compute[Made],
        advance: Advance,
        form: MakeForm[Made],
        done: Done[Made] | None = None,
    ) -> list[Made]:
        """What `compute` makes of each batch, in the order of their numbers.

        Args:
            num: of batches.
            compute: makes one; raises what ends the work.
            advance: called in this process as rows are done; what it raises ends the work.
            form: makes the form, where batches are computed by other processes.
            done: called in this process with each batch as it is done, in any order.
        """
        ...


def one_after_another(
    num: int,
    compute: Compute[Made],
    advance: Advance,
    form: MakeForm[Made],  # noqa: ARG001
    done: Done[Made] | None = None,
) -> list[Made]:
    """A `BatchRunner`: all in this process.

    Args:
        num: batches.
        compute: computes the batch of a number.
        advance: reports progress.
        form: not used here, where nothing is sent between processes.
        done: called with each batch as it is done.
    """
    found: list[Made] = []
    for number in range(num):
        found.append(compute(number, advance))
        if done is not None:
            done(number, found[-1])
    return found


@contextlib.contextmanager
def torch_threads(num: int) -> Iterator[None]:
    """Compute with that many threads within the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(num)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def can_fork(model: PreTrainedModel) -> bool:
    """Whether workers can compute with a model: it is on a CPU, and the system can fork."""
    return model.device.type == "cpu" and facilities.can_fork()


class SideBySide:
    """A `BatchRunner` that forks workers for the time of a call.

    With fewer batches than workers, or little work, this process computes all of them with all of its threads: cores
    without a batch would wait.

    Args:
        model: in evaluation mode, on a CPU.
        num_workers: at least 2.
        flops: of all batches together.
        note: called with why workers were lost, or not used.
    """

    def __init__(self, model: PreTrainedModel, num_workers: int, flops: float, note: Callable[[str], None]) -> None:
        self._model, self._num_workers, self._flops, self._note = model, num_workers, flops, note

    def __call__(
        self,
        num: int,
        compute: Compute[Made],
        advance: Advance,
        form: MakeForm[Made],
        done: Done[Made] | None = None,
    ) -> list[Made]:
        """What `compute` makes of each batch, in the order of their numbers."""
        if num < self._num_workers or self._flops < MIN_FLOPS:
            return one_after_another(num, compute, advance, form, done)
        found: dict[int, Made] = {}
        crossing = form()
        # By batch: what a lost worker had reported must not be reported again by the process that repeats its batch.
        shown = [0] * num
        """Of each batch the rows that were seen to be done."""

        def answer(number: int, note: Note) -> Any:
            if number == _PROBE:
                return self._probe()
            return crossing.encode(number, compute(number, lambda rows: note([number, rows])))

        def take_note(said: list[int]) -> None:
            number, rows = said
            shown[number] += rows
            advance(rows)

        # Closed also where `advance` raises: active work is then useless.
        with closing(ForkedWorkers(answer, kind=_KIND, prepare=lambda: torch.set_num_threads(1))) as pool:
            try:
                pool.start(self._num_workers)
                self._prove(pool)
                # In order, the next one to whoever is free: the longest batches come first.
                waiting = deque(range(num))
                while len(found) < num:
                    for worker in pool.workers:
                        if waiting and worker.request is None:
                            pool.give(worker, waiting.popleft())
                    for _, number, message in pool.answers(take_note):
                        found[number] = crossing.decode(number, message)
                        if done is not None:
                            done(number, found[number])
            except LostWorkerError as error:
                self._note(f"{error}: the rest was computed by one process with one thread; the result is the same")
        with torch_threads(1):
            for number in range(num):
                if number not in found:
                    found[number] = compute(number, _behind(shown[number], advance))
                    if done is not None:
                        done(number, found[number])
        return [found[number] for number in range(num)]

    def _prove(self, pool: ForkedWorkers) -> None:
        """Compare the logits of a worker with those of this process. Raises LostWorkerError where they differ."""
        # With one thread, as workers compute: another number of threads may change the last bits of a product.
        with torch_threads(1):
            here = self._probe()
        # One worker is enough: all are forks of the same process with the same libraries.
        pool.give(pool.workers[0], _PROBE)
        while not (answers := pool.answers(lambda _: None)):
            pass
        if answers[0][2] != here:
            raise LostWorkerError("a worker computes other logits than this process")

    @torch.inference_mode()
    def _probe(self) -> str:
        """A digest of the logits of a few tokens."""
        from luthier.ml.inference.decoding_proof import own_logits, text_part

        model = text_part(self._model)
        num_ids = int(model.get_input_embeddings().weight.shape[0])
        # The first ids of the vocabulary, which every model has; modulo for vocabularies of a few tokens.
        logits = own_logits(model, [(1 + place) % num_ids for place in range(_PROBE_TOKENS)])  # [tokens, vocabulary]
        return hashlib.sha256(logits.contiguous().numpy().tobytes()).hexdigest()


def _behind(num_shown: int, advance: Advance) -> Advance:
    """Advances by rows that were not shown before: of a batch that a worker had begun some were."""
    left = num_shown

    def advance_more(rows: int) -> None:
        nonlocal left
        skipped = min(left, rows)
        left -= skipped
        if rows > skipped:
            advance(rows - skipped)

    return advance_more
