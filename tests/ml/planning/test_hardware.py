"""The machine is measured, and its limits respected."""

from __future__ import annotations

import pytest
import torch

from luthier.core.system import free_cores
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


def test_threads_are_no_more_than_a_container_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 64)
    monkeypatch.setattr(hardware, "usable_threads", lambda: 2)
    rates = Rates(float32=100.0, bfloat16=100.0)
    assert hardware.with_rates(rates, memory_gb_per_second=20.0).num_threads == 2


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
    # Of this very machine, on which there may be niced processes.
    monkeypatch.setattr(free_cores.LighterProcesses, "given_way_seconds", lambda _: 0.0)
    monkeypatch.setattr(free_cores, "num_usable_cores", lambda: 2)
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
