"""A fit finds the factors that made the measurements, and says how far it is off."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.core.errors import RequestError
from luthier.core.results.cost import Device
from luthier.ml.inference.models.structure import Structure, structure_of
from luthier.ml.planning import speed
from luthier.ml.planning.memory import predict_memory
from luthier.ml.planning.predict import MIN_MEMORY_SPREAD, MIN_TIME_SPREAD, Calibration, Measurement, fit, predict
from luthier.ml.planning.workload import Workload

Make = Callable[..., Any]


@pytest.fixture(scope="session")
def workloads(architecture: Make, make_workload: Make) -> list[Workload]:
    """Six runs of a model wide enough that memory is not all runtime; the first three calibrate."""
    config = architecture("llama", hidden_size=1024, intermediate_size=4096, num_hidden_layers=12, vocab_size=32000)
    big: Structure = structure_of(config)
    return [
        make_workload(big, rows=16, length=128, dropout=0.1),
        make_workload(big, "full", rows=8, length=256),
        make_workload(big, rows=6, length=1100, gradient_checkpointing=True),
        make_workload(big, rows=8, length=300, rank=64),
        make_workload(big, "full", rows=2, length=1100),
        make_workload(big, rows=32, length=100, dropout=0.1),
    ]


def true_calibration(device: Device, workload: Workload, scales: dict[str, float], memory: float) -> Calibration:
    prior = speed.prior_factors(device, workload)
    return Calibration(
        device=device.title,
        factors={name: value * scales.get(name, 1.0) for name, value in prior.items()},
        memory_factor=memory,
        memory_offset_bytes=5e7,
        time_spread=0.0,
        memory_spread=0.0,
        num_measurements=0,
    )


def measured(workload: Workload, device: Device, truth: Calibration) -> Measurement:
    seconds = speed.step_seconds(workload, device, truth).value
    return Measurement(workload, seconds, predict_memory(workload, device, truth).total_bytes.value)


@given(
    products=st.floats(0.5, 2.5), attention=st.floats(0.5, 2.0), fused=st.floats(0.5, 2.0), memory=st.floats(0.9, 1.4)
)
def test_planted_factors_are_found_well_enough_to_predict_others(
    products: float, attention: float, fused: float, memory: float, workloads: list[Workload], device: Device
) -> None:
    scales = {"products": products, "attention": attention, "fused_attention": fused}
    truth = true_calibration(device, workloads[0], scales, memory)
    found = fit(device, [measured(w, device, truth) for w in workloads[:3]])
    for other in workloads[3:]:
        wanted = measured(other, device, truth)
        predicted = predict(other, device, calibration=found)
        assert predicted.step_seconds.value == pytest.approx(wanted.step_seconds, rel=0.15)
        assert predicted.peak_memory.total_bytes.value == pytest.approx(wanted.peak_memory_bytes, rel=0.03)


def test_one_measurement_fits_its_own_plan(workloads: list[Workload], device: Device) -> None:
    truth = true_calibration(device, workloads[0], {"products": 1.8, "traffic": 0.7}, 1.2)
    one = measured(workloads[0], device, truth)
    found = fit(device, [one])
    assert speed.step_seconds(workloads[0], device, found).value == pytest.approx(one.step_seconds, rel=0.05)
    assert predict_memory(workloads[0], device, found).total_bytes.value == pytest.approx(
        one.peak_memory_bytes, rel=0.03
    )
    assert found.num_measurements == 1


@pytest.mark.parametrize("num_workers", [1, 2])
def test_priors_come_back_where_the_measurements_agree_with_them(
    workloads: list[Workload], device: Device, num_workers: int
) -> None:
    """What workers hold is counted once: it neither scales what grows with the batch nor is added to the runtime."""
    ran = [replace(w, num_workers=num_workers) for w in workloads[:3]]
    truth = true_calibration(device, ran[0], {}, 1.0).model_copy(update={"memory_offset_bytes": 0.0})
    found = fit(device, [measured(w, device, truth) for w in ran])
    assert found.factors == pytest.approx(truth.factors)
    assert found.memory_factor == pytest.approx(1.0)
    assert found.memory_offset_bytes == pytest.approx(0.0, abs=1e6)
    assert (found.time_spread, found.memory_spread) == (MIN_TIME_SPREAD, MIN_MEMORY_SPREAD)


def test_measurements_that_disagree_widen_the_interval(workloads: list[Workload], device: Device) -> None:
    truth = true_calibration(device, workloads[0], {}, 1.0)
    made = [measured(workloads[0], device, truth)] * 4
    noisy = [replace(m, step_seconds=m.step_seconds * by) for m, by in zip(made, (0.6, 1.4, 0.7, 1.3), strict=True)]
    assert fit(device, made).time_spread == MIN_TIME_SPREAD
    assert fit(device, noisy).time_spread > 0.5


def test_no_factor_is_below_zero(workloads: list[Workload], device: Device) -> None:
    truth = true_calibration(device, workloads[0], {}, 1.0)
    low = [replace(measured(w, device, truth), step_seconds=1e-4) for w in workloads[:3]]
    found = fit(device, low)
    assert min(found.factors.values()) >= 0


def test_nothing_and_impossible_measurements_are_refused(workloads: list[Workload], device: Device) -> None:
    truth = true_calibration(device, workloads[0], {}, 1.0)
    good = measured(workloads[0], device, truth)
    for bad in ([], [replace(good, step_seconds=0.0)], [good, replace(good, peak_memory_bytes=-1.0)]):
        with pytest.raises(RequestError, match="probe again"):
            fit(device, bad)


def test_a_calibration_of_another_device_is_refused(workloads: list[Workload], device: Device) -> None:
    truth = true_calibration(device, workloads[0], {}, 1.0)
    other = device.model_copy(update={"title": "another processor"})
    with pytest.raises(RequestError, match="another processor"):
        predict(workloads[0], other, calibration=truth)
