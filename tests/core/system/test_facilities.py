"""What other systems lack is taken away, one facility after the other: what is in its place does the same."""

from __future__ import annotations

import ast
import contextlib
import errno
import fcntl
import os
import re
import signal
import socket
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from tests.vacuous import nonempty

from luthier.core.errors import ConflictError
from luthier.core.system import clock_jump, facilities, process_memory, process_setup
from luthier.core.system.facility_list import FACILITIES
from luthier.core.system.files import FolderRegister, file_lock, is_held, remove_abandoned, scratch_folder, sync

SOURCE = Path(facilities.__file__).parents[2]
Patch = pytest.MonkeyPatch


def lives(pid: int) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False


def wait_until(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 120
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    return condition()


@pytest.fixture
def windows_locks(monkeypatch: Patch) -> list[int]:
    """Locks as Windows has them, in place of `fcntl`; returns where in a file they were taken."""
    places: list[int] = []

    def locking(descriptor: int, mode: int, num_bytes: int) -> None:
        places.append(os.lseek(descriptor, 0, os.SEEK_CUR))
        assert (mode, num_bytes) == (2, 1)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise PermissionError(errno.EACCES, "Permission denied") from None

    monkeypatch.setattr(facilities, "_fcntl", None)
    monkeypatch.setattr(facilities, "_msvcrt", SimpleNamespace(locking=locking, LK_NBLCK=2))
    return places


# What only some systems have, by the modules that have it. Everything else takes it from `facilities`.
MODULES = {"fcntl", "resource", "pwd", "grp", "termios", "msvcrt", "winreg", "_winapi"}
NAMES = {
    "os": "fork killpg setsid getsid getpgid setpgid nice getuid geteuid getgid getegid chown fchown fchmod chroot "
    "pipe2 sched_getaffinity sched_getscheduler pidfd_open getpriority setpriority set_blocking pread pwrite "
    "posix_fadvise copy_file_range memfd_create statvfs sysconf uname waitid WNOHANG waitstatus_to_exitcode "
    "register_at_fork O_NONBLOCK O_CLOEXEC O_DIRECTORY O_NOFOLLOW O_PATH O_BINARY",
    "signal": "SIGKILL SIGUSR1 SIGUSR2 SIGALRM SIGXCPU SIGCHLD SIGHUP SIGPIPE SIGSTOP SIGQUIT SIGBREAK "
    "CTRL_BREAK_EVENT alarm setitimer pthread_sigmask sigwait pidfd_send_signal",
    "socket": "AF_UNIX send_fds recv_fds MSG_CMSG_CLOEXEC SO_EXCLUSIVEADDRUSE",
    "select": "poll epoll kqueue POLLIN",
    "time": "clock_gettime CLOCK_BOOTTIME",
    "faulthandler": "register",
}
# Of the sandbox's child, which imports the standard library alone and runs on Linux.
EXEMPT = {"core/system/facilities.py", "ml/evaluation/sandbox/inside.py"}


def test_nothing_else_uses_what_only_some_systems_have() -> None:
    names = {(module, name) for module, words in NAMES.items() for name in words.split()}
    by_module = {module: set(words.split()) for module, words in NAMES.items()}
    offenders, num_files = [], 0
    for path in sorted(SOURCE.rglob("*.py")):
        if (place := path.relative_to(SOURCE).as_posix()) in EXEMPT:
            continue
        num_files += 1
        words = set(re.findall(r"\w+", text := path.read_text(encoding="utf-8")))
        if not words & MODULES and not any(module in words and words & some for module, some in by_module.items()):
            continue  # most files, which need not be parsed
        for node in ast.walk(ast.parse(text)):
            match node:
                case ast.Import(names=found) if any(one.name in MODULES for one in found):
                    offenders.append(f"{place}:{node.lineno}")
                case ast.ImportFrom(module=module) if module in MODULES:
                    offenders.append(f"{place}:{node.lineno}")
                case ast.Attribute(value=ast.Name(id=module), attr=name) if (module, name) in names:
                    offenders.append(f"{place}:{node.lineno} {module}.{name}")
    assert num_files > 500
    assert offenders == [], "take it from luthier.core.system.facilities, with something for systems that lack it"


WITHOUT = """
import importlib, os, signal, select, socket, subprocess, sys, time
import psutil, pydantic, multiprocessing, selectors, tempfile, shutil, logging, ctypes, asyncio, httpx2, sqlalchemy
for module, names in {names!r}.items():
    for name in names.split():
        if hasattr(sys.modules[module], name):
            delattr(sys.modules[module], name)
for name in {modules!r}:
    sys.modules[name] = None
for name in {ours!r}:
    importlib.import_module(name)
from luthier.core.system import facilities, facility_list
print(*(one.name for one in facility_list.FACILITIES if not one.is_here()), sep=chr(10))
"""
OURS = (
    *("luthier.core.system.files", "luthier.core.system.process_memory", "luthier.core.system.clock_jump"),
    *("luthier.core.child_process.process", "luthier.core.child_process.fork_client", "luthier.cli.main"),
    *("luthier.core.child_process.forked_workers", "luthier.platform.processes.guard"),
    *("luthier.platform.processes.supervisor", "luthier.platform.processes.process", "luthier.platform.jobs.child"),
    *("luthier.platform.processes.stop_signals", "luthier.ml.evaluation.sandbox.runners", "luthier.testing.servers"),
    *("luthier.ml.inference.models.templates.probe", "luthier.ml.data.files.read_parquet"),
    *("luthier.server.service", "luthier.platform.http.socket", "luthier.ml.training.ledger"),
)


def test_all_is_imported_where_none_of_it_is_there() -> None:
    taken = {name: words for name, words in NAMES.items() if name in ("os", "signal", "select", "time")}
    code = WITHOUT.format(names=taken, modules=sorted(MODULES - {"_winapi", "termios"}), ours=OURS)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    missing = done.stdout.splitlines()
    assert {"file locks", "process groups", "fork", "fork server", "alarm", "stacks on request"} <= set(missing)


def test_linux_lacks_at_most_what_a_container_hides() -> None:
    missing = {one.name for one in FACILITIES if not one.is_here()}
    assert missing <= {"session weight", "memory of workers", "kept memory"}
    assert len({one.name for one in FACILITIES}) == len(FACILITIES)
    for one in nonempty(FACILITIES):
        assert all((one.use, one.linux, one.elsewhere, one.lost)), one.name


# Files


def test_a_lock_of_windows_excludes_and_is_free_afterwards(tmp_path: Path, windows_locks: list[int]) -> None:
    place = tmp_path / "lock"
    with file_lock(place, what="the run", timeout_seconds=0) as descriptor:
        assert is_held(place)
        assert os.lseek(descriptor, 0, os.SEEK_CUR) == 0
        with (
            pytest.raises(ConflictError, match="the run is in use"),
            file_lock(place, what="the run", timeout_seconds=0),
        ):
            pass
    assert not is_held(place)
    assert set(windows_locks) == {1 << 30}, "far behind what others read"


def test_a_folder_is_held_by_a_file_beside_it(tmp_path: Path, windows_locks: list[int]) -> None:
    with scratch_folder(tmp_path, "work-") as folder:
        (folder / "half").write_bytes(b"0")
        assert remove_abandoned(tmp_path, "work-") == []
        assert (folder / "half").is_file()
    assert list(tmp_path.iterdir()) == []
    left = tmp_path / f"work-{'0' * 16}"
    left.mkdir()
    assert remove_abandoned(tmp_path, "work-") == [left]
    assert list(tmp_path.iterdir()) == []


def test_a_register_knows_what_is_held_and_what_is_left(tmp_path: Path, windows_locks: list[int]) -> None:
    register, folder = FolderRegister(tmp_path / "register"), tmp_path / "export"
    folder.mkdir()
    with register.entered(folder):
        assert register.remove_abandoned() == []
        assert folder.is_dir()
    (tmp_path / "register" / "0123").write_text(str(folder), encoding="utf-8")
    assert register.remove_abandoned() == [folder]
    assert list((tmp_path / "register").iterdir()) == []


def test_without_any_locks_it_is_an_error(tmp_path: Path, monkeypatch: Patch) -> None:
    monkeypatch.setattr(facilities, "_fcntl", None)
    with (tmp_path / "a").open("w") as file, pytest.raises(OSError, match="no locks") as caught:
        facilities.try_lock(file.fileno())
    assert caught.value.errno == errno.ENOLCK


def test_a_lock_is_waited_for(tmp_path: Path, monkeypatch: Patch) -> None:
    answers = [False, False, True]
    monkeypatch.setattr(facilities, "_LOCK_PAUSE_SECONDS", 0.0)
    monkeypatch.setattr(facilities, "try_lock", lambda _: answers.pop(0))
    facilities.wait_for_lock(0)
    assert answers == []


def test_reading_and_writing_at_a_place_without_pread(tmp_path: Path, monkeypatch: Patch) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"0123456789")
    for name in ("pread", "pwrite"):
        monkeypatch.delattr(os, name)
    with path.open("r+b", buffering=0) as file:
        file.seek(7)
        assert facilities.read_at(file.fileno(), 3, 2) == b"234"
        assert file.read(1) == b"7"
        assert facilities.write_at(file.fileno(), b"xy", 8) == 2
    assert path.read_bytes() == b"01234567xy"


def test_macos_is_asked_to_empty_the_drive_s_own_memory(tmp_path: Path, monkeypatch: Patch) -> None:
    asked: list[tuple[int, int]] = []
    path = tmp_path / "a"
    path.write_bytes(b"0")
    monkeypatch.setattr(facilities, "_fcntl", SimpleNamespace(F_FULLFSYNC=51, fcntl=lambda *words: asked.append(words)))
    monkeypatch.setattr(os, "fsync", lambda _: pytest.fail("not enough there"))
    sync(path)
    assert [kind for _, kind in asked] == [51]


def test_a_disk_without_that_is_synced_as_others_are(tmp_path: Path, monkeypatch: Patch) -> None:
    def refuse(*_: int) -> None:
        raise OSError(errno.ENOTSUP, "not supported")

    synced: list[int] = []
    monkeypatch.setattr(facilities, "_fcntl", SimpleNamespace(F_FULLFSYNC=51, fcntl=refuse))
    monkeypatch.setattr(os, "fsync", synced.append)
    sync(tmp_path)
    assert len(synced) == 1


def test_windows_syncs_files_by_a_right_to_write_and_no_folders(tmp_path: Path, monkeypatch: Patch) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"0")
    with monkeypatch.context() as patch:
        patch.setattr(os, "name", "nt")
        of_folder, descriptor = facilities.open_to_sync(tmp_path), facilities.open_to_sync(path)
    assert of_folder is None
    assert descriptor is not None
    assert fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDWR
    os.close(descriptor)


# Forks


def test_a_fork_beside_threads_is_no_warning_and_others_are(monkeypatch: Patch) -> None:
    def warned(text: str) -> None:
        def fork() -> int:
            warnings.warn(text, DeprecationWarning, stacklevel=2)
            return 7

        monkeypatch.setattr(os, "fork", fork)

    warned("This process (pid=12) is multi-threaded, use of fork() may lead to deadlocks in the child.")
    assert facilities.fork() == 7
    warned("fork is deprecated")
    with pytest.raises(DeprecationWarning, match="fork is deprecated"):
        facilities.fork()


# Processes

FAMILY = "import subprocess, sys, time\nchild = subprocess.Popen(['sleep', '300'])\nprint(child.pid, flush=True)\n"


@contextlib.contextmanager
def family() -> Any:
    """A process that leads its group, and one that it has started."""
    command = [sys.executable, "-c", f"{FAMILY}time.sleep(300)"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True) as process:
        assert process.stdout is not None
        try:
            yield process, int(process.stdout.readline())
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.parametrize("has_groups", [True, False])
def test_a_killed_group_takes_along_what_it_started(has_groups: bool, monkeypatch: Patch) -> None:
    with family() as (process, child):
        with monkeypatch.context() as patch:
            if not has_groups:
                patch.delattr(os, "killpg")
            facilities.kill_group(process.pid)
            assert process.wait(120) == -9
            facilities.kill_group(process.pid)  # nothing where it is gone
        assert wait_until(lambda: not lives(child))


def test_a_stop_is_ctrl_break_where_there_is_one(monkeypatch: Patch) -> None:
    sleeping = ["sleep", "300"]
    with subprocess.Popen(sleeping) as plain:
        facilities.request_stop(plain)
        assert plain.wait(120) == -signal.SIGTERM
    monkeypatch.setattr(signal, "CTRL_BREAK_EVENT", signal.SIGUSR2, raising=False)
    with subprocess.Popen(sleeping) as asked:
        facilities.request_stop(asked)
        assert asked.wait(120) == -signal.SIGUSR2
    with subprocess.Popen(sleeping, start_new_session=True) as led:
        monkeypatch.delattr(os, "killpg")
        facilities.stop_group(led.pid)
        assert led.wait(120) == -signal.SIGUSR2


def test_without_a_console_a_stop_is_the_end(monkeypatch: Patch) -> None:
    def refuse(*_: int) -> None:
        raise OSError(87, "no console")

    monkeypatch.setattr(signal, "CTRL_BREAK_EVENT", 1, raising=False)
    with subprocess.Popen(["sleep", "300"]) as process:
        with monkeypatch.context() as patch:
            patch.setattr(os, "kill", refuse)
            ended: list[bool] = []
            facilities.request_stop(SimpleNamespace(pid=process.pid, terminate=lambda: ended.append(True)))
        assert ended == [True]
        process.kill()


def test_a_starter_is_looked_for_by_its_number_and_the_time_of_its_start(monkeypatch: Patch) -> None:
    assert facilities.starter_lives(os.getppid())()
    assert not facilities.starter_lives(1 << 22)()
    with subprocess.Popen(["sleep", "300"]) as process:
        with monkeypatch.context() as patch:
            patch.setattr(os, "name", "nt")
            lives_there, nobody = facilities.starter_lives(process.pid), facilities.starter_lives(1 << 22)
        assert lives_there()
        assert not nobody()
        process.kill()
    assert not lives_there()


FOLLOWING = (
    "import os, time\n"
    "from luthier.core.system import facilities, process_setup\n"
    "facilities.is_linux = lambda: False\n"
    "process_setup._LOOK_SECONDS = 0.01\n"
)


def test_a_program_ends_with_its_starter_where_the_kernel_does_not_end_it() -> None:
    program = f"{FOLLOWING}process_setup.follow_starter()\nprint(os.getpid(), flush=True)\ntime.sleep(300)"
    starter = (
        f"{FOLLOWING}import subprocess, sys\n"
        "environment = process_setup.environment_of_program()\n"
        "assert environment[process_setup.STARTER] == str(os.getpid())\n"
        f"child = subprocess.Popen([sys.executable, '-c', {program!r}], env=environment, stdout=subprocess.PIPE)\n"
        "sys.stdout.buffer.write(child.stdout.readline())\n"
        "sys.stdout.flush()\n"
        "os._exit(0)"
    )
    done = subprocess.run([sys.executable, "-c", starter], capture_output=True, text=True, check=True)
    assert wait_until(lambda: not lives(int(done.stdout)))


def test_on_linux_a_program_needs_no_variable(monkeypatch: Patch) -> None:
    assert process_setup.environment_of_program() is None
    monkeypatch.setenv(process_setup.STARTER, "not a number")
    process_setup.follow_starter()
    assert process_setup.STARTER not in os.environ
    monkeypatch.setattr(facilities, "is_linux", lambda: False)
    assert process_setup.dying_with_parent() is None


def test_cores_are_those_of_psutil_where_the_system_has_no_call(monkeypatch: Patch) -> None:
    usable = facilities.usable_cores()
    monkeypatch.delattr(os, "sched_getaffinity")
    assert facilities.usable_cores() == usable
    monkeypatch.delattr(psutil.Process, "cpu_affinity")
    assert facilities.usable_cores() is None
    assert process_setup.num_usable_cores() == os.cpu_count()


def test_priority_without_nice(monkeypatch: Patch) -> None:
    asked: list[int] = []
    monkeypatch.delattr(os, "nice")
    monkeypatch.setattr(psutil.Process, "nice", lambda _, value: asked.append(value))
    process_setup.lower_priority(7)
    monkeypatch.setattr(psutil, "BELOW_NORMAL_PRIORITY_CLASS", 16384, raising=False)
    process_setup.lower_priority(7)
    assert asked == [7, 16384]


@pytest.mark.parametrize("has_poll", [True, False])
def test_a_socket_is_readable_once_something_came_or_it_is_closed(has_poll: bool, monkeypatch: Patch) -> None:
    import select

    if not has_poll:
        monkeypatch.delattr(select, "poll")
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert not facilities.is_readable(ours, 0)
        assert not facilities.is_readable(ours, 0.001)
        theirs.sendall(b"a")
        assert facilities.is_readable(ours, None)
        theirs.close()
        assert facilities.is_readable(ours, 5)


def test_a_wake_pipe_never_blocks_and_is_not_inherited() -> None:
    reading, writing = facilities.wake_pipe()
    try:
        with pytest.raises(BlockingIOError):
            os.read(reading, 1)
        assert not os.get_inheritable(reading)
        assert not os.get_inheritable(writing)
    finally:
        os.close(reading)
        os.close(writing)


# Limits

LIMITED = (
    "import sys, time\n"
    "from luthier.core.system import facilities, process_setup\n"
    "facilities.resource = None\n"
    "sys.stdout.write(repr(facilities.limit_address_space(1)))\n"
    "sys.stdout.flush()\n"
)


@pytest.mark.parametrize(
    ("code", "returncode"),
    [
        ("process_setup.watch_memory(1, lambda: print(' over', flush=True))\ntime.sleep(300)", 1),
        ("process_setup.limit_cpu_seconds(-1)\ntime.sleep(300)", facilities.CPU_LIMIT_EXIT),
        ("import signal\ndel signal.alarm\nfacilities.set_alarm(0)\nfacilities.set_alarm(1)\ntime.sleep(300)", 1),
    ],
)
def test_limits_without_system_calls_end_the_process(code: str, returncode: int) -> None:
    done = subprocess.run([sys.executable, "-c", LIMITED + code], capture_output=True, text=True, check=False)
    assert done.returncode == returncode, done.stderr
    assert done.stdout.split() == ["False", "over"] if "watch" in code else ["False"]
    assert facilities.ended_over_cpu_limit(returncode) is (returncode == facilities.CPU_LIMIT_EXIT)
    assert facilities.ended_by_alarm(done.returncode, done.stderr.splitlines()) is ("alarm" in code)


def test_how_a_limit_ends_a_process_on_linux() -> None:
    assert facilities.ended_over_cpu_limit(-signal.SIGXCPU)
    assert facilities.ended_by_alarm(-signal.SIGALRM, [])
    assert not facilities.ended_over_cpu_limit(1)
    assert not facilities.ended_by_alarm(1, ["Timeout", "a line"])


# The rest


def test_memory_is_that_of_psutil_where_there_is_no_proc(monkeypatch: Patch) -> None:
    monkeypatch.setattr(process_memory, "_sizes", lambda _: {})
    monkeypatch.setattr(facilities, "resource", None)
    resident = psutil.Process().memory_info().rss
    assert process_memory.resident_bytes() == pytest.approx(resident, rel=0.2)
    assert process_memory._own_peak_bytes() == pytest.approx(resident, rel=0.2)


def test_no_memory_is_kept_where_there_is_no_c_library(monkeypatch: Patch) -> None:
    monkeypatch.setattr(facilities, "c_library", lambda: None)
    assert not process_memory.keep_freed_memory()
    with process_memory.not_inherited([(1 << 20, 4 << 20)]):
        process_memory.return_freed_memory()


def test_the_clock_that_nobody_sets_where_linux_has_another(monkeypatch: Patch) -> None:
    monkeypatch.delattr(time, "CLOCK_BOOTTIME")
    before = time.monotonic()
    assert before <= clock_jump.elapsed() <= time.monotonic()


def test_no_stacks_are_asked_for_without_the_signal(monkeypatch: Patch) -> None:
    assert facilities.stacks_signal() == signal.SIGUSR1
    monkeypatch.delattr(signal, "SIGUSR1")
    assert facilities.stacks_signal() is None
    facilities.write_stacks_on_request()
