"""What the operating system offers: what Linux has and macOS or Windows lacks, each with what is used in its place.

All other code is the same on every system and takes from here what is not, so that a test can take it away
(`tests/core/system/test_facilities.py`). What is lost without each is in `facility_list`.

Sources: Linux man-pages; Apple, fsync(2) and fcntl(2); Microsoft, "_locking", "CreateProcessW", "Console Process
Groups".
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import faulthandler
import importlib
import math
import os
import select
import signal
import socket
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import IO, Any, Final, Protocol


def _optional(name: str) -> ModuleType | None:
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


# The modules by names without types: mypy judges each system, and these have functions that only some of them have.
# Who calls one is on a path that begins with a question such as `can_fork`.
posix: Final[Any] = os
signals: Final[Any] = signal
sockets: Final[Any] = socket
polling: Final[Any] = select
resource: Any = _optional("resource")
_fcntl: Any = _optional("fcntl")
_msvcrt: Any = _optional("msvcrt")

SIGKILL: Final = 9
"""By its number, which Windows has no name for."""
BINARY: Final[int] = getattr(os, "O_BINARY", 0)
"""For `os.open`: Windows would otherwise change line ends."""
CLOSE_ON_EXEC: Final[int] = getattr(os, "O_CLOEXEC", 0)
GROUP_FLAGS: Final[int] = getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0)
"""`creationflags` of a process that leads its group: what `start_new_session` is elsewhere."""
STOP_SIGNALS: tuple[signal.Signals, ...] = tuple(
    getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGBREAK") if hasattr(signal, name)
)
"""The signals that ask a process to end. SIGBREAK is what Windows sends for `request_stop`."""


# Files


def try_lock(descriptor: int, *, is_shared: bool = False) -> bool:
    """Lock an open file until it is closed, without waiting; False where another process holds it.

    Args:
        descriptor: the open file; a folder only where `can_lock_folders`.
        is_shared: whether several may hold it. Windows has exclusive locks alone.

    Raises:
        OSError: the file system has no locks.
    """
    if _fcntl is not None:
        # flock, not POSIX locks: these are lost as soon as any descriptor of the file in this process is closed.
        kind = _fcntl.LOCK_SH if is_shared else _fcntl.LOCK_EX
        try:
            _fcntl.flock(descriptor, kind | _fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True
    if _msvcrt is None:
        raise OSError(errno.ENOLCK, "this system has no locks on files")
    before = os.lseek(descriptor, 0, os.SEEK_CUR)
    # A lock there covers bytes, which others can then not read: one far behind the end of any lock file.
    os.lseek(descriptor, _LOCKED_BYTE, os.SEEK_SET)
    try:
        _msvcrt.locking(descriptor, _msvcrt.LK_NBLCK, 1)
    except PermissionError:
        return False
    finally:
        os.lseek(descriptor, before, os.SEEK_SET)
    return True


_LOCKED_BYTE: Final = 1 << 30
_LOCK_PAUSE_SECONDS: Final = 0.1


def wait_for_lock(descriptor: int) -> None:
    """Lock an open file, however long another process holds it."""
    while not try_lock(descriptor):
        time.sleep(_LOCK_PAUSE_SECONDS)


def can_lock_folders() -> bool:
    """Whether a folder can be opened and locked, and renamed meanwhile; if not, a file beside it is locked."""
    return _fcntl is not None


def sync_descriptor(descriptor: int) -> None:
    """Wait until an open file is on the disk.

    Raises:
        OSError: The disk is full, or fails.
    """
    # On macOS fsync moves the data to the drive only, which may keep it in its own memory.
    if (full := getattr(_fcntl, "F_FULLFSYNC", None)) is not None:
        with contextlib.suppress(OSError):  # network disks do not have it
            _fcntl.fcntl(descriptor, full)
            return
    os.fsync(descriptor)


def open_to_sync(path: Path) -> int | None:
    """A descriptor of a file or folder for `sync_descriptor`; None for a folder where these cannot be opened.

    Raises:
        OSError: It cannot be opened.
    """
    if os.name == "nt":
        # FlushFileBuffers needs the right to write; of folders NTFS keeps a journal.
        return None if path.is_dir() else os.open(path, os.O_RDWR | BINARY)
    # O_RDONLY works for folders as well, which cannot be opened for writing; fsync needs no write access.
    return os.open(path, os.O_RDONLY)


def moves_open_files() -> bool:
    """Whether files and folders can be renamed and replaced while a process has them open."""
    return os.name != "nt"


def read_at(descriptor: int, num_bytes: int, offset: int) -> bytes:
    """Read from a place in an open file, whose position stays."""
    if hasattr(os, "pread"):
        found: bytes = posix.pread(descriptor, num_bytes, offset)
        return found
    before = os.lseek(descriptor, 0, os.SEEK_CUR)
    os.lseek(descriptor, offset, os.SEEK_SET)
    try:
        return os.read(descriptor, num_bytes)
    finally:
        os.lseek(descriptor, before, os.SEEK_SET)


def write_at(descriptor: int, data: bytes | memoryview, offset: int) -> int:
    """Write to a place in an open file; the number of bytes that were written."""
    if hasattr(os, "pwrite"):
        return int(posix.pwrite(descriptor, data, offset))
    os.lseek(descriptor, offset, os.SEEK_SET)
    return os.write(descriptor, data)


# Processes


def is_linux() -> bool:
    """Whether this is Linux: /proc, death signals, namespaces and system call filters are its own."""
    return sys.platform.startswith("linux")


def fork() -> int:
    """The child's process id in the parent, 0 in the child; only where `can_fork`.

    The locks of other threads stay locked in the child, so it must use nothing that one of them may hold. From 3.12 on
    Python warns of each fork beside threads, those of numerical libraries included.

    Raises:
        OSError: The system has no room for another process.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"This process \(pid=\d+\) is multi-threaded", DeprecationWarning)
        return int(posix.fork())


def unix_socket() -> socket.socket:
    """A socket with a place in the file system, where only this user can reach it.

    Raises:
        OSError: The system has none.
    """
    if not hasattr(socket, "AF_UNIX"):
        raise OSError(errno.EAFNOSUPPORT, "this system has no sockets in its file system")
    return socket.socket(sockets.AF_UNIX, socket.SOCK_STREAM)


def can_fork() -> bool:
    """Whether a process with numerical libraries may be forked: on Linux. Those of macOS do not survive it."""
    return is_linux() and hasattr(os, "fork")


def inherits_descriptors() -> bool:
    """Whether a child process can be given open files by their numbers (`pass_fds`)."""
    return os.name == "posix"


def inheritable(*descriptors: int) -> tuple[int, ...]:
    """`pass_fds` of a child process; none where it can inherit none."""
    return descriptors if inherits_descriptors() else ()


def usable_cores() -> frozenset[int] | None:
    """The numbers of the cores that this process may use; None where the system does not say."""
    if hasattr(os, "sched_getaffinity"):
        return frozenset(posix.sched_getaffinity(0))
    import psutil

    own: Any = psutil.Process()
    # psutil has it for Windows, not for macOS, where no process can be kept to some cores.
    return frozenset(own.cpu_affinity()) if hasattr(own, "cpu_affinity") else None


def kill_group(pid: int) -> None:
    """Kill a process that leads its group, and all of the group; nothing where it is gone.

    Without process groups: the process and those that it has started, as far as it still runs.
    """
    if hasattr(os, "killpg"):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            posix.killpg(pid, SIGKILL)
        return
    import psutil

    with contextlib.suppress(psutil.Error):
        leader = psutil.Process(pid)
        # Before the leader ends: nobody knows afterwards whose children they are.
        for one in [leader, *leader.children(recursive=True)]:
            with contextlib.suppress(psutil.Error):
                one.kill()


def stop_group(pid: int) -> None:
    """Ask a process that leads its group, and all of the group, to end: SIGTERM, on Windows Ctrl-Break."""
    with contextlib.suppress(OSError):
        if hasattr(os, "killpg"):
            posix.killpg(pid, signal.SIGTERM)
        else:
            os.kill(pid, getattr(signal, "CTRL_BREAK_EVENT", signal.SIGTERM))


class Stoppable(Protocol):
    """The part of `subprocess.Popen` that `request_stop` needs."""

    @property
    def pid(self) -> int:
        """Its process id."""

    def terminate(self) -> None:
        """SIGTERM, or on Windows the immediate end."""


def request_stop(process: Stoppable) -> None:
    """Ask a process that leads its group to end in good order: SIGTERM, on Windows Ctrl-Break."""
    number = getattr(signal, "CTRL_BREAK_EVENT", None)
    if number is None:
        process.terminate()
        return
    try:
        os.kill(process.pid, number)
    except OSError:  # it has no console that the event could come from
        process.terminate()


def starter_lives(starter: int) -> Callable[[], bool]:
    """Whether the process that has started this one still runs, as a question to ask again and again."""
    if os.name == "posix":
        # A process whose parent dies belongs to another one.
        return lambda: os.getppid() == starter
    import psutil

    try:
        process = psutil.Process(starter)
    except psutil.Error:
        return lambda: False
    return process.is_running  # compares the time of its start: a number may be given out again


def child_signal() -> int | None:
    """The signal that says that a child has ended; None where there is none."""
    return getattr(signal, "SIGCHLD", None)


def stacks_signal() -> signal.Signals | None:
    """The signal by which a process writes the stacks of its threads; None where no program can be asked by one."""
    return getattr(signal, "SIGUSR1", None) if hasattr(faulthandler, "register") else None


def write_stacks_on_request() -> None:
    """Write the stacks of all threads to stderr at `stacks_signal`; nothing where there is none."""
    if (number := stacks_signal()) is not None:
        handlers: Any = faulthandler
        handlers.register(number)


def wake_pipe() -> tuple[int, int]:
    """Both ends of a pipe that never blocks and is not inherited."""
    reading, writing = os.pipe()  # not pipe2, which macOS lacks
    for end in (reading, writing):
        posix.set_blocking(end, False)
    return reading, writing


def is_readable(connection: socket.socket | IO[bytes], timeout_seconds: float | None) -> bool:
    """Whether a socket has something to read, or its other end is closed, within that time; None waits forever.

    A pipe, too, but on Windows.
    """
    if not hasattr(select, "poll"):  # Windows, whose select knows sockets of any number
        return bool(select.select([connection], [], [], timeout_seconds)[0])
    poller = polling.poll()
    try:
        poller.register(connection, polling.POLLIN)
    except ValueError:  # another thread has closed it, which reading shows
        return True
    # Rounded up: poll takes whole milliseconds, and 0 would spin until the deadline.
    return bool(poller.poll(None if timeout_seconds is None else math.ceil(timeout_seconds * 1000)))


def c_library() -> ctypes.CDLL | None:
    """The C library of this process; None where it cannot be opened without its name."""
    return ctypes.CDLL(None, use_errno=True) if os.name == "posix" else None


# Limits of this process


def limit_address_space(num_bytes: int) -> bool:
    """Allow at most this much address space, after which memory is refused; False where no system call does that."""
    # macOS has the call, and refuses or ignores it.
    if resource is None or not is_linux():
        return False
    # The soft limit alone: a process without privileges may not go above the hard one.
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    most = num_bytes if hard == resource.RLIM_INFINITY else min(num_bytes, hard)
    resource.setrlimit(resource.RLIMIT_AS, (most, hard))
    return True


def limit_cpu_seconds(seconds: int) -> bool:
    """End this process after so many further seconds on the processor; False where no system call does that."""
    if resource is None:
        return False
    used = resource.getrusage(resource.RUSAGE_SELF)
    # In addition to what it has used; rounded up, since the limit is in whole seconds.
    most = int(used.ru_utime + used.ru_stime) + 1 + seconds
    # Soft limit first (SIGXCPU, which identifies the cause); the hard limit kills a second later.
    resource.setrlimit(resource.RLIMIT_CPU, (most, most + 1))
    return True


CPU_LIMIT_EXIT: Final = 152
"""The exit code of a process that ends itself over its processor time: 128 + SIGXCPU of Linux."""


def ended_over_cpu_limit(returncode: int) -> bool:
    """Whether a process has ended over its processor time; negative codes are signals."""
    number = getattr(signal, "SIGXCPU", None)
    return returncode == CPU_LIMIT_EXIT or (number is not None and returncode == -number)


def write_no_core_dumps() -> None:
    """Write no image of this process's memory to the disk where it crashes."""
    if resource is not None:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


_WATCHDOG: Final = "Timeout ("
"""How the message of `faulthandler` begins that ends a process."""


def set_alarm(seconds: int) -> None:
    """End this process after so many seconds, even inside library code that never returns to Python; 0 cancels."""
    if hasattr(signal, "alarm"):
        # SIGALRM without a handler ends the process from the kernel.
        signals.alarm(seconds)
    elif seconds:
        faulthandler.dump_traceback_later(seconds, exit=True)  # by a thread that needs no lock of the interpreter
    else:
        faulthandler.cancel_dump_traceback_later()


def ended_by_alarm(returncode: int, log_lines: Sequence[str]) -> bool:
    """Whether a process has ended by `set_alarm`."""
    number = getattr(signal, "SIGALRM", None)
    if number is not None and returncode == -number:
        return True
    return returncode > 0 and any(line.startswith(_WATCHDOG) for line in log_lines)
