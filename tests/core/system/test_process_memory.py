"""The peak is a real one, can be forgotten, and has in it what workers had for themselves; freed memory is kept."""

from __future__ import annotations

import json
import mmap
import os
import platform
import subprocess
import sys

import pytest

from luthier.core.system import process_memory

# A process of its own: in one that has lived, malloc may serve the block from pages that are already resident.
_DRILL = """
import mmap
from luthier.core.system import process_memory as memory

def touch() -> None:
    block = mmap.mmap(-1, 128 << 20)
    for page in range(0, 128 << 20, mmap.PAGESIZE):
        block[page] = 1
    block.close()

memory.forget_peak()
before = memory.peak_memory_bytes()
touch()
print(memory.peak_memory_bytes() - before)
forgotten = memory.forget_peak()
print(forgotten, memory.peak_memory_bytes() - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux lets a process forget its peak")
def test_a_peak_is_seen_and_forgotten() -> None:
    drill = subprocess.run([sys.executable, "-c", _DRILL], check=True, capture_output=True, text=True)
    seen, forgotten, left = drill.stdout.split()
    assert int(seen) >= 100 << 20
    if forgotten == "True":
        assert int(left) < 30 << 20
    else:  # a sandbox may refuse it: the peak is then over-stated, never under-stated
        assert int(left) >= int(seen)


_WORKER_DRILL = """
import json, mmap, os, sys, tempfile
from luthier.core.child_process.forked_workers import ForkedWorkers
from luthier.core.system import process_memory as memory

MB = 1 << 20
inherited = bytearray(b"x") * (96 * MB)
file = tempfile.TemporaryFile(dir="/var/tmp")  # on a disk, and written there: pages like those of a library
file.write(b"x" * (64 * MB))
file.flush()
os.fsync(file.fileno())
mapped = mmap.mmap(file.fileno(), 64 * MB, access=mmap.ACCESS_READ)

def work(what, _note):
    if what == "takes":
        own = bytearray(b"x") * (64 * MB)
        return len(own)
    if what == "reads":
        return sum(inherited[::4096]) + sum(mapped[::4096])
    inherited[: 48 * MB : 4096] = bytes(len(range(0, 48 * MB, 4096)))
    return 0

def peak_of(num, *asked):
    memory.forget_peak()
    before = memory.peak_memory_bytes()
    workers = ForkedWorkers(work, kind="a worker", prepare=lambda: None)
    workers.start(num)
    for what in asked:
        for worker in workers.workers:
            workers.give(worker, what)
        found = []
        while len(found) < num:
            found += workers.answers(lambda _: None)
    workers.close()
    return memory.peak_memory_bytes() - before

if not memory.forget_peak():
    sys.exit(3)
reads, takes, writes = peak_of(1, "reads"), peak_of(2, "reads", "takes"), peak_of(1, "writes")
memory.forget_peak()
before = memory.peak_memory_bytes()
alone = bytearray(b"x") * (128 * MB)  # before there are workers: what they take does not come on top
del alone
workers = ForkedWorkers(work, kind="a worker", prepare=lambda: None)
workers.start(1)
workers.give(workers.workers[0], "takes")
while not workers.answers(lambda _: None):
    pass
workers.close()
both = memory.peak_memory_bytes() - before
print(json.dumps([one / MB for one in (reads, takes, writes, both)]))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux says which pages are a process's own")
def test_workers_count_with_what_they_have_for_themselves() -> None:
    drill = subprocess.run([sys.executable, "-c", _WORKER_DRILL], check=False, capture_output=True, text=True)
    if drill.returncode == 3:
        pytest.skip("this sandbox lets no process forget its peak")
    assert drill.returncode == 0, drill.stderr
    reads, takes, writes, both = json.loads(drill.stdout)
    assert 0 <= reads < 20, "pages that are shared, and files, are there once"
    assert 120 <= takes < 128 + 40
    assert 44 <= writes < 48 + 20, "an inherited page that is written to is a copy"
    assert 120 <= both < 128 + 20, "the larger of the two, not their sum"


@pytest.mark.parametrize(("resident_bytes", "num_faults"), [(200 << 20, 1024), (6 << 30, 24_576)])
def test_copied_pages_are_counted_again_after_many_faults_and_never_too_few(
    monkeypatch: pytest.MonkeyPatch, resident_bytes: int, num_faults: int
) -> None:
    """It takes longer to count in a larger process, where at most a 64th of it is not counted."""
    num_faults = num_faults * 4096 // mmap.PAGESIZE if resident_bytes > 1 << 30 else num_faults
    own = {"RssAnon": 100 << 20, "VmHWM": resident_bytes, "RssFile": resident_bytes - (100 << 20)}
    sizes = {"status": own | {"VmRSS": resident_bytes}, "smaps_rollup": {"Private_Dirty": 7 << 20}}
    faults, read = [3], list[str]()

    def seen(name: str) -> dict[str, int]:
        read.append(name)
        return sizes[name]

    monkeypatch.setattr(process_memory, "_sizes", seen)
    monkeypatch.setattr(process_memory, "_num_page_faults", lambda: faults[0])
    memory = process_memory.WorkerMemory()
    assert memory.peak_bytes() == 7 << 20
    sizes["smaps_rollup"] = {"Private_Dirty": 9 << 20}
    faults[0] += num_faults - 1
    assert memory.peak_bytes() == (7 << 20) + (num_faults - 1) * mmap.PAGESIZE
    assert read.count("smaps_rollup") == 1
    faults[0] += 1
    assert memory.peak_bytes() == 9 << 20
    assert read.count("smaps_rollup") == 2


def test_a_peak_with_workers_is_kept_until_it_is_forgotten() -> None:
    process_memory.begin_workers()
    process_memory.end_workers(1 << 40)
    assert process_memory.peak_memory_bytes() > 1 << 40
    process_memory.begin_workers()
    process_memory.end_workers(0)
    assert process_memory.peak_memory_bytes() > 1 << 40
    process_memory.forget_peak()
    assert process_memory.peak_memory_bytes() < 1 << 40


_HIDDEN_DRILL = """
import ctypes, sys
from luthier.core.child_process.forked_workers import ForkedWorkers
from luthier.core.system.process_memory import not_inherited

block = ctypes.create_string_buffer(8 << 20)
small = ctypes.create_string_buffer(4096)
place = ctypes.addressof(block)

def is_mapped(address):
    for line in open("/proc/self/maps"):
        start, end = (int(one, 16) for one in line.split()[0].split("-"))
        if start <= address < end:
            return True
    return False

def seen_by_a_worker():
    workers = ForkedWorkers(lambda address, _: is_mapped(address), kind="a worker", prepare=lambda: None)
    workers.start(1)
    found = []
    for address in (place + (4 << 20), place, place + len(block) - 1, ctypes.addressof(small)):
        workers.give(workers.workers[0], address)
        while not (answers := workers.answers(lambda _: None)):
            pass
        found.append(answers[0][2])
    workers.close()
    return found

with not_inherited([(place, len(block)), (ctypes.addressof(small), len(small))]):
    within = seen_by_a_worker()
    assert is_mapped(place + (4 << 20))
print(within, seen_by_a_worker())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="MADV_DONTFORK is of Linux")
def test_what_is_not_inherited_is_not_there_for_workers() -> None:
    """The first and the last page may hold something else, and a small block is inherited."""
    drill = subprocess.run([sys.executable, "-c", _HIDDEN_DRILL], check=True, capture_output=True, text=True)
    assert drill.stdout.strip() == "[False, True, True, True] [True, True, True, True]"


_KEEPING_DRILL = """
import ctypes, json, resource, sys
from luthier.core.system import process_memory as memory

MB = 1 << 20
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.argtypes, libc.memset.argtypes = [ctypes.c_void_p], [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
libc.prctl(41, 1, 0, 0, 0)  # PR_SET_THP_DISABLE: with huge pages there are few faults anyway

def use():  # 128 MB as a step uses them: all at a time, then freed
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks = [libc.malloc(16 * MB) for _ in range(8)]
    for block in blocks:
        libc.memset(block, 1, 16 * MB)
    for block in blocks:
        libc.free(block)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

use()
usual = use()
with memory.keep_freed():
    use()
    within, kept = use(), memory.resident_bytes() // MB
print(json.dumps([usual, within, kept, memory.resident_bytes() // MB, memory.keep_freed_memory()]))
"""


def _kept(**environment: str) -> list[int]:
    done = subprocess.run(
        [sys.executable, "-c", _KEEPING_DRILL],
        check=True,
        capture_output=True,
        text=True,
        env={name: value for name, value in os.environ.items() if "MALLOC" not in name} | environment,
    )
    found: list[int] = json.loads(done.stdout)
    return found


_on_glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have other allocators")
_PAGES = (128 << 20) // mmap.PAGESIZE


@_on_glibc
def test_freed_memory_is_kept_within_the_block_and_returned_after_it() -> None:
    usual, within, kept, after, is_kept = _kept()
    assert usual > _PAGES / 2
    assert within < _PAGES / 20
    assert kept - after > 64
    assert is_kept


@_on_glibc
@pytest.mark.parametrize(
    "setting", [{"MALLOC_TRIM_THRESHOLD_": "131072"}, {"GLIBC_TUNABLES": "glibc.malloc.trim_threshold=131072"}]
)
def test_what_the_user_set_of_the_allocator_stays(setting: dict[str, str]) -> None:
    _, within, _, _, is_kept = _kept(**setting)
    assert not is_kept
    assert within > _PAGES / 2


_GAPS_DRILL = """
import ctypes, json
from luthier.core.system import process_memory as memory

MB = 1 << 20
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.argtypes, libc.memset.argtypes = [ctypes.c_void_p], [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
libc.mallopt(-3, 32 * MB)  # M_MMAP_THRESHOLD: blocks of a megabyte lie in the heap

before = memory.resident_bytes()
large, small = [], []
for _ in range(128):  # each large block is followed by a small one that stays
    large.append(libc.malloc(MB))
    libc.memset(large[-1], 1, MB)
    small.append(libc.malloc(40_000))  # too large for what is free between older blocks
for block in large:
    libc.free(block)
freed = memory.resident_bytes()
memory.release_free_pages()
print(json.dumps([(size - before) // MB for size in (freed, memory.resident_bytes())]))
"""


@_on_glibc
def test_pages_between_blocks_that_stay_are_released() -> None:
    """By freeing alone they are not: the end of the heap is in use."""
    done = subprocess.run([sys.executable, "-c", _GAPS_DRILL], check=True, capture_output=True, text=True)
    freed, released = json.loads(done.stdout)
    assert freed > 100
    assert released < 28
