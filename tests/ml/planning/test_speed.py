"""Time of a step: terms found by hand, and what must never go the wrong way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.core.results.cost import Device
from luthier.ml.inference.models.structure import Structure, structure_of
from luthier.ml.planning import speed, step_counts
from luthier.ml.planning.devices import Family

Make = Callable[..., Any]


def test_products_take_their_operations_at_the_devices_rate(
    llama: Structure, make_workload: Make, device: Device
) -> None:
    work = make_workload(llama)
    terms = speed.time_terms(work, device)
    counted = step_counts.step_flops(work)
    assert terms["products"] == pytest.approx(counted.matrices / 1e12)
    assert terms["attention"] == pytest.approx(counted.attention / 1e12)
    assert terms["fused_attention"] == terms["dropout"] == terms["link"] == 0
    wide = replace(work, compute="float32")
    assert speed.time_terms(wide, device)["products"] == pytest.approx(4 * terms["products"])
    long = make_workload(llama, length=1025)
    assert speed.time_terms(long, device)["attention"] == 0
    assert speed.time_terms(long, device)["fused_attention"] > 0


def test_every_term_has_a_prior_and_every_family_a_utilisation(
    llama: Structure, make_workload: Make, device: Device
) -> None:
    work = make_workload(llama)
    assert set(speed.prior_factors(device, work)) == set(speed.time_terms(work, device))
    assert set(speed.PRODUCT_UTILISATION) == set(get_args(Family))
    assert all(0 < share <= 1 for share in speed.PRODUCT_UTILISATION.values())


def test_two_devices_share_the_work_and_pay_for_the_link(llama: Structure, make_workload: Make, device: Device) -> None:
    work = make_workload(llama, "full", rows=8)
    work = replace(work, batches=replace(work.batches, num_micro_batches=4), sharding="ddp")
    one = device.model_copy(update={"is_cpu": False, "name": "a100-80g", "link_gb_per_second": 50.0})
    two = one.model_copy(update={"num_devices": 2})
    alone, shared = speed.time_terms(work, one), speed.time_terms(work, two)
    for name in ("products", "attention", "traffic", "calls"):
        assert shared[name] == pytest.approx(alone[name] / 2)
    assert alone["link"] == 0
    # each device sends and receives half of the gradients twice, in fp32
    assert shared["link"] == pytest.approx(2 * 0.5 * 4 * llama.num_parameters / 50e9)
    spread = speed.time_terms(replace(work, sharding="fsdp"), two)
    assert spread["link"] > shared["link"]
    assert spread["optimizer"] == pytest.approx(shared["optimizer"] / 2)


def test_on_a_cpu_a_micro_batch_of_few_tokens_reads_all_weights_and_calls_all_layers(
    llama: Structure, make_workload: Make, device: Device
) -> None:
    # two micro-batches of 86 tokens on a Xeon with two cores: 0.53 to 0.8 s a step (docs/log.md)
    xeon = device.model_copy(
        update={"is_cpu": True, "bfloat16_tflops": 2.3, "float32_tflops": 0.31, "memory_gb_per_second": 21.5}
    )
    work = make_workload(llama, rows=1, length=8)
    fixed = speed.time_terms(work, xeon)
    assert fixed["traffic"] * 21.5e9 > 2 * 2 * llama.num_matrix_parameters
    doubled = replace(work, batches=replace(work.batches, num_micro_batches=2 * work.batches.num_micro_batches))
    assert speed.time_terms(doubled, xeon)["calls"] == pytest.approx(2 * fixed["calls"])
    # workers that compute side by side make their calls at the same time
    side_by_side = speed.time_terms(replace(doubled, num_workers=2), xeon)
    assert side_by_side["calls"] == pytest.approx(fixed["calls"])
    assert side_by_side["traffic"] == pytest.approx(speed.time_terms(doubled, xeon)["traffic"])
    # full tuning has no adapters to call
    assert speed.time_terms(make_workload(llama, "full", rows=1, length=8), xeon)["calls"] < fixed["calls"]
    gpu = device.model_copy(update={"is_cpu": False, "name": "a100-80g"})
    assert speed.time_terms(work, gpu)["calls"] == llama.num_layers


@given(rows=st.integers(1, 64), length=st.integers(8, 2048), method=st.sampled_from(["lora", "full"]))
def test_more_work_never_takes_less_time(
    rows: int, length: int, method: str, llama: Structure, make_workload: Make, device: Device
) -> None:
    work = make_workload(llama, method, rows=rows, length=length)
    here = speed.step_seconds(work, device)
    assert 0 < here.low < here.value < here.high
    assert speed.step_seconds(make_workload(llama, method, rows=rows + 1, length=length), device).value > here.value
    assert speed.step_seconds(replace(work, gradient_checkpointing=True), device).value > here.value
    if method == "lora":
        assert speed.step_seconds(replace(work, dropout=0.1), device).value > here.value
    faster = device.model_copy(update={"bfloat16_tflops": 2.0, "memory_gb_per_second": 40.0})
    assert speed.step_seconds(work, faster).value < here.value


def test_on_a_cpu_plain_adapters_of_one_input_draw_one_mask(
    llama: Structure, make_workload: Make, device: Device
) -> None:
    width, inner = llama.hidden_size, llama.intermediate_size
    work = make_workload(llama, "lora", rows=4, length=64, dropout=0.1)
    here, gpu = (speed.time_terms(work, one)["dropout"] for one in (device, replace_cpu(device)))
    # queries, keys and values, and gate and up: 7 inputs without sharing, 4 with it
    assert here / gpu == pytest.approx((3 * width + inner) / (6 * width + inner))
    packed = replace(work, method="qlora", base="nf4")
    assert speed.time_terms(packed, device)["dropout"] == pytest.approx(gpu)


def replace_cpu(device: Device) -> Device:
    return device.model_copy(update={"is_cpu": False})


def test_adapters_move_bytes_and_save_products(architecture: Make, make_workload: Make, device: Device) -> None:
    wide = structure_of(architecture("llama", hidden_size=2048, intermediate_size=8192, num_attention_heads=16))
    lora, few, full = (
        make_workload(wide, rows=8, length=256),
        make_workload(wide, rows=8, length=256, targets=("q_proj", "v_proj")),
        make_workload(wide, "full", rows=8, length=256),
    )
    terms = [speed.time_terms(work, device) for work in (lora, few, full)]
    assert terms[0]["adapters"] > 3 * terms[1]["adapters"] > terms[2]["adapters"] == 0
    # four passes over inputs and outputs of queries and values, bf16
    by_hand = 4 * 2048 * 3 * ((2048 + 2048) + (2048 + wide.num_kv_heads * wide.head_size)) * 2 / 20e9
    assert terms[1]["adapters"] == pytest.approx(by_hand)
    assert terms[0]["products"] < 0.75 * terms[2]["products"]
    assert speed.step_seconds(lora, device).value < speed.step_seconds(full, device).value


def test_a_quantised_base_is_slower_by_its_unpacking(llama: Structure, make_workload: Make, device: Device) -> None:
    plain, packed = make_workload(llama), make_workload(llama, "qlora", base="nf4")
    assert speed.step_seconds(packed, device).value > speed.step_seconds(plain, device).value


def test_validation_takes_less_than_training_on_the_same_rows(
    llama: Structure, make_workload: Make, device: Device
) -> None:
    work = make_workload(llama, num_validation_tokens=192.0)
    step = speed.step_seconds(work, device)
    assert 0.2 * step.value < speed.validation_seconds(work, device, step).value < 0.6 * step.value


def test_slower_paths_take_longer_and_the_whole_forward_longest(
    llama: Structure, make_workload: Make, device: Device
) -> None:
    work = make_workload(llama, length=400)
    paths = [("own_chunks", "by_length"), ("own_chunks", "eager"), ("own_all", "eager")]
    found = [speed.slowdown(replace(work, loss=loss, attention=kind), device) for loss, kind in paths]
    assert speed.slowdown(work, device) == 1.0
    assert 1.0 < found[0] < found[1] < found[2]


def test_the_own_head_is_formed_again_on_the_way_back(llama: Structure, make_workload: Make) -> None:
    work = make_workload(llama)
    more = step_counts.step_flops(replace(work, loss="own_chunks")).matrices - step_counts.step_flops(work).matrices
    assert more == pytest.approx(2 * work.batches.num_learned * llama.head_parameters)
    every = step_counts.step_flops(replace(work, loss="own_all")).matrices - step_counts.step_flops(work).matrices
    unlearned = work.batches.num_computed - work.batches.num_learned
    assert every == pytest.approx(4 * unlearned * llama.head_parameters)
