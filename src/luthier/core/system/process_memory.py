"""Memory of this process and of the workers that are forked from it: resident now, the most since a moment, and kept.

Pages that a fork shares are counted once. So what is reported as a peak is the larger of two: the most that the process
held while it was alone, and the most that it held while it had workers, with what each of them had for itself at its
own peak. The peaks of the workers need not fall together: the sum is an upper bound, never an under-statement.

Linux alone lets a process forget its peak (`clear_refs`; see proc(5)). Elsewhere it counts from the start of the
process, which over-states it.

A training step allocates and frees the same hundreds of megabytes as the step before. glibc returns free memory at the
end of its heap to the system, which maps and zeroes the same pages again at the next step, a page fault each. Where
faults are slow, as in a virtual machine, they took a third of a step (docs/log.md). `keep_freed` stops that. A process
that leaves the steps to workers has no use for such memory, and what lies in gaps of its heap would stay for the whole
run: `release_free_pages`.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from luthier.core.system import facilities

_CLEAR_PEAK: Final = "5"
_KIB: Final = 1024

_peak_of_earlier = 0
"""The most memory of what is over since `forget_peak`: this process alone, or with workers that have ended."""


def forget_peak() -> bool:
    """Reset the peak, and say whether the system allowed it."""
    global _peak_of_earlier
    _peak_of_earlier = 0
    return _forget_own_peak()


def _forget_own_peak() -> bool:
    try:
        Path("/proc/self/clear_refs").write_text(_CLEAR_PEAK, encoding="ascii")
    except OSError:
        return False
    return True


def resident_bytes() -> int:
    """Resident memory of this process now."""
    if (resident := _sizes("status").get("VmRSS")) is not None:
        return resident
    import psutil

    return int(psutil.Process().memory_info().rss)


def peak_memory_bytes() -> int:
    """Largest resident memory since `forget_peak`, in bytes; workers count once they have ended."""
    return max(_peak_of_earlier, _own_peak_bytes())


def begin_workers() -> None:
    """Begin a separate peak for the time in which this process has workers. Call it before they are forked."""
    global _peak_of_earlier
    # Without this the peak of loading a model, when there were no workers, would be added to theirs.
    _peak_of_earlier = peak_memory_bytes()
    _forget_own_peak()


def end_workers(num_bytes: int) -> None:
    """Count workers that have ended.

    Args:
        num_bytes: what they had for themselves at most (`WorkerMemory`), added up.
    """
    global _peak_of_earlier
    _peak_of_earlier = max(_peak_of_earlier, _own_peak_bytes() + num_bytes)


_LEAST_FAULTS: Final = 1024
_PAGES_PER_FAULT: Final = 64
"""After fewer page faults the private pages of a worker are not counted again, nor after fewer than one for so many
pages that it has: the kernel walks over all of its pages for that, some 20 ms per GB, for each micro-batch. At most a
64th of the process has not been counted."""


class WorkerMemory:
    """What a forked process has besides the pages that it shares with its parent. Make it right after the fork."""

    def __init__(self) -> None:
        self._at_fork = _anonymous(_sizes("status"))
        self._counted_bytes = 0
        self._num_faults: int | None = None
        """Of `_copied_bytes`: the last exact count, and the page faults until then; None before the first."""

    def begin(self) -> None:
        """Begin a piece of work whose peak is measured."""
        _forget_own_peak()

    def peak_bytes(self) -> int:
        """The most that it had for itself since `begin`.

        Files (libraries, mapped weights) and shared memory are left out: they exist once for all readers.
        """
        status = _sizes("status")
        # Files are only ever added to what is resident, so what there is of them now was not more at the peak.
        shared = status.get("RssFile", 0) + status.get("RssShmem", 0)
        peak = max(0, _own_peak_bytes() - shared - self._at_fork)
        return peak + self._copied_bytes(_anonymous(status), status.get("VmRSS", 0))

    def _copied_bytes(self, anonymous: int, resident: int) -> int:
        """The pages of the parent that it has written to: each becomes a copy, and the resident size stays as it was.

        Counted exactly now and then; in between each page fault, which a copy takes, counts as one.
        """
        num_faults = _num_page_faults()
        least = max(_LEAST_FAULTS, resident // (mmap.PAGESIZE * _PAGES_PER_FAULT))
        before = self._num_faults
        if before is None or num_faults - before >= least:
            added = max(0, anonymous - self._at_fork)
            self._counted_bytes = max(0, _sizes("smaps_rollup").get("Private_Dirty", 0) - added)
            self._num_faults = before = num_faults
        return self._counted_bytes + (num_faults - before) * mmap.PAGESIZE


_MADV_DONTFORK: Final = 10  # of <sys/mman.h>
_MADV_DOFORK: Final = 11
_LEAST_BYTES: Final = 1 << 20
"""Smaller blocks are inherited: each block that is not becomes a separate mapping, of which there may be 65,530."""


@contextlib.contextmanager
def not_inherited(blocks: Iterable[tuple[int, int]]) -> Iterator[None]:
    """Keep blocks of memory out of the processes that are forked within: whole pages of them, on Linux.

    For what this process alone uses and writes to. A page that is written to after a fork would be in memory twice: as
    it is, and for the workers unchanged. A worker that touches such a block is killed.

    Args:
        blocks: address and bytes of each.
    """
    pages = []
    for address, num_bytes in blocks if facilities.is_linux() else ():
        start = -(-address // mmap.PAGESIZE) * mmap.PAGESIZE
        size = (address + num_bytes) // mmap.PAGESIZE * mmap.PAGESIZE - start
        if size >= _LEAST_BYTES:
            pages.append((start, size))
    try:
        _advise(pages, _MADV_DONTFORK)
        yield
    finally:
        # Also for pages that are given back later: what is allocated there next may be needed by a child.
        _advise(pages, _MADV_DOFORK)


def _advise(pages: Sequence[tuple[int, int]], advice: int) -> None:
    """Where the kernel refuses, pages are inherited: more memory, and the same result."""
    libc = facilities.c_library() if pages else None
    if libc is not None:
        for start, size in pages:
            libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(size), ctypes.c_int(advice))


_M_TRIM_THRESHOLD: Final = -1  # of glibc's <malloc.h>
_M_MMAP_THRESHOLD: Final = -3
_NEVER: Final = -1
_LARGEST_IN_HEAP_BYTES: Final = 32 << 20
"""Larger blocks get their own mapping and are returned at once: glibc accepts no higher threshold."""
_USUAL_TRIM_BYTES: Final = 2 * _LARGEST_IN_HEAP_BYTES
"""The most free memory that glibc keeps at the end of its heap by itself."""
_OF_THE_USER: Final = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TOP_PAD_", "MALLOC_MMAP_MAX_")


def keep_freed_memory() -> bool:
    """Let the C library keep what this process frees, until `return_freed_memory`.

    The peak is about what it was: what is kept was in use at the peak.

    Returns:
        False where nothing changes: the C library is not glibc, or the user has set how it allocates.
    """
    is_set = any(name in os.environ for name in _OF_THE_USER) or "glibc.malloc." in os.environ.get("GLIBC_TUNABLES", "")
    mallopt = None if is_set else _of_glibc("mallopt")
    if mallopt is None:
        return False
    # Setting one of them fixes both: the other must not stay at its start value of 128 KiB.
    return bool(mallopt(_M_MMAP_THRESHOLD, _LARGEST_IN_HEAP_BYTES) and mallopt(_M_TRIM_THRESHOLD, _NEVER))


def return_freed_memory() -> None:
    """Return to the system what `keep_freed_memory` has kept, and keep no more than usual from now on."""
    mallopt = _of_glibc("mallopt")
    if mallopt is not None:
        mallopt(_M_TRIM_THRESHOLD, _USUAL_TRIM_BYTES)
        release_free_pages()


def release_free_pages() -> None:
    """Return to the system the pages of the C library's heap that nothing lies on, gaps in its middle included.

    Before a fork, since what is free here is of no use to a child, which copies a page as soon as it writes to it; and
    where this process has computed something for the last time. By itself glibc returns only the end of its heap.
    """
    trim = _of_glibc("malloc_trim")
    if trim is not None:
        trim(0)


@contextlib.contextmanager
def keep_freed() -> Iterator[None]:
    """Keep the memory that is freed within the block for what is allocated within it.

    Enter it after a fork: workers would copy what this process has kept before.
    """
    is_kept = keep_freed_memory()
    try:
        yield
    finally:
        if is_kept:
            return_freed_memory()


def _of_glibc(name: str) -> Callable[..., int] | None:
    # Other C libraries have other allocators, and macOS no function of these names.
    libc = facilities.c_library()
    return getattr(libc, name, None) if hasattr(libc, "gnu_get_libc_version") else None


def _num_page_faults() -> int:
    """How often the kernel has mapped, filled or copied a page for this process, without reading from a disk."""
    if facilities.resource is None:
        return 0
    return int(facilities.resource.getrusage(facilities.resource.RUSAGE_SELF).ru_minflt)


def _anonymous(status: dict[str, int]) -> int:
    """Resident bytes that belong to no file; all of them where the system does not say which do."""
    return status.get("RssAnon", status.get("VmRSS", 0))


def _own_peak_bytes() -> int:
    """The largest resident memory of this process by itself."""
    # VmHWM is of this process alone; `ru_maxrss` is handed on by a fork.
    if (peak := _sizes("status").get("VmHWM")) is not None:
        return peak
    if facilities.resource is None:
        import psutil

        memory: Any = psutil.Process().memory_info()
        return int(getattr(memory, "peak_wset", memory.rss))  # Windows
    unit = 1 if sys.platform == "darwin" else _KIB  # bytes on macOS, KiB on Linux
    return int(facilities.resource.getrusage(facilities.resource.RUSAGE_SELF).ru_maxrss) * unit


def _sizes(name: str) -> dict[str, int]:
    """The sizes in a file of /proc/self, in bytes; nothing where there is no such file."""
    found = {}
    with contextlib.suppress(OSError):
        for line in Path("/proc/self", name).read_text(encoding="ascii", errors="replace").splitlines():
            words = line.split()
            if len(words) == 3 and words[2] == "kB":
                found[words[0].removesuffix(":")] = int(words[1]) * _KIB
    return found
