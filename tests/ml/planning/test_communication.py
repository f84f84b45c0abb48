"""What devices send each other: seconds found by hand, and what more devices must and must not change."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from tests.ml.planning.shapes import accelerator, run_of, seven_billion
from tests.vacuous import nonempty

from luthier.core.results.cost import Device, Layout
from luthier.ml.inference.models.structure import Structure, structure_of
from luthier.ml.planning import speed
from luthier.ml.planning.communication import FSDP_OVERLAP, bubble, communication
from luthier.ml.planning.devices import accelerators
from luthier.ml.planning.memory import predict_memory
from luthier.ml.planning.workload import WHOLE_COPIES, Workload

Make = Callable[..., Any]


@pytest.fixture(scope="session")
def mixtral(architecture: Make) -> Structure:
    return structure_of(architecture("mixtral"))


def machines(num: int, *, num_devices: int = 8, **changes: object) -> Device:
    """Machines of eight devices: 100 GB/s within, 10 GB/s a device between them."""
    made = {"link_gb_per_second": 100.0, "node_devices": 8, "network_gb_per_second": 10.0} | changes
    return accelerator(80, num_devices=num * num_devices).model_copy(update=made)


def shared(work: Workload, copies: int, layout: Layout, sharding: str = "fsdp") -> Workload:
    """The same rows for each of so many copies, in a layout."""
    old = work.batches
    batches = replace(
        old,
        num_micro_batches=copies,
        num_tokens=copies * old.num_tokens,
        num_computed=copies * old.num_computed,
        num_learned=copies * old.num_learned,
    )
    return replace(work, batches=batches, layout=layout, sharding=sharding if copies > 1 else "none")


def test_one_device_and_one_without_a_link_send_nothing(llama: Structure, make_workload: Make) -> None:
    work = make_workload(llama, "full", sharding="fsdp")
    assert communication(work, machines(1, num_devices=1)).total == 0
    assert communication(work, machines(1, link_gb_per_second=0.0)).total == 0


def test_sharded_copies_gather_twice_and_reduce_once_a_micro_batch(llama: Structure, make_workload: Make) -> None:
    work = shared(make_workload(llama, "full"), 8, Layout())
    found = communication(work, machines(1))
    by_hand = 7 / 8 * llama.num_parameters * (2 * 2 + 4) / 100e9
    assert found.sharding == pytest.approx(by_hand)
    assert found.blocking == 0
    lora = communication(shared(make_workload(llama), 8, Layout()), machines(1))
    trained = make_workload(llama).num_trainable
    assert lora.sharding == pytest.approx(7 / 8 * (llama.num_parameters * 2 * 2 + trained * 4) / 100e9)
    twice = replace(work, batches=replace(work.batches, num_micro_batches=16))
    assert communication(twice, machines(1)).sharding == pytest.approx(2 * found.sharding)


def test_over_machines_the_slower_link_decides_and_all_network_cards_work_together(
    llama: Structure, make_workload: Make
) -> None:
    work = shared(make_workload(llama, "full"), 16, Layout())
    num_bytes = llama.num_parameters * (2 * 2 + 4)
    hops = 3 * 3 * 1e-5  # three collectives in each of three layers, one hop
    slow, fast = (communication(work, machines(2, network_gb_per_second=rate)).sharding for rate in (1.0, 1000.0))
    assert slow == pytest.approx(num_bytes / 2 / (8 * 1e9) + hops)
    assert fast == pytest.approx(num_bytes * 15 / 16 / 100e9 + hops)


def test_whole_copies_reduce_their_gradients_once_a_step(llama: Structure, make_workload: Make) -> None:
    work = shared(make_workload(llama, "full"), 8, Layout(), "ddp")
    found = communication(work, machines(1))
    assert found.sharding == 0
    # The loop sums fp32 gradients; other tools send those of the backward pass, in bf16.
    assert found.blocking == pytest.approx(2 * 7 / 8 * 4 * llama.num_parameters / 100e9)
    theirs = communication(replace(work, optimizer="adamw"), machines(1))
    assert theirs.blocking == pytest.approx(2 * 7 / 8 * 2 * llama.num_parameters / 100e9)
    twice = replace(work, batches=replace(work.batches, num_micro_batches=16))
    assert communication(twice, machines(1)) == found


@pytest.mark.parametrize(("recomputes", "passes"), [(False, 2), (True, 3)])
def test_tensor_parallel_reduces_activations_twice_a_layer_and_pass(
    recomputes: bool, passes: int, llama: Structure, make_workload: Make
) -> None:
    plain = make_workload(llama, "full", rows=4, length=48, gradient_checkpointing=recomputes)
    work = shared(plain, 1, Layout(tensor_parallel=4))
    found = communication(work, machines(1, num_devices=4))
    all_reduce = 2 * 3 / 4 * (4 * 48) * 64 * 2 / 100e9
    assert found.sharding == 0
    assert found.blocking == pytest.approx(3 * 2 * passes * all_reduce)


def test_expert_parallel_sends_tokens_there_and_back(mixtral: Structure, make_workload: Make) -> None:
    work = shared(make_workload(mixtral, "full", rows=4, length=48), 4, Layout(expert_parallel=4))
    here = communication(work, machines(1, num_devices=4))
    one = 2 * (4 * 48) * 64 * 2 * 3 / 4 / 100e9  # two experts a token
    assert here.blocking == pytest.approx(3 * 2 * 2 * one)
    # four machines of one device: a token goes once to each other machine that has one of its two experts
    far = machines(4, num_devices=1, node_devices=1, network_gb_per_second=1.0)
    met = 4 * (1 - (3 / 4) ** 2) * 3 / 4
    once = met * (4 * 48) * 64 * 2 / 1e9 + 3e-5
    assert communication(work, far).blocking == pytest.approx(3 * 2 * 2 * once)


def test_experts_of_other_devices_are_not_gathered(mixtral: Structure, make_workload: Make) -> None:
    work = make_workload(mixtral, "full")
    alone, divided = (
        communication(shared(work, 4, Layout(expert_parallel=size)), machines(1, num_devices=4)).sharding
        for size in (1, 4)
    )
    dense = mixtral.num_parameters - mixtral.num_routed_parameters
    assert mixtral.num_routed_parameters == sum(layer.num_parameters for layer in nonempty(mixtral.experts))
    assert alone == pytest.approx(3 / 4 * mixtral.num_parameters * 8 / 100e9)
    assert divided == pytest.approx(3 / 4 * dense * 8 / 100e9)


def test_divided_experts_are_gathered_once_a_step_and_the_rest_once_a_micro_batch(
    mixtral: Structure, make_workload: Make
) -> None:
    work = shared(make_workload(mixtral, "full"), 8, Layout(expert_parallel=4))
    work = replace(work, batches=replace(work.batches, num_micro_batches=8 * 3))
    dense, routed = mixtral.num_parameters - mixtral.num_routed_parameters, mixtral.num_routed_parameters
    by_hand = 3 * 7 / 8 * dense * (2 * 2 + 4) + 1 / 2 * routed / 4 * (2 + 4)
    assert communication(work, machines(1)).sharding == pytest.approx(by_hand / 100e9)


def test_a_pipeline_waits_while_it_fills_and_drains(llama: Structure, make_workload: Make) -> None:
    work = shared(make_workload(llama, "full"), 2, Layout(pipeline_parallel=4))
    work = replace(work, batches=replace(work.batches, num_micro_batches=2 * 6))
    device = machines(1)
    assert bubble(work, device) == pytest.approx(3 / 6)
    finer = replace(work, layout=Layout(pipeline_parallel=4, virtual_stages=3))
    assert bubble(finer, device) == pytest.approx(1 / 6)
    assert bubble(replace(work, layout=Layout()), device) == 0
    assert communication(work, device).blocking > 0
    assert speed.step_seconds(finer, device).value < speed.step_seconds(work, device).value


def test_a_stage_keeps_its_weights_gathered_while_it_computes_its_micro_batches(
    llama: Structure, make_workload: Make
) -> None:
    work, device = shared(make_workload(llama, "full"), 2, Layout(pipeline_parallel=4)), machines(1)
    many = replace(work, batches=replace(work.batches, num_micro_batches=2 * 6))
    found = communication(work, device)
    assert communication(many, device).sharding == found.sharding
    assert found.sharding == pytest.approx(1 / 2 * llama.num_parameters / 4 * (2 + 4) / 100e9)
    memory = predict_memory(work, device)
    assert memory.weights_bytes == pytest.approx(2 * llama.num_parameters / 4 * (1 / 2 + 1))
    assert memory.optimizer_bytes == pytest.approx(12 * llama.num_parameters / 8)


def test_computing_hides_half_of_what_sharded_copies_move(llama: Structure, make_workload: Make) -> None:
    work, device = shared(make_workload(llama, "full", rows=64, length=256), 8, Layout()), machines(1)
    terms, factors = speed.time_terms(work, device), speed.prior_factors(device, work)
    every = sum(factors[name] * seconds for name, seconds in terms.items())
    moved = factors["link"] * communication(work, device).sharding
    assert speed.step_seconds(work, device).value == pytest.approx(every - FSDP_OVERLAP * moved)
    # never more than there is to compute
    slow = machines(1, link_gb_per_second=1e-6)
    computing = sum(factors[name] * seconds for name, seconds in terms.items() if name != "link")
    whole = factors["link"] * communication(work, slow).sharding
    assert speed.step_seconds(work, slow).value == pytest.approx(whole, rel=0.01)
    assert computing < FSDP_OVERLAP * whole


@pytest.mark.parametrize("device", accelerators(), ids=lambda device: device.name)
@pytest.mark.parametrize("method", ["full", "lora"])
def test_more_devices_train_more_tokens_with_the_same_work_for_each(device: Device, method: str) -> None:
    """The rate of one device falls by at most a half where machines are joined by 25 GB/s a device or more."""
    counts = (1, 2, 4, 8, 16, 64, 512)
    rates = []
    for count in counts:
        some = device.model_copy(update={"num_devices": count})
        work = run_of(some, method=method, global_batch_size=16 * count, num_rows=16 * 512)
        work = replace(work, sharding="fsdp" if count > 1 else "none")
        rates.append(work.batches.num_tokens / speed.step_seconds(work, some).value / count)
    totals = [rate * count for rate, count in zip(rates, counts, strict=True)]
    assert totals == sorted(totals)
    if device.network_gb_per_second >= 25:
        assert min(rates) > 0.5 * rates[0]


@pytest.mark.parametrize("method", ["full", "lora"])
def test_memory_of_a_device_falls_with_every_kind_of_sharing(method: str) -> None:
    def peak(count: int, layout: Layout = WHOLE_COPIES, sharding: str = "fsdp") -> float:
        device = machines(max(1, count // 8), num_devices=min(count, 8))
        work = run_of(machines(1, num_devices=1), method=method, global_batch_size=8)
        work = shared(work, layout.data_parallel(count), layout, sharding)
        return predict_memory(work, device).total_bytes.value

    sharded = [peak(count) for count in (2, 4, 8, 16, 64, 512)]
    assert sharded == sorted(sharded, reverse=True)
    assert sharded[0] < peak(2, sharding="ddp") == peak(8, sharding="ddp")
    for layout in (Layout(tensor_parallel=8), Layout(pipeline_parallel=8)):
        assert peak(8, layout) < peak(8, sharding="ddp")


def test_experts_are_held_once_among_their_devices(mixtral: Structure, make_workload: Make) -> None:
    work, device = make_workload(mixtral, "full"), machines(1, num_devices=4)
    whole = predict_memory(shared(work, 4, Layout(), "ddp"), device)
    divided = predict_memory(shared(work, 4, Layout(expert_parallel=4), "ddp"), device)
    assert whole.weights_bytes - divided.weights_bytes == pytest.approx(2 * 0.75 * mixtral.num_routed_parameters)
    sharded = [predict_memory(shared(work, 4, Layout(expert_parallel=size)), device).weights_bytes for size in (1, 4)]
    assert sharded[1] < sharded[0]  # fewer experts are gathered


def test_seven_billion_parameters_shard_as_by_hand() -> None:
    """18 bytes a parameter (bf16, fp32 masters, two moments, fp32 sums) over 8 devices, and what is gathered."""
    work = run_of(machines(1), method="full")
    found = predict_memory(replace(work, sharding="fsdp"), machines(1))
    count = seven_billion().num_parameters
    assert found.optimizer_bytes == pytest.approx(12 * count / 8)
    gathered = 2 * (2 * seven_billion().num_matrix_parameters / 32 + 32000 * 4096)
    assert found.weights_bytes == pytest.approx(2 * count / 8 + gathered)
