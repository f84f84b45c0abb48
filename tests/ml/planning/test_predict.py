"""A prediction: time, memory, money and energy hang together, and each has its interval."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.core.estimate import Estimate
from luthier.core.results.cost import Device
from luthier.ml.inference.models.structure import Structure, structure_of
from luthier.ml.planning import speed, step_counts
from luthier.ml.planning.memory import predict_memory
from luthier.ml.planning.predict import fits, predict
from luthier.ml.planning.workload import Workload

Make = Callable[..., Any]


@pytest.fixture(scope="session")
def work(architecture: Make, make_workload: Make) -> Workload:
    return make_workload(structure_of(architecture("llama")), num_steps=1000)


def test_steps_become_hours_hours_money_and_energy(work: Workload, device: Device) -> None:
    price = Estimate(value=2.0, low=1.0, high=4.0)
    found = predict(work, device, usd_per_hour=price)
    step = speed.step_seconds(work, device)
    assert found.step_seconds == step
    assert found.hours.value == pytest.approx(1000 * step.value / 3600)
    assert found.usd is not None
    assert found.usd.value == pytest.approx(2 * found.hours.value)
    assert found.usd.low == pytest.approx(found.hours.low)
    assert found.usd.high == pytest.approx(4 * found.hours.high)
    assert found.energy_kwh is not None
    # 16 W, four fifths of it drawn, three tenths more for cooling and conversion
    assert found.energy_kwh.value == pytest.approx(found.hours.value * 0.016 * 0.8 * 1.3)
    assert found.tokens_per_second.value == pytest.approx(work.batches.num_tokens / step.value)
    assert found.flops_per_step == step_counts.step_flops(work).total
    assert found.peak_memory == predict_memory(work, device)
    assert not found.calibrated


def test_several_devices_are_paid_for_each(work: Workload, device: Device) -> None:
    four = device.model_copy(
        update={"is_cpu": False, "num_devices": 4, "name": "a100-80g", "link_gb_per_second": 300.0}
    )
    price = Estimate(value=1.0, low=1.0, high=1.0)
    found = predict(replace(work, sharding="ddp"), four, usd_per_hour=price)
    assert found.usd is not None
    assert found.usd.value == pytest.approx(4 * found.hours.value)
    assert any("more than one device" in note for note in found.notes)


def test_validations_and_checkpoints_take_time(work: Workload, device: Device) -> None:
    plain = predict(work, device).hours.value
    checked = replace(work, num_validations=10, num_validation_tokens=1000.0)
    step = speed.step_seconds(checked, device)
    validation = speed.validation_seconds(checked, step, step).value
    assert predict(checked, device).hours.value == pytest.approx(plain + 10 * validation / 3600)
    assert predict(replace(work, num_checkpoints=50), device).hours.value > plain


def test_without_price_or_power_there_is_no_figure_and_a_note(work: Workload, device: Device) -> None:
    found = predict(work, device.model_copy(update={"power_watts": 0.0}))
    assert found.usd is None
    assert found.energy_kwh is None
    assert any("no price" in note for note in found.notes)
    assert any("no probe" in note for note in found.notes)


def test_what_fits_leaves_a_twentieth_free(work: Workload, device: Device) -> None:
    memory = predict_memory(work, device)
    total = memory.total_bytes.value
    assert fits(memory, device.model_copy(update={"memory_bytes": int(total / 0.94)}))
    assert not fits(memory, device.model_copy(update={"memory_bytes": int(total / 0.96)}))
    tight = device.model_copy(update={"memory_bytes": int(memory.total_bytes.value / 0.94)})
    found = predict(work, tight)
    assert found.fits
    assert any("upper end" in note for note in found.notes)


def test_the_document_has_each_figure_with_its_ends(work: Workload, device: Device) -> None:
    document = predict(work, device, usd_per_hour=Estimate(value=1, low=1, high=2)).as_json()
    for name in ("step_seconds", "hours", "peak_memory_bytes", "usd", "energy_kwh", "tokens_per_second"):
        assert document[f"{name}_low"] <= document[name] <= document[f"{name}_high"]
    assert document["num_steps"] == 1000
    assert sum(document["peak_memory_parts_bytes"].values()) == pytest.approx(document["peak_memory_bytes"])
    assert predict(work, device).as_json()["usd_low"] is None


@given(rows=st.integers(1, 64), length=st.integers(8, 1024), steps=st.integers(1, 10**6))
def test_every_interval_holds_its_value(
    rows: int, length: int, steps: int, work: Workload, make_workload: Make, device: Device
) -> None:
    structure: Structure = work.structure
    found = predict(make_workload(structure, rows=rows, length=length, num_steps=steps), device)
    for one in (found.step_seconds, found.hours, found.peak_memory.total_bytes, found.tokens_per_second):
        assert 0 < one.low <= one.value <= one.high
