"""The cores that other processes leave free."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.core.system import facilities, free_cores
from luthier.core.system.free_cores import FreeCores, LighterProcesses, OtherProcesses, Priority, weight


def _busy_cores() -> float:
    others = OtherProcesses()
    time.sleep(0.3)
    return others.busy_cores()


def test_work_of_other_processes_is_counted_and_our_own_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    # seconds of the clock, busy seconds of all usable cores, seconds of this process
    moments = iter([(0.0, 100.0, 50.0), (4.0, 107.0, 51.0), (8.0, 107.0, 58.0), (12.0, 200.0, 58.0)])
    monkeypatch.setattr(OtherProcesses, "_now", staticmethod(lambda: next(moments)))
    # Of this very machine, on which there may be niced processes.
    monkeypatch.setattr(free_cores.LighterProcesses, "given_way_seconds", lambda _: 0.0)
    monkeypatch.setattr(free_cores, "num_usable_cores", lambda: 2)
    others = OtherProcesses()
    assert others.busy_cores() == pytest.approx(1.5)  # (7 - 1) / 4
    assert others.busy_cores() == 0.0  # more of our own than was busy: a clock's last tick
    assert others.busy_cores() == 2.0  # never more than there are


def test_a_busy_neighbour_is_seen_and_a_child_of_ours_that_has_ended_is_none() -> None:
    spin = "import time\nend = time.perf_counter() + {}\nwhile time.perf_counter() < end: pass"
    others = OtherProcesses()
    subprocess.run([sys.executable, "-c", spin.format(1.0)], check=True)
    with_child = others._now()
    assert with_child[2] - others._began[2] > 0.1  # on a busy machine it has a share of its second
    with subprocess.Popen([sys.executable, "-c", spin.format(60)]) as neighbour:
        try:
            seen = max(_busy_cores() for _ in range(10))
        finally:
            neighbour.kill()
    assert seen > 0.2


def test_a_niced_neighbour_counts_as_far_as_it_takes_time_from_us(monkeypatch: pytest.MonkeyPatch) -> None:
    moments = iter([(0.0, 100.0, 50.0), (4.0, 108.0, 50.0), (4.0, 108.0, 50.0)])
    given_way = iter([3.0, 9.0])
    monkeypatch.setattr(OtherProcesses, "_now", staticmethod(lambda: next(moments)))
    monkeypatch.setattr(free_cores.LighterProcesses, "given_way_seconds", lambda _: next(given_way))
    monkeypatch.setattr(free_cores, "num_usable_cores", lambda: 2)
    others = OtherProcesses()
    assert others.busy_cores() == pytest.approx((8 - 3) / 4)
    assert others.busy_cores() == 0.0  # some of it was on cores that this process may not use


@pytest.fixture
def four_cores(monkeypatch: pytest.MonkeyPatch) -> FreeCores:
    monkeypatch.setattr(free_cores, "num_usable_cores", lambda: 4)
    return FreeCores(4, is_sampled=False)


def _counts(cores: FreeCores, samples: list[float]) -> list[int]:
    counts = []
    for others in samples:
        cores.note(others)
        counts.append(cores.count)
    return counts


def test_threads_go_after_two_samples_and_come_back_after_three(four_cores: FreeCores) -> None:
    # One sample changes nothing; two lower it, to what both leave; three raise it.
    seen = _counts(four_cores, [0.3, 1.2, 0.1, 1.1, 1.0, 1.0, 3.9, 3.9, 0.0, 0.0, 0.2])
    assert seen == [4, 4, 4, 4, 3, 3, 3, 1, 1, 1, 4]


def test_a_raise_that_is_taken_back_soon_makes_the_next_one_take_twice_as_long(four_cores: FreeCores) -> None:
    assert _counts(four_cores, [4.0, 4.0])[-1] == 1
    waits = []
    for _ in range(4):
        waits.append(0)
        while four_cores.count == 1:
            four_cores.note(0.0)
            waits[-1] += 1
        _counts(four_cores, [4.0, 4.0])
    assert waits == [3, 6, 12, 12]
    # A raise that lasts makes the next one easy again.
    assert _counts(four_cores, [0.0] * 40)[-1] == 4
    assert _counts(four_cores, [4.0, 4.0, 0.0, 0.0, 0.0])[-3:] == [1, 1, 4]


def test_it_comes_back_as_far_as_all_samples_allow(four_cores: FreeCores) -> None:
    assert _counts(four_cores, [4.0, 4.0, 0.0, 0.0, 1.6])[-1] == 2


@given(st.lists(st.floats(0, 64), max_size=40), st.integers(1, 8))
def test_there_is_always_one_and_never_more_than_asked(samples: list[float], most: int) -> None:
    cores = FreeCores(most, is_sampled=False)
    for others in samples:
        cores.note(others)
        assert 1 <= cores.count <= most


def test_fewer_are_wanted_than_there_are_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(free_cores, "num_usable_cores", lambda: 8)
    cores = FreeCores(4, is_sampled=False)
    for others in (3.0, 3.0):
        cores.note(others)
    assert cores.count == 4  # five are free
    for others in (6.0, 6.0):
        cores.note(others)
    assert cores.count == 2


def test_a_machine_that_is_busy_already_and_samples_until_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    busy = [1.0]
    monkeypatch.setattr(free_cores, "num_usable_cores", lambda: 2)
    monkeypatch.setattr(OtherProcesses, "busy_cores", lambda _: busy[0])
    monkeypatch.setattr(free_cores, "_SAMPLE_SECONDS", 0.001)
    monkeypatch.setattr(free_cores, "_FIRST_SECONDS", 0.0)
    threads = []
    begin = free_cores.start_daemon
    monkeypatch.setattr(free_cores, "start_daemon", lambda work, name: threads.append(begin(work, name)))
    cores = FreeCores(2)
    assert cores.count == 1
    busy[0] = 0.0
    deadline = time.monotonic() + 30
    while cores.count == 1 and time.monotonic() < deadline:
        time.sleep(0.001)
    assert cores.count == 2
    cores.close()
    (thread,) = threads
    thread.join(30)
    assert not thread.is_alive()
    assert FreeCores(1).count == 1
    assert len(threads) == 1  # one thread waits for nobody: nothing is sampled


def test_cores_that_this_process_uses_for_something_else_are_not_free(four_cores: FreeCores) -> None:
    four_cores.reserve(2)
    for _ in range(2):
        four_cores.note(0.0)
    assert four_cores.count == 2
    four_cores.reserve(0)
    for _ in range(3):
        four_cores.note(0.0)
    assert four_cores.count == 4


# `sched_prio_to_weight` of the kernel, kernel/sched/core.c
KERNEL = {-20: 88761, -10: 9548, -1: 1277, 0: 1024, 1: 820, 5: 335, 10: 110, 15: 36, 19: 15}
WAIT = "import os, sys\nos.nice({})\nprint(1, flush=True)\nsys.stdin.read()"


@pytest.mark.parametrize(("nice", "kernel"), KERNEL.items())
def test_weights_are_those_of_the_kernel_but_for_its_rounding(nice: int, kernel: int) -> None:
    assert weight(nice) == pytest.approx(kernel, rel=0.04)


@pytest.mark.parametrize(
    ("own", "other", "share"),
    [
        (Priority(0), Priority(0), 1.0),
        (Priority(0), Priority(5), 1.25**-5),
        (Priority(10), Priority(15), 1.25**-5),
        (Priority(10), Priority(0), 1.0),  # a heavier one takes no more than all that it uses
        # Among sessions the weights of these count, and not those of their processes.
        (Priority(0, "/autogroup-1", 0), Priority(19, "/autogroup-2", 0), 1.0),
        (Priority(0, "/autogroup-1", 0), Priority(0, "/autogroup-2", 10), 1.25**-10),
        (Priority(0, "/autogroup-1", 0), Priority(5, "/autogroup-1", 0), 1.25**-5),
    ],
)
def test_the_share_that_another_process_takes(own: Priority, other: Priority, share: float) -> None:
    assert own.share_taken_by(other) == pytest.approx(share)


@pytest.mark.skipif(not facilities.is_linux(), reason="weights of Linux")
def test_a_niced_process_is_lighter_and_one_like_us_is_not() -> None:
    own = os.getpriority(os.PRIO_PROCESS, 0)
    if own >= 19:
        pytest.skip("no process can be lighter than this one")
    pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    commands = [[sys.executable, "-c", WAIT.format(nice)] for nice in (1, 0)]
    with subprocess.Popen(commands[0], **pipes) as niced, subprocess.Popen(commands[1], **pipes) as plain:
        for one in (niced, plain):
            assert one.stdout is not None
            one.stdout.readline()
        found = {process.pid: share for process, share, _ in free_cores._lighter()}
        for one in (niced, plain):
            one.communicate()  # closes what it waits for
    assert found[niced.pid] == pytest.approx(1 / 1.25)
    assert plain.pid not in found


@pytest.mark.skipif(not facilities.is_linux(), reason="weights of Linux")
def test_time_on_other_cores_is_not_taken_off_that_of_these(monkeypatch: pytest.MonkeyPatch) -> None:
    cores = {0: {0, 1}, 7: {0}, 8: {0, 1}, 9: {1, 2}}
    kept = SimpleNamespace(
        PRIO_PROCESS=0,
        getpriority=lambda _, pid: 19 if pid in cores else 0,
        sched_getaffinity=lambda pid: cores[pid],
    )
    monkeypatch.setattr(facilities, "posix", kept)
    monkeypatch.setattr(free_cores, "_priority", lambda pid: Priority(kept.getpriority(0, pid)))
    monkeypatch.setattr(psutil, "pids", lambda: [7, 8, 9])
    times = SimpleNamespace(user=1.0, system=0.0)
    monkeypatch.setattr(psutil, "Process", lambda pid: SimpleNamespace(pid=pid, cpu_times=lambda: times))
    assert [process.pid for process, _, _ in free_cores._lighter()] == [7, 8]


def test_time_counts_by_the_share_and_a_process_that_has_ended_in_full() -> None:
    used = {1: 10.0, 2: 20.0}

    def times(pid: int) -> SimpleNamespace:
        if pid not in used:
            raise psutil.NoSuchProcess(pid)
        return SimpleNamespace(user=used[pid], system=0.0)

    processes = [SimpleNamespace(cpu_times=lambda pid=pid: times(pid)) for pid in (1, 2)]
    lighter = LighterProcesses()
    lighter._began = tuple((one, 0.25, 10.0) for one in processes)  # type: ignore[misc]
    assert lighter.given_way_seconds() == pytest.approx(0.75 * 10)
    used[1] = 14.0
    del used[2]
    assert lighter.given_way_seconds() == pytest.approx(0.75 * 4)


@pytest.mark.parametrize(
    ("enabled", "group", "has_weight", "expected"),
    [
        ("1", "0::/", False, True),
        ("0", "0::/", False, False),
        ("1", "0::/a.slice", True, False),
        (None, "", False, False),
    ],
)
def test_sessions_count_where_the_kernel_groups_by_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, enabled: str | None, group: str, has_weight: bool, expected: bool
) -> None:
    monkeypatch.setattr(free_cores, "_PROC", tmp_path)
    monkeypatch.setattr(free_cores, "_GROUPS", tmp_path / "cgroup")
    if enabled is not None:
        for name, text in (("sys/kernel/sched_autogroup_enabled", enabled), ("self/cgroup", group)):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(f"{text}\n")
    if has_weight:
        place = tmp_path / "cgroup" / group.removeprefix("0::/")
        place.mkdir(parents=True)
        (place / "cpu.weight").write_text("100\n")
    assert free_cores._has_session_groups() is expected


def test_nice_values_count_within_one_control_group_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Two services share a core by the weights of their groups, whatever the nice values of their processes are."""
    monkeypatch.setattr(free_cores, "_PROC", tmp_path)
    monkeypatch.setattr(free_cores, "_GROUPS", tmp_path / "cgroup")
    nices = {1: 0, 2: 19, 3: 19}
    monkeypatch.setattr(facilities, "posix", SimpleNamespace(PRIO_PROCESS=0, getpriority=lambda _, pid: nices[pid]))
    for pid, group in ((1, "system.slice/a.service"), (2, "system.slice/b.service"), (3, "system.slice/a.service/x")):
        (tmp_path / str(pid)).mkdir()
        (tmp_path / str(pid) / "cgroup").write_text(f"0::/{group}\n")
    for group in ("system.slice", "system.slice/a.service", "system.slice/b.service"):
        (tmp_path / "cgroup" / group).mkdir(parents=True, exist_ok=True)
        (tmp_path / "cgroup" / group / "cpu.weight").write_text("100\n")
    own, service, child = (free_cores._priority(pid) for pid in nices)
    assert own.share_taken_by(service) == 1.0
    assert own.share_taken_by(child) == pytest.approx(1.25**-19)
