"""Quotes, and the layouts that they compare."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from tests.ml.planning.shapes import accelerator, run_of, seven_billion
from tests.vacuous import nonempty

from luthier.core.errors import RequestError
from luthier.core.results.cost import Device, Layout, LayoutOption, Quote
from luthier.ml.inference.models.structure import structure_of
from luthier.ml.planning.devices import load_prices
from luthier.ml.planning.quote import CLEARLY_FASTER, layout_options, make_quote, possible_layouts, title_of
from luthier.ml.planning.rollout_cost import Rollouts
from luthier.ml.planning.workload import Workload


def quote(memory_gib: float = 80, *, takes_what_fits: bool = False, name: str = "a100-80g") -> Quote:
    return make_quote(
        run_of,
        accelerator(memory_gib, name=name),
        longest_tokens=1000,
        num_rows=10_000,
        num_tokens=5_000_000,
        prices=load_prices(),
        takes_what_fits=takes_what_fits,
        notes=["a note of the caller"],
    )


def test_money_is_hours_times_the_price_of_the_device() -> None:
    found = quote(200)
    price = load_prices().usd_per_hour("a100-80g")
    assert found.usd_per_hour == price
    usd, hours = found.prediction.usd, found.prediction.hours
    assert usd is not None
    assert usd.value == pytest.approx(hours.value * price.value)
    assert usd.low == pytest.approx(hours.low * price.low)
    assert usd.high == pytest.approx(hours.high * price.high)


def test_the_parts_of_time_add_up() -> None:
    found = quote(200)
    assert set(found.hours_by_part) == {"steps", "validations", "checkpoints"}
    for end in ("value", "low", "high"):
        parts = sum(getattr(part, end) for part in found.hours_by_part.values())
        assert parts == pytest.approx(getattr(found.prediction.hours, end))


def test_power_is_told_for_an_own_machine_and_people_beside_it() -> None:
    found, table = quote(200), load_prices()
    assert found.prediction.energy_kwh is not None
    assert found.electricity_usd is not None
    assert found.electricity_usd.value == pytest.approx(
        found.prediction.energy_kwh.value * table.electricity_usd_per_kwh.value
    )
    assert found.people == table.people_cost(10_000)


def test_notes_of_the_caller_are_kept() -> None:
    assert "a note of the caller" in quote(200).prediction.notes


def test_what_does_not_fit_is_quoted_as_it_is_with_what_would_help() -> None:
    found = quote(24)
    assert not found.prediction.fits
    assert found.changes
    assert found.room.longest_row_tokens > 0


def test_what_can_be_made_to_fit_is_quoted_so_where_that_is_asked_for() -> None:
    found = quote(24, takes_what_fits=True)
    assert found.prediction.fits
    assert found.changes == ()
    assert any("does not fit unchanged: predicted with micro-batches" in note for note in found.prediction.notes)


def test_a_device_without_a_price_is_refused() -> None:
    with pytest.raises(RequestError, match="no price for device 'abacus'"):
        quote(80, name="abacus")


def test_the_document_has_each_figure_with_its_ends_and_comes_back_whole() -> None:
    found = quote(24)
    document = found.as_json()
    for name in ("step_seconds", "hours", "peak_memory_bytes", "usd", "energy_kwh", "electricity_usd", "steps_hours"):
        assert document[f"{name}_low"] <= document[name] <= document[f"{name}_high"]
    assert document["price_as_of"] == "2026-11-25"
    assert [work["kind"] for work in document["people"]] == ["data_preparation", "annotation", "review"]
    assert {change["kind"] for change in document["changes"]}
    assert sum(document["peak_memory_parts_bytes"].values()) == pytest.approx(document["peak_memory_bytes"])
    assert Quote.model_validate_json(found.model_dump_json()) == found


Make = Callable[..., Any]


def devices(count: int, memory_gib: float = 80) -> Device:
    made = accelerator(memory_gib, num_devices=count)
    return made.model_copy(update={"node_devices": 8, "network_gb_per_second": 25.0})


def options(device: Device, work: Workload | None = None, **changes: Any) -> tuple[LayoutOption, ...]:
    settings = {name: changes.pop(name) for name in ("why_not_sharded", "is_supervised") if name in changes}
    own = run_of(device, **changes) if work is None else work
    return layout_options(lambda where: run_of(where, **changes), own, device, **settings)


def test_every_layout_divides_devices_heads_and_experts_evenly(architecture: Make) -> None:
    mixtral = structure_of(architecture("mixtral", num_hidden_layers=8, num_attention_heads=8, num_key_value_heads=4))
    for structure in (seven_billion(), mixtral):
        for count in (2, 8, 16, 64, 512):
            found = list(possible_layouts(structure, devices(count)))
            assert found[0] == Layout()
            assert len(set(found)) == len(found)
            for layout in nonempty(found):
                copies = layout.data_parallel(count)
                assert copies * layout.model_parallel == count
                assert layout.tensor_parallel <= 8
                assert structure.num_kv_heads % layout.tensor_parallel == 0
                assert layout.pipeline_parallel == 1 or count > 8
                assert layout.pipeline_parallel <= structure.num_layers // 2
                assert copies % layout.expert_parallel == 0
                assert (structure.num_experts or 1) % layout.expert_parallel == 0
    assert any(layout.expert_parallel == 4 for layout in possible_layouts(mixtral, devices(8)))
    assert any(layout.pipeline_parallel == 4 for layout in possible_layouts(mixtral, devices(64)))


def test_titles_name_what_is_shared() -> None:
    work = run_of(devices(8))
    assert title_of(work, devices(8)) == "dp 8 (DDP)"
    sharded = replace(work, sharding="fsdp")
    assert title_of(replace(sharded, layout=Layout(tensor_parallel=2)), devices(8)) == "dp 4 (FSDP2) x tp 2"
    layout = Layout(tensor_parallel=8, pipeline_parallel=4, expert_parallel=2)
    assert title_of(replace(sharded, layout=layout), devices(64)) == "dp 2 (FSDP2) x tp 8 x pp 4, ep 2"
    assert title_of(replace(work, sharding="none", layout=Layout(tensor_parallel=8)), devices(8)) == "tp 8"


def test_nothing_is_said_of_one_device_or_a_cpu() -> None:
    assert options(devices(1)) == ()
    cpu = accelerator(8, name="cpu", num_devices=1, is_cpu=True).model_copy(update={"num_devices": 2})
    assert layout_options(run_of, run_of(cpu), cpu) == ()


def test_whole_copies_that_fit_are_ours_and_say_how_they_are_started() -> None:
    (own, *more) = options(devices(8), global_batch_size=256, gradient_checkpointing=True)
    assert own.title == "dp 8 (DDP)"
    assert own.fits
    assert own.runs_here
    assert own.words == "luthier train RECIPE --devices 8"
    assert more == []
    (own, *_) = options(devices(16), global_batch_size=256, gradient_checkpointing=True)
    assert own.words == "luthier train RECIPE under torchrun or Ray, 2 machines of 8 (docs/devices.md)"
    (own, *_) = options(devices(64), global_batch_size=256, gradient_checkpointing=True)
    assert own.words.endswith("8 machines of 8 (docs/devices.md); more than 2 machines have not been tried")


def test_a_clearly_faster_layout_that_luthier_does_not_run_is_named_with_who_does() -> None:
    """A base that no device holds, and few short rows: gathering it takes longer than computing with it."""
    device = devices(8, memory_gib=12)
    own = replace(run_of(device, global_batch_size=8), sharding="fsdp")
    first, other = options(device, own, global_batch_size=8)
    assert first.title == "dp 8 (FSDP2)"
    assert first.runs_here
    assert other.layout.tensor_parallel > 1
    assert other.fits
    assert other.tokens_per_second.value > CLEARLY_FASTER * first.tokens_per_second.value
    assert not other.runs_here
    assert "Luthier does not run this layout itself: it has no tensor parallelism" in other.words
    assert "; NeMo AutoModel and Megatron Bridge do (docs/scale.md)" in other.words
    assert "torchtitan" not in other.words


def test_where_whole_copies_do_not_fit_the_sharded_layout_is_named_with_its_option() -> None:
    first, other = options(devices(8, memory_gib=40), method="full", global_batch_size=256)
    assert not first.fits
    assert other.fits
    assert other.is_sharded
    assert other.title == "dp 8 (FSDP2)"
    assert other.words == (
        "luthier train RECIPE --set training.sharding=fsdp --devices 8; "
        "each process reads the whole base first: 108 GB of a machine's own memory"  # 8 x 6.74e9 x 2 bytes
    )


def test_what_cannot_be_sharded_here_is_said_with_its_reason() -> None:
    device = devices(8, memory_gib=40)
    why = "training.sharding fsdp with optimizer muon is not possible; set training.optimizer: adamw"
    own = replace(run_of(device, method="full"), sharding="fsdp")
    (first, *_) = options(device, own, method="full", why_not_sharded=why)
    assert not first.runs_here
    assert first.words == f"Luthier does not run this layout itself: {why}"


@pytest.mark.parametrize("changes", [{"is_supervised": False}, {"method": "qlora"}])
def test_other_engines_are_named_for_what_they_train_alone(changes: dict[str, Any]) -> None:
    device = devices(8, memory_gib=12)
    assert len(options(device, global_batch_size=8, **changes)) == 1
    drawing = replace(run_of(device, global_batch_size=8), rollouts=Rollouts(8, 100.0, 50, 150, 0))
    assert len(options(device, drawing, global_batch_size=8)) == 1


def test_few_rows_leave_layouts_with_fewer_copies() -> None:
    """Two rows a step on eight devices: a copy of the model may have several devices, never a copy without a row."""
    device = devices(8)
    own = replace(run_of(device.model_copy(update={"num_devices": 2}), global_batch_size=2), sharding="fsdp")
    found = options(device, own, global_batch_size=2)
    assert [option.title for option in found[1:] if option.data_parallel > 2] == []
    assert found[0].data_parallel == 8
