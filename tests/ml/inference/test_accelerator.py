"""Accelerators by torch's own names: none of them is here, so torch's modules for them are made up."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from luthier.core.errors import RequestError
from luthier.ml.inference import accelerator
from luthier.ml.inference.accelerator import device_peak_memory_bytes, forget_peaks
from luthier.ml.planning.resolve_method import choose_quantisation
from luthier.ml.training import distributed
from luthier.ml.training.kernels import LIGER_PACKAGE

Make = Callable[..., None]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Make:
    """Makes this a machine with accelerators of a kind, by what torch says of them."""

    def make(kind: str, **functions: Any) -> None:
        found = torch.device(kind) if kind != "cpu" else None
        monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available=False: found)
        monkeypatch.setattr(torch, "get_device_module", lambda name: SimpleNamespace(**functions, kind=name))

    return make


@pytest.mark.parametrize(
    ("kind", "name"), [("cuda", "cuda"), ("xpu", "xpu"), ("mps", "mps"), ("hpu", "cpu"), ("cpu",) * 2]
)
def test_the_device_is_torch_s_own_name(kind: str, name: str, machine: Make) -> None:
    machine(kind, device_count=lambda: 2)
    assert accelerator.device_type() == name
    assert accelerator.device_count() == (0 if name == "cpu" else 2)


def test_names_are_those_of_the_driver(machine: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["AMD Instinct MI300X", "AMD Instinct MI250X"]
    machine("cuda", device_count=lambda: 2, get_device_name=names.__getitem__)
    assert accelerator.device_names() == tuple(names)
    machine("mps", device_count=lambda: 1)
    monkeypatch.setattr(accelerator.platform, "processor", lambda: "arm")
    assert accelerator.device_names() == ("Apple GPU (arm)",)
    machine("cpu")
    assert accelerator.device_names() == ()


def test_the_memory_of_each_accelerator_is_that_of_its_properties(machine: Make) -> None:
    sizes = [SimpleNamespace(total_memory=80 << 30), SimpleNamespace(total_memory=24 << 30)]
    machine("cuda", device_count=lambda: 2, get_device_properties=sizes.__getitem__)
    assert accelerator.device_memory_bytes() == (80 << 30, 24 << 30)
    machine("mps", device_count=lambda: 1)
    assert accelerator.device_memory_bytes() == ()
    machine("cpu")
    assert accelerator.device_memory_bytes() == ()


def test_the_software_is_rocm_where_torch_is_built_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert accelerator.software("cuda") == "CUDA 13.0"
    monkeypatch.setattr(torch.version, "hip", "6.4.2")
    monkeypatch.setattr(torch.version, "xpu", "20250302")
    found = [accelerator.software(kind) for kind in ("cuda", "xpu", "mps", "cpu")]
    assert found == ["ROCm 6.4.2", "XPU 20250302", "MPS", ""]


def test_memory_of_an_accelerator(machine: Make) -> None:
    asked: list[object] = []
    machine(
        "xpu",
        reset_peak_memory_stats=asked.append,
        max_memory_reserved=lambda device: {"xpu:1": 7}[device],
        mem_get_info=lambda device: (5, 9),
    )
    forget_peaks("xpu:1")
    assert asked == ["xpu:1"]
    assert device_peak_memory_bytes("xpu:1") == 7
    assert accelerator.free_bytes(torch.device("xpu", 1)) == 5
    assert accelerator.total_bytes("xpu") == 9


def test_memory_of_mps_which_keeps_no_peak(machine: Make) -> None:
    machine("mps", driver_allocated_memory=lambda: 30, recommended_max_memory=lambda: 100)
    forget_peaks("mps")
    assert device_peak_memory_bytes("mps") == 30
    assert accelerator.free_bytes("mps") == 70
    assert accelerator.total_bytes("mps") == 100
    assert accelerator.total_bytes("cpu") == 0


@pytest.mark.parametrize(("kind", "words"), [("xpu", ("xpu:1",)), ("mps", ())])
def test_the_generator_of_a_device_continues_as_if_nothing_had_been_drawn(
    kind: str, words: tuple[str, ...], machine: Make
) -> None:
    state = [torch.tensor([1])]
    asked: list[object] = []

    def read(*device: object) -> torch.Tensor:
        asked.append(device)
        return state[0].clone()

    def write(value: torch.Tensor, *device: object) -> None:
        asked.append(device)
        state[0] = value

    machine(kind, get_rng_state=read, set_rng_state=write)
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    with accelerator.forked_random(f"{kind}:1"):
        torch.rand(9)
        state[0] = torch.tensor([8])
    assert torch.equal(torch.rand(2), expected)
    assert state[0].item() == 1
    assert asked == [words, words]


def test_without_an_accelerator_the_generator_of_the_cpu_is_seeded_alone(
    machine: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(3)
    expected = torch.rand(2)
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda _: pytest.fail("there is none"))
    machine("cpu")
    accelerator.seed_random(3)
    assert torch.equal(torch.rand(2), expected)


@pytest.mark.parametrize("kind", ["cuda", "xpu", "mps"])
def test_where_there_is_an_accelerator_all_generators_are_seeded(
    kind: str, machine: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    seeds: list[int] = []
    monkeypatch.setattr(torch, "manual_seed", seeds.append)
    machine(kind)
    accelerator.seed_random(5)
    assert seeds == [5]


def test_a_cpu_has_no_generator_of_its_own() -> None:
    assert accelerator.random_state("cpu") is None
    accelerator.set_random_state("cpu", None)
    accelerator.synchronize("cpu")


@pytest.mark.parametrize(
    ("device", "pins", "flex", "triton", "widest", "served"),
    [
        ("cuda:0", True, True, True, torch.float64, "bfloat16"),
        ("xpu:0", True, True, True, torch.float64, "bfloat16"),
        ("mps", False, False, False, torch.float32, "float32"),
        ("cpu", False, False, False, torch.float64, "float32"),
    ],
)
def test_what_each_kind_has(
    device: str, pins: bool, flex: bool, triton: bool, widest: torch.dtype, served: str
) -> None:
    assert accelerator.can_pin(device) is pins
    assert accelerator.has_flex_attention(device) is flex
    assert accelerator.has_triton(torch.device(device)) is triton
    assert accelerator.widest_float(device) == widest
    assert accelerator.usual_precision(accelerator.kind_of(device)) == served
    assert accelerator.is_accelerator(device) is (device != "cpu")
    assert LIGER_PACKAGE == "liger_kernel"


def test_several_processes_of_a_machine() -> None:
    assert [accelerator.numbered(kind, 1) for kind in ("cuda", "xpu", "mps", "cpu")] == [
        "cuda:1",
        "xpu:1",
        "mps",
        "cpu",
    ]
    backends = [accelerator.collective_backend(kind) for kind in ("cuda", "xpu", "cpu")]
    assert backends == ["cpu:gloo,cuda:nccl", "cpu:gloo,xpu:xccl", "gloo"]


def test_a_process_takes_the_device_of_its_number(machine: Make) -> None:
    used: list[str] = []
    machine("xpu", set_device=used.append)
    accelerator.use_device("xpu:1")
    machine("mps")
    accelerator.use_device("mps")
    assert used == ["xpu:1"]


@pytest.mark.parametrize(
    ("kind", "hip", "environment", "variable"),
    [
        ("cuda", None, {}, {"CUDA_VISIBLE_DEVICES": "1"}),
        ("cuda", "6.4", {}, {"CUDA_VISIBLE_DEVICES": "1"}),
        ("cuda", "6.4", {"HIP_VISIBLE_DEVICES": "4,7"}, {"HIP_VISIBLE_DEVICES": "7"}),
        ("xpu", None, {"ZE_AFFINITY_MASK": "2,3"}, {"ZE_AFFINITY_MASK": "3"}),
        ("xpu", None, {}, {"ZE_AFFINITY_MASK": "1"}),
    ],
)
def test_a_worker_sees_one_device(
    kind: str,
    hip: str | None,
    environment: dict[str, str],
    variable: dict[str, str],
    machine: Make,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    machine(kind, device_count=lambda: 2)
    monkeypatch.setattr(torch.version, "hip", hip)
    assert accelerator.one_device(3, environment) == variable
    machine(kind, device_count=lambda: 1)
    assert accelerator.one_device(3, environment) == {}


def test_macs_do_not_train_together(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(RequestError, match="2 processes on mps"), distributed.joined("mps"):
        pass


def test_a_base_in_four_bits_is_not_chosen_on_mps() -> None:
    assert choose_quantisation(None, "mps")[0] == "int8"
    assert choose_quantisation("int8", "mps")[:2] == ("int8", "asked")
