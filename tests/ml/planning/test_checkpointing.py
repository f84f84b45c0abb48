"""Activations are computed again where they would not fit, and nowhere else; what was asked is left alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from tests.ml.planning.shapes import judging

from luthier.core.plan import Plan
from luthier.core.results.cost import Device
from luthier.ml.inference.models.structure import Structure, structure_of
from luthier.ml.planning import resolve_for_device
from luthier.ml.planning.memory import predict_memory

Make = Callable[..., Any]


@pytest.fixture(scope="module")
def large(architecture: Make) -> Structure:
    return structure_of(architecture("llama", hidden_size=512, num_attention_heads=8, num_hidden_layers=24))


def test_the_upper_end_of_the_peak_decides(large: Structure, make_workload: Make, device: Device) -> None:
    work = make_workload(large, rows=16, length=512)
    peak = predict_memory(work, device).total_bytes
    exactly, less = (
        device.model_copy(update={"memory_bytes": int(size)})
        for size in (peak.high + 1, 0.5 * (peak.value + peak.high))
    )
    assert resolve_for_device.need(work, exactly)[0] is False
    is_needed, why = resolve_for_device.need(work, less)
    assert is_needed
    assert f"up to {peak.high / 1e9:.2f} GB without it" in why
    # the answer is the same whatever the workload says now
    assert resolve_for_device.need(replace(work, gradient_checkpointing=True), less)[0]


def test_it_is_not_used_where_something_else_takes_the_most(
    large: Structure, make_workload: Make, device: Device
) -> None:
    work = make_workload(large, rows=1, length=8, judging=judging(longest_tokens=10_000_000))
    is_needed, why = resolve_for_device.need(work, device.model_copy(update={"memory_bytes": 1 << 30}))
    assert not is_needed
    assert "of no use" in why


@pytest.mark.parametrize("asked", [None, "auto"])
def test_a_plan_decides_for_its_own_machine_and_says_why(make_plan: Callable[..., Plan], asked: str | None) -> None:
    recipe = {"training": {"gradient_checkpointing": asked, "micro_batch_tokens": 60}}
    small = make_plan(recipe)
    source = small.sources["training.gradient_checkpointing"]
    assert small.training.gradient_checkpointing is False
    assert source.source == "derived"
    assert "8 GiB" in source.why
    # a step of six million tokens at once, on a machine of eight gigabytes
    at_once = {"gradient_checkpointing": asked, "micro_batch_tokens": 10_000_000, "global_batch_size": 200_000}
    huge = make_plan({"training": at_once}, num_examples=200_000)
    assert huge.training.gradient_checkpointing is True
    assert huge.sources["training.gradient_checkpointing"].why.startswith("needed: up to ")


@pytest.mark.parametrize("asked", [True, False])
def test_what_was_asked_stays(make_plan: Callable[..., Plan], asked: bool, device: Device, large: Structure) -> None:
    recipe = {
        "training": {"gradient_checkpointing": asked, "micro_batch_tokens": 1_000_000, "global_batch_size": 20_000}
    }
    plan = make_plan(recipe, num_examples=20_000)
    assert plan.training.gradient_checkpointing is asked
    assert plan.sources["training.gradient_checkpointing"].source == "asked"


def test_the_answer_is_in_the_hash_and_the_way_to_it_is_not(make_plan: Callable[..., Plan]) -> None:
    left_open, refused = make_plan(), make_plan({"training": {"gradient_checkpointing": False}})
    assert left_open.hash == refused.hash
    assert left_open.hash != make_plan({"training": {"gradient_checkpointing": True}}).hash


def test_another_device_decides_for_itself(
    make_plan: Callable[..., Plan], large: Structure, make_workload: Make, device: Device
) -> None:
    work = make_workload(large, rows=16, length=512)
    small = device.model_copy(update={"memory_bytes": int(predict_memory(work, device).total_bytes.value)})
    left_open, refused = make_plan(), make_plan({"training": {"gradient_checkpointing": False}})
    assert resolve_for_device.chosen_on(left_open, work, small).gradient_checkpointing
    assert not resolve_for_device.chosen_on(
        left_open, work, device.model_copy(update={"memory_bytes": 1 << 40})
    ).gradient_checkpointing
    assert not resolve_for_device.chosen_on(refused, work, small).gradient_checkpointing
