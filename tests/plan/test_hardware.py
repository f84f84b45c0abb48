"""The machine is measured, and its limits respected."""

from __future__ import annotations

import pytest
import torch

from luthier.plan import hardware
from luthier.plan.hardware import Hardware, Rates


@pytest.fixture(scope="module")
def machine() -> Hardware:
    return hardware.measure()


def test_figures_are_of_this_machine(machine: Hardware) -> None:
    assert machine.num_cores >= 1
    assert 0 < machine.memory_available_bytes <= machine.memory_bytes
    assert machine.float32_gflops > 0
    assert machine.cpu_name
    assert machine.device in ("cpu", "cuda")


def test_precision_follows_the_measurement(machine: Hardware) -> None:
    wins = machine.bfloat16_gflops >= 1.2 * machine.float32_gflops
    assert machine.precision == ("bfloat16" if wins else "float32")
    assert "GFLOP/s" in machine.why


@pytest.mark.parametrize(("half", "chosen"), [(500.0, "bfloat16"), (110.0, "float32"), (10.0, "float32")])
def test_bfloat16_must_win_clearly(half: float, chosen: str) -> None:
    machine = hardware.with_rates(Rates(float32=100.0, bfloat16=half))
    assert machine.precision == chosen
    assert (
        machine.why
        == f"matrix products on {machine.device}: bfloat16 {half:,.0f}, float32 100 GFLOP/s ({half / 100:.1f}x)"
    )


def test_measured_once_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    first = hardware.rates()
    monkeypatch.setattr(hardware, "matrix_rate", lambda dtype, device: 1.0)
    assert hardware.rates() is first
    assert hardware.measure().float32_gflops == round(first.float32, 1)


def test_a_machine_so_busy_that_the_time_is_over_at_once_is_still_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 10_000, 10))
    monkeypatch.setattr(hardware.time, "perf_counter", lambda: float(next(clock)))
    assert hardware.matrix_rate(torch.float32, "cpu") > 0
