"""Samples of the machine: when they are due, what they hold, and GPUs through the driver's library."""

from __future__ import annotations

import ctypes
import os
from typing import Any

from tests.vacuous import nonempty

from luthier.core.system.machine_usage import GpuUsage, MachineSampler, Nvml


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_the_first_sample_is_due_at_once_and_the_next_after_five_seconds() -> None:
    clock = Clock()
    sampler = MachineSampler(clock=clock)
    first = sampler.if_due()
    assert first is not None
    assert (first.run_cores, first.machine_cores) == (0.0, 0.0), "nothing before it to be a mean since"
    assert first.run_memory_bytes > 1 << 20
    assert first.memory_bytes >= first.machine_memory_bytes > 0
    assert first.num_cores >= 1
    clock.now += 4.9
    assert sampler.if_due() is None
    clock.now += 0.2
    second = sampler.if_due()
    assert second is not None
    assert second.run_cores >= 0
    clock.now += 40 * 3600
    assert sampler.if_due() is not None
    clock.now += 500
    assert sampler.if_due() is None, "of a long run fewer"
    clock.now += 80
    assert sampler.if_due() is not None


def test_a_busy_process_is_seen() -> None:
    clock = Clock()
    sampler = MachineSampler(clock=clock)
    sampler.sample()
    begun = os.times()
    while os.times().user + os.times().system - begun.user - begun.system < 0.05:
        sum(range(1000))
    clock.now += 0.05
    assert sampler.sample().run_cores > 0.5


class Driver:
    """As libnvidia-ml.so: functions that fill what they are handed, and return 0 where they can."""

    def __init__(self, count: int = 2, works: bool = True, power: int = 0) -> None:
        self.count, self.works, self.power = count, works, power

    def nvmlInit_v2(self) -> int:  # noqa: N802 - the library's names
        return 0 if self.works else 9

    def nvmlDeviceGetCount_v2(self, count: Any) -> int:  # noqa: N802
        count._obj.value = self.count
        return 0

    def nvmlDeviceGetHandleByIndex_v2(self, number: int, handle: Any) -> int:  # noqa: N802
        handle._obj.value = number + 1
        return 0

    def nvmlDeviceGetUtilizationRates(self, handle: ctypes.c_void_p, rates: Any) -> int:  # noqa: N802
        rates._obj.gpu = 40 + (handle.value or 0)
        return 0

    def nvmlDeviceGetMemoryInfo(self, handle: ctypes.c_void_p, memory: Any) -> int:  # noqa: N802
        memory._obj.used = 7
        return 0

    def nvmlDeviceGetPowerUsage(self, handle: ctypes.c_void_p, milliwatts: Any) -> int:  # noqa: N802
        milliwatts._obj.value = 250_500
        return self.power


def test_gpus_are_those_that_the_process_may_use() -> None:
    driver: Any = Driver(count=3)
    for visible, numbers in nonempty({None: [0, 1, 2], "2,0": [2, 0], "": [], "GPU-abc": [0, 1, 2], "7": []}.items()):
        opened = Nvml.open(driver, "GPU-abc" if visible is None else visible)
        assert opened is not None
        assert [gpu.name for gpu in opened.read()] == [f"GPU {n}" for n in numbers]


def test_what_a_driver_does_not_report_is_none() -> None:
    driver: Any = Driver(count=1, power=3)
    opened = Nvml.open(driver, "0")
    assert opened is not None
    assert opened.read() == (GpuUsage("GPU 0", 0.41, 7, None),)
    broken: Any = Driver(works=False)
    assert Nvml.open(broken, "0") is None


def test_a_machine_without_the_library_has_no_gpus() -> None:
    found = MachineSampler(has_gpu=True).sample()
    assert isinstance(found.gpus, tuple)
