"""How many threads pay on this machine: hardware threads share cores, and cores differ in speed.

Threads that divide a product, and workers that divide a step, wait for the slowest of them. So k of them on the k
fastest cores do as much as k of the slowest of these, and the number with the largest product is taken: beside four
fast cores four with 0.6 of their speed pay (8 x 0.6 > 4), four with 0.4 do not. Two hardware threads of one core share
its arithmetic units, which one thread of matrix products keeps busy: each core counts once.

Linux describes its cores in files (Documentation/ABI/testing/sysfs-devices-system-cpu); elsewhere nothing is known, and
all cores count.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Final

_CPUS: Final = Path("/sys/devices/system/cpu")
_SPEEDS: Final = ("cpu_capacity", "cpufreq/cpuinfo_max_freq")
"""Files with the speed of a core, the better measure first: a capacity counts instructions, a frequency does not."""
_ALIKE: Final = 0.9
"""Cores of one kind differ by some per cent in what they reach at most."""
ALL_CORES: Final = "the cores of this machine"


@dataclass(frozen=True, slots=True)
class CoreKinds:
    """The cores that a process may use.

    Attributes:
        num_hardware_threads: of all of them.
        speeds: of each core, as a share of the fastest, which comes first.
    """

    num_hardware_threads: int
    speeds: tuple[float, ...]

    @property
    def num_that_pay(self) -> int:
        """How many threads do the most, each with an equal part."""
        # Of equally good numbers the larger one: parts are never quite equal.
        return max(range(1, len(self.speeds) + 1), key=lambda num: (num * self.speeds[num - 1], num))

    @property
    def why(self) -> str:
        """Why so many, as a phrase."""
        num, num_cores = self.num_that_pay, len(self.speeds)
        if num < num_cores:
            return (
                f"the {num} fastest of {num_cores} cores: the next one has {self.speeds[num]:.0%} of their speed, and "
                "all would wait for it"
            )
        if self.speeds[-1] < 1:
            return (
                f"all {num} cores, though the slowest has {self.speeds[-1]:.0%} of the speed of the fastest: together "
                "they do more"
            )
        if self.num_hardware_threads > num_cores:
            return f"one for each core ({num}): the {self.num_hardware_threads} hardware threads share arithmetic units"
        return ALL_CORES


@lru_cache(maxsize=8)
def core_kinds(usable: frozenset[int] | None, root: Path = _CPUS) -> CoreKinds | None:
    """The cores behind these processors; None where the system does not say it.

    Args:
        usable: numbers of the processors that this process may use; None for all.
        root: where Linux describes them.
    """
    numbers = _numbers(root) if usable is None else sorted(usable)
    siblings = [_read(root / f"cpu{number}" / "topology" / "thread_siblings_list") for number in numbers]
    if not numbers or None in siblings:
        return None
    speeds = next((found for name in _SPEEDS if (found := _speeds(root, numbers, name)) is not None), None)
    # Hardware threads of one core name the same siblings, and have the same speed.
    of_core = dict(zip(siblings, speeds or [1.0] * len(numbers), strict=True))
    fastest = max(of_core.values())
    shares = sorted((speed / fastest for speed in of_core.values()), reverse=True)
    return CoreKinds(len(numbers), tuple(1.0 if share >= _ALIKE else share for share in shares))


def _numbers(root: Path) -> list[int]:
    found = (folder.name.removeprefix("cpu") for folder in root.glob("cpu[0-9]*"))
    return sorted(int(number) for number in found if number.isdecimal())


def _speeds(root: Path, numbers: Collection[int], name: str) -> list[float] | None:
    found = [_read(root / f"cpu{number}" / name) for number in numbers]
    values = [float(one) for one in found if one is not None and one.isdecimal() and int(one) > 0]
    return values if len(values) == len(found) else None


def _read(file: Path) -> str | None:
    try:
        return file.read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return None
