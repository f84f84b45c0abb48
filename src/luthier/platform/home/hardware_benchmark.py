"""How fast this machine multiplies matrices and copies memory: measured once for a home, on a quiet machine.

Precision and forecasts follow from it. Measured by each process, a busy moment could give two equal runs two
precisions, and so other bytes, and one plan three forecasts. So what was measured is kept in the home, with how busy
other processes kept the cores meanwhile; a measurement that was disturbed is repeated once the machine is quieter.
`versions` names the machine and the libraries that a figure depends on.
"""

from __future__ import annotations

import json
import math
import platform
import time
from contextlib import suppress
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.core.errors import ConflictError, StorageFullError
from luthier.core.ids import sha256_document
from luthier.core.system.libraries import version

if TYPE_CHECKING:
    from luthier.core.results.cost import MachineLoad
    from luthier.ml.planning.hardware import Benchmark, Hardware
    from luthier.platform.home.context import Context

_FORMAT = 2
_WAIT_SECONDS = 120.0
# A disturbed measurement is worth repeating where the cores are that much freer, and not more often than this.
_FREER_BY_CORES, _REPEAT_SECONDS = 0.3, 60.0
_LOAD_SECONDS = 30.0
_VERSIONED = ("luthier", "torch", "transformers", "peft", "safetensors", "sacrebleu", "numpy")
_looked_at: dict[Path, float] = {}
"""When this process looked last whether the machine is quieter, by the file of its measurement."""


def hardware_of(context: Context) -> Hardware:
    """This machine, as its home knows it. It is measured (two seconds) where the home has no figures yet.

    Processes that need the figures at the same time wait for the first.

    Raises:
        ConflictError: Another process has been measuring for minutes.
    """
    return hardware_in(context.settings.rates_folder)


def hardware_in(rates_folder: Path) -> Hardware:
    """The same for a process that knows only the folder of the rates."""
    from luthier.ml.planning.hardware import with_rates

    found = _benchmark_in(rates_folder)
    return with_rates(found.rates, memory_gb_per_second=found.memory_gb_per_second)


def load_of(context: Context) -> MachineLoad:
    """How busy this machine is now, measured against its quiet rates; at most twice a minute in one process."""
    # The half-minute is part of the cache's key: within it the same answer, after it a new one.
    return _load(context.settings.rates_folder, int(time.monotonic() / _LOAD_SECONDS))


def measure_again(context: Context) -> tuple[Hardware, Hardware | None, float]:
    """Measure this machine now, and keep that, quiet or not.

    Returns:
        The machine as measured, as the home knew it before (None where it did not), and the cores that other processes
        used meanwhile.
    """
    from luthier.ml.planning.hardware import run_benchmark, with_rates

    place = _place(context.settings.rates_folder)
    before, now = _read_saved(place), run_benchmark()
    _keep(place, now)
    machines = [
        with_rates(made.rates, memory_gb_per_second=made.memory_gb_per_second) if made is not None else None
        for made in (now, before)
    ]
    assert machines[0] is not None
    return machines[0], machines[1], now.busy_cores


@lru_cache(maxsize=4)
def _load(rates_folder: Path, half_minute: int) -> MachineLoad:  # noqa: ARG001
    from luthier.ml.planning.hardware import present_load

    return present_load(_benchmark_in(rates_folder).rates)


def _benchmark_in(rates_folder: Path) -> Benchmark:
    from luthier.core.system.files import file_lock

    place = _place(rates_folder)
    found = _read_saved(place)
    if found is not None and not _is_worth_repeating(place, found):
        return found
    lock = place.with_suffix(".lock")
    # A repeated measurement does not wait for another process that measures: the stored one is good enough to continue.
    wait = _WAIT_SECONDS if found is None else 0.0
    try:
        with file_lock(lock, what="the measuring of this machine", timeout_seconds=wait):
            return _measured(place, found)
    except ConflictError:
        if found is None:
            raise
        return found


def _measured(place: Path, found: Benchmark | None) -> Benchmark:
    """Measure, and keep what disturbs less than what is kept; the caller holds the lock.

    found: What was kept before it held the lock.
    """
    from luthier.ml.planning.hardware import benchmark, run_benchmark

    # Again, now under the lock: the process that held it may have measured.
    before = _read_saved(place)
    if before is not None and before != found:
        return before
    # `benchmark` may answer from this process's memory; a repetition must really measure.
    now = benchmark() if before is None else run_benchmark()
    # The quieter of two measurements is closer to what the machine can do.
    best = now if before is None or now.busy_cores < before.busy_cores else before
    _keep(place, best)
    return best


def _is_worth_repeating(place: Path, found: Benchmark) -> bool:
    """Whether a measurement that other processes disturbed would be disturbed less now; looks once a minute."""
    from luthier.ml.planning.hardware import busy_cores

    if found.is_quiet:
        return False
    with suppress(OSError):
        # A clock that was set back must not hold it off for hours.
        if 0 <= time.time() - place.stat().st_mtime < _REPEAT_SECONDS:
            return False
    # A look takes a tenth of a second, and one plan uses the machine many times.
    now = time.monotonic()
    if now - _looked_at.get(place, -math.inf) < _REPEAT_SECONDS:
        return False
    _looked_at[place] = now
    return busy_cores() < found.busy_cores - _FREER_BY_CORES


def _place(rates_folder: Path) -> Path:
    """The file of this machine: rates hold for its processor and accelerators, its threads, and this torch."""
    return rates_folder / f"{sha256_document(_key())[:24]}.json"


def _key() -> dict[str, Any]:
    import torch

    from luthier.core.system.process_setup import num_usable_cores
    from luthier.ml.planning import hardware

    return {
        "processor": hardware.cpu_name(),
        "num_cores": num_usable_cores(),
        "num_threads": torch.get_num_threads(),
        "accelerators": hardware.accelerators(),
        "torch": version("torch"),
    }


def _read_saved(place: Path) -> Benchmark | None:
    """What a file holds; None where it is not there, is damaged, or is of another format: then it is measured again.

    Files of format 1 know neither the memory's rate nor how busy the machine was.
    """
    from luthier.ml.planning.hardware import Benchmark

    try:
        document = json.loads(place.read_text(encoding="utf-8"))
        if document["format"] != _FORMAT:
            return None
        return Benchmark.model_validate(
            {
                "rates": document["gflops"],
                "memory_gb_per_second": document["memory_gb_per_second"],
                "busy_cores": document["busy_cores"],
            }
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _keep(place: Path, found: Benchmark) -> None:
    from luthier.core.system.files import replace_text

    place.parent.mkdir(parents=True, exist_ok=True)
    document = {
        "format": _FORMAT,
        "machine": _key(),
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "gflops": found.rates.model_dump(mode="json"),
        "memory_gb_per_second": found.memory_gb_per_second,
        "busy_cores": round(found.busy_cores, 3),
    }
    with suppress(StorageFullError):  # it can be measured again; a full disk is reported by what needs the room
        replace_text(place, json.dumps(document, indent=1) + "\n")


def versions(context: Context) -> dict[str, str]:
    """Versions of what a figure depends on, and the machine that it was measured on."""
    machine = hardware_of(context)
    return (
        {"python": platform.python_version()}
        | {name: version(name) for name in _VERSIONED}
        | {
            "machine": f"{machine.cpu_name}, {machine.num_cores} cores, {machine.memory_bytes / 2**30:.0f} GiB",
            "matrix products": machine.why,
        }
    )
