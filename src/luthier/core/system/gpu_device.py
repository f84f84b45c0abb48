"""Whether torch has a GPU to compute on, by the files of its driver and the name of its build: torch is not loaded."""

from __future__ import annotations

import platform
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Final

from luthier.core.system.libraries import version

NVIDIA: Final = Path("/dev/nvidiactl")
AMD: Final = Path("/dev/kfd")
INTEL: Final = Path("/dev/dri")
_WINDOWS_DRIVER: Final = Path("C:/Windows/System32/nvcuda.dll")


def has_gpu() -> bool:
    """Whether there is a GPU that the installed build of torch is made for."""
    if has_nvidia_gpu():
        return True
    if sys.platform == "darwin":
        return platform.machine() == "arm64"
    try:
        build = version("torch").partition("+")[2]
    except PackageNotFoundError:
        return False
    # An integrated GPU has the same files, and every machine may have one: the build says whether it is meant.
    return (build.startswith("rocm") and AMD.exists()) or (build.startswith("xpu") and INTEL.exists())


def has_nvidia_gpu() -> bool:
    """Whether the driver of an NVIDIA GPU is there."""
    return NVIDIA.exists() or (sys.platform == "win32" and _WINDOWS_DRIVER.exists())
