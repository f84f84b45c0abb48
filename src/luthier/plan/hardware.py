"""What this machine can do: measured in about a second, never guessed from a name."""

from __future__ import annotations

import os
import platform
import time
from functools import lru_cache
from pathlib import Path
from typing import Literal

import psutil
import torch
from pydantic import PositiveFloat

from luthier.core.frozen import Frozen

# The shape of a typical product in training a small model: 1,024 rows through a 576 x 1,536 matrix.
_ROWS, _INNER, _OUTER = 1024, 576, 1536
_SECONDS_EACH = 0.2
# By turns: what keeps the machine busy for a moment must not decide between two precisions.
_TURNS = 2
# bf16 halves the memory, but rounds: it must win clearly to be chosen on a CPU.
_BF16_MUST_WIN_BY = 1.2


class Hardware(Frozen):
    """One machine. Rates in GFLOP/s (a multiply-add counts as two), memory in bytes, a container's limits respected."""

    cpu_name: str
    num_cores: int
    num_threads: int
    memory_bytes: int
    memory_available_bytes: int
    device: str
    accelerators: tuple[str, ...]
    float32_gflops: float
    bfloat16_gflops: float
    precision: Literal["float32", "bfloat16"]
    why: str


class Rates(Frozen):
    """The sustained rates of a matrix product on this machine, in GFLOP/s."""

    float32: PositiveFloat
    bfloat16: PositiveFloat


def measure() -> Hardware:
    """This machine, its rates measured by this process: once, for later calls have the first one's."""
    return with_rates(rates())


def with_rates(found: Rates) -> Hardware:
    """This machine as it stands, and what follows from rates that were measured on it, now or earlier."""
    device = _device()
    single, half = found.float32, found.bfloat16
    total, available = memory_bytes()
    return Hardware(
        cpu_name=cpu_name(),
        num_cores=num_usable_cores(),
        num_threads=torch.get_num_threads(),
        memory_bytes=total,
        memory_available_bytes=available,
        device=device,
        accelerators=accelerators(),
        float32_gflops=round(single, 1),
        bfloat16_gflops=round(half, 1),
        precision="bfloat16" if half >= _BF16_MUST_WIN_BY * single else "float32",
        why=f"matrix products on {device}: bfloat16 {half:,.0f}, float32 {single:,.0f} GFLOP/s ({half / single:.1f}x)",
    )


@lru_cache(maxsize=1)
def rates() -> Rates:
    """Measure (about a second); the second call in a process returns the first one's figures."""
    device = _device()
    single = half = 0.0
    for _ in range(_TURNS):
        single = max(single, matrix_rate(torch.float32, device))
        half = max(half, matrix_rate(torch.bfloat16, device))
    return Rates(float32=single, bfloat16=half)


def accelerators() -> tuple[str, ...]:
    """The names of the accelerators, as their driver gives them."""
    return tuple(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def matrix_rate(dtype: torch.dtype, device: str) -> float:
    """Sustained rate of one matrix product in GFLOP/s: the best of several short runs, so that noise does not count."""
    a = torch.ones(_ROWS, _INNER, dtype=dtype, device=device)
    b = torch.ones(_INNER, _OUTER, dtype=dtype, device=device)
    flops = 2 * _ROWS * _INNER * _OUTER
    best, end = 0.0, time.perf_counter() + _SECONDS_EACH
    num = 1 if device == "cpu" else 4  # short runs: on a busy machine some are left in peace
    a @ b
    while not best or time.perf_counter() < end:  # the time may be over before the first run
        start = time.perf_counter()
        for _ in range(num):
            a @ b
        if device != "cpu":
            torch.cuda.synchronize()
        best = max(best, num * flops / (time.perf_counter() - start))
    return best / 1e9


def num_usable_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory_bytes() -> tuple[int, int]:
    """Total and available memory; a container's own limit (cgroup v2) counts where it is lower."""
    memory = psutil.virtual_memory()
    total, available = int(memory.total), int(memory.available)
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.is_file() and used.is_file():
        text = limit.read_text(encoding="ascii").strip()
        if text.isdigit():
            total = min(total, int(text))
            available = min(available, max(0, int(text) - int(used.read_text(encoding="ascii"))))
    return total, available


@lru_cache(maxsize=1)
def cpu_name() -> str:
    """The processor's name as the system gives it."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
