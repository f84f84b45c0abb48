"""What a run asks of a machine: exact batches, derived ones, other methods and other devices."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.vacuous import nonempty

from luthier.core.errors import LuthierError, RecipeError
from luthier.core.plan import Plan
from luthier.core.results.cost import Device
from luthier.ml.inference.models.structure import Structure, structure_of
from luthier.ml.planning.batch_shapes import Batches, batches_of
from luthier.ml.planning.workload import kinds_of, widths_of, workload_of
from luthier.ml.planning.workload_variants import with_method, with_micro_batch

Make = Callable[..., Any]


def test_exact_batches_by_hand() -> None:
    found = batches_of([[[10, 8], [4]], [[6, 6, 6]]], learned_fraction=0.25)
    # positions 20 + 4 and 18; tokens 22 and 18
    assert found.num_tokens == 20
    assert found.num_computed == 21
    assert found.num_learned == 5
    assert found.num_micro_batches == 1.5
    assert found.length == pytest.approx((20 * 10 + 4 * 4 + 18 * 6) / 42)
    assert (found.peak_rows, found.peak_length, found.peak_tokens) == (2, 10, 20)
    assert found.other_peaks == ()


def test_a_shared_beginning_is_computed_once() -> None:
    found = batches_of([[[10, 8, 6], [4]]], learned_fraction=0.25, shared=[[(4,), ()]])
    assert found.num_tokens == 28
    assert found.num_computed == 4 + 6 + 4 + 2 + 4  # without padding
    assert found.peak_rows == 3
    assert found.peak_length == 6  # 16 tokens in three rows
    assert found.length == (16 * 10 + 4 * 4) / 20


def test_rows_of_two_lengths_are_computed_apart() -> None:
    lengths = [60, 20, 58, 12]
    together, apart = (batches_of([[lengths]], learned_fraction=1.0, apart=apart) for apart in (False, True))
    assert apart.num_computed == together.num_computed == 4 * 60  # two rows of 20 save less than another call costs
    apart = batches_of([[lengths * 2]], learned_fraction=1.0, apart=True)
    assert apart.num_computed == 4 * 60 + 4 * 20
    assert (apart.peak_rows, apart.peak_length) == (8, 40)  # both groups are held at one time


def test_each_pair_has_a_beginning_of_its_own() -> None:
    found = batches_of([[[10, 8, 7, 6]]], learned_fraction=0.5, shared=[[(5, 3)]])
    assert found.num_tokens == 31
    assert found.num_computed == (5 + 5 + 3) + (3 + 4 + 3)


def test_micro_batches_of_fewer_tokens_in_longer_rows_are_kept_beside_the_largest() -> None:
    found = batches_of([[[5] * 8], [[9] * 4], [[30]], [[8] * 4], [[7] * 3]], learned_fraction=1.0)
    assert (found.peak_rows, found.peak_length) == (8, 5)
    assert found.other_peaks == ((4, 9), (1, 30))


@given(
    st.lists(
        st.lists(st.lists(st.integers(1, 400), min_size=1, max_size=6), min_size=1, max_size=4), min_size=1, max_size=5
    ),
    st.floats(0.0, 1.0),
)
def test_batches_lie_within_what_they_come_from(steps: list[list[list[int]]], fraction: float) -> None:
    found = batches_of(steps, learned_fraction=fraction)
    rows = [row for step in steps for batch in step for row in batch]
    assert found.num_tokens == pytest.approx(sum(rows) / len(steps))
    assert found.num_learned <= found.num_tokens <= found.num_computed
    assert min(rows) <= found.length <= max(rows)
    sizes = [len(batch) * max(batch) for step in steps for batch in step]
    assert found.peak_tokens == max(sizes)
    shapes = [(found.peak_rows, found.peak_length), *found.other_peaks]
    # nothing is larger in both: each micro-batch has no more tokens and no longer rows than one that is kept
    for step in steps:
        for batch in step:
            assert any(len(batch) * max(batch) <= r * n and max(batch) <= n for r, n in shapes)


def test_a_schedule_without_rows_is_refused() -> None:
    for steps in ([], [[]]):
        with pytest.raises(RecipeError, match="without rows"):
            batches_of(steps, learned_fraction=0.5)


@pytest.mark.parametrize(("rows", "length"), [(0, 10), (10, 0), (-1, 5), (1 << 20, 1 << 20)])
def test_absurd_micro_batches_are_refused(rows: int, length: int) -> None:
    with pytest.raises(RecipeError, match="micro-batch"):
        Batches(
            peak_rows=rows,
            peak_length=length,
            num_tokens=1,
            num_computed=1,
            num_learned=1,
            num_micro_batches=1,
            length=1,
        )


def test_a_run_has_at_least_one_step(structure: Structure, make_workload: Make) -> None:
    for bad in ({"num_steps": 0}, {"num_steps": -5}, {"rank": -1}):
        with pytest.raises(RecipeError, match=next(iter(bad))):
            make_workload(structure, **bad)


def test_the_plans_own_settings_are_taken(make_plan: Callable[..., Plan], structure: Structure, device: Device) -> None:
    document = {
        "method": {"name": "lora", "rank": 8, "dropout": 0.2, "targets": ["q_proj"]},
        "training": {"max_steps": 7, "global_batch_size": 4, "gradient_checkpointing": True},
    }
    work = workload_of(make_plan(document), structure, device)
    assert (work.method, work.rank, work.dropout, work.targets) == ("lora", 8, 0.2, ("q_proj",))
    assert len(work.targeted) == structure.num_layers
    assert (work.num_steps, work.gradient_checkpointing) == (7, True)
    assert (work.compute, work.base, work.adapters) == ("bfloat16",) * 3
    assert (work.attention, work.loss, work.optimizer) == ("by_length", "learned_chunks", "master_adamw")
    assert work.num_validations == 7
    assert work.batches.num_tokens == 4 * 30
    assert work.batches.num_learned == 4 * 10
    given = batches_of([[[40, 20], [10, 10]]], learned_fraction=0.5)
    assert workload_of(make_plan(document), structure, device, batches=given).batches == given


@pytest.mark.parametrize(
    ("steps", "checkpoint", "validate"), [(100, 50, 10), (120, 50, 12), (10, 50, 3), (12, 4, 4), (7, 2, 3), (1, 1, 1)]
)
def test_checkpoints_are_those_that_the_loop_saves_where_every_other_validation_is_the_best(
    make_plan: Callable[..., Plan], structure: Structure, device: Device, steps: int, checkpoint: int, validate: int
) -> None:
    training = {"max_steps": steps, "checkpoint_every_steps": checkpoint, "validate_every_steps": validate}
    saved = {step for step in range(1, steps + 1) if step % checkpoint == 0} | {steps}
    others = {step for step in range(1, steps + 1) if step % validate == 0} - saved
    plan = make_plan({"training": training})
    assert workload_of(plan, structure, device).num_checkpoints == len(saved) + -(-len(others) // 2)
    del training["validate_every_steps"]
    assert workload_of(make_plan({"training": training}, validation=False), structure, device).num_checkpoints == len(
        saved
    )


def test_derived_batches_come_near_the_exact_ones(
    make_plan: Callable[..., Plan], structure: Structure, device: Device
) -> None:
    plan = make_plan({"training": {"global_batch_size": 16}}, num_examples=64, max_tokens=32, mean_tokens=30.0)
    derived = workload_of(plan, structure, device).batches
    # two workers: a step is cut into two micro-batches
    exact = batches_of([[[28 + i % 5 for i in range(8)]] * 2 for _ in range(4)], learned_fraction=1 / 3)
    assert derived.num_tokens == pytest.approx(exact.num_tokens, rel=0.02)
    assert derived.num_computed == pytest.approx(exact.num_computed, rel=0.06)
    assert derived.peak_tokens == pytest.approx(exact.peak_tokens, rel=0.1)


@pytest.mark.parametrize("texts", [2, 3])
def test_a_hard_negative_is_a_third_text_of_each_search(
    make_plan: Callable[..., Plan], structure: Structure, device: Device, texts: int
) -> None:
    training = {"global_batch_size": 16, "micro_batch_tokens": 4096}
    document = {"objective": {"name": "embed"}, "training": training}
    rows: dict[str, Any] = {"shape": "preference", "num_examples": 64, "max_tokens": 30, "mean_tokens": 30.0}
    rows["num_tokens"] = 64 * texts * 30
    found = workload_of(make_plan(document, **rows), structure, device).batches
    assert found.num_tokens == 16 * texts * 30
    pairs = workload_of(make_plan(document | {"objective": {"name": "dpo"}}, **rows), structure, device).batches
    assert pairs.num_tokens == 16 * 2 * 30, "two sides, whatever a profile says"


def test_no_derived_micro_batch_has_more_rows_than_the_share_of_a_device(
    make_plan: Callable[..., Plan], structure: Structure, device: Device
) -> None:
    plan = make_plan({"training": {"global_batch_size": 16}}, accelerator="NVIDIA H100 80GB HBM3", max_tokens=30)
    gpu = device.model_copy(update={"is_cpu": False, "name": "h100"})
    one, four = (workload_of(plan, structure, gpu.model_copy(update={"num_devices": num})).batches for num in (1, 4))
    assert (one.peak_rows, four.peak_rows) == (16, 4)
    assert (one.num_micro_batches, four.num_micro_batches) == (1, 4)
    assert one.num_tokens == four.num_tokens == 16 * 30


def test_on_an_accelerator_precision_and_micro_batch_are_what_would_be_chosen_there(
    make_plan: Callable[..., Plan], structure: Structure, device: Device
) -> None:
    # 400 rows for each of four devices, more than fill a micro-batch.
    plan = make_plan({"training": {"global_batch_size": 1600}}, precision="float32", num_examples=3200)
    here = workload_of(plan, structure, device)
    gpu = device.model_copy(update={"is_cpu": False, "num_devices": 4, "name": "a100-80g"})
    there = workload_of(plan, structure, gpu)
    assert (here.compute, there.compute) == ("float32", "bfloat16")
    assert (here.attention, there.attention) == ("by_length", "flash")
    assert there.batches.peak_tokens > 4 * here.batches.peak_tokens
    assert (here.sharding, there.sharding) == ("none", "ddp")
    asked = make_plan({"training": {"global_batch_size": 400, "precision": "float32"}}, precision="float32")
    assert workload_of(asked, structure, gpu).compute == "float32"


def test_other_methods_on_the_same_run(structure: Structure, make_workload: Make) -> None:
    full = make_workload(structure, "full")
    lora = with_method(full, "lora", rank=4)
    assert lora.rank == 4
    assert len(lora.targeted) == len(structure.linear_layers)
    assert with_method(lora, "lora") == lora
    assert with_method(lora, "qlora").base == "nf4"
    assert with_method(lora, "adalora").adapter_rank == 6
    back = with_method(lora, "full")
    assert (back.rank, back.targets, back.dropout, back.num_trainable) == (0, (), 0.0, structure.num_parameters)


def test_a_smaller_micro_batch_means_more_of_them(structure: Structure, make_workload: Make) -> None:
    work = make_workload(structure, rows=16, length=100)
    half = with_micro_batch(work, 8, 100)
    assert half.batches.num_micro_batches == 2
    assert half.batches.peak_tokens == 800
    assert half.batches.num_tokens == work.batches.num_tokens
    with pytest.raises(LuthierError):
        with_micro_batch(work, 0, 100)


def test_nf4_holds_matrices_only_in_four_bits(architecture: Make, make_workload: Make) -> None:
    work = make_workload(structure_of(architecture("llama")), "qlora", base="nf4")
    assert replace(work, base="bfloat16").element_bytes == work.element_bytes == 2


def test_what_is_found_of_layers_is_found_once_for_each_structure(structure: Structure, make_workload: Make) -> None:
    """A quote makes many predictions of one structure; another structure has layers of its own."""
    layers = structure.linear_layers
    fewer = replace(structure, linear_layers=layers[:3])
    assert [widths_of(one) for one in (layers, fewer.linear_layers, layers)] == [
        sum(layer.num_inputs + layer.num_outputs for layer in one) for one in (layers, layers[:3], layers)
    ]
    assert kinds_of(layers) is kinds_of(layers)
    work = make_workload(structure, targets=("q_proj",), rank=4)
    assert work.targeted is replace(work, num_steps=5).targeted
    assert {layer.kind for layer in nonempty(work.targeted)} == {"q_proj"}
    other = replace(work, structure=fewer, targets=("q_proj", "v_proj"))
    assert len(other.targeted) == sum(layer.kind in ("q_proj", "v_proj") for layer in layers[:3]) > 0
    by_hand = sum(4 * (layer.num_inputs + layer.num_outputs) for layer in work.targeted)
    assert work.num_trainable == by_hand
