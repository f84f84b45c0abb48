"""What makes a run fit: in the order of what is given up, each with its price, and none where none is needed."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.ml.planning.shapes import accelerator, run_of
from tests.vacuous import nonempty

from luthier.core.results.cost import Change
from luthier.ml.planning.devices import alternatives_to, load_prices
from luthier.ml.planning.fit import cheapest_changes, name_of

ORDER = {"micro_batch": 0, "checkpointing": 0, "sharding": 0, "method": 1, "device": 2}


def changes(memory_gib: float, method: str = "lora", num_devices: int = 1) -> tuple[Change, ...]:
    device = accelerator(memory_gib, num_devices=num_devices)
    return cheapest_changes(
        lambda where: run_of(where, method=method),
        device,
        longest_tokens=1000,
        other_devices=alternatives_to(device),
        prices=load_prices(),
    )


def test_a_run_that_fits_needs_none() -> None:
    assert changes(200) == ()


@pytest.mark.parametrize("memory_gib", [6, 12, 20, 24, 60])
def test_the_same_training_first_then_another_method_then_another_device(memory_gib: float) -> None:
    found = changes(memory_gib)
    assert found
    places = [ORDER[change.kind] for change in found]
    assert places == sorted(places)
    same = [change.hours.value for change in found if ORDER[change.kind] == 0]
    assert same == sorted(same)
    elsewhere = [change.usd.value for change in found if change.kind == "device" and change.usd]
    assert elsewhere == sorted(elsewhere)
    assert 1 <= len(elsewhere) <= 3


def test_each_says_how_to_ask_for_it() -> None:
    found = {change.kind: change for change in changes(40)}
    assert "--set training.micro_batch_tokens=" in found["micro_batch"].ask
    asked = int(found["micro_batch"].ask.rpartition("=")[2])
    assert 1000 <= asked < 16384
    assert f"{asked:,} tokens" in found["micro_batch"].words
    assert found["device"].ask.startswith("--on ")


def test_a_way_that_this_project_cannot_train_yet_has_no_command() -> None:
    from luthier.ml.training.methods.rules import RULES as METHODS

    spread = next(change for change in changes(40, "full", num_devices=8) if change.kind == "sharding")
    assert spread.ask == ""
    for change in nonempty(changes(20, "full")):
        if change.kind == "method":
            name = "qlora" if "QLoRA" in change.words else "lora"
            assert bool(change.ask) == (name in METHODS)


def test_full_fine_tuning_that_does_not_fit_is_offered_as_lora() -> None:
    methods = [change for change in changes(24, "full") if change.kind == "method"]
    assert "LoRA" in methods[0].words
    assert all(change.peak_memory_bytes.value <= 24 * 2**30 for change in methods)


def test_a_device_without_a_price_has_hours_and_no_usd(tmp_path: Path) -> None:
    path = tmp_path / "prices.yaml"
    path.write_text("as_of: 2027-01-31\ndevices: {mi300x: {on_demand: 2}}", encoding="utf-8")
    device = accelerator(24)
    found = cheapest_changes(
        lambda where: run_of(where, method="full"),
        device,
        longest_tokens=1000,
        other_devices=alternatives_to(device),
        prices=load_prices(path),
        market="spot",
    )
    mine = next(change for change in found if change.words.startswith("mi300x"))
    assert mine.usd is None
    assert mine.hours.value > 0


def test_names_are_as_they_are_asked_for() -> None:
    assert name_of(accelerator(80)) == "a100-80g"
    assert name_of(accelerator(80, num_devices=4)) == "a100-80g:4"
