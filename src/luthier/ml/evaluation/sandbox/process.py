"""The sandboxed child process: JSON lines in and out, a deadline, and the seccomp filter of allowed system calls.

All system calls that are not listed are denied: a computing process needs few. It may read files and its own pipes,
allocate memory, start threads, and read the clock. It cannot start processes, access the network, send signals, or
modify any disk.

Sources: Linux kernel documentation, "Seccomp BPF (SECure COMPuting with filters)"; numbers from
arch/x86/entry/syscalls/syscall_64.tbl and include/uapi/asm-generic/unistd.h of Linux.
"""

from __future__ import annotations

import json
import os
import platform
import select
import shutil
import struct
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final, Self

from luthier.core.errors import RequestError
from luthier.core.system import facilities
from luthier.core.system.files import scratch_folder
from luthier.ml.evaluation.sandbox.bubblewrap import bubblewrap, interpreter, library_paths, signal_of, wrapped

# Offsets into `struct seccomp_data`: number, architecture, and the low half of the first arguments.
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT, _ARGUMENT_BYTES = 0, 4, 16, 8
_LOAD, _AND, _JUMP_EQUAL, _JUMP_AT_LEAST, _RETURN = 0x20, 0x54, 0x15, 0x35, 0x06
_ALLOW, _KILL, _REFUSE = 0x7FFF0000, 0x80000000, 0x00050000
_EPERM, _ENOSYS = 1, 38
# Numbers from here on are x32 calls, which would bypass the table.
_FIRST_X32 = 0x40000000
_ARCHITECTURES: Final = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}

# O_WRONLY, O_RDWR, O_CREAT, O_TRUNC and O_TMPFILE: all flags that could change a file.
_CHANGES = 0o3 | 0o100 | 0o1000 | 0o20000000
_THREAD = 0x10000  # CLONE_THREAD: without it, clone creates a process
# F_DUPFD, F_GETFD, F_SETFD, F_GETFL, F_SETFL, F_GETLK, F_SETLK, F_SETLKW, F_DUPFD_CLOEXEC; not F_SETOWN, which signals.
_FILE_CONTROLS = (0, 1, 2, 3, 4, 5, 6, 7, 1030)
# TCGETS, TIOCGWINSZ, FIONREAD, FIONBIO, FIONCLEX, FIOCLEX.
_DEVICE_CONTROLS = (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)

# Name: number on x86_64, number on aarch64; None if there is none.
_FREE: Final[dict[str, tuple[int | None, int | None]]] = {
    "read": (0, 63),
    "write": (1, 64),
    "readv": (19, 65),
    "writev": (20, 66),
    "pread64": (17, 67),
    "close": (3, 57),
    "close_range": (436, 436),
    "fstat": (5, 80),
    "stat": (4, None),
    "lstat": (6, None),
    "newfstatat": (262, 79),
    "statx": (332, 291),
    "lseek": (8, 62),
    "mmap": (9, 222),
    "mprotect": (10, 226),
    "munmap": (11, 215),
    "mremap": (25, 216),
    "brk": (12, 214),
    "madvise": (28, 233),
    "rt_sigaction": (13, 134),
    "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139),
    "sigaltstack": (131, 132),
    "access": (21, None),
    "faccessat": (269, 48),
    "faccessat2": (439, 439),
    "pipe": (22, None),
    "pipe2": (293, 59),
    "select": (23, None),
    "pselect6": (270, 72),
    "poll": (7, None),
    "ppoll": (271, 73),
    "epoll_create1": (291, 20),
    "epoll_ctl": (233, 21),
    "epoll_wait": (232, None),
    "epoll_pwait": (281, 22),
    "eventfd2": (290, 19),
    "sched_yield": (24, 124),
    "sched_getaffinity": (204, 123),
    "dup": (32, 23),
    "dup2": (33, None),
    "dup3": (292, 24),
    "nanosleep": (35, 101),
    "clock_nanosleep": (230, 115),
    "getpid": (39, 172),
    "getppid": (110, 173),
    "gettid": (186, 178),
    "exit": (60, 93),
    "exit_group": (231, 94),
    "futex": (202, 98),
    "getcwd": (79, 17),
    "chdir": (80, 49),
    "readlink": (89, None),
    "readlinkat": (267, 78),
    "getdents64": (217, 61),
    "time": (201, None),
    "gettimeofday": (96, 169),
    "clock_gettime": (228, 113),
    "clock_getres": (229, 114),
    "getrlimit": (97, 163),
    "getuid": (102, 174),
    "geteuid": (107, 175),
    "getgid": (104, 176),
    "getegid": (108, 177),
    "getpgrp": (111, None),
    "getsid": (124, 156),
    "getpgid": (121, 155),
    "getrusage": (98, 165),
    "sysinfo": (99, 179),
    "uname": (63, 160),
    "times": (100, 153),
    "arch_prctl": (158, None),
    "set_tid_address": (218, 96),
    "set_robust_list": (273, 99),
    "rseq": (334, 293),
    "getrandom": (318, 278),
    "restart_syscall": (219, 128),
    "membarrier": (324, 283),
    "getitimer": (36, 102),
    "setitimer": (38, 103),
    "alarm": (37, None),
    "statfs": (137, 43),
    "fstatfs": (138, 44),
    "fadvise64": (221, 223),
    "sendto": (44, 206),
    "recvfrom": (45, 207),
    "shutdown": (48, 210),
    "getsockname": (51, 204),
    "getsockopt": (55, 209),
}
_OPEN, _OPEN_AT, _OPEN_AT2 = (2, None), (257, 56), (437, 437)
# asyncio wakes itself with a socket pair, which cannot reach other processes; datagram sockets could.
_SOCKET_PAIR, _UNIX, _STREAM, _KIND_OF_SOCKET = (53, 199), 1, 1, 0xF
_FCNTL, _IOCTL, _PRLIMIT, _CLONE, _CLONE3 = (72, 25), (16, 29), (302, 261), (56, 220), (435, 435)


def filter_program(machine: str) -> bytes | None:
    """The filter, 8 bytes per instruction, for a machine name from `platform.machine()`; None if unknown."""
    if machine not in _ARCHITECTURES:
        return None
    architecture, column = _ARCHITECTURES[machine]
    program = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        # Call numbers mean something else on another architecture (32-bit calls on x86_64): such a process is killed.
        (_JUMP_EQUAL, 1, 0, architecture),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER),
        (_JUMP_AT_LEAST, 0, 1, _FIRST_X32),
        (_RETURN, 0, 0, _REFUSE | _EPERM),
    ]
    for numbers in _FREE.values():
        program += _when(numbers[column], [(_RETURN, 0, 0, _ALLOW)])
    program += _when(_OPEN[column], _if_none_of(1, _CHANGES))
    program += _when(_OPEN_AT[column], _if_none_of(2, _CHANGES))
    program += _when(_FCNTL[column], _if_one_of(1, _FILE_CONTROLS))
    program += _when(_IOCTL[column], _if_one_of(1, _DEVICE_CONTROLS))
    program += _when(_PRLIMIT[column], _if_one_of(0, (0,)))  # of this process only
    program += _when(_CLONE[column], _if_all_of(0, _THREAD))
    program += _when(_SOCKET_PAIR[column], _if_unix_stream())
    # Flags of these two are in memory, invisible to filters: the C library falls back to clone and openat.
    for numbers in (_CLONE3, _OPEN_AT2):
        program += _when(numbers[column], [(_RETURN, 0, 0, _REFUSE | _ENOSYS)])
    # Default deny. EPERM instead of a kill: libraries probe for optional calls and continue without them.
    program.append((_RETURN, 0, 0, _REFUSE | _EPERM))
    # struct sock_filter: 16-bit code, two 8-bit jump distances, 32-bit operand.
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in program)


_Instructions = list[tuple[int, int, int, int]]


def _when(number: int | None, then: _Instructions) -> _Instructions:
    """Apply `then`, which has to return, to the call with this number; the number stays loaded for the next checks."""
    # A jump distance has 8 bits: `then` has at most 255 instructions.
    return [] if number is None else [(_JUMP_EQUAL, 0, len(then), number), *then]


def _if_none_of(argument: int, bits: int) -> _Instructions:
    # Low 32 bits only: the kernel reads these arguments as int, so the upper half has no effect.
    return [*_load(argument), (_AND, 0, 0, bits), *_allow_equal(0), (_RETURN, 0, 0, _REFUSE | _EPERM)]


def _if_all_of(argument: int, bits: int) -> _Instructions:
    return [*_load(argument), (_AND, 0, 0, bits), *_allow_equal(bits), (_RETURN, 0, 0, _REFUSE | _EPERM)]


def _if_one_of(argument: int, values: tuple[int, ...]) -> _Instructions:
    allowed = [instruction for value in values for instruction in _allow_equal(value)]
    return [*_load(argument), *allowed, (_RETURN, 0, 0, _REFUSE | _EPERM)]


def _if_unix_stream() -> _Instructions:
    # The upper bits of the type are SOCK_CLOEXEC and SOCK_NONBLOCK, which are harmless.
    stream = [*_load(1), (_AND, 0, 0, _KIND_OF_SOCKET), *_allow_equal(_STREAM)]
    return [*_load(0), (_JUMP_EQUAL, 0, len(stream), _UNIX), *stream, (_RETURN, 0, 0, _REFUSE | _EPERM)]


def _load(argument: int) -> _Instructions:
    return [(_LOAD, 0, 0, _FIRST_ARGUMENT + _ARGUMENT_BYTES * argument)]


def _allow_equal(value: int) -> _Instructions:
    return [(_JUMP_EQUAL, 0, 1, value), (_RETURN, 0, 0, _ALLOW)]


_MAX_REPLY_BYTES = 2**22
_SYSTEM_LIBRARIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/etc/ld.so.cache", "/usr/share/zoneinfo")
_SMALL_DEVICES = ("/dev/null", "/dev/urandom")


class ChildError(Exception):
    """The child gave no reply.

    Attributes:
        is_late: whether it timed out.
        signal_number: the signal that ended it, 0 if it exited by itself.
    """

    def __init__(self, *, is_late: bool = False, signal_number: int = 0) -> None:
        self.is_late, self.signal_number = is_late, signal_number
        super().__init__("timeout" if is_late else f"ended by signal {signal_number}")


def cannot_isolate() -> RequestError:
    """The error for a machine on which untrusted code or queries cannot be run safely."""
    return RequestError(
        "this machine cannot lock a process down",
        expected="Linux on x86_64 or aarch64 with seccomp filters",
        do="evaluate code and queries on such a machine, or take the task out of the suite",
    )


class Child:
    """A sandboxed process that runs `script` of this folder. Use it in a `with` block.

    Args:
        script: file name of the script to run.
        seconds: CPU time limit of the whole child.
        most_memory_bytes: limit of its address space.
        placed: files that are placed into its folder under these names, the only readable ones; None also allows
            Python's own library.

    Raises:
        RequestError: Windows, whose pipes have no time limit.
        OSError: the process cannot be started, or a file cannot be placed.
    """

    def __init__(
        self, script: str, *, seconds: float, most_memory_bytes: int, placed: Mapping[str, Path] | None = None
    ) -> None:
        if os.name != "posix":
            raise cannot_isolate()
        here = Path(__file__).parent
        self._scratch = ExitStack()
        place = scratch_folder(Path(tempfile.gettempdir()), "luthier-sandbox-")
        self._folder = str(self._scratch.enter_context(place))
        for name, path in (placed or {}).items():
            _place(path, Path(self._folder) / name)
        root = None if placed is None else self._folder
        self.policy = _policy(seconds, most_memory_bytes, [str(here), *([root] if root else [])], root)
        # Like -I, but with a fixed hash seed, so that results are deterministic.
        arguments = ["-P", "-s", "-S", str(here / script)]
        outer = bubblewrap()
        self.is_wrapped = outer.path is not None
        if outer.path is None:
            command = [sys.executable, *arguments]
        else:
            seen = [*self.policy["readable"], *library_paths(), self._folder]
            command = wrapped(outer.path, [interpreter(), *arguments], readable=seen, cwd=self._folder)
        # Not `core.child_process`: generated code runs with an empty environment and must not import this project.
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={"PYTHONHASHSEED": "0"},
            cwd=self._folder,
            # A separate session makes it a process group leader; close() kills the whole group.
            start_new_session=True,
            close_fds=True,
            bufsize=0,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._to, self._from = self._process.stdin.fileno(), self._process.stdout.fileno()
        # A child that does not read would block a write larger than the pipe buffer forever, past any deadline.
        facilities.posix.set_blocking(self._to, False)
        self._pending = b""

    def ask(self, message: dict[str, Any], seconds: float) -> dict[str, Any]:
        """Send one message and wait for the reply.

        Args:
            message: a JSON-serialisable value, sent as one line.
            seconds: time limit for sending and reply together.

        Raises:
            ChildError: no reply, or one that is not a line of JSON.
        """
        deadline = time.monotonic() + seconds
        self._send(json.dumps(message).encode() + b"\n", deadline)
        try:
            reply = json.loads(self._line(deadline))
        # The reply comes from generated code: it may be invalid JSON or endlessly nested.
        except (ValueError, RecursionError):
            reply = None
        if not isinstance(reply, dict):
            raise ChildError
        return reply

    def close(self) -> None:
        """Kill the child and its process group."""
        facilities.kill_group(self._process.pid)
        # Also drains the pipe and reaps the process, so that no zombie remains.
        self._process.communicate()
        self._scratch.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _send(self, data: bytes, deadline: float) -> None:
        view = memoryview(data)
        while view:
            if not select.select([], [self._to], [], max(0.0, deadline - time.monotonic()))[1]:
                raise ChildError(is_late=True)
            try:
                view = view[os.write(self._to, view) :]
            except BlockingIOError:
                continue
            except BrokenPipeError:
                raise self._ended() from None

    def _line(self, deadline: float) -> bytes:
        while b"\n" not in self._pending:
            if not select.select([self._from], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise ChildError(is_late=True)
            more = os.read(self._from, 65536)
            # The limit keeps a child that writes without a line end from filling this process's memory.
            if not more or len(self._pending) > _MAX_REPLY_BYTES:
                raise self._ended()
            self._pending += more
        line, _, self._pending = self._pending.partition(b"\n")
        return line

    def _ended(self) -> ChildError:
        """Why there is no reply; a child that closed its pipe but continues is killed by `close`."""
        try:
            code = self._process.wait(timeout=1.0)
        except subprocess.TimeoutExpired:
            return ChildError()
        number = signal_of(code) if self.is_wrapped else max(0, -code)
        return ChildError(is_late=number == facilities.signals.SIGXCPU, signal_number=number)


def _place(path: Path, target: Path) -> None:
    """Place the file under another name, as a hard link if possible."""
    try:
        os.link(path, target)
    except OSError:  # another disk, or a file of another user
        shutil.copyfile(path, target)


def _policy(seconds: float, most_memory_bytes: int, readable: Sequence[str], root: str | None) -> dict[str, Any]:
    library = [sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib"), str(Path(sys.base_prefix) / "lib")]
    program = filter_program(platform.machine()) if facilities.is_linux() else None
    return {
        # No process limit, which would count all of the user's: the filter blocks new ones, and memory limits threads.
        "limits": {
            # Two seconds for the start of Python; the deadline in wall time is the parent's.
            "RLIMIT_CPU": int(seconds) + 2,
            "RLIMIT_AS": most_memory_bytes,
            # 0 forbids growing any file; pipes are not counted.
            "RLIMIT_FSIZE": 0,
            "RLIMIT_NOFILE": 32,
            "RLIMIT_CORE": 0,
        },
        "root": root,
        "readable": [*readable, *library, *_SYSTEM_LIBRARIES, *_SMALL_DEVICES],
        "filter": (program or b"").hex(),
    }
