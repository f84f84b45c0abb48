"""The cores that other processes leave free, and how many threads that leaves for products that wait for each other.

Threads that share a product wait for the slowest of them after each one. Beside a single busy process on two cores,
two threads of llama.cpp wrote 3.6 tokens a second where one wrote 23; where nothing else ran, two wrote 34 to 41
(docs/log.md). The scheduler takes a core from one thread, and the other one spins for it.
"""

from __future__ import annotations

import contextlib
import math
import os
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil

from luthier.core.system import facilities
from luthier.core.system.facilities import usable_cores
from luthier.core.system.process_setup import num_usable_cores, start_daemon

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
# Work that never pauses would keep too few threads forever. New work waits for what is under way after a while; where
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
    """How many threads may compute, sampled once a second by its own thread until `close`.

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


_STEP: Final = 1.25
_PROC: Final = Path("/proc")
_GROUPS: Final = Path("/sys/fs/cgroup")


def weight(nice: int) -> float:
    """The weight of a process in Linux's scheduler; nice: -20 to 19."""
    return 1024.0 * _STEP**-nice


@dataclass(frozen=True, slots=True)
class Priority:
    """What decides the weight of a process.

    Attributes:
        nice: Of the process; counts among processes of one group alone, where the kernel groups them.
        session: Its control group, where that has a weight, or the scheduling group of its session; empty where there
            is none. Weights of control groups are not read: a process of another one counts in full.
        session_nice: Of that group.
    """

    nice: int
    session: str = ""
    session_nice: int = 0

    def share_taken_by(self, other: Priority) -> float:
        """The share of its processor time that another process takes from this one, 0 to 1."""
        if self.session and other.session and self.session != other.session:
            return min(1.0, weight(other.session_nice) / weight(self.session_nice))
        return min(1.0, weight(other.nice) / weight(self.nice))


class LighterProcesses:
    """The processor time of processes with a lower weight than this one, from its creation on.

    A runnable process gets a share of its core in proportion to its weight, 1024 x 1.25^-nice (sched(7) and
    `sched_prio_to_weight` of the kernel, which rounds it). Next to one of nice 0, a process of nice 19 gets 1.4% of a
    core that would be idle without it: it may keep the core busy all the time, and leaves nearly all of it.

    Processes that begin later are not among them, and count in full. On other systems than Linux there are none.
    """

    def __init__(self) -> None:
        self._began = _lighter() if facilities.is_linux() else ()

    def given_way_seconds(self) -> float:
        """Of the processor seconds that they have used since then, those that this process could have had."""
        found = 0.0
        for process, share, before in self._began:
            with contextlib.suppress(psutil.Error):  # it has ended: what it used counts in full
                found += (1.0 - share) * max(0.0, _seconds(process) - before)
        return found


def _lighter() -> tuple[tuple[psutil.Process, float, float], ...]:
    """Each such process that keeps to the cores of this one: the share of its time that it takes, and its seconds."""
    own, usable = _priority(os.getpid()), facilities.posix.sched_getaffinity(0)
    found = []
    for pid in psutil.pids():
        # One system call a process: only of those with a higher nice value is more to be read.
        with contextlib.suppress(OSError, psutil.Error):
            if facilities.posix.getpriority(facilities.posix.PRIO_PROCESS, pid) <= own.nice:
                continue
            # What runs on cores that this process may not use is not among the time that is counted there.
            is_beside = facilities.posix.sched_getaffinity(pid) <= usable
            share = own.share_taken_by(_priority(pid))
            if is_beside and share < 1.0:
                process = psutil.Process(pid)
                found.append((process, share, _seconds(process)))
    return tuple(found)


def _seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _priority(pid: int) -> Priority:
    """The priority of a process. Raises OSError where it has ended."""
    nice = facilities.posix.getpriority(facilities.posix.PRIO_PROCESS, pid)
    if group := _weighted_group(pid):
        return Priority(nice, group)
    if not _has_session_groups():
        return Priority(nice)
    # "/autogroup-123 nice 0"; empty of a thread of the kernel, which belongs to no session
    session, found, session_nice = (_PROC / str(pid) / "autogroup").read_text(encoding="ascii").rpartition(" nice ")
    return Priority(nice, session, int(session_nice)) if found else Priority(nice)


def _weighted_group(pid: int) -> str:
    """The control group whose weight a process shares with others; empty where it is in none, or has ended."""
    path = _control_group(str(pid))
    if path is None:
        return ""
    # Where a group has no weight of its own, its processes are divided by that of the next one above.
    for group in (path, *path.parents):
        if (_GROUPS / group / "cpu.weight").is_file():
            return f"/{group}"
    return ""


def _has_session_groups() -> bool:
    """Whether the kernel divides time among sessions first: not within a control group that has its own weight."""
    try:
        if (_PROC / "sys/kernel/sched_autogroup_enabled").read_text(encoding="ascii").strip() != "1":
            return False
    except OSError:
        return False
    own = _control_group("self")
    return own is not None and not (_GROUPS / own / "cpu.weight").is_file()


def _control_group(process: str) -> Path | None:
    """The control group (v2) of a process, below the root of all; None where it cannot be read."""
    try:
        lines = (_PROC / process / "cgroup").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    return Path(next((line[3:].lstrip("/") for line in lines if line.startswith("0::")), ""))
