"""How much of a core a process takes from this one, by the weights of Linux's scheduler.

A runnable process gets a share of its core in proportion to its weight, 1024 x 1.25^-nice (sched(7) and
`sched_prio_to_weight` of the kernel, which rounds it). Next to one of nice 0, a process of nice 19 gets 1.4% of a core
that would be idle without it: it may keep the core busy all the time, and leaves nearly all of it.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil

from luthier.core.system import facilities

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
    """Whether the kernel divides time among sessions first: not within a control group that has a weight of its own."""
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
