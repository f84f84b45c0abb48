"""The machine is measured, and its limits respected."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from luthier.ml.planning import hardware
from luthier.ml.planning.hardware import Hardware, Rates


@pytest.fixture(scope="module")
def machine() -> Hardware:
    return hardware.measure()


def test_figures_are_of_this_machine(machine: Hardware) -> None:
    assert machine.num_cores >= 1
    assert 0 < machine.memory_available_bytes <= machine.memory_bytes
    assert machine.float32_gflops > 0
    assert machine.cpu_name
    assert machine.device in ("cpu", "cuda", "xpu", "mps")


def test_precision_follows_the_measurement(machine: Hardware) -> None:
    wins = machine.bfloat16_gflops >= 1.2 * machine.float32_gflops
    assert machine.precision == ("bfloat16" if wins else "float32")
    assert "GFLOP/s" in machine.why


@pytest.mark.parametrize(("half", "chosen"), [(500.0, "bfloat16"), (110.0, "float32"), (10.0, "float32")])
def test_bfloat16_must_win_clearly(half: float, chosen: str) -> None:
    machine = hardware.with_rates(Rates(float32=100.0, bfloat16=half), memory_gb_per_second=20.0)
    assert machine.precision == chosen
    assert (
        machine.why
        == f"matrix products on {machine.device}: bfloat16 {half:,.0f}, float32 100 GFLOP/s ({half / 100:.1f}x)"
    )


@pytest.mark.parametrize(("half", "num_asked"), [(150.0, 2), (26.0, 2), (24.0, 1), (1.0, 1)])
def test_a_type_that_is_far_slower_is_measured_once_and_the_best_of_all_turns_counts(
    monkeypatch: pytest.MonkeyPatch, half: float, num_asked: int
) -> None:
    asked: list[torch.dtype] = []

    def rate(dtype: torch.dtype, device: str) -> float:
        assert device == hardware._device()
        asked.append(dtype)
        return (100.0 if dtype == torch.float32 else half) / asked.count(dtype)

    monkeypatch.setattr(hardware, "matrix_rate", rate)
    assert hardware._measured_rates() == Rates(float32=100.0, bfloat16=half)
    assert (asked.count(torch.float32), asked.count(torch.bfloat16)) == (2, num_asked)


def test_measured_once_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    first = hardware.benchmark()
    monkeypatch.setattr(hardware, "matrix_rate", lambda dtype, device: 1.0)
    assert hardware.benchmark() is first
    assert hardware.measure().float32_gflops == round(first.rates.float32, 1)


def test_work_of_other_processes_is_counted_and_our_own_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    # seconds of the clock, busy seconds of all usable cores, seconds of this process
    moments = iter([(0.0, 100.0, 50.0), (4.0, 107.0, 51.0), (8.0, 107.0, 58.0), (12.0, 200.0, 58.0)])
    monkeypatch.setattr(hardware.OtherProcesses, "_now", staticmethod(lambda: next(moments)))
    monkeypatch.setattr(hardware, "num_usable_cores", lambda: 2)
    others = hardware.OtherProcesses()
    assert others.busy_cores() == pytest.approx(1.5)  # (7 - 1) / 4
    assert others.busy_cores() == 0.0  # more of our own than was busy: a clock's last tick
    assert others.busy_cores() == 2.0  # never more than there are


def test_a_busy_neighbour_is_seen_and_a_child_of_ours_that_has_ended_is_none() -> None:
    spin = "import time\nend = time.perf_counter() + {}\nwhile time.perf_counter() < end: pass"
    others = hardware.OtherProcesses()
    subprocess.run([sys.executable, "-c", spin.format(1.0)], check=True)
    with_child = others._now()
    assert with_child[2] - others._began[2] > 0.1  # on a busy machine it has a share of its second
    with subprocess.Popen([sys.executable, "-c", spin.format(60)]) as neighbour:
        try:
            seen = max(hardware.busy_cores(0.3) for _ in range(10))
        finally:
            neighbour.kill()
    assert seen > 0.2


@pytest.mark.parametrize(("busy", "now", "slowdown"), [(0.1, 200.0, 1.0), (1.0, 100.0, 4.0), (1.5, 500.0, 1.0)])
def test_the_present_load_is_measured_against_the_quiet_rate(
    monkeypatch: pytest.MonkeyPatch, busy: float, now: float, slowdown: float
) -> None:
    asked: list[torch.dtype] = []

    def rate(dtype: torch.dtype, device: str, *, seconds: float, is_mean: bool) -> float:
        assert (device, is_mean) == ("cpu", True)
        asked.append(dtype)
        return now

    monkeypatch.setattr(hardware, "matrix_rate", rate)
    monkeypatch.setattr(hardware, "recent_busy_cores", lambda: None)  # nothing is known of the time before
    monkeypatch.setattr(hardware.OtherProcesses, "busy_cores", lambda _: busy)
    found = hardware.present_load(Rates(float32=100.0, bfloat16=400.0))
    assert (found.busy_cores, found.slowdown) == (busy, slowdown)
    hardware.present_load(Rates(float32=200.0, bfloat16=1.0))
    assert asked == [torch.bfloat16, torch.float32]


def test_a_machine_that_was_quiet_until_now_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[torch.dtype] = []

    def rate(dtype: torch.dtype, device: str, **_: object) -> float:
        assert device == "cpu"
        asked.append(dtype)
        return 50.0

    monkeypatch.setattr(hardware, "matrix_rate", rate)
    monkeypatch.setattr(hardware, "recent_busy_cores", lambda: 0.15)
    found = hardware.present_load(Rates(float32=100.0, bfloat16=1.0))
    assert (found.busy_cores, found.slowdown, asked) == (0.15, 1.0, [])
    monkeypatch.setattr(hardware, "recent_busy_cores", lambda: 0.5)
    monkeypatch.setattr(hardware.OtherProcesses, "busy_cores", lambda _: 0.6)
    found = hardware.present_load(Rates(float32=100.0, bfloat16=1.0))
    assert (found.busy_cores, found.slowdown, asked) == (0.6, 2.0, [torch.float32])


def test_the_time_since_the_last_look_is_long_enough_and_not_long_ago(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(hardware.OtherProcesses, "_now", staticmethod(lambda: (clock[0], clock[0] * 1.5, 0.0)))
    monkeypatch.setattr(hardware, "num_usable_cores", lambda: 2)
    monkeypatch.setattr(hardware, "_watched", hardware.OtherProcesses())
    seen = []
    for passed in (0.1, 0.3, 29.0, 31.0, 1.0):
        clock[0] += passed
        seen.append(hardware.recent_busy_cores())
    assert seen == [None, pytest.approx(1.5), pytest.approx(1.5), None, pytest.approx(1.5)]


def test_a_mean_is_never_above_the_best(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter([0.0, 0.0, 1.0, 1.5, 2.0, 5.0, 9.0, 9.0, 9.0, 0.0, 0.0, 1.0, 1.5, 2.0, 5.0, 9.0, 9.0, 9.0])
    monkeypatch.setattr(hardware.time, "perf_counter", lambda: next(ticks))
    best = hardware.matrix_rate(torch.float32, "cpu", seconds=4.0)
    monkeypatch.setattr(hardware.time, "perf_counter", iter([0.0, 0.0, 1.0, 1.5, 2.0, 5.0, 9.0, 9.0]).__next__)
    mean = hardware.matrix_rate(torch.float32, "cpu", seconds=4.0, is_mean=True)
    assert mean < best


def test_a_machine_so_busy_that_the_time_is_over_at_once_is_still_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 10_000, 10))
    monkeypatch.setattr(hardware.time, "perf_counter", lambda: float(next(clock)))
    assert hardware.matrix_rate(torch.float32, "cpu") > 0
