"""What this machine can do: measured in about two seconds, never guessed from a name."""

from __future__ import annotations

import platform
import time
from functools import lru_cache
from pathlib import Path
from typing import Literal

import torch
from pydantic import NonNegativeFloat, PositiveFloat

from luthier.core.frozen_model import FrozenModel
from luthier.core.results.cost import BF16_MUST_WIN_BY, MachineLoad
from luthier.core.system.core_topology import ALL_CORES
from luthier.core.system.free_cores import OtherProcesses
from luthier.core.system.machine_memory import memory_bytes
from luthier.core.system.process_setup import num_usable_cores, usable_threads, why_threads
from luthier.ml.inference import accelerator

# The shape of a typical product in training a small model: 1,024 rows through a 576 x 1,536 matrix.
_ROWS, _INNER, _OUTER = 1024, 576, 1536
_SECONDS_EACH = 0.2
# Alternating: a short load on the machine must not decide between two precisions.
_TURNS, _FAR_APART = 2, 4.0
# Beyond what caches hold, and long enough that a neighbour's turn does not count.
_COPY_BYTES, _COPY_SECONDS = 256 << 20, 0.4
_ACCELERATOR_COPY_SECONDS = 0.1  # nobody else computes there
_LOAD_SECONDS, _RECENT_SECONDS = 0.25, 30.0
# What a desktop or a server's own services use: a fifth of one core.
QUIET_CORES = 0.2


class Hardware(FrozenModel):
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
    memory_gb_per_second: float
    precision: Literal["float32", "bfloat16"]
    why: str
    accelerator_memory_bytes: int = 0
    """Of the first accelerator; 0 without one, or where it is not known."""
    accelerator_gb_per_second: float = 0.0
    """Memory traffic of one accelerator; 0 likewise, and where it had no 512 MiB free."""
    threads_why: str = ALL_CORES
    """Why so many threads: cores may differ in speed, and hardware threads share cores."""
    each_memory_bytes: tuple[int, ...] = ()
    """Of each accelerator; empty where it is not known."""

    def shared_by(self, num_processes: int) -> Hardware:
        """This machine for processes with an accelerator each: as much memory as the smallest of these has.

        Args:
            num_processes: that train one run together, on the first accelerators.
        """
        smallest = min(self.each_memory_bytes[:num_processes], default=0)
        if not 0 < smallest < self.accelerator_memory_bytes:
            return self
        return self.model_copy(update={"accelerator_memory_bytes": smallest})


class Rates(FrozenModel):
    """The sustained rates of a matrix product on this machine, in GFLOP/s."""

    float32: PositiveFloat
    bfloat16: PositiveFloat


class Benchmark(FrozenModel):
    """What one measurement of this machine gave.

    Attributes:
        rates: of matrix products.
        memory_gb_per_second: traffic of large copies on the CPU (each byte is read once and written once).
        busy_cores: how many cores other processes used meanwhile; 0 on a quiet machine.
    """

    rates: Rates
    memory_gb_per_second: PositiveFloat
    busy_cores: NonNegativeFloat

    @property
    def is_quiet(self) -> bool:
        """Whether other processes used so little that the rates are those of this machine."""
        return self.busy_cores <= QUIET_CORES


def measure() -> Hardware:
    """This machine, its rates measured by this process: once, for later calls have the first one's."""
    found = benchmark()
    return with_rates(found.rates, memory_gb_per_second=found.memory_gb_per_second)


@lru_cache(maxsize=1)
def benchmark() -> Benchmark:
    """Measure (about two seconds); the second call in a process returns the first one's figures."""
    return run_benchmark()


def run_benchmark() -> Benchmark:
    """Measure now (about two seconds), and how busy other processes kept the cores meanwhile."""
    others = OtherProcesses()
    found, memory = _measured_rates(), _memory_rate()
    return Benchmark(rates=found, memory_gb_per_second=memory, busy_cores=others.busy_cores())


def busy_cores(seconds: float = 0.1) -> float:
    """How many of the usable cores other processes keep busy, sampled for that many seconds."""
    others = OtherProcesses()
    time.sleep(seconds)
    return others.busy_cores()


_watched = OtherProcesses()
"""Since this module was loaded, or the last call of `recent_busy_cores`."""


def recent_busy_cores() -> float | None:
    """How many cores others kept busy since the last call in this process; costs no time.

    None where that was too recent to measure, or too long ago to describe the present.
    """
    global _watched
    before, _watched = _watched, OtherProcesses()
    return before.busy_cores() if _LOAD_SECONDS <= before.age_seconds() <= _RECENT_SECONDS else None


def present_load(quiet: Rates) -> MachineLoad:
    """How busy the cores are now, and how much slower products run than on the quiet machine.

    Unless they are known to be idle, products run for a quarter of a second. The rate is measured rather than
    derived from the share of the cores: threads of one product wait for each other, so one busy core of two can cost
    far more than half.
    """
    recent = recent_busy_cores()
    if recent is not None and recent <= QUIET_CORES:
        return MachineLoad(busy_cores=round(recent, 2), num_cores=num_usable_cores(), slowdown=1.0)
    bfloat16_is_faster = quiet.bfloat16 > quiet.float32
    dtype, expected = (torch.bfloat16, quiet.bfloat16) if bfloat16_is_faster else (torch.float32, quiet.float32)
    others = OtherProcesses()
    now = matrix_rate(dtype, "cpu", seconds=_LOAD_SECONDS, is_mean=True)
    busy = others.busy_cores()
    # On an idle machine the mean is a little below the best: that is noise, not load.
    slowdown = max(1.0, expected / now) if busy > QUIET_CORES else 1.0
    return MachineLoad(busy_cores=round(busy, 2), num_cores=num_usable_cores(), slowdown=round(slowdown, 2))


def with_rates(found: Rates, *, memory_gb_per_second: float) -> Hardware:
    """This machine at present, and what follows from rates that were measured on it, now or earlier."""
    device = _device()
    single, half = found.float32, found.bfloat16
    total, available = memory_bytes()
    # torch takes a thread for each core of the machine, also where a container has a share of their time.
    num_threads = min(torch.get_num_threads(), usable_threads())
    return Hardware(
        cpu_name=cpu_name(),
        num_cores=num_usable_cores(),
        num_threads=num_threads,
        threads_why=why_threads(num_threads),
        memory_bytes=total,
        memory_available_bytes=available,
        device=device,
        accelerators=accelerators(),
        float32_gflops=round(single, 1),
        bfloat16_gflops=round(half, 1),
        memory_gb_per_second=memory_gb_per_second,
        precision="bfloat16" if half >= BF16_MUST_WIN_BY * single else "float32",
        accelerator_memory_bytes=accelerator.total_bytes(device),
        each_memory_bytes=accelerator.device_memory_bytes(),
        accelerator_gb_per_second=0.0 if device == "cpu" else _accelerator_memory_rate(device),
        why=f"matrix products on {device}: bfloat16 {half:,.0f}, float32 {single:,.0f} GFLOP/s ({half / single:.1f}x)",
    )


@lru_cache(maxsize=1)
def cpu_rates() -> Rates:
    """The rates of the processor of a machine whose own rates are those of its accelerator (about a second)."""
    return _measured_rates("cpu")


def _measured_rates(device: str | None = None) -> Rates:
    """Of a device by torch's name; None for the one that this machine trains on."""
    device = device or _device()
    single = half = 0.0
    for turn in range(_TURNS):
        single = max(single, matrix_rate(torch.float32, device))
        # Without bf16 in the processor one product takes seconds, and no noise makes up for a factor of four.
        if not turn or half * _FAR_APART >= single:
            half = max(half, matrix_rate(torch.bfloat16, device))
    return Rates(float32=single, bfloat16=half)


def accelerators() -> tuple[str, ...]:
    """The names of the accelerators, as their driver gives them."""
    return accelerator.device_names()


def _device() -> str:
    return accelerator.device_type()


def _memory_rate(device: str = "cpu", seconds: float = _COPY_SECONDS) -> float:
    """Memory traffic of large copies in GB/s (each byte is read once and written once): the best of many."""
    source = torch.ones(_COPY_BYTES, dtype=torch.uint8, device=device)
    target = torch.zeros_like(source)
    target.copy_(source)  # the first write maps the pages, which is not what is measured
    accelerator.synchronize(device)
    best, end = float("inf"), time.perf_counter() + seconds
    while best == float("inf") or time.perf_counter() < end:
        start = time.perf_counter()
        target.copy_(source)
        accelerator.synchronize(device)
        best = min(best, time.perf_counter() - start)
    return round(2 * _COPY_BYTES / best / 1e9, 1)


@lru_cache(maxsize=4)
def _accelerator_memory_rate(device: str) -> float:
    try:
        return _memory_rate(device, _ACCELERATOR_COPY_SECONDS)
    except torch.OutOfMemoryError:  # others fill it, such as a server of models
        return 0.0
    finally:
        # What torch keeps would count in the peak of the run that follows in this process.
        accelerator.release_cached(device)


def matrix_rate(dtype: torch.dtype, device: str, *, seconds: float = _SECONDS_EACH, is_mean: bool = False) -> float:
    """Sustained rate of one matrix product in GFLOP/s.

    Args:
        dtype: of both matrices.
        device: `cpu` or an accelerator.
        seconds: how long it is run again and again.
        is_mean: the mean of all runs, which present load lowers; else the best of them, so that noise does not count.
    """
    a = torch.ones(_ROWS, _INNER, dtype=dtype, device=device)
    b = torch.ones(_INNER, _OUTER, dtype=dtype, device=device)
    flops = 2 * _ROWS * _INNER * _OUTER
    best, end = 0.0, time.perf_counter() + seconds
    num = 1 if device == "cpu" else 4  # short runs: on a busy machine some are left in peace
    a @ b  # warm-up: kernels are loaded and threads are started by the first call
    spent, num_runs = 0.0, 0
    while not num_runs or time.perf_counter() < end:  # the time may be over before the first run
        start = time.perf_counter()
        for _ in range(num):
            a @ b
        # A GPU only queues the products: without this the clock would measure the queueing.
        accelerator.synchronize(device)
        took = time.perf_counter() - start
        spent, num_runs = spent + took, num_runs + 1
        best = max(best, num * flops / took)
    return (num_runs * num * flops / spent if is_mean else best) / 1e9


@lru_cache(maxsize=1)
def cpu_name() -> str:
    """The processor's name as the system gives it."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
