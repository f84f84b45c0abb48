"""Plans for accelerators of other makers, and for systems that fork no workers."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from tests.ml.planning.test_devices import machine

from luthier.core.errors import RecipeError, RequestError
from luthier.core.plan import Plan
from luthier.core.results.cost import Device
from luthier.ml.inference.models.structure import Structure
from luthier.ml.planning import hardware, resolve_for_device
from luthier.ml.planning.devices import OWN_GPU, device_of, load_prices, this_machine
from luthier.ml.planning.resolve_for_device import compiled_for, with_steps_on

MakePlan = Callable[..., Plan]
ARC, APPLE = "Intel(R) Arc(TM) B580 Graphics", "Apple GPU (arm)"


@pytest.mark.parametrize(
    ("device", "name", "is_packed", "why"),
    [
        ("xpu", ARC, True, "on xpu rows end to end waste nothing"),
        ("mps", APPLE, False, "no FlexAttention for mps"),
        ("cuda", "AMD Instinct MI300X", True, "on cuda rows end to end waste nothing"),
    ],
)
def test_a_plan_names_torch_s_device_and_packs_where_that_can_be(
    device: str, name: str, is_packed: bool, why: str, make_plan: MakePlan
) -> None:
    plan = make_plan(accelerator=name, device=device)
    assert plan.training.device == device
    assert plan.sources["training.device"].why == name
    assert plan.training.packing is is_packed
    assert why in plan.sources["training.packing"].why
    assert plan.training.micro_batch_workers == 1
    assert f"on {device}" in plan.sources["training.micro_batch_workers"].why


def test_a_plan_is_quoted_elsewhere_with_the_steps_of_the_plan_that_is_made_there(
    make_plan: MakePlan, device: Device
) -> None:
    here, there = make_plan(), make_plan(accelerator="NVIDIA H100 80GB HBM3")
    steps = ("global_batch_size", "num_steps", "num_steps_per_epoch", "validate_every_steps")
    cut = ("min_micro_batches", "micro_batch_workers")

    def values(plan: Plan, *names: str) -> list[int]:
        return [getattr(plan.training, name) for name in names]

    assert (here.training.global_batch_size, there.training.global_batch_size) == (8, 16)
    assert (values(here, *cut), values(there, *cut)) == ([2, 2], [1, 1])
    elsewhere = with_steps_on(here, device_of("h100", machine()))
    assert values(elsewhere, *steps, *cut) == values(there, *steps, *cut)
    assert values(with_steps_on(there, device), *steps) == values(here, *steps)
    assert with_steps_on(here, device) is here
    asked = make_plan({"training": {"global_batch_size": 4, "validate_every_steps": 3}})
    assert values(with_steps_on(asked, device_of("h100", machine())), *steps) == values(asked, *steps)


def test_packing_is_taken_where_the_recipe_asks_for_it(make_plan: MakePlan) -> None:
    assert make_plan({"training": {"packing": True}}, accelerator=APPLE, device="mps").training.packing


@pytest.mark.parametrize("name", [ARC, APPLE])
def test_there_is_no_forecast_for_what_the_table_lacks(name: str) -> None:
    with pytest.raises(RequestError, match=r"this machine's accelerator .*(Arc|Apple)"):
        this_machine(machine(device="xpu", accelerators=(name,)))


def test_what_the_table_lacks_has_the_rates_that_were_measured() -> None:
    measured = {"accelerator_memory_bytes": 12 << 30, "accelerator_gb_per_second": 380.0}
    found = machine(device="xpu", accelerators=(ARC,), bfloat16_gflops=60_000.0, **measured)
    device = this_machine(found)
    assert (device.name, device.title, device.is_cpu) == (OWN_GPU, ARC, False)
    assert (device.memory_bytes, device.bfloat16_tflops, device.memory_gb_per_second) == (12 << 30, 60.0, 380.0)
    assert device_of(f"{OWN_GPU}:2", found) == device.model_copy(update={"num_devices": 2})
    assert load_prices().devices[OWN_GPU].basis == "assumption"
    known = machine(device="cuda", accelerators=("AMD Instinct MI300X",), **measured)
    assert this_machine(known).name == "mi300x"
    with pytest.raises(RequestError, match=OWN_GPU):
        device_of(OWN_GPU, machine())


def test_a_full_accelerator_is_planned_without_its_memory_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_device: str, _seconds: float) -> float:
        raise torch.OutOfMemoryError("CUDA out of memory")

    released: list[str] = []
    monkeypatch.setattr(hardware, "_memory_rate", full)
    monkeypatch.setattr(hardware.accelerator, "release_cached", released.append)
    hardware._accelerator_memory_rate.cache_clear()
    assert hardware._accelerator_memory_rate("cuda") == 0.0
    assert released == ["cuda"], "a run that follows does not count it"
    hardware._accelerator_memory_rate.cache_clear()
    with pytest.raises(RequestError, match="this machine's accelerator"):
        this_machine(machine(device="xpu", accelerators=(ARC,), accelerator_memory_bytes=12 << 30))


def test_layers_are_not_compiled_on_mps(make_plan: MakePlan, structure: Structure) -> None:
    plan = make_plan({"training": {"max_steps": 10**6}}, accelerator=APPLE, device="mps")
    found = compiled_for(plan, structure, machine(device="mps", accelerators=(APPLE,)))
    assert not found.training.compile
    assert "not tested on mps" in found.sources["training.compile"].why


def test_without_forks_there_is_one_process(make_plan: MakePlan, monkeypatch: pytest.MonkeyPatch) -> None:
    assert make_plan().training.micro_batch_workers == 2
    monkeypatch.setattr(resolve_for_device, "can_fork", lambda: False)
    plan = make_plan()
    assert plan.training.micro_batch_workers == 1
    assert "docs/platforms.md" in plan.sources["training.micro_batch_workers"].why
    with pytest.raises(RecipeError, match="does not do"):
        make_plan({"training": {"micro_batch_workers": 2}})
