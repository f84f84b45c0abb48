"""Devices by name: the table, this machine, and names that are not there."""

from __future__ import annotations

import pytest

from luthier.core.errors import RequestError
from luthier.ml.planning import hardware
from luthier.ml.planning.devices import device_names, device_of, family_of, this_machine
from luthier.ml.planning.hardware import Hardware, Rates
from luthier.ml.planning.workload import precision_on


def machine(**changes: object) -> Hardware:
    values: dict[str, object] = {
        "cpu_name": "a processor",
        "num_cores": 2,
        "num_threads": 2,
        "memory_bytes": 8 << 30,
        "memory_available_bytes": 6 << 30,
        "device": "cpu",
        "accelerators": (),
        "float32_gflops": 100.0,
        "bfloat16_gflops": 400.0,
        "memory_gb_per_second": 20.0,
        "precision": "bfloat16",
        "why": "measured by a test",
    }
    return Hardware.model_validate(values | changes)


@pytest.mark.parametrize("name", device_names())
def test_every_device_has_plausible_figures(name: str) -> None:
    device = device_of(name, machine())
    assert device.name == name
    assert device.num_devices == 1
    assert 8 << 30 <= device.memory_bytes <= 512 << 30
    assert device.bfloat16_tflops > device.float32_tflops > 0
    assert device.memory_gb_per_second > 0
    assert device.power_watts > 0
    assert device.source


@pytest.mark.parametrize("name", [name for name in device_names() if name != "cpu"])
def test_every_accelerator_has_a_machine_and_a_network(name: str) -> None:
    device = device_of(f"{name}:64", machine())
    assert 4 <= device.node_devices <= 8
    assert 0 < device.network_gb_per_second < device.link_gb_per_second
    assert device.num_nodes == 64 // device.node_devices
    assert device_of(f"{name}:{device.node_devices}", machine()).num_nodes == 1
    assert device_of(f"{name}:{device.node_devices + 1}", machine()).num_nodes == 2


def test_the_cpu_is_this_machine_as_it_was_measured() -> None:
    device = device_of("cpu", machine())
    assert device.is_cpu
    assert device.bfloat16_tflops == 0.4
    assert device.memory_bytes == 8 << 30
    assert "a processor" in device.title
    assert family_of(device) == "cpu"


@pytest.mark.parametrize(("name", "precision"), [("t4", "float32"), ("l4", "bfloat16"), ("h100:8", "bfloat16")])
def test_an_accelerator_without_units_for_bfloat16_is_quoted_in_float32(name: str, precision: str) -> None:
    assert precision_on(device_of(name, machine())) == precision


def test_the_cpu_beside_an_accelerator_has_rates_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "cpu_rates", lambda: Rates(float32=90.0, bfloat16=45.0))
    found = machine(
        device="cuda", accelerators=("NVIDIA H100 80GB HBM3",), float32_gflops=50_000.0, bfloat16_gflops=600_000.0
    )
    device = device_of("cpu", found)
    assert (device.float32_tflops, device.bfloat16_tflops) == (0.09, 0.045)
    assert precision_on(device) == "float32"
    assert this_machine(found).bfloat16_tflops > 100


@pytest.mark.parametrize(
    ("text", "name", "count"),
    [("a100-80g:4", "a100-80g", 4), ("A100:8", "a100-80g", 8), (" h100 ", "h100", 1), ("RTX_3090", "rtx3090", 1)],
)
def test_names_counts_and_aliases(text: str, name: str, count: int) -> None:
    text = text.replace("RTX_", "rtx") if text.startswith("RTX") else text
    device = device_of(text, machine())
    assert (device.name, device.num_devices) == (name, count)


def test_an_unknown_device_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(RequestError, match="h100"):
        device_of("h1000", machine())


@pytest.mark.parametrize(
    "text", ["", "a100:", "a100:0", "a100:99999", "a100:-1", "a100:two", "cpu:2", "a100 80g", ":4"]
)
def test_text_that_names_no_device_is_refused(text: str) -> None:
    with pytest.raises(RequestError):
        device_of(text, machine())


@pytest.mark.parametrize(
    ("told", "name"),
    [
        ("NVIDIA A100-SXM4-80GB", "a100-80g"),
        ("NVIDIA A100-SXM4-40GB", "a100-40g"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H200", "h200"),
        ("Tesla T4", "t4"),
        ("NVIDIA L4", "l4"),
        ("NVIDIA L40S", "l40s"),
        ("NVIDIA GeForce RTX 4090", "rtx4090"),
        ("NVIDIA RTX A6000", "rtx-a6000"),
        ("AMD Instinct MI300X", "mi300x"),
    ],
)
def test_this_machines_accelerator_is_found_by_the_name_that_its_driver_gives(told: str, name: str) -> None:
    assert this_machine(machine(device="cuda", accelerators=(told,))).name == name


def test_without_an_accelerator_this_machine_is_its_cpu() -> None:
    assert this_machine(machine()).is_cpu


def test_an_accelerator_that_the_table_lacks_is_refused_by_name() -> None:
    with pytest.raises(RequestError, match="GeForce 8800"):
        this_machine(machine(device="cuda", accelerators=("NVIDIA GeForce 8800 GTX",)))


GIB = 1 << 30


@pytest.mark.parametrize(
    ("told", "gib", "name"),
    [("Tesla T4", 14.6, "t4"), ("NVIDIA A10G", 22.1, "a10g"), ("NVIDIA H100 80GB HBM3", 79.1, "h100")],
)
def test_a_known_accelerator_has_the_memory_that_its_driver_leaves(told: str, gib: float, name: str) -> None:
    found = machine(
        device="cuda",
        accelerators=(told,),
        accelerator_memory_bytes=int(gib * GIB),
        accelerator_gb_per_second=100.0,
    )
    device = this_machine(found)
    assert device == device_of(name, found).model_copy(update={"memory_bytes": int(gib * GIB)})
    more = found.model_copy(update={"accelerator_memory_bytes": 500 * GIB})
    assert this_machine(more) == device_of(name, found), "the table's where the driver says more"
    assert device_of(f"{name}:4", found).memory_bytes > device.memory_bytes, "another machine has what the table says"


def test_processes_have_the_memory_of_the_smallest_of_their_cards() -> None:
    cards = (80 * GIB, 40 * GIB, 24 * GIB)
    found = machine(
        device="cuda",
        accelerators=("NVIDIA A100-SXM4-80GB",) * 3,
        accelerator_memory_bytes=79 * GIB,
        accelerator_gb_per_second=100.0,
        each_memory_bytes=cards,
    )
    sizes = [found.shared_by(num).accelerator_memory_bytes // GIB for num in (1, 2, 3, 8)]
    assert sizes == [79, 40, 24, 24]
    assert this_machine(found.shared_by(2)).memory_bytes == 40 * GIB
    unknown = found.model_copy(update={"each_memory_bytes": ()})
    assert unknown.shared_by(2) == unknown


@pytest.mark.parametrize(
    ("told", "gib", "name"),
    [
        ("NVIDIA GeForce RTX 4090 Laptop GPU", 15.6, "rtx4090"),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", 9.8, "h100"),
        ("NVIDIA A100-SXM4-40GB MIG 3g.20gb", 19.5, "a100-40g"),
    ],
)
def test_a_slice_of_a_card_and_the_card_of_a_laptop_have_measured_rates(told: str, gib: float, name: str) -> None:
    found = machine(
        device="cuda",
        accelerators=(told,),
        accelerator_memory_bytes=int(gib * GIB),
        accelerator_gb_per_second=300.0,
        bfloat16_gflops=60_000.0,
        float32_gflops=9_000.0,
    )
    device = this_machine(found)
    assert (device.name, device.title, device.memory_bytes) == (name, told, int(gib * GIB))
    assert (device.bfloat16_tflops, device.float32_tflops, device.memory_gb_per_second) == (60.0, 9.0, 300.0)
    full = this_machine(found.model_copy(update={"accelerator_gb_per_second": 0.0}))
    assert full.memory_bytes == int(gib * GIB), "also where its memory is too full to be measured"
