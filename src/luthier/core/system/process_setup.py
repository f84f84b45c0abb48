"""Settings of the current process: threads, determinism of cuBLAS, kernel cache, priority, how and with whom it ends.

Some take effect only before torch is loaded. Nothing here imports torch. What systems other than Linux do in place of
its own calls is in `facilities`; what needs a thread for that is here.
"""

from __future__ import annotations

import atexit
import contextlib
import csv
import gc
import math
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NoReturn

from luthier.core.errors import BusyError
from luthier.core.system import facilities
from luthier.core.system.control_groups import control_groups
from luthier.core.system.core_topology import ALL_CORES, core_kinds

# About 50 microseconds: longer than the gaps between operations of a step, shorter than a turn of another process.
_SPIN_COUNT = "20000"
# Longer than Python needs to send a token of an answer, during which it holds one of the cores.
_LONG_SPIN_COUNT = "200000"
_MAX_CELL_CHARACTERS = 2**31 - 1
_usual_thresholds: tuple[int, int, int] | None = None
"""Those of the garbage collector before `collect_rarely`."""

_csv_lock = threading.Lock()
_num_large = 0
"""Active blocks of `large_csv_cells`, in all threads."""
_csv_limit = 0
"""The limit before the first of them."""


def wait_briefly() -> None:
    """Let a thread that waits for the others spin shortly, then sleep. Must be called before torch is loaded.

    GNU OpenMP spins for milliseconds by default. With one other busy process on two cores, training then falls to a
    fifteenth of its speed, with this to a fifth, and on a quiet machine nothing changes (docs/log.md). What the user
    has set stays.

    A process with two pools of threads, those of torch and those of llama.cpp, has more threads than cores. GNU OpenMP
    then lets each wait spin a twentieth as long, even while one pool sleeps, and llama.cpp falls to half its speed. The
    policy `active` raises that limit to the spin count. Source: libgomp, env.c, `gomp_throttled_spin_count_var`.
    """
    if "OMP_WAIT_POLICY" not in os.environ and "GOMP_SPINCOUNT" not in os.environ:
        os.environ |= {"OMP_WAIT_POLICY": "active", "GOMP_SPINCOUNT": _SPIN_COUNT}


def wait_longer() -> None:
    """As `wait_briefly`, with ten times as long a spin, for a process that writes answers while others read them.

    Between two tokens of llama.cpp Python sends the last one. Threads that fall asleep meanwhile cost a tenth of the
    speed (docs/log.md). Only for processes whose number of threads follows the free cores (`free_cores`): beside a busy
    process, threads that spin this long are slower than a single one. What the user has set stays.
    """
    if (os.environ.get("OMP_WAIT_POLICY"), os.environ.get("GOMP_SPINCOUNT")) in ((None, None), ("active", _SPIN_COUNT)):
        os.environ |= {"OMP_WAIT_POLICY": "active", "GOMP_SPINCOUNT": _LONG_SPIN_COUNT}


def num_usable_cores() -> int:
    """Cores that this process may use; those of a machine are more where a container or `taskset` keeps it to some.

    A control group may have a share of the time of all cores in place of some of them (`docker run --cpus`, a limit of
    Kubernetes, `CPUQuota` of systemd). More threads than that share would only wait for each other.
    """
    cores = facilities.usable_cores()
    num = len(cores) if cores else os.cpu_count() or 1
    return min(num, cores_of_quota() or num)


def cores_of_quota() -> int | None:
    """Whole cores of the time that this process's control groups leave it; None where none of them has a limit."""
    quotas = [quota for group in control_groups("cpu") if (quota := _quota(*group)) is not None]
    return max(1, math.ceil(min(quotas))) if quotas else None


def _quota(group: Path, is_first: bool) -> float | None:
    """The cores of a control group; None without a limit, which is `max`, and -1 in the first version."""
    try:
        if is_first:
            quota, period = ((group / f"cpu.cfs_{name}_us").read_text(encoding="ascii") for name in ("quota", "period"))
        else:
            quota, period = (group / "cpu.max").read_text(encoding="ascii").split()
        return int(quota) / int(period) if int(quota) > 0 else None
    except (OSError, ValueError, ZeroDivisionError):
        return None


def usable_threads() -> int:
    """Threads for a library that needs a number: OMP_NUM_THREADS where it is set, else one a usable core that pays.

    This is the rule of torch, so that other libraries (llama.cpp) use as many. Threads of llama.cpp wait for each
    other by spinning: one too many costs far more than one too few.
    """
    if (asked := _asked_threads()) is not None:
        return asked
    kinds = core_kinds(facilities.usable_cores())
    return num_usable_cores() if kinds is None else min(num_usable_cores(), kinds.num_that_pay)


def why_threads(num_threads: int) -> str:
    """Why so many threads, as a phrase for plans.

    Args:
        num_threads: that are used.
    """
    kinds = None if _asked_threads() is not None else core_kinds(facilities.usable_cores())
    return ALL_CORES if kinds is None or kinds.num_that_pay != num_threads else kinds.why


def _asked_threads() -> int | None:
    # "4,2" is for nested loops: the first number counts.
    asked = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    return int(asked) if asked.isdecimal() and int(asked) > 0 else None


def start_daemon(work: Callable[[], object], name: str) -> threading.Thread:
    """Run work in a thread of this name, which does not keep the process alive.

    Raises:
        BusyError: The system starts no more threads; the work was not begun.
    """
    thread = threading.Thread(target=work, name=name, daemon=True)
    try:
        thread.start()
    except RuntimeError as error:  # "can't start new thread": CPython has no separate class for it
        raise BusyError(
            "the system starts no more threads",
            expected="room for one more",
            do="try again in a moment; if it stays so, raise the limit of processes and threads of the server",
        ) from error
    return thread


@contextlib.contextmanager
def large_csv_cells() -> Iterator[None]:
    """Lift the csv module's limit of 128 KiB a cell within the block, for as long as any thread is in one."""
    # The limit is one for the whole process, and rows are read by generators that end in any order: were each to put
    # back what it found, the first to end would lower it under the others.
    global _num_large, _csv_limit
    with _csv_lock:
        if _num_large == 0:
            _csv_limit = csv.field_size_limit(_MAX_CELL_CHARACTERS)
        _num_large += 1
    try:
        yield
    finally:
        with _csv_lock:
            _num_large -= 1
            if _num_large == 0:
                csv.field_size_limit(_csv_limit)


# Eight buffers of 4,096 KiB, which NVIDIA gives as one of two settings under which cuBLAS is deterministic, and torch
# requires (cuBLAS documentation, "Results reproducibility").
_WORKSPACE = ":4096:8"


def keep_products_exact() -> None:
    """Let matrix products on a GPU have the same bits at each run. Must be called before torch is loaded.

    What the user has set stays.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", _WORKSPACE)


# A micro-batch of one shape needs about 40 kernels; three shapes' worth stay. Torch's own default is 1,024 in each of
# two caches, and a kernel takes 0.6 MB: over a run of ever other lengths that is 0.6 GB (docs/log.md).
_NUM_KERNELS = "128"
_CACHES = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")


def collect_rarely() -> None:
    """Collect garbage after 20,000 new objects in place of 700, until `collect_as_usual`.

    Modules, classes and commands are made at the start of a program and stay: collections look through them in vain.
    """
    global _usual_thresholds
    _usual_thresholds = gc.get_threshold()
    gc.set_threshold(20_000)


def collect_as_usual() -> None:
    """Collect garbage as often as before `collect_rarely`."""
    global _usual_thresholds
    if _usual_thresholds is not None:
        gc.set_threshold(*_usual_thresholds)
        _usual_thresholds = None


def keep_few_kernels() -> None:
    """Let torch's CPU library keep kernels of a few shapes only. Must be called before torch is loaded.

    What the user has set stays.
    """
    for name in _CACHES:
        os.environ.setdefault(name, _NUM_KERNELS)


_GROUP: Final = Path("/proc/self/autogroup")
_NICE: Final = 10
"""A ninth of the default weight: next to two training threads, a fifth of what one of them gets of its CPU."""


def lower_session_priority() -> None:
    """Lower the scheduling weight of this process's session. Does nothing unless the process is the session leader.

    Linux divides CPU time among sessions first (sched(7), "The autogroup feature"). The single thread of a server would
    therefore weigh as much as all threads of a training together, and each request would delay the training. Children
    that start their own sessions get the default weight, which `os.nice` could not restore for them. Without
    autogroups, or in a container's control group, all threads have equal weight anyway.
    """
    # The weight belongs to the whole session: only its leader may lower it, not a program started from a shell.
    if hasattr(os, "getsid") and facilities.posix.getsid(0) == os.getpid():
        with contextlib.suppress(OSError):
            _GROUP.write_text(str(_NICE), encoding="ascii")


def lower_priority(niceness: int) -> None:
    """Let other processes of this machine have the processor first.

    Args:
        niceness: from 1 to 19, as nice(1) has it; Windows has one class below the normal one.
    """
    if hasattr(os, "nice"):
        facilities.posix.nice(niceness)
        return
    import psutil

    psutil.Process().nice(getattr(psutil, "BELOW_NORMAL_PRIORITY_CLASS", niceness))


_PR_SET_PDEATHSIG: Final = 1  # of <sys/prctl.h>
STARTER: Final = "LUTHIER_STARTED_BY"
"""The environment variable with the process that `follow_starter` ends with."""
_LOOK_SECONDS: Final = 1.0
_MEMORY_LOOK_SECONDS: Final = 0.05
_CPU_LOOK_SECONDS: Final = 0.1


def dying_with_parent() -> Callable[[], None] | None:
    """What a child calls to be killed (SIGKILL) when the thread that started it ends; None on other systems.

    The C library is opened here, so that nothing but the call itself is left to do between fork and exec.
    """
    libc = facilities.c_library() if facilities.is_linux() else None
    return None if libc is None else lambda: libc.prctl(_PR_SET_PDEATHSIG, facilities.SIGKILL)


def end_with(parent: int) -> None:
    """Have this process killed when the thread that started it ends, however it ends.

    Linux alone does that; elsewhere a thread of this process looks every second whether the starter still runs.

    Args:
        parent: the process id of the starter, which may have died before the call.
    """
    is_there = facilities.starter_lives(parent)
    die_with_parent = dying_with_parent()
    if die_with_parent is None:
        start_daemon(lambda: _end_after(is_there), "luthier-starter")
        return
    die_with_parent()
    # The parent died before prctl: this process belongs to init already, and no signal will come.
    if not is_there():
        os._exit(1)


_OOM_SCORE: Final = Path("/proc/self/oom_score_adj")
_MOST_OOM_SCORE: Final = 1000
_SPARED_SHARE: Final = 300
"""In thousandths of the memory: as if this process had so much more of it than its parent."""


def end_before_parent() -> None:
    """Have the kernel end this process before its parent where memory is short. Does nothing but on Linux.

    For a process whose work the parent can do itself: by size alone the kernel would as likely end the parent, and with
    it all of the work. Nobody may take it back without privileges, so that programs started from here have it, too.
    """
    with contextlib.suppress(OSError, ValueError):
        score = int(_OOM_SCORE.read_text(encoding="ascii")) + _SPARED_SHARE
        _OOM_SCORE.write_text(str(min(_MOST_OOM_SCORE, score)), encoding="ascii")


def _end_after(is_there: Callable[[], bool]) -> None:
    while is_there():
        time.sleep(_LOOK_SECONDS)
    os._exit(1)


@contextlib.contextmanager
def environment_with(values: Mapping[str, str], *, restored: tuple[str, ...] = ()) -> Iterator[None]:
    """Environment variables of this process, for the programs that it starts within the block; then as before.

    Args:
        values: Name -> value.
        restored: Further variables that code within the block may set, and that are as before, too.
    """
    before = {name: os.environ.get(name) for name in (*values, *restored)}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def environment_of_program() -> dict[str, str] | None:
    """The environment of a program that calls `follow_starter`; None where the kernel does the work of that."""
    return None if facilities.is_linux() else {**os.environ, STARTER: str(os.getpid())}


def follow_starter() -> None:
    """End with the process that has started this one, where it asked for that by `environment_of_program`."""
    if (starter := os.environ.pop(STARTER, "")).isdecimal():
        end_with(int(starter))


def watch_memory(num_bytes: int, on_excess: Callable[[], object]) -> None:
    """End this process once its resident memory exceeds a limit, where `limit_address_space` cannot limit it.

    Args:
        num_bytes: the limit.
        on_excess: called before the end.
    """
    import psutil

    own = psutil.Process()

    def look() -> None:
        while own.memory_info().rss <= num_bytes:
            time.sleep(_MEMORY_LOOK_SECONDS)
        on_excess()
        os._exit(1)

    start_daemon(look, "luthier-memory")


def limit_cpu_seconds(seconds: int) -> None:
    """End this process after so many further seconds on the processor; `ended_over_cpu_limit` recognises that."""
    if facilities.limit_cpu_seconds(seconds):
        return
    most = time.process_time() + seconds

    def look() -> None:
        while time.process_time() <= most:
            time.sleep(_CPU_LOOK_SECONDS)
        os._exit(facilities.CPU_LIMIT_EXIT)

    start_daemon(look, "luthier-processor")


def run_to_end(program: Callable[[], object]) -> NoReturn:
    """Run the program of this process and end the process with its exit code, as the interpreter does.

    What is in memory is not taken down, which takes about a second with torch: see `end_process`.
    """
    try:
        program()
    except SystemExit as error:
        end_process(error.code)
    except Exception as error:  # noqa: BLE001 - the last place that can report it
        sys.excepthook(type(error), error, error.__traceback__)
        end_process(1)
    end_process(None)


def is_watched() -> bool:
    """Whether a debugger, a profiler or a measure of coverage follows this process: it has to write at the very end."""
    monitoring: Any = getattr(sys, "monitoring", None)  # Python 3.12 and later, with room for six tools
    tools = () if monitoring is None else filter(None, map(monitoring.get_tool, range(6)))
    return sys.gettrace() is not None or sys.getprofile() is not None or any(tools)


def end_process(code: object) -> NoReturn:
    """End this process as `sys.exit` does, but leave its modules and objects to the system.

    Other threads are awaited unless they are daemons, exit functions are called, and output is flushed: processes of
    multiprocessing end in the same way. Nothing else is finalised, so files must be closed by now.

    Args:
        code: The exit code; None is 0. Other objects than numbers are written to stderr, and the exit code is 1.
    """
    if code is not None and not isinstance(code, int):
        sys.stderr.write(f"{code}\n")
        code = 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # its reader is gone, or it is closed
            if stream is not None:
                stream.flush()
    os._exit(code or 0)
