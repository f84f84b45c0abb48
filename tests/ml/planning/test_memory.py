"""Peak memory: parts that add up, figures found by hand, and what must never go the wrong way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.ml.planning.shapes import judging

from luthier.core.results.cost import Device, MemoryPrediction
from luthier.ml.inference.models.structure import Structure, structure_of
from luthier.ml.planning.inference_cost import WORKER_BYTES, batch_workers, judging_bytes
from luthier.ml.planning.memory import memory_terms, predict_memory
from luthier.ml.planning.predict import Calibration
from luthier.ml.planning.step_counts import saved_activation_bytes
from luthier.ml.planning.workload import Workload

Make = Callable[..., Any]


def total(work: Workload, device: Device) -> float:
    return predict_memory(work, device).total_bytes.value


def accelerator(device: Device, count: int = 1) -> Device:
    return device.model_copy(update={"is_cpu": False, "num_devices": count, "name": "a100-80g"})


def check_sum(found: MemoryPrediction) -> None:
    assert sum(found.parts().values()) == pytest.approx(found.total_bytes.value)
    assert min(found.parts().values()) >= 0
    assert found.total_bytes.low <= found.total_bytes.value <= found.total_bytes.high


@pytest.mark.parametrize("method", ["full", "lora", "adalora", "qlora"])
@pytest.mark.parametrize("recompute", [False, True])
def test_the_parts_add_up(method: str, recompute: bool, llama: Structure, make_workload: Make, device: Device) -> None:
    base = "nf4" if method == "qlora" else "bfloat16"
    work = make_workload(
        llama, method, gradient_checkpointing=recompute, base=base, judging=judging(longest_tokens=100)
    )
    for machine in (device, accelerator(device), accelerator(device, 4)):
        for sharding in ("none", "ddp", "fsdp"):
            check_sum(predict_memory(replace(work, sharding=sharding), machine))


def test_what_is_held_by_hand(llama: Structure, make_workload: Make, device: Device) -> None:
    # width 64, 160 in the MLP, 3 layers, 4 heads of 16, 2 key-value heads, vocabulary 256, tied
    matrices = 3 * (64 * 64 + 2 * 64 * 32 + 64 * 64 + 3 * 64 * 160)
    parameters = matrices + 256 * 64 + 7 * 64
    assert llama.num_parameters == parameters
    full = predict_memory(make_workload(llama, "full"), device)
    assert full.weights_bytes == 2 * parameters
    assert full.optimizer_bytes == 12 * parameters  # fp32 masters and two moments
    # seven matrices a layer: inputs and outputs of each, rank 4
    thin = 4 * 3 * ((64 + 64) + 2 * (64 + 32) + (64 + 64) + 2 * (64 + 160) + (160 + 64))
    lora = predict_memory(make_workload(llama), device)
    assert lora.adapters_bytes == 2 * thin
    assert lora.optimizer_bytes == 12 * thin
    assert lora.weights_bytes == full.weights_bytes
    assert lora.gradients_bytes >= 4 * thin
    averaged = predict_memory(make_workload(llama, keeps_average=True), device)
    assert averaged.optimizer_bytes == 16 * thin  # one fp32 average more
    # in float32 weights are their own masters, and gradients are summed where they come
    wide = {"compute": "float32", "base": "float32", "adapters": "float32"}
    full_wide = predict_memory(make_workload(llama, "full", **wide), device)
    assert full_wide.weights_bytes + full_wide.optimizer_bytes + full_wide.gradients_bytes == 16 * parameters
    two = predict_memory(make_workload(llama, "full", num_workers=2, **wide), device)
    assert two.optimizer_bytes == 12 * parameters  # workers share the weights, and not the masters
    assert predict_memory(make_workload(llama, **wide), device).optimizer_bytes == 8 * thin
    quantised = predict_memory(make_workload(llama, "qlora", base="nf4"), device)
    assert quantised.weights_bytes == pytest.approx(0.516 * matrices + 2 * (parameters - matrices))


@pytest.mark.parametrize("base", ["nf4", "int8"])
def test_a_base_that_is_packed_on_a_cpu_is_read_whole_first(
    base: str, llama: Structure, make_workload: Make, device: Device
) -> None:
    work = make_workload(llama, "qlora", base=base, rows=1, length=1, rank=1)
    fixed, growing, runtime = memory_terms(work, device)
    assert fixed + growing >= 2 * 2 * llama.num_parameters  # the mapped file, and the bfloat16 made of it
    assert total(work, device) >= fixed + growing + runtime - 1
    fixed, growing, _ = memory_terms(work, accelerator(device))  # matrices come one by one, and are packed there
    assert fixed + growing < 2 * 2 * llama.num_parameters


def test_a_base_in_16_bits_takes_half_of_the_memory_while_it_is_read_too(
    llama: Structure, make_workload: Make, device: Device
) -> None:
    """Products are computed in float32; embeddings, head and norms are held in it."""
    wide = {"compute": "float32", "adapters": "float32", "rows": 1, "length": 1, "rank": 1}
    half, whole = (make_workload(llama, "qlora", base=base, **wide) for base in ("bfloat16", "float32"))
    parameters, matrices = llama.num_parameters, llama.num_packed_parameters
    assert predict_memory(half, device).weights_bytes == 2 * matrices + 4 * (parameters - matrices)
    fixed, growing, _ = memory_terms(half, device)
    assert 2 * 2 * parameters <= fixed + growing < 2 * 4 * parameters
    fixed, growing, _ = memory_terms(whole, device)
    assert fixed + growing >= 2 * 4 * parameters


def test_adalora_begins_with_half_as_many_ranks_again(llama: Structure, make_workload: Make) -> None:
    lora, adalora = make_workload(llama), make_workload(llama, "adalora")
    ranks = 6 * len(lora.targeted)
    assert adalora.adapter_rank == 6
    assert adalora.num_trainable == lora.num_trainable * 6 // 4 + ranks


@given(
    rows=st.integers(1, 64),
    length=st.integers(1, 4096),
    rank=st.integers(1, 16),
    learned=st.floats(0.01, 1.0),
    method=st.sampled_from(["lora", "full"]),
)
def test_more_of_anything_never_takes_less(
    rows: int, length: int, rank: int, learned: float, method: str, llama: Structure, make_workload: Make,
    device: Device,
) -> None:  # fmt: skip
    work = make_workload(llama, method, rows=rows, length=length, rank=rank, learned=learned)
    here = total(work, device)
    assert total(make_workload(llama, method, rows=rows + 1, length=length, rank=rank, learned=learned), device) >= here
    if length != 1024:  # beyond it attention keeps no probabilities
        longer = make_workload(llama, method, rows=rows, length=length + 1, rank=rank, learned=learned)
        assert total(longer, device) >= here
    assert total(make_workload(llama, method, rows=rows, length=length, rank=rank + 1, learned=learned), device) >= here
    if rows * length >= 512:  # with next to nothing kept, the inputs of layers come on top of a recomputed one
        assert total(replace(work, gradient_checkpointing=True), device) <= here
    wide = replace(work, compute="float32", base="float32", adapters="float32")
    if method == "lora":  # all weights of a full run are trained, and need no second copy in float32
        assert total(wide, device) >= here
    assert saved_activation_bytes(wide) >= saved_activation_bytes(work)
    check_sum(predict_memory(work, device))
    check_sum(predict_memory(wide, device))


def test_the_longest_rows_may_be_the_peak_with_fewer_tokens(
    llama: Structure, make_workload: Make, device: Device
) -> None:
    many, long = (20, 100), (4, 490)
    work = make_workload(llama, rows=many[0], length=many[1])
    both = replace(work, batches=replace(work.batches, other_peaks=(long,)))
    alone = make_workload(llama, rows=long[0], length=long[1])
    assert total(both, device) == pytest.approx(total(alone, device))
    assert total(both, device) > total(work, device)


def test_spread_over_devices_each_holds_a_share(llama: Structure, make_workload: Make, device: Device) -> None:
    eight = accelerator(device, 8)
    work = make_workload(llama, "full")
    alike, spread = (predict_memory(replace(work, sharding=kind), eight) for kind in ("ddp", "fsdp"))
    assert spread.optimizer_bytes == pytest.approx(alike.optimizer_bytes / 8)
    assert alike.weights_bytes / 8 < spread.weights_bytes < 2 * alike.weights_bytes
    assert alike.total_bytes == predict_memory(work, accelerator(device)).total_bytes


def test_a_calibration_scales_what_grows_and_shifts_the_rest(
    llama: Structure, make_workload: Make, device: Device
) -> None:
    work = make_workload(llama, rows=64, length=256)
    fixed, growing, runtime = memory_terms(work, device)
    found = Calibration(
        device=device.title,
        factors={},
        memory_factor=1.5,
        memory_offset_bytes=1e8,
        time_spread=0.1,
        memory_spread=0.05,
        num_measurements=3,
    )
    predicted = predict_memory(work, device, found).total_bytes
    assert predicted.value == pytest.approx(fixed + 1.5 * growing + runtime + 1e8)
    assert predicted.low == pytest.approx(0.95 * predicted.value)
    assert predicted.high == pytest.approx(1.05 * predicted.value)


def test_answering_many_long_rows_can_be_the_peak(llama: Structure, make_workload: Make, device: Device) -> None:
    work = make_workload(llama, rows=1, length=8)
    judged = replace(work, judging=judging(longest_tokens=10_000_000))
    # one row at a time; keys and values of 3 layers, 2 heads of 16, bf16
    cache = 2 * 10_000_000 * 2 * 3 * 2 * 16 * 2
    assert predict_memory(judged, device).generation_bytes > 0
    assert total(judged, device) == pytest.approx(cache + total(work, device), rel=0.1)


def test_judging_holds_one_model_and_a_block_of_logits(llama: Structure, make_workload: Make, device: Device) -> None:
    work = make_workload(llama, rows=1, length=8, judging=judging(longest_tokens=100))
    # keys and values of 32 rows of 100 tokens, twice, and the logits of 256 positions, thrice, in fp32
    cache, logits = 2 * 32 * 100 * 2 * 3 * 2 * 16 * 2, 256 * 256 * 4 * 3
    prefill = 2048 * 160 * 2 * 4
    assert judging_bytes(work) == max(cache, logits) + prefill
    assert judging_bytes(replace(work, judging=judging(longest_tokens=100, writes=False))) == logits + prefill
    assert judging_bytes(replace(work, judging=judging(longest_tokens=100, scores=False))) == cache + prefill
    assert judging_bytes(replace(work, judging=None)) == 0


def test_each_worker_that_judges_holds_a_batch_of_its_own(
    llama: Structure, make_workload: Make, device: Device
) -> None:
    work = replace(make_workload(llama, rows=1, length=8), judging=judging(longest_tokens=10_000_000))
    three = replace(work, judging=judging(longest_tokens=10_000_000, num_workers=3))
    more = 2 * judging_bytes(work) + 3 * WORKER_BYTES
    assert total(three, device) - total(work, device) == pytest.approx(more)
    gpu = device.model_copy(update={"is_cpu": False})
    assert total(three, gpu) == total(work, gpu)


def test_workers_compute_batches_where_each_has_room_for_one(llama: Structure) -> None:
    # keys and values of 16,384 tokens in 3 layers, 2 heads of 16, twice; the widest activations of 2,048 tokens
    cache, prefill = 16_384 * 2 * 3 * 2 * 16 * 4 * 2, 2048 * 160 * 4 * 4
    enough = 4 * (cache + prefill + WORKER_BYTES)
    assert batch_workers(llama, "float32", 4, free_bytes=enough) == 4
    assert batch_workers(llama, "float32", 4, free_bytes=enough - 1) == 1
    assert batch_workers(llama, "bfloat16", 4, free_bytes=enough - 1) == 4


def test_a_task_head_leaves_the_output_head_without_a_gradient(
    architecture: Make, make_workload: Make, device: Device
) -> None:
    """The table of the embeddings is 4,096 x 64; tied, its two gradients would be added."""
    for name in ("llama", "llama_untied"):
        structure = structure_of(architecture(name, vocab_size=4096))
        wide = {"compute": "float32", "base": "float32", "adapters": "float32"}
        writes = make_workload(structure, "full", rows=1, length=8, **wide)
        reads = replace(writes, loss="task_head", num_head_outputs=3)
        table = 4 * 4096 * 64
        assert predict_memory(reads, device).activations_bytes == pytest.approx(table, rel=0.05)
        assert total(writes, device) - total(reads, device) >= table


def test_each_worker_has_activations_and_gradients_of_its_own(
    llama: Structure, make_workload: Make, device: Device
) -> None:
    for method in ("lora", "full"):
        alone, two = (predict_memory(make_workload(llama, method, num_workers=n), device) for n in (1, 2))
        check_sum(two)
        assert (two.weights_bytes, two.optimizer_bytes) == (alone.weights_bytes, alone.optimizer_bytes)
        assert two.activations_bytes == pytest.approx(2 * alone.activations_bytes)
        assert two.gradients_bytes > alone.gradients_bytes


@pytest.mark.parametrize("optimizer", ["adamw", "adamw_8bit", "adafactor", "lion"])
def test_embeddings_and_head_in_whole_by_hand(
    optimizer: str, architecture: Make, make_workload: Make, device: Device
) -> None:
    structure = structure_of(architecture("llama_untied"))
    table = 256 * 64
    plain = make_workload(structure, optimizer=f"master_{optimizer}")
    one = predict_memory(plain, device)
    # Bytes of a table's moments: of AdamW two, in 8 bits as well for one that is looked up; of Adafactor two vectors.
    packed = (2 + 8 / 256) * table
    of_head = {"adamw": 8 * table, "adamw_8bit": packed, "adafactor": 4 * (256 + 64), "lion": 4 * table}[optimizer]
    of_table = 8 * table if optimizer == "adamw_8bit" else of_head
    for saved, moments in (
        (("lm_head",), of_head),
        (("embed_tokens",), of_table),
        (("embed_tokens", "lm_head"), of_head + of_table),
    ):
        work = replace(plain, modules_to_save=saved)
        num = len(saved) * table
        assert work.num_trainable == plain.num_trainable + num
        found = predict_memory(work, device)
        check_sum(found)
        assert (found.weights_bytes, found.adapters_bytes) == (one.weights_bytes, one.adapters_bytes)
        assert found.optimizer_bytes == pytest.approx(one.optimizer_bytes + 4 * num + moments)
        assert found.gradients_bytes >= one.gradients_bytes + 4 * num
        assert work.num_active_trainable == plain.num_active_trainable, "they take the place of the base's"
    first = predict_memory(replace(work, keeps_first_weights=True), device)
    assert first.optimizer_bytes == found.optimizer_bytes + 2 * 2 * num, "bfloat16, at the start and put aside"
    tied = make_workload(structure_of(architecture("llama")), modules_to_save=("embed_tokens", "lm_head"))
    assert tied.num_saved == table, "one matrix"
