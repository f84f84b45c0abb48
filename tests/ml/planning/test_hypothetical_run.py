"""Runs that are only described."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.ml.planning.shapes import accelerator, run_of, seven_billion

from luthier.core.errors import RecipeError, RequestError
from luthier.ml.inference.models.structure import structure_of
from luthier.ml.planning.hypothetical_run import HypotheticalRun, hypothetical_workload


def test_steps_and_tokens_by_hand() -> None:
    described = HypotheticalRun(num_rows=1001, mean_tokens=100, epochs=3, global_batch_size=16)
    assert described.num_steps == 3 * 63
    assert described.num_tokens == 300_300
    assert described.longest_tokens == 400
    device = accelerator(80)
    workload = hypothetical_workload(seven_billion(), described, device)
    assert workload.num_steps == 189
    assert workload.batches.num_tokens == 1600
    assert workload.batches.num_learned == 800


def test_trainable_parameters_of_lora_on_seven_billion_by_hand() -> None:
    # q, k, v, o: 4096 x 4096; gate, up: 4096 x 11008; down: 11008 x 4096; rank times (inputs + outputs), 32 layers
    by_hand = 32 * 16 * (4 * (4096 + 4096) + 3 * (4096 + 11008))
    assert run_of(accelerator(80), rank=16).num_trainable == by_hand


@settings(max_examples=50, deadline=None)
@given(
    st.integers(min_value=1, max_value=10**6),
    st.floats(min_value=1, max_value=4000),
    st.integers(min_value=1, max_value=256),
    st.integers(min_value=1, max_value=8),
)
def test_micro_batches_hold_what_a_device_is_given_and_no_more(
    num_rows: int, mean: float, per_step: int, num_devices: int
) -> None:
    described = HypotheticalRun(num_rows=num_rows, mean_tokens=mean, global_batch_size=per_step)
    device = accelerator(80, num_devices=num_devices)
    if num_devices > min(per_step, num_rows):
        with pytest.raises(RequestError, match="rows a step on"):
            hypothetical_workload(seven_billion(), described, device)
        return
    batches = hypothetical_workload(seven_billion(), described, device).batches
    share = math.ceil(min(per_step, num_rows) / num_devices)
    assert 1 <= batches.peak_rows <= share
    assert batches.peak_length >= described.longest_tokens
    assert batches.peak_tokens <= max(16384, described.longest_tokens)
    assert batches.num_tokens <= batches.num_computed * (1 + 1e-9)
    assert batches.num_micro_batches >= num_devices


@pytest.mark.parametrize(
    "wrong",
    [
        {"num_rows": 0},
        {"num_rows": 10**13},
        {"mean_tokens": 0.5},
        {"max_tokens": 10, "mean_tokens": 250},
        {"rank": 0},
        {"epochs": 0},
        {"epochs": float("nan")},
        {"learned_fraction": 0},
        {"learned_fraction": 1.1},
        {"global_batch_size": 0},
        {"global_batch_size": 10**9},
        {"micro_batch_tokens": 1 << 40},
        {"num_checkpoints": -1},
        {"num_rows": 10**12, "global_batch_size": 1},
    ],
)
def test_numbers_that_no_run_has_are_refused_by_name(wrong: dict[str, float]) -> None:
    with pytest.raises(RequestError) as refused:
        HypotheticalRun(**({"num_rows": 1000, "mean_tokens": 100.0} | wrong))  # type: ignore[arg-type]
    assert any(name in refused.value.came or "steps" in refused.value.came for name in wrong)


def test_a_rank_above_that_of_a_matrix_is_refused() -> None:
    small = structure_of(
        {
            "model_type": "llama",
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 1,
            "num_attention_heads": 4,
            "vocab_size": 100,
        }
    )
    with pytest.raises(RecipeError, match="rank is 65"):
        hypothetical_workload(
            small, HypotheticalRun(num_rows=10, mean_tokens=10, rank=65), accelerator(80, num_devices=1)
        )


def test_a_slow_bfloat16_leaves_a_cpu_with_float32() -> None:
    cpu = accelerator(24, name="cpu", is_cpu=True).model_copy(update={"bfloat16_tflops": 20.0})
    assert run_of(cpu).compute == "float32"
    assert run_of(cpu.model_copy(update={"bfloat16_tflops": 80.0})).compute == "bfloat16"
