"""What fits: limits are limits, and what is changed to fit changes nothing that is learned."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.ml.planning.shapes import accelerator, run_of
from tests.vacuous import nonempty

from luthier.core.results.cost import Device
from luthier.ml.inference.models.structure import LinearLayer
from luthier.ml.planning.batch_shapes import KEPT_MAX_TOKENS
from luthier.ml.planning.fit import longest_row, made_to_fit, max_rows, room, ways_to_fit
from luthier.ml.planning.memory import predict_memory
from luthier.ml.planning.predict import fits
from luthier.ml.planning.speed import step_seconds
from luthier.ml.planning.workload import Workload
from luthier.ml.planning.workload_variants import with_micro_batch


def holds(workload: Workload, device: Device, rows: int, length: int) -> bool:
    return fits(predict_memory(with_micro_batch(workload, rows, length), device), device)


@settings(max_examples=25, deadline=None)
@given(st.floats(min_value=8, max_value=300), st.integers(min_value=1, max_value=5000))
def test_one_row_more_than_the_most_does_not_fit(memory_gib: float, length: int) -> None:
    device = accelerator(memory_gib)
    workload = run_of(device, method="qlora")
    rows = max_rows(workload, device, length=length)
    assert rows == 0 or holds(workload, device, rows, length)
    assert not holds(workload, device, rows + 1, length)


@settings(max_examples=15, deadline=None)
@given(st.floats(min_value=8, max_value=300))
def test_one_token_more_than_the_longest_row_does_not_fit(memory_gib: float) -> None:
    device = accelerator(memory_gib)
    workload = run_of(device)
    length = longest_row(workload, device)
    assert length == 0 or holds(workload, device, 1, length)
    assert not holds(workload, device, 1, length + 1)


def test_a_row_beyond_the_limit_of_kept_probabilities_is_found_though_shorter_ones_do_not_fit() -> None:
    workload = replace(run_of(accelerator(80)), attention="by_length")
    just_below = predict_memory(with_micro_batch(workload, 1, KEPT_MAX_TOKENS), accelerator(80)).total_bytes.value
    just_above = predict_memory(with_micro_batch(workload, 1, KEPT_MAX_TOKENS + 1), accelerator(80)).total_bytes
    assert just_above.value < just_below
    device = accelerator((just_below + just_above.value) / 2 / 0.95 / 2**30)
    assert not holds(workload, device, 1, KEPT_MAX_TOKENS)
    assert longest_row(workload, device) > KEPT_MAX_TOKENS


def test_what_fits_is_found_without_a_look_through_all_layers_for_each_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model has hundreds of them, and some ninety sizes are tried: it was the most of the time that a quote takes."""
    device = accelerator(24)
    workload = run_of(device, method="qlora")
    layers, looked, kind = workload.structure.linear_layers, list[str](), vars(LinearLayer)["kind"].fget
    expected = room(workload, device, longest_tokens=1000)
    monkeypatch.setattr(LinearLayer, "kind", property(lambda layer: looked.append(layer.name) or kind(layer)))
    monkeypatch.setattr(LinearLayer, "__hash__", lambda _: pytest.fail("a layer is hashed"))
    not_known_yet = replace(workload, structure=replace(workload.structure, linear_layers=(*layers,)))
    assert room(not_known_yet, device, longest_tokens=1000) == expected
    assert 0 < len(looked) <= 2 * len(layers)


def test_nothing_fits_where_the_weights_do_not() -> None:
    device = accelerator(4)
    found = room(run_of(device), device, longest_tokens=1000)
    assert (found.micro_batch_rows, found.longest_row_tokens) == (0, 0)
    assert made_to_fit(run_of(device), device, longest_tokens=1000) is None


def test_the_most_that_is_asked_for_is_never_exceeded() -> None:
    device = accelerator(10_000)
    assert max_rows(run_of(device), device, length=100, most=7) == 7


def test_a_run_that_fits_is_left_alone() -> None:
    device = accelerator(200)
    workload = run_of(device)
    ways = ways_to_fit(workload, device, longest_tokens=1000)
    assert [(way.workload, way.changes) for way in ways] == [(workload, ())]


@pytest.mark.parametrize("memory_gib", [16, 20, 24, 32, 40, 60])
@pytest.mark.parametrize("num_devices", [1, 4])
def test_every_way_fits_learns_the_same_and_the_fastest_stands_first(memory_gib: int, num_devices: int) -> None:
    device = accelerator(memory_gib, num_devices=num_devices)
    workload = run_of(device)
    ways = ways_to_fit(workload, device, longest_tokens=1000)
    assert ways
    seconds = [step_seconds(way.workload, device).value for way in ways]
    assert seconds == sorted(seconds)
    for way in ways:
        assert fits(predict_memory(way.workload, device), device)
        assert way.workload.num_steps == workload.num_steps
        assert way.workload.method == workload.method
        assert way.workload.batches.num_tokens == workload.batches.num_tokens
        assert way.micro_batch_tokens >= 1000
        assert ("micro_batch" in way.changes) == (way.micro_batch_tokens < workload.batches.peak_tokens)
        assert ("checkpointing" in way.changes) == way.workload.gradient_checkpointing
        assert ("sharding" in way.changes) == (way.workload.sharding == "fsdp")


def test_what_is_recomputed_already_is_not_proposed_again() -> None:
    device = accelerator(20)
    workload = run_of(device, gradient_checkpointing=True)
    assert all(
        nonempty("checkpointing" not in way.changes for way in ways_to_fit(workload, device, longest_tokens=1000))
    )


def test_weights_that_no_single_device_holds_are_spread_over_several() -> None:
    one, eight = accelerator(80), accelerator(80, num_devices=8)
    assert made_to_fit(run_of(one, method="full"), one, longest_tokens=1000) is None
    way = made_to_fit(run_of(eight, method="full"), eight, longest_tokens=1000)
    assert way is not None
    assert "sharding" in way.changes
