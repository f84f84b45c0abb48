"""Accelerators by torch's own names: `cuda` (NVIDIA, and AMD by ROCm), `xpu` (Intel), `mps` (Apple); without one `cpu`.

What differs between them is here, so that no other code compares names. A device is a string such as "cuda:1", or a
`torch.device`.

Sources: PyTorch, "torch.accelerator", "torch.xpu", "torch.mps"; AMD, "GPU isolation techniques"; Intel, oneAPI Level
Zero, "ZE_AFFINITY_MASK".
"""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final, Literal

import torch
from torch import Tensor

from luthier.core.system import process_memory

KINDS: Final = ("cuda", "xpu", "mps")
Device = str | torch.device
_COLLECTIVES: Final = {"cuda": "cpu:gloo,cuda:nccl", "xpu": "cpu:gloo,xpu:xccl"}


def device_type() -> str:
    """The kind of accelerator that this process computes on; `cpu` where there is none that torch can use."""
    found = torch.accelerator.current_accelerator(check_available=True)
    return found.type if found is not None and found.type in KINDS else "cpu"


def device_count() -> int:
    """How many accelerators this process sees."""
    kind = device_type()
    return 0 if kind == "cpu" else int(_module(kind).device_count())


def device_names() -> tuple[str, ...]:
    """The names of the accelerators that this process sees, as their driver gives them."""
    kind = device_type()
    if kind == "mps":
        return (f"Apple GPU ({platform.processor() or platform.machine()})",)
    return tuple(str(_module(kind).get_device_name(number)) for number in range(device_count()))


def device_memory_bytes() -> tuple[int, ...]:
    """Memory of each accelerator that this process sees; empty where the driver does not say it.

    By its properties: a question about free memory would begin work, and take memory, on each of them.
    """
    kind = device_type()
    if kind not in ("cuda", "xpu"):
        return ()
    return tuple(int(_module(kind).get_device_properties(number).total_memory) for number in range(device_count()))


def software(kind: str) -> str:
    """What torch computes by on a kind of device, with its version: `ROCm 6.4.2`; empty for a CPU."""
    versions = torch.version
    if kind == "cuda":
        return f"ROCm {versions.hip}" if versions.hip else f"CUDA {versions.cuda}"
    return {"xpu": f"XPU {getattr(versions, 'xpu', None) or ''}".strip(), "mps": "MPS"}.get(kind, "")


def kind_of(device: Device) -> str:
    """The kind of a device: `cuda` for "cuda:1"."""
    return torch.device(device).type


def is_accelerator(device: Device) -> bool:
    """Whether a device is an accelerator."""
    return kind_of(device) in KINDS


def synchronize(device: Device) -> None:
    """Wait until the device has computed what was queued; a CPU queues nothing."""
    if is_accelerator(device):
        _module(device).synchronize()


def forget_peak(device: Device) -> None:
    """Begin a new peak of `peak_bytes`, where the device keeps one."""
    if hasattr(module := _module(device), "reset_peak_memory_stats"):
        module.reset_peak_memory_stats(device)


def peak_bytes(device: Device) -> int:
    """The most memory that torch reserved on an accelerator since `forget_peak`.

    Reserved memory counts, not only allocated memory: fragmentation makes a run need both. MPS keeps no peak: what it
    has reserved now, which includes what was freed.
    """
    module = _module(device)
    if kind_of(device) == "mps":
        return int(module.driver_allocated_memory())
    return int(module.max_memory_reserved(device))


def compute_exactly(device: str) -> None:
    """Make torch use deterministic operations on an accelerator; on a CPU they are deterministic anyway.

    Otherwise the backward passes of attention, embeddings and indexing add up in the order in which threads arrive. An
    operation without a deterministic form still runs, and torch warns with its name: a resumed run then differs in the
    last digits. New memory is not filled first, as this mode would do by default: nothing here reads uninitialised
    memory.
    """
    if device == "cpu":
        return
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def forget_peaks(device: str) -> None:
    """Reset the peaks of the process's memory and of an accelerator's."""
    process_memory.forget_peak()
    if is_accelerator(device):
        forget_peak(device)


def device_peak_memory_bytes(device: str) -> int:
    """Peak memory that torch reserved on a device since `forget_peaks`; for a CPU, that of the process."""
    return peak_bytes(device) if is_accelerator(device) else process_memory.peak_memory_bytes()


def free_bytes(device: Device) -> int:
    """Free memory of an accelerator; for MPS what is left of what macOS recommends to use at most."""
    module = _module(device)
    if kind_of(device) == "mps":
        return max(0, int(module.recommended_max_memory()) - int(module.driver_allocated_memory()))
    return int(module.mem_get_info(device)[0])


def total_bytes(device: Device) -> int:
    """Memory of an accelerator; for MPS what macOS recommends to use at most; 0 for a CPU."""
    if not is_accelerator(device):
        return 0
    module = _module(device)
    return int(module.recommended_max_memory() if kind_of(device) == "mps" else module.mem_get_info(device)[1])


def release_cached(device: Device) -> None:
    """Give back what torch keeps of an accelerator's memory for later allocations; a CPU keeps nothing."""
    if is_accelerator(device):
        _module(device).empty_cache()


@contextmanager
def forked_random(device: Device) -> Iterator[None]:
    """Random numbers drawn within the block, on the CPU and on a device, leave the generators as they were before."""
    on_device = random_state(device)
    with torch.random.fork_rng(devices=[]):
        try:
            yield
        finally:
            set_random_state(device, on_device)


def seed_random(seed: int) -> None:
    """Seed all of torch's generators that this process can draw from: that of the CPU, and those of accelerators.

    Where there is no accelerator, `torch.manual_seed` would write the stack down as text for each kind that could be
    there, three times a call: as much as the comparison of a small module takes.
    """
    if device_type() == "cpu":
        torch.default_generator.manual_seed(seed)
    else:
        torch.manual_seed(seed)


def random_state(device: Device) -> Tensor | None:
    """The state of an accelerator's generator; None for a CPU, whose generator is that of the process."""
    if not is_accelerator(device):
        return None
    # One device a process on MPS, whose functions take none in older versions of torch.
    state: Tensor = _module(device).get_rng_state(*([] if kind_of(device) == "mps" else [device]))
    return state


def set_random_state(device: Device, state: Tensor | None) -> None:
    """Continue with a state of `random_state`."""
    if state is not None:
        _module(device).set_rng_state(state, *([] if kind_of(device) == "mps" else [device]))


def can_pin(device: Device) -> bool:
    """Whether page-locked host memory is copied to a device in the background."""
    return kind_of(device) in ("cuda", "xpu")


def has_flex_attention(device: Device) -> bool:
    """Whether torch compiles FlexAttention for a device."""
    return kind_of(device) in ("cuda", "xpu")


def has_triton(device: Device) -> bool:
    """Whether kernels that are written in Triton run on a device."""
    return kind_of(device) in ("cuda", "xpu")


def widest_float(device: Device) -> torch.dtype:
    """The widest floating point type of a device: MPS has no float64."""
    return torch.float32 if kind_of(device) == "mps" else torch.float64


def usual_precision(kind: str) -> Literal["bfloat16", "float32"]:
    """What a model is served in where nobody says; Apple's first chips have no bfloat16."""
    return "bfloat16" if kind in ("cuda", "xpu") else "float32"


def numbered(kind: str, number: int) -> str:
    """The device of a process among several on a machine; all share a CPU."""
    return f"{kind}:{number}" if kind in ("cuda", "xpu") else kind


def use_device(device: Device) -> None:
    """Make a device the one that torch takes where none is named."""
    if hasattr(module := _module(device), "set_device"):
        module.set_device(device)


def collective_backend(kind: str) -> str:
    """The backend of a process group: texts and counters are tensors on the CPU, gradients are where they were made."""
    return _COLLECTIVES.get(kind, "gloo")


def one_device(number: int, environment: Mapping[str, str]) -> dict[str, str]:
    """Variables for a process that is to see one of several accelerators, assigned in turn; none where there are less.

    Args:
        number: of the process.
        environment: of this process, which may see some of the machine's accelerators only.
    """
    count = device_count()
    if count < 2:
        return {}
    variable = "CUDA_VISIBLE_DEVICES"  # which ROCm reads, too
    if device_type() == "xpu":
        variable = "ZE_AFFINITY_MASK"
    elif torch.version.hip and environment.get("HIP_VISIBLE_DEVICES"):
        variable = "HIP_VISIBLE_DEVICES"
    visible = [name for name in environment.get(variable, "").split(",") if name]
    names = visible or [str(position) for position in range(count)]
    return {variable: names[number % len(names)]}


def _module(device: Device) -> Any:
    """The part of torch for a kind of device: `torch.cuda`."""
    return torch.get_device_module(kind_of(device))
