"""Each facility of `facilities`: what Linux uses, what is used elsewhere, and what is lost there.

`docs/platforms.md` has this list as a table, and `luthier doctor` shows what a machine lacks.
"""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from luthier.core.system import facilities
from luthier.core.system.libraries import has_numba


@dataclass(frozen=True, slots=True)
class Facility:
    """Something that a system has or lacks.

    Attributes:
        name: What it is called.
        use: What it is for.
        linux: How Linux does it.
        elsewhere: What is used without it.
        lost: What is lost then.
        is_here: Whether this process has it.
    """

    name: str
    use: str
    linux: str
    elsewhere: str
    lost: str
    is_here: Callable[[], bool]


FACILITIES: Final = (
    Facility(
        "file locks",
        "one process at a time works on a run, a study, a database or a folder",
        "`flock`, on files and folders",
        "macOS: the same; Windows: `msvcrt.locking`, for a folder on a file beside it",
        "Windows: two processes that ask at the same moment whether a lock is held may each see the other",
        facilities.can_lock_folders,
    ),
    Facility(
        "moving open files",
        "files are replaced in one step while others read them",
        "`rename`",
        "macOS: the same; Windows: tried again for 5 s; a run is removed after its lock",
        "Windows: a file that another program keeps open cannot be replaced or removed",
        facilities.moves_open_files,
    ),
    Facility(
        "inherited descriptors",
        "channel, listening socket, data and locks of child processes",
        "`pass_fds`",
        "macOS: the same; Windows: a connection to the loopback with a secret, and named files",
        "Windows: workers do not hold the lock of their run where the process that started them is killed; a server "
        "that is started again refuses connections until it listens",
        facilities.inherits_descriptors,
    ),
    Facility(
        "death with the starter",
        "no process outlives the one that has started it",
        "`PR_SET_PDEATHSIG`",
        "a thread of Luthier's own processes looks every second whether the starter still runs",
        "up to a second; programs of others (vLLM) keep running where Luthier is killed",
        facilities.is_linux,
    ),
    Facility(
        "process groups",
        "what a job has started ends with it",
        "sessions and `killpg`",
        "macOS: the same; Windows: the process and its children as psutil knows them",
        "Windows: what a process has started keeps running if that process ended by itself before",
        lambda: hasattr(os, "killpg"),
    ),
    Facility(
        "stop signals",
        "a run that is stopped writes a checkpoint first",
        "SIGTERM, SIGINT",
        "macOS: the same; Windows: Ctrl-C and Ctrl-Break of the console",
        "Windows: without a console a process is ended at once, and a run continues from its last checkpoint",
        lambda: not hasattr(signal, "CTRL_BREAK_EVENT"),
    ),
    Facility(
        "fork",
        "workers that share a base model in memory, on a CPU",
        "`fork` with copy on write",
        "one process with all threads",
        "the gain in speed of workers on a CPU (docs/devices.md)",
        facilities.can_fork,
    ),
    Facility(
        "fork server",
        "jobs start with loaded libraries",
        "`fork`, pidfds, /proc",
        "each job loads its libraries",
        "some seconds for each job",
        lambda: facilities.can_fork() and hasattr(os, "pidfd_open"),
    ),
    Facility(
        "sockets in the file system",
        "batches, suites and synthesis use the engine of a running server; no other user of the machine reaches vLLM",
        "`AF_UNIX`",
        "macOS: the same; Windows: they load the model themselves, vLLM listens on the loopback with a key",
        "the memory of a second model; other users reach those routes of vLLM that need no key",
        lambda: hasattr(socket, "AF_UNIX"),
    ),
    Facility(
        "address space limit",
        "a hostile file cannot take all memory",
        "`RLIMIT_AS`",
        "the process looks at its own size twenty times a second and ends above the limit",
        "memory that grows faster than that is only limited by the system",
        lambda: facilities.resource is not None and facilities.is_linux(),
    ),
    Facility(
        "processor time limit",
        "a chat template of a model comes to an end",
        "`RLIMIT_CPU`",
        "macOS: the same; Windows: a thread that looks ten times a second",
        "nothing that is known",
        lambda: facilities.resource is not None,
    ),
    Facility(
        "alarm",
        "a page of a Parquet file that takes minutes to decode",
        "SIGALRM",
        "macOS: the same; Windows: the watchdog of `faulthandler`",
        "nothing that is known",
        lambda: hasattr(signal, "alarm"),
    ),
    Facility(
        "sandbox",
        "code and queries that models write",
        "seccomp, Landlock, namespaces, bubblewrap",
        "they are not run",
        "tasks that run code or SQL, and graders in Python, are refused",
        facilities.is_linux,
    ),
    Facility(
        "session weight",
        "a server leaves processor time to a training",
        "/proc/self/autogroup",
        "nothing: these systems divide time among threads, not sessions",
        "nothing that is known",
        lambda: Path("/proc/self/autogroup").is_file(),
    ),
    Facility(
        "scheduling weight",
        "free cores are counted without processes of low priority",
        "nice values and /proc/PID/autogroup",
        "such processes count in full",
        "fewer threads than possible while work runs in the background",
        facilities.is_linux,
    ),
    Facility(
        "memory of workers",
        "peak memory as a run reports it",
        "/proc/self/status, smaps_rollup and clear_refs",
        "the peak that the system keeps since the start of the process",
        "the peak counts what came before the run",
        lambda: Path("/proc/self/clear_refs").exists(),
    ),
    Facility(
        "workers end first",
        "where memory is short a run loses its workers, and continues",
        "/proc/self/oom_score_adj",
        "nothing: the system chooses",
        "the process of the run may be the one that is ended, and is then resumed from a checkpoint",
        lambda: Path("/proc/self/oom_score_adj").is_file(),
    ),
    Facility(
        "kept memory",
        "a step reuses the memory of the step before",
        "`mallopt` of glibc",
        "the allocator of the system as it is",
        "in a virtual machine up to a third of a step",
        lambda: (library := facilities.c_library()) is not None and hasattr(library, "gnu_get_libc_version"),
    ),
    Facility(
        "compiled loops",
        "elementwise work of training on a CPU, in one pass over its numbers",
        "Numba",
        "the same, where Numba has a wheel; else torch's operations",
        "a step takes longer",
        has_numba,
    ),
    Facility(
        "file modes",
        "a home is for its user alone",
        "modes 0700 and 0600, reported where others can read",
        "macOS: the same; Windows: the rights of the folder above",
        "Windows: who can read a home is not checked",
        lambda: os.name == "posix",
    ),
    Facility(
        "stacks on request",
        "a server that hangs writes where, before it is started again",
        "SIGUSR1",
        "macOS: the same; Windows: none",
        "Windows: it is started again without them",
        lambda: facilities.stacks_signal() is not None,
    ),
)
"""By the order of `docs/platforms.md`."""
