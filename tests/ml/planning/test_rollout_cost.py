"""What drawing answers takes, by hand and in how it grows."""

from __future__ import annotations

from dataclasses import replace

import pytest

from luthier.ml.inference import batch_generate
from luthier.ml.inference.models.structure import read_structure
from luthier.ml.planning import inference_cost
from luthier.ml.planning.batch_shapes import Batches
from luthier.ml.planning.devices import device_of
from luthier.ml.planning.hardware import measure
from luthier.ml.planning.inference_cost import Rollouts, cache_bytes, rollout_seconds
from luthier.ml.planning.memory import predict_memory
from luthier.ml.planning.speed import prior_factors, step_seconds
from luthier.ml.planning.workload import Workload

ROLLOUTS = Rollouts(num_answers=64, prompt_tokens=800, new_tokens=100, most_tokens=200, num_validated=32)


@pytest.fixture
def workload(tiny_model) -> Workload:
    return Workload(
        structure=read_structure(str(tiny_model)),
        method="lora",
        rank=4,
        targets=("q_proj",),
        dropout=0.0,
        compute="float32",
        base="float32",
        adapters="float32",
        optimizer="master_adamw",
        batches=Batches(8, 200, 12800, 12800, 6400, 8, 200.0),
        attention="by_length",
        loss="learned_chunks",
        gradient_checkpointing=False,
        num_steps=10,
        rollouts=ROLLOUTS,
    )


@pytest.fixture(scope="module")
def device():
    # Speeds that do not depend on the machine of the test and on what else it does.
    speeds = {"float32_gflops": 100.0, "bfloat16_gflops": 400.0, "memory_gb_per_second": 20.0}
    return device_of("cpu", measure().model_copy(update=speeds))


def test_the_bounds_are_those_of_the_engine() -> None:
    assert (inference_cost.ROWS_AT_ONCE, inference_cost.CACHE_TOKENS) == (
        batch_generate.MAX_GENERATE_ROWS,
        batch_generate.DEFAULT_BATCH_TOKENS,
    )


def test_the_cache_holds_keys_and_values_of_the_rows_that_write_together(workload: Workload) -> None:
    # 32 rows of 200 tokens; 2 layers, 2 key-value heads of 8, keys and values, 4 bytes
    assert cache_bytes(workload) == 32 * 200 * (2 * 2 * 8 * 2 * 4)
    long = replace(workload, rollouts=replace(ROLLOUTS, most_tokens=4096))
    assert cache_bytes(long) == 4 * 4096 * (2 * 2 * 8 * 2 * 4)
    assert cache_bytes(replace(workload, rollouts=None)) == 0


def test_time_grows_with_answers_and_their_length_and_may_be_a_tenth(workload: Workload, device) -> None:
    factors = prior_factors(device, workload)

    def seconds(**changes: float) -> float:
        return rollout_seconds(replace(workload, rollouts=replace(ROLLOUTS, **changes)), device, factors, 0.5).value

    found = rollout_seconds(workload, device, factors, 0.5)
    assert (found.low, found.high) == pytest.approx((0.1 * found.value / 1.5, 1.5 * found.value))
    assert seconds(num_answers=128) == pytest.approx(2 * found.value, rel=0.1)
    assert 1.8 * found.value < seconds(new_tokens=200, most_tokens=300) < 2.5 * found.value
    assert seconds(num_answers=33) > seconds(num_answers=32)  # one row more is one batch more
    assert rollout_seconds(replace(workload, rollouts=None), device, factors, 0.5).value == 0


def test_a_step_takes_its_learning_and_its_drawing(workload: Workload, device) -> None:
    plain = step_seconds(replace(workload, rollouts=None), device)
    drawn = rollout_seconds(workload, device, prior_factors(device, workload), 0.6)
    assert step_seconds(workload, device).value == pytest.approx(plain.value + drawn.value)


def test_memory_is_that_of_the_cache_where_it_is_larger_than_that_of_learning(workload: Workload, device) -> None:
    plain = predict_memory(replace(workload, rollouts=None), device).total_bytes.value
    assert predict_memory(workload, device).total_bytes.value == plain  # a few MB beside the activations
    huge = Rollouts(num_answers=64, prompt_tokens=800, new_tokens=100, most_tokens=10**8)
    more = predict_memory(replace(workload, rollouts=huge), device)
    assert more.total_bytes.value > cache_bytes(replace(workload, rollouts=huge))
    assert more.generation_bytes > 0
