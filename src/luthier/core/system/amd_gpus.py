"""What AMD's GPUs do in a moment, from the files of their driver (Linux): no library and no package is needed.

Source: Linux kernel documentation, "GPU Driver Developer's Guide", amdgpu, "GPU Power/Thermal Controls and Monitoring"
(gpu_busy_percent, mem_info_vram_used, hwmon power1_average).
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from luthier.core.system.machine_usage import GpuUsage, visible_numbers

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
