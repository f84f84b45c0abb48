"""What a figure depends on: versions of libraries, and the machine that it was measured on."""

from __future__ import annotations

import platform

from luthier.core.system.libraries import version
from luthier.platform.home.context import Context

_NAMED = ("luthier", "torch", "transformers", "peft", "safetensors", "sacrebleu", "rouge-score", "numpy")


def versions(context: Context) -> dict[str, str]:
    """Versions of what a figure depends on, and the machine that it was measured on."""
    from luthier.platform.home.hardware_benchmark import hardware_of

    machine = hardware_of(context)
    return (
        {"python": platform.python_version()}
        | {name: version(name) for name in _NAMED}
        | {
            "machine": f"{machine.cpu_name}, {machine.num_cores} cores, {machine.memory_bytes / 2**30:.0f} GiB",
            "matrix products": machine.why,
        }
    )
