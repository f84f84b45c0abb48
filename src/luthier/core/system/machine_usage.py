"""What a machine does while a run trains: processor and memory of the run's processes and of the machine, and its GPUs.

Processor and memory come from psutil. GPUs are asked through NVML, the library of NVIDIA's driver, which is loaded by
ctypes where it is installed, or through the files of AMD's driver: no package is needed for four numbers.
Time on the processor is a mean since the last sample, from the counters of the processes; memory, and what a GPU
reports, are of the moment.

Sources: NVIDIA, "NVML API Reference Guide", nvmlDeviceGetUtilizationRates, nvmlDeviceGetMemoryInfo,
nvmlDeviceGetPowerUsage; Linux kernel documentation, "GPU Driver Developer's Guide", amdgpu, "GPU Power/Thermal
Controls and Monitoring" (gpu_busy_percent, mem_info_vram_used, hwmon power1_average).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_FEWEST_SECONDS: Final = 5.0
_COST_SHARE: Final = 0.0005
"""The most of the time that samples may take."""
_SAMPLES_OF_EQUAL_DISTANCE: Final = 250
_MAX_GPUS: Final = 16


@dataclass(frozen=True, slots=True)
class GpuUsage:
    """A GPU in a moment. What the driver does not report is None.

    Attributes:
        name: `GPU 0`.
        utilisation: The share of the last moments in which it computed, from 0 to 1.
        memory_bytes: In use, by whichever process.
        power_watts: What it draws.
    """

    name: str
    utilisation: float | None
    memory_bytes: int | None
    power_watts: float | None


@dataclass(frozen=True, slots=True)
class MachineUsage:
    """A machine in a moment.

    Attributes:
        at: Seconds since 1970.
        run_cores: Cores that the run's processes kept busy, on average since the last sample.
        machine_cores: Cores that were busy in all.
        num_cores: That it has.
        run_memory_bytes: Resident memory of the run's processes; pages that they share are counted in each.
        machine_memory_bytes: In use by all processes.
        memory_bytes: That it has.
        gpus: Its GPUs, where the run trains on one.
    """

    at: float
    run_cores: float
    machine_cores: float
    num_cores: int
    run_memory_bytes: int
    machine_memory_bytes: int
    memory_bytes: int
    gpus: tuple[GpuUsage, ...] = ()


class MachineSampler:
    """Samples of this process, its children and the machine.

    Args:
        has_gpu: Whether GPUs are asked, too.
        clock: Seconds that never go back.
    """

    def __init__(self, *, has_gpu: bool = False, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._has_gpu = clock, has_gpu
        self._gpus: Nvml | AmdGpus | None = None
        self._began = self._due = self._last = clock()
        self._run_seconds = self._machine_seconds = 0.0
        self._is_new = True

    def if_due(self) -> MachineUsage | None:
        """A sample where one is due: at the first call, then every 5 s, less often the longer it runs.

        Samples take at most 0.05% of the time, and their number grows with the logarithm of it.
        """
        if not self._is_new and self._clock() < self._due:
            return None
        return self.sample()

    def sample(self) -> MachineUsage:
        """A sample now."""
        import psutil

        began = self._clock()
        if self._is_new and self._has_gpu:
            self._gpus = Nvml.open() or AmdGpus.open()
        run_seconds, run_bytes = _of_processes()
        times = psutil.cpu_times()
        idle = times.idle + getattr(times, "iowait", 0.0)
        # Time of guests is in that of users already.
        machine_seconds = sum(times) - idle - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0)
        memory, elapsed = psutil.virtual_memory(), began - self._last
        is_measured = not self._is_new and elapsed > 0
        usage = MachineUsage(
            at=time.time(),
            # A process that ends takes its seconds along until its parent has waited for it.
            run_cores=max(0.0, run_seconds - self._run_seconds) / elapsed if is_measured else 0.0,
            machine_cores=max(0.0, machine_seconds - self._machine_seconds) / elapsed if is_measured else 0.0,
            num_cores=psutil.cpu_count() or 1,
            run_memory_bytes=run_bytes,
            machine_memory_bytes=memory.total - memory.available,
            memory_bytes=memory.total,
            gpus=() if self._gpus is None else self._gpus.read(),
        )
        self._run_seconds, self._machine_seconds, self._last, self._is_new = run_seconds, machine_seconds, began, False
        now = self._clock()
        pause = max(_FEWEST_SECONDS, (now - began) / _COST_SHARE, (now - self._began) / _SAMPLES_OF_EQUAL_DISTANCE)
        self._due = now + pause
        return usage


def _of_processes() -> tuple[float, int]:
    """Processor seconds and resident bytes of this process and all below it."""
    import psutil

    own = psutil.Process()
    seconds, num_bytes = 0.0, 0
    for process in (own, *own.children(recursive=True)):
        # One that ends in this moment is left out; its parent has its seconds.
        with contextlib.suppress(psutil.Error):
            with process.oneshot():
                times = process.cpu_times()
                size = process.memory_info().rss
            # The seconds of children that have ended are those of their parent.
            seconds += times.user + times.system
            seconds += getattr(times, "children_user", 0.0) + getattr(times, "children_system", 0.0)
            num_bytes += size
    return seconds, num_bytes


class _Rates(ctypes.Structure):
    _fields_ = (("gpu", ctypes.c_uint), ("memory", ctypes.c_uint))


class _Memory(ctypes.Structure):
    _fields_ = (("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong))


class Nvml:
    """The library of NVIDIA's driver, opened.

    Args:
        library: The library, as ctypes has loaded it.
        devices: Handles of the GPUs that this process may use, with their numbers.
    """

    def __init__(self, library: ctypes.CDLL, devices: Sequence[tuple[int, ctypes.c_void_p]]) -> None:
        self._library, self._devices = library, devices

    @classmethod
    def open(cls, library: ctypes.CDLL | None = None, visible: str | None = None) -> Nvml | None:
        """The library with the GPUs that are visible; None where it is not there or does not answer.

        Args:
            library: NVML as it was loaded; None loads that of the driver.
            visible: As CUDA_VISIBLE_DEVICES, which is read where this is None.
        """
        if library is None:
            try:
                library = ctypes.CDLL("nvml.dll" if os.name == "nt" else "libnvidia-ml.so.1")
            except OSError:
                return None
        visible = os.environ.get("CUDA_VISIBLE_DEVICES") if visible is None else visible
        count = ctypes.c_uint()
        if library.nvmlInit_v2() or library.nvmlDeviceGetCount_v2(ctypes.byref(count)):
            return None
        devices = []
        for number in visible_numbers(visible, count.value)[:_MAX_GPUS]:
            handle = ctypes.c_void_p()
            if not library.nvmlDeviceGetHandleByIndex_v2(number, ctypes.byref(handle)):
                devices.append((number, handle))
        return cls(library, devices)

    def read(self) -> tuple[GpuUsage, ...]:
        """All GPUs now."""
        return tuple(self._of(number, handle) for number, handle in self._devices)

    def _of(self, number: int, handle: ctypes.c_void_p) -> GpuUsage:
        rates, memory, milliwatts = _Rates(), _Memory(), ctypes.c_uint()
        # Each returns 0 where it is supported: virtual GPUs report no power, some no utilisation.
        has_rates = not self._library.nvmlDeviceGetUtilizationRates(handle, ctypes.byref(rates))
        has_memory = not self._library.nvmlDeviceGetMemoryInfo(handle, ctypes.byref(memory))
        has_power = not self._library.nvmlDeviceGetPowerUsage(handle, ctypes.byref(milliwatts))
        return GpuUsage(
            f"GPU {number}",
            rates.gpu / 100 if has_rates else None,
            int(memory.used) if has_memory else None,
            milliwatts.value / 1000 if has_power else None,
        )


def visible_numbers(visible: str | None, count: int) -> list[int]:
    """The numbers of the GPUs that a variable such as CUDA_VISIBLE_DEVICES names; all, where it names none so."""
    parts = [part.strip() for part in (visible or "").split(",") if part.strip()]
    if not parts or not all(part.isdigit() for part in parts):
        return [] if visible == "" else list(range(count))
    return [number for number in map(int, parts) if number < count]


_CARDS: Final = Path("/sys/class/drm")
_CARD: Final = re.compile(r"card([0-9]+)")
_VENDOR: Final = "0x1002"
_MICROWATTS: Final = 1_000_000


class AmdGpus:
    """The GPUs of AMD's driver.

    Args:
        cards: Their folders, with their numbers.
    """

    def __init__(self, cards: Sequence[tuple[int, Path]]) -> None:
        self._cards = tuple(cards)

    @classmethod
    def open(cls, root: Path = _CARDS, visible: str | None = None) -> AmdGpus | None:
        """Those that are visible; None where there is none.

        Args:
            root: The folder of the system's graphics cards.
            visible: as HIP_VISIBLE_DEVICES or CUDA_VISIBLE_DEVICES, which are read where this is None.
        """
        if visible is None:
            visible = os.environ.get("HIP_VISIBLE_DEVICES", os.environ.get("CUDA_VISIBLE_DEVICES"))
        found = list(_cards(root))
        cards = [(number, found[number]) for number in visible_numbers(visible, len(found))]
        return cls(cards) if cards else None

    def read(self) -> tuple[GpuUsage, ...]:
        """All GPUs now; what a file does not say is None."""
        return tuple(_usage(number, folder) for number, folder in self._cards)


def _cards(root: Path) -> Iterator[Path]:
    names = [match for match in map(_CARD.fullmatch, os.listdir(root)) if match] if root.is_dir() else []  # noqa: PTH208
    for match in sorted(names, key=lambda match: int(match[1])):
        folder = root / match[0] / "device"
        # A processor's own graphics have the same driver, and no memory that is counted.
        if _read(folder / "vendor") == _VENDOR and _number(folder / "mem_info_vram_total"):
            yield folder


def _usage(number: int, folder: Path) -> GpuUsage:
    busy, watts = _number(folder / "gpu_busy_percent"), None
    for sensor in sorted(folder.glob("hwmon/hwmon*")):
        for name in ("power1_average", "power1_input"):
            if watts is None and (power := _number(sensor / name)) is not None:
                watts = power / _MICROWATTS
    used = _number(folder / "mem_info_vram_used")
    return GpuUsage(f"GPU {number}", None if busy is None else busy / 100, used, watts)


def _read(path: Path) -> str:
    with contextlib.suppress(OSError):
        return path.read_text(encoding="ascii", errors="replace").strip()
    return ""


def _number(path: Path) -> int | None:
    text = _read(path)
    return int(text) if text.isdecimal() else None
