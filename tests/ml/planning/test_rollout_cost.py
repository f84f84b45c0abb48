"""What drawing answers takes, by hand and in how it grows."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.ml.planning.shapes import judging

from luthier.ml.inference import batch_generate
from luthier.ml.inference.models.structure import read_structure
from luthier.ml.planning import rollout_cost
from luthier.ml.planning.batch_shapes import Batches
from luthier.ml.planning.budget import resolve_budget
from luthier.ml.planning.devices import device_of, load_prices
from luthier.ml.planning.hardware import measure
from luthier.ml.planning.memory import predict_memory
from luthier.ml.planning.predict import hours_by_part, predict
from luthier.ml.planning.rollout_cost import (
    Grading,
    Rollouts,
    Writer,
    cache_bytes,
    grading_seconds,
    rollout_seconds,
)
from luthier.ml.planning.speed import (
    judging_seconds,
    learning_seconds,
    prior_factors,
    step_seconds,
    validation_seconds,
)
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
    assert (rollout_cost.ROWS_AT_ONCE, rollout_cost.CACHE_TOKENS) == (
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


def test_several_updates_take_their_learning_each_and_one_drawing(workload: Workload, device) -> None:
    once, thrice = workload, replace(workload, step_updates=3)
    learning = learning_seconds(workload, device).value
    assert step_seconds(thrice, device).value == pytest.approx(step_seconds(once, device).value + 2 * learning)
    one, three = predict(once, device), predict(thrice, device)
    assert three.flops_per_step == 3 * one.flops_per_step
    first = resolve_budget(None, thrice, device, load_prices()).first
    assert first is not None
    assert first.step_tokens == 3 * workload.batches.num_tokens  # as a run counts the tokens that it has left
    found = [
        validation_seconds(one, step_seconds(one, device), learning_seconds(one, device)).value
        for one in (once, thrice)
    ]
    assert found[1] == pytest.approx(found[0])  # nothing is learned there


def test_memory_is_that_of_the_cache_where_it_is_larger_than_that_of_learning(workload: Workload, device) -> None:
    plain = predict_memory(replace(workload, rollouts=None), device).total_bytes.value
    assert predict_memory(workload, device).total_bytes.value == plain  # a few MB beside the activations
    huge = Rollouts(num_answers=64, prompt_tokens=800, new_tokens=100, most_tokens=10**8)
    more = predict_memory(replace(workload, rollouts=huge), device)
    assert more.total_bytes.value > cache_bytes(replace(workload, rollouts=huge))
    assert more.generation_bytes > 0


JUDGE = Writer(
    num_parameters=10**9,
    head_parameters=10**8,
    num_layers=10,
    vocabulary_size=50_000,
    key_value_bytes=10_000.0,
    element_bytes=4.0,
    compute="float32",
)
GRADING = Grading(JUDGE, num_questions=64, prompt_tokens=90.0, read_tokens=100.0, new_tokens=2)


def test_a_model_that_grades_takes_what_its_questions_and_replies_take_by_hand(workload: Workload, device) -> None:
    graded = replace(workload, gradings=(GRADING,))
    ideal = {"products": 1.0, "traffic": 1.0, "calls": 0.0}
    found = grading_seconds(graded, device, ideal, 0.0)
    # Two operations a parameter: 64 questions of 190 tokens, and two tokens each with the output head.
    products = (2 * 10**9 * 64 * 190 + 2 * 1.1 * 10**9 * 64 * 2) / 100e9
    # Two batches of 32 (192 tokens each), two calls each, which read all weights; keys, values and logits of 128.
    weights = 2 * 2 * 1.1e9 * 4 / 20e9
    passing = 64 * 2 * (191 * 10_000 + 50_000 * 16) / 20e9
    assert found.value == pytest.approx(products + weights + passing)
    # The shortest answers: a tenth of what may be.
    short = (2 * 10**9 * 64 * 100 + 2 * 1.1 * 10**9 * 64 * 2) / 100e9 + weights
    assert found.low == pytest.approx(short + 64 * 2 * (101 * 10_000 + 50_000 * 16) / 20e9)
    assert grading_seconds(workload, device, ideal, 0.0).high == 0


def test_grading_is_a_part_of_its_own_and_the_parts_add_up(workload: Workload, device) -> None:
    graded = replace(workload, gradings=(GRADING, GRADING), num_validations=2)
    plain, step = step_seconds(workload, device), step_seconds(graded, device)
    one = grading_seconds(replace(workload, gradings=(GRADING,)), device, prior_factors(device, workload), 0.6)
    assert step.value == pytest.approx(plain.value + 2 * one.value)
    made = predict(graded, device)
    parts = hours_by_part(graded, device, made.step_seconds)
    assert parts["steps"].value * 3600 == pytest.approx(10 * plain.value)
    assert parts["grading"].value * 3600 == pytest.approx(10 * (step.value - plain.value))
    # A validation draws and grades its 32 answers as a step does its 64, and learns nothing.
    drawn = rollout_seconds(workload, device, prior_factors(device, workload), 0.6)
    assert parts["validations"].value * 3600 == pytest.approx(2 * (drawn.value + 2 * one.value) / 2)
    assert 0 < parts["validations"].low <= parts["validations"].value <= parts["validations"].high
    assert made.hours.value == pytest.approx(sum(part.value for part in parts.values()))
    assert "grading" not in hours_by_part(workload, device, plain)
    assert any("grading by models" in note for note in made.notes)


def test_models_that_grade_are_in_memory_while_the_run_trains(workload: Workload, device) -> None:
    before = predict_memory(workload, device)
    after = predict_memory(replace(workload, judges_bytes=4e9), device)
    assert after.weights_bytes - before.weights_bytes == 4e9
    assert after.total_bytes.value - before.total_bytes.value == pytest.approx(4e9)


def test_rows_are_scored_at_the_pace_of_learning_and_not_of_writing(workload: Workload, device) -> None:
    judged = replace(workload, judging=judging())
    plain = replace(judged, rollouts=None)
    step = step_seconds(judged, device)
    assert step.value > 1.5 * learning_seconds(judged, device).value
    expected = judging_seconds(plain, device, step_seconds(plain, device))
    assert judging_seconds(judged, device, step).value == pytest.approx(expected.value)
