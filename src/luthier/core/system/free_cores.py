"""The cores that other processes leave free, and how many threads that leaves for products that wait for each other.

Threads that share a product wait for the slowest of them after each one. Beside a single busy process on two cores,
two threads of llama.cpp wrote 3.6 tokens a second where one wrote 23; where nothing else ran, two wrote 34 to 41
(docs/log.md). The scheduler takes a core from one thread, and the other one spins for it.
"""

from __future__ import annotations

import math
import os
import threading
import time
from typing import Final

import psutil

from luthier.core.system.facilities import usable_cores
from luthier.core.system.process_setup import num_usable_cores, start_daemon
from luthier.core.system.scheduling_weight import LighterProcesses

_BUSY_KINDS: Final = ("user", "nice", "system", "irq", "softirq", "steal")
_SAMPLE_SECONDS: Final = 1.0
_FIRST_SECONDS: Final = 0.1
# Fewer threads soon, since one too many costs far more than one too few. More soon as well: answers on half of a
# machine that is free again lose more in ten seconds than they would in two beside a neighbour. A raise that was too
# early makes the next one take twice as many quiet samples, up to the most.
_SAMPLES_TO_LOWER: Final = 2
_SAMPLES_TO_RAISE: Final = 3
_MOST_SAMPLES_TO_RAISE: Final = 12
# A raise that is taken back within so many samples was too early; one that lasts longer makes the next one easy again.
_SAMPLES_OF_TRIAL: Final = 20
# Work that never pauses would keep too few threads for ever. New work waits for what is under way after a while; where
# that takes long, the wait is given up and begins again later.
_DRAIN_AFTER_SECONDS: Final = 30.0
_DRAIN_SECONDS: Final = 15.0
# Of a core: clients, the server's own process and the desktop take some of it.
_TOLERATED: Final = 0.5


class OtherProcesses:
    """Counts the processor time of everybody else on the cores that this process may use, from its creation on.

    Time that a hypervisor gave to other machines (steal) counts too: it is as lost as that of a neighbour process. Time
    of processes with a lower weight, such as niced ones, counts as far as they would take it from this process.
    """

    def __init__(self) -> None:
        self._lighter = LighterProcesses()
        # A difference of counters, not a sampled percentage: it covers the whole stretch without gaps.
        self._began = self._now()

    def age_seconds(self) -> float:
        """Seconds since its creation."""
        return self._now()[0] - self._began[0]

    def busy_cores(self) -> float:
        """The mean number of cores that others kept busy since then, 0 to the number of usable cores."""
        seconds, busy, own = (now - before for now, before in zip(self._now(), self._began, strict=True))
        # A clock that did not move (a call right after the first) would divide by zero.
        if seconds <= 0:
            return 0.0
        taken = max(0.0, busy - own) - self._lighter.given_way_seconds()
        return min(float(num_usable_cores()), max(0.0, taken / seconds))

    @staticmethod
    def _now() -> tuple[float, float, float]:
        """Seconds of the clock, processor seconds in use on the usable cores, and those of this process's own work."""
        usable = usable_cores()
        cores = [core for i, core in enumerate(psutil.cpu_times(percpu=True)) if usable is None or i in usable]
        # guest time is part of user time, and waiting for a disk uses no core
        busy = sum(sum(getattr(core, kind, 0.0) for kind in _BUSY_KINDS) for core in cores)
        ended = os.times()  # children that were waited for: a probe's steps are no neighbour's
        return time.perf_counter(), busy, time.process_time() + ended.children_user + ended.children_system


class FreeCores:
    """How many threads may compute, sampled once a second by a thread of its own until `close`.

    Args:
        max_threads: The most there may be. One needs no samples: it waits for nobody.
        is_sampled: Without it nothing is sampled: `note` is called with what others take.
    """

    def __init__(self, max_threads: int, *, is_sampled: bool = True) -> None:
        self._max = max_threads
        self._count = max_threads
        self._recent: list[int] = []
        self._samples_to_raise = _SAMPLES_TO_RAISE
        self._num_since_raise: int | None = None
        self._reserved = 0.0
        self._closed = threading.Event()
        if is_sampled and max_threads > 1:
            others = OtherProcesses()
            time.sleep(_FIRST_SECONDS)
            self._count = self._threads_beside(others.busy_cores())
            start_daemon(self._sample, "free cores")

    @property
    def count(self) -> int:
        """Threads that may compute now, from 1 to `max_threads`."""
        return self._count

    def note(self, others: float) -> None:
        """Take a sample into account.

        Args:
            others: Cores that other processes kept busy, on average over the last second.
        """
        self._recent = [*self._recent, self._threads_beside(others + self._reserved)][-_MOST_SAMPLES_TO_RAISE:]
        last, quiet = self._recent[-_SAMPLES_TO_LOWER:], self._recent[-self._samples_to_raise :]
        if self._num_since_raise is not None:
            self._num_since_raise += 1
            if self._num_since_raise > _SAMPLES_OF_TRIAL:
                self._samples_to_raise, self._num_since_raise = _SAMPLES_TO_RAISE, None
        if len(last) == _SAMPLES_TO_LOWER and max(last) < self._count:
            self._count = max(last)
            if self._num_since_raise is not None:
                self._samples_to_raise = min(2 * self._samples_to_raise, _MOST_SAMPLES_TO_RAISE)
                self._num_since_raise = None
        elif len(quiet) == self._samples_to_raise and min(quiet) > self._count:
            self._count, self._num_since_raise = min(quiet), 0

    def reserve(self, num_cores: float) -> None:
        """From now on count so many cores as busy that this process itself uses for something else; 0 for none."""
        self._reserved = num_cores

    def close(self) -> None:
        """Take no more samples."""
        self._closed.set()

    def _threads_beside(self, others: float) -> int:
        return max(1, min(self._max, num_usable_cores() - max(0, math.ceil(others - _TOLERATED))))

    def _sample(self) -> None:
        others = OtherProcesses()
        while not self._closed.wait(_SAMPLE_SECONDS):
            self.note(others.busy_cores())
            others = OtherProcesses()


class Drain:
    """When new work waits until what is under way has ended, so that more threads can take it up.

    The first wait begins after `_DRAIN_AFTER_SECONDS` with too few threads and lasts `_DRAIN_SECONDS` at most; after
    each one in vain the time without a wait doubles.
    """

    def __init__(self) -> None:
        self._began: float | None = None
        self._rest = _DRAIN_AFTER_SECONDS

    def is_on(self, now: float) -> bool:
        """Whether new work waits now.

        Args:
            now: seconds of a clock that never goes back.
        """
        if self._began is None:
            self._began = now
        if now - self._began >= self._rest + _DRAIN_SECONDS:
            self._began, self._rest = now, 2 * self._rest
        return now - self._began >= self._rest

    def reset(self) -> None:
        """There are as many threads as there may be."""
        self._began, self._rest = None, _DRAIN_AFTER_SECONDS
