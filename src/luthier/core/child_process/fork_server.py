"""A process that has loaded heavy libraries once and forks programs from there, which need not load them again.

    owner  --asks-->  fork server (one thread, libraries loaded)  --forks-->  `python -m MODULE ARGUMENTS`

A forked program must be what `python -m` would have made of it. So the server compares the state that the owner would
hand to a child (environment, limits, signals, ...) with its own and refuses where anything differs, and it never forks
where a thread runs or a device is open. The owner then starts the program in the usual way: `ForkServer.start_program`
returns None and has reported why.

The owner asks over a socket pair; each request has its own connection, over which the server later reports how the
program ended. The server ends where the socket of its owner closes, and the kernel kills it with its owner. Programs go
on without it: they are what has to notice that their owner is gone (`platform/processes/guard.py`).

Linux alone: it needs pidfds, /proc and PR_SET_PDEATHSIG.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import signal
import socket
import struct
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, Final, TypedDict, cast

from luthier.core.child_process.forked_program import (
    fork_into,
    is_program,
    run_programs,
    show_as,
)
from luthier.core.system.facilities import SIGKILL, fork, polling, posix, resource, signals, sockets
from luthier.core.system.libraries import import_libraries, keep_import_structure
from luthier.core.system.process_setup import end_with, keep_few_kernels, wait_briefly

PROGRAM: Final = "luthier.core.child_process.fork_server"
HELLO: Final = b"\n"
"""What the server says once it is ready for a request."""
UNFIT: Final = 78
"""The exit code of a server that cannot load its modules, or must not fork with them: another one could not either."""
_MOST_FILES: Final = 8
_REQUEST_SECONDS: Final = 5.0
"""The time for a request to arrive once announced: the server does one thing at a time."""
TITLE_BYTES: Final = 1024
"""Room for the command line that process lists show of a forked program."""
_STATUS: Final = (
    "Umask Uid Gid Groups SigBlk SigIgn CapInh CapPrm CapEff CapBnd CapAmb NoNewPrivs Seccomp Cpus_allowed Mems_allowed"
)
"""Lines of /proc/thread-self/status that a child inherits from the thread that starts it."""
_IGNORED: Final = "SigIgn"
"""The one of them that a fork takes on: a library or a shell that ignores a signal does not prevent it."""
_DEVICES: Final = ("/dev/nvidia", "/dev/kfd", "/dev/dri/", "/dev/accel")


class Start(TypedDict):
    """The argument of a fork server.

    Attributes:
        descriptor: The socket of its owner.
        owner: The process with which the kernel kills it; None leaves that to the end of the socket.
        modules: What it loads, by name.
        imports_folder: Where the result of transformers' search of its own files is stored (`keep_import_structure`);
            None to have it search again.
        free_variables: Variables in which the environment of a program may differ from its own.
    """

    descriptor: int
    owner: int | None
    modules: Sequence[str]
    imports_folder: str | None
    free_variables: Sequence[str]


class Request(TypedDict):
    """What an owner requests, besides the standard files that it sends along, stdin first.

    Attributes:
        command: The command line.
        environment: The whole environment of the program.
        state: `inherited_state` of the requesting thread.
    """

    command: Sequence[str]
    environment: Mapping[str, str]
    state: Mapping[str, Any]


def inherited_state() -> dict[str, Any]:
    """What a process started by this thread would inherit, in addition to environment and open files."""
    status = Path("/proc/thread-self/status").read_text(encoding="ascii", errors="replace")
    lines = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
    limits = [name for name in dir(resource) if name.startswith("RLIMIT_")]
    return {
        **{name: lines[name].strip() for name in _STATUS.split() if name in lines},
        "folder": str(Path.cwd()),
        "niceness": posix.getpriority(posix.PRIO_PROCESS, 0),
        "scheduler": posix.sched_getscheduler(0),
        "oom_score_adj": Path("/proc/self/oom_score_adj").read_text(encoding="ascii").strip(),
        "control group": Path("/proc/self/cgroup").read_text(encoding="utf-8", errors="replace"),
        **{name: list(resource.getrlimit(getattr(resource, name))) for name in limits},
    }


def fork_hazard() -> str | None:
    """Why this process must not fork programs; None where nothing speaks against it."""
    threads = Path("/proc/self/task")
    if len(names := [(one / "comm").read_text(encoding="utf-8").strip() for one in threads.iterdir()]) > 1:
        return f"{len(names)} threads run ({', '.join(sorted(set(names)))}), of which a fork keeps one"
    if (device := open_device()) is not None:
        return f"{device} is open: a device's driver does not survive a fork"
    return None


def open_device() -> str | None:
    """An accelerator that this process has opened, which CUDA and its like do when they start; None without one."""
    for descriptor in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # that of the listing itself
            if (target := str(descriptor.readlink())).startswith(_DEVICES):
                return target
    return None


def main(start: Start, make: Callable[..., Server] | None = None) -> None:
    """Load the modules, then fork programs until the owner is gone.

    Args:
        start: The owner's request.
        make: Makes the server, as `Server` does.
    """
    control = socket.socket(fileno=start["descriptor"])
    control.set_inheritable(False)
    if start["owner"] is not None:
        end_with(start["owner"])
    # Read at the start, as a program that is executed would find it: libraries may change some of it.
    given, state = dict(os.environ), inherited_state()
    # What the programs themselves do first: libraries read these variables when they are loaded.
    wait_briefly()
    keep_few_kernels()
    show_as(sys.orig_argv[:-1])
    if start["imports_folder"] is not None:
        keep_import_structure(Path(start["imports_folder"]))
    server = (make or Server)(control, given, state, start["free_variables"])
    modules = list(start["modules"])
    while modules:
        try:
            import_libraries([modules.pop(0)])
        except BaseException:  # noqa: BLE001 - of any kind, of which the owner reads the last line
            traceback.print_exc()
            raise SystemExit(UNFIT) from None
        # A program that waits is forked with what is loaded by now, and loads the rest as far as it needs it.
        if modules and (command := server.serve_waiting()) is not None:
            run_programs(command)
            return
    _end_threads()
    if (hazard := fork_hazard()) is not None:
        sys.stderr.write(f"{hazard}\n")
        raise SystemExit(UNFIT)
    # Else the first collection of each program would write to, and so copy, every page of the libraries.
    gc.collect()
    gc.freeze()
    server.note_loaded()
    if (command := server.serve()) is not None:
        run_programs(command)


def _end_threads() -> None:
    """OpenBLAS ends its threads before a fork and starts them again when they are needed: a first fork leaves none."""
    if (pid := fork()) == 0:
        os._exit(0)
    os.waitpid(pid, 0)


class Server:
    """The loop of the fork server.

    Args:
        control: The socket of the owner.
        given: The environment that it was started with.
        state: Its `inherited_state` at the start.
        free_variables: As `Start` has them.
    """

    def __init__(
        self,
        control: socket.socket,
        given: Mapping[str, str],
        state: Mapping[str, Any],
        free_variables: Sequence[str],
    ) -> None:
        self._control, self._state, self._free_variables = control, state, frozenset(free_variables)
        self._given = given
        self._programs: dict[int, tuple[int, socket.socket]] = {}
        """By pidfd: process id, and the connection over which its end is reported."""
        self._poller = polling.poll()
        self._poller.register(control, polling.POLLIN)
        self.note_loaded()

    def note_loaded(self) -> None:
        """Note what loading has made of this process until now: programs must be like those that load it themselves."""
        self._environment = dict(os.environ)
        self._own = {name: value for name, value in os.environ.items() if name not in self._given}
        self._files = _times_of_files()

    def serve(self) -> list[str] | None:
        """Answer requests until the owner is gone; in a forked process, return the command that it has to run."""
        while True:
            is_there, command = self._serve_once(None)
            if command is not None or not is_there:
                return command

    def serve_waiting(self) -> list[str] | None:
        """Answer the requests that wait now, between two modules; in a forked process, return its command.

        Raises:
            SystemExit: The owner is gone.
        """
        while self._poller.poll(0):
            _end_threads()
            self.note_loaded()
            is_there, command = self._serve_once(0)
            if command is not None:
                return command
            if not is_there:
                raise SystemExit(0)
        return None

    def _serve_once(self, wait_milliseconds: int | None) -> tuple[bool, list[str] | None]:
        """Answer what there is.

        Returns:
            Whether the owner is there; in a forked process, the command that it has to run.
        """
        for descriptor, _ in self._poller.poll(wait_milliseconds):
            if descriptor in self._programs:
                self._report(descriptor)
                continue
            said, received, _, _ = sockets.recv_fds(self._control, 1, 1, sockets.MSG_CMSG_CLOEXEC)
            if not said:
                return False, None
            command = self._answer(socket.socket(fileno=received[0]))
            if command is not None:
                return True, command
        return True, None

    def _report(self, pidfd: int) -> None:
        """Reap a program that has ended, and report it to its requester."""
        pid, connection = self._programs.pop(pidfd)
        self._poller.unregister(pidfd)
        os.close(pidfd)
        code: int = posix.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        with connection, contextlib.suppress(OSError):  # the owner may be gone, or not wait for it
            connection.sendall(struct.pack("!i", code))

    def _answer(self, connection: socket.socket) -> list[str] | None:
        """Answer one request; in the process that it forks, return the command."""
        received: list[int] = []
        try:
            connection.settimeout(_REQUEST_SECONDS)
            connection.sendall(HELLO)
            document, received = receive(connection)
            request = cast(Request, document)
            reason, pid = self._why_not(request), -1
            if reason is None:
                try:
                    pid = fork_into(partial(self._enter, request, connection, received))
                except OSError as error:  # no process, no memory or no descriptor left
                    reason = str(error)
            if pid == 0:
                return list(request["command"])
            if reason is None:
                send(connection, {"pid": pid}, [self._watch(pid, connection)])
            else:
                send(connection, {"refused": reason}, [])
        except OSError:  # the owner is gone or gave up waiting
            pass
        finally:
            for descriptor in received:
                os.close(descriptor)
        if all(one is not connection for _, one in self._programs.values()):
            connection.close()
        return None

    def _watch(self, pid: int, connection: socket.socket) -> int:
        """Look for the end of a program from now on; returns its pidfd."""
        try:
            pidfd: int = posix.pidfd_open(pid)
        except OSError:  # no descriptor left: its end could never be reported
            os.kill(pid, SIGKILL)
            os.waitpid(pid, 0)
            raise
        self._programs[pidfd] = pid, connection
        self._poller.register(pidfd, polling.POLLIN)
        return pidfd

    def _why_not(self, request: Request) -> str | None:
        """Why a program must be started in the usual way; None where a fork gives the same."""
        if not is_program(request["command"]):
            return "the command is not `python -m MODULE`"
        theirs = self._own | dict(request["environment"])
        names = (theirs.keys() | self._environment) - self._free_variables
        differing = sorted(name for name in names if theirs.get(name) != self._environment.get(name))
        if differing:
            return f"the environment differs in {', '.join(differing)}"
        state = request["state"].items()
        changed = sorted(name for name, value in state if name != _IGNORED and self._state.get(name) != value)
        if changed:
            return f"what the program inherits differs in {', '.join(changed)}"
        now = _times_of_files()
        if newer := sorted(name for name, time in self._files.items() if now.get(name) != time):
            return f"{newer[0]} has changed since it was loaded: restart this process"
        return fork_hazard()

    def _enter(self, request: Request, connection: socket.socket, received: list[int], ready: int) -> None:
        """In the forked process: apply the request, and release what belongs to the server."""
        posix.setsid()
        os.close(ready)
        for one in (self._control, connection, *(connection for _, connection in self._programs.values())):
            one.close()
        for descriptor in self._programs:
            os.close(descriptor)
        for number, descriptor in enumerate(received):
            os.dup2(descriptor, number)
            os.close(descriptor)
        received.clear()
        _ignore_signals(int(request["state"].get(_IGNORED, self._state[_IGNORED]), 16), int(self._state[_IGNORED], 16))
        os.environ.clear()
        os.environ.update(request["environment"])


def _ignore_signals(wanted: int, present: int) -> None:
    """Ignore the signals of one mask, where those of another are ignored now: bit n - 1 is signal n."""
    for number in signal.valid_signals() - {SIGKILL, signals.SIGSTOP}:
        bit = 1 << (number - 1)
        if (wanted ^ present) & bit:
            usual = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
            signal.signal(number, signal.SIG_IGN if wanted & bit else usual)


def send(connection: socket.socket, document: Any, descriptors: Sequence[int]) -> None:
    """Send a document, and files with its length."""
    body = json.dumps(document).encode()
    length = struct.pack("!I", len(body))
    if descriptors:
        sockets.send_fds(connection, [length], list(descriptors))
    else:
        connection.sendall(length)
    connection.sendall(body)


def receive(connection: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """What `send` sent.

    Raises:
        ConnectionResetError: The other side is gone.
    """
    length, received, _, _ = sockets.recv_fds(connection, 4, _MOST_FILES, sockets.MSG_CMSG_CLOEXEC)
    try:
        if len(length) < 4:
            raise ConnectionResetError("the other side is gone")
        body, size = bytearray(), struct.unpack("!I", length)[0]
        while len(body) < size:
            chunk = connection.recv(size - len(body))
            if not chunk:
                raise ConnectionResetError("the other side is gone")
            body += chunk
    except BaseException:
        for descriptor in received:
            os.close(descriptor)
        raise
    return json.loads(body), received


def _times_of_files() -> dict[str, int]:
    """When the files of the loaded modules were last written: a program that is executed would load what is there."""
    found: dict[str, int] = {}
    for module in tuple(sys.modules.values()):
        path = getattr(module, "__file__", None)
        if isinstance(path, str):
            with contextlib.suppress(OSError):
                found[path] = os.stat(path).st_mtime_ns  # noqa: PTH116 - thousands of them before each fork
    return found


if __name__ == "__main__":
    # By its own name, which the programs ask for it: this module would otherwise be loaded twice.
    import_module(PROGRAM).main(json.loads(sys.argv[1]))
