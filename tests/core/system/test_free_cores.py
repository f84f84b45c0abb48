"""The cores that other processes leave free."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.core.system import free_cores
from luthier.core.system.free_cores import FreeCores, OtherProcesses


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
