"""What this machine can do, and what is missing."""

from __future__ import annotations

import platform
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Final, TypeVar

from luthier.core.system.extras import EXTRAS, missing_modules
from luthier.core.system.facility_list import FACILITIES
from luthier.core.text.byte_sizes import size
from luthier.core.text.counted import counted
from luthier.platform.home.context import Context
from luthier.platform.home.permissions import exposed_paths

if TYPE_CHECKING:
    from luthier.ml.planning.hardware import Hardware

_Found = TypeVar("_Found")
_NUM_PARTS: Final = 4
_PACKAGES = ("luthier", "torch", "transformers", "peft")
_GIB = 1 << 30
# The smallest model of the catalogue with a LoRA run at the same time: weights, masters, activations; model and
# checkpoints.
_MEMORY_FLOOR_BYTES = 3 * _GIB
_DISK_FLOOR_BYTES = 2 * _GIB


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that will get in the way.

    Attributes:
        message: What it is.
        do: What to do about it.
    """

    message: str
    do: str


@dataclass(frozen=True, slots=True)
class Examination:
    """One machine and one home.

    Attributes:
        hardware: The measurement of just now.
        busy_cores: Cores that other processes used meanwhile.
        home: The folder of the home.
        disk_free_bytes: Free bytes on its disk.
        versions: Versions of Python and the main packages.
        warnings: What will get in the way.
    """

    hardware: Hardware
    busy_cores: float
    home: str
    disk_free_bytes: int
    versions: dict[str, str]
    warnings: tuple[Finding, ...]
    sandbox: str
    """What isolates code and queries that models write, as a sentence."""
    extras: dict[str, bool]
    """Optional parts of Luthier by name, and whether each is installed."""
    system: str
    """The operating system with its version, and the kind of processor."""
    facilities: dict[str, bool]
    """What Luthier uses of the operating system by name, and whether it is here."""
    accelerator_software: str
    """What torch computes by on the accelerator, with its version; empty without one."""

    def as_json(self) -> dict[str, Any]:
        """The document of `luthier doctor --json`."""
        return {
            **self.hardware.model_dump(mode="json"),
            "busy_cores": self.busy_cores,
            "home": self.home,
            "disk_free_bytes": self.disk_free_bytes,
            "versions": self.versions,
            "sandbox": self.sandbox,
            "system": self.system,
            "facilities": self.facilities,
            "accelerator_software": self.accelerator_software,
            "extras": self.extras,
            "warnings": [asdict(finding) for finding in self.warnings],
        }


def examine(context: Context, *, measures: bool = True) -> Examination:
    """What this machine can do, and what is missing.

    Args:
        context: The home.
        measures: Whether the machine is measured now (about two seconds), which replaces the rates that plans use.
            False: with the stored rates, which are measured only if there are none. Training on the same machine
            would disturb a measurement, which may change the precision of the runs to come.
    """
    with context.progress.task("Examining the machine", _NUM_PARTS, "parts") as task:

        def part(title: str, examined: Callable[[], _Found]) -> _Found:
            with context.progress.task(title, None, ""):
                found = examined()
            task.advance()
            return found

        part("Loading the libraries", _load_libraries)
        measured, busy, disturbed = part("Measuring the processor", partial(_measurement, context, measures))
        sandbox = part("Trying the sandbox", _sandbox)
        return part("Looking for what is missing", partial(_examination, context, measured, busy, disturbed, sandbox))


def _load_libraries() -> None:
    # Seconds on a cold disk: a part by itself, so that they do not count as the measurement.
    import_module("luthier.ml.planning.hardware")


def _measurement(context: Context, measures: bool) -> tuple[Hardware, float, tuple[Finding, ...]]:
    from luthier.ml.planning.hardware import busy_cores
    from luthier.platform.home.hardware_benchmark import hardware_of, measure_again

    if not measures:
        return hardware_of(context), busy_cores(), ()
    # The measurement replaces the stored one; `before` is what plans have used so far.
    measured, before, busy = measure_again(context)
    return measured, busy, (*_changed(measured, before), *_busy(busy))


def _sandbox() -> str:
    from luthier.ml.evaluation.sandbox.runners import isolation

    return isolation().holds


def _examination(
    context: Context, measured: Hardware, busy: float, disturbed: tuple[Finding, ...], sandbox: str
) -> Examination:
    from luthier.ml.inference.accelerator import software

    free = shutil.disk_usage(context.home).free
    versions = {"python": platform.python_version(), **{name: version(name) for name in _PACKAGES}}
    return Examination(
        hardware=measured,
        home=str(context.home),
        disk_free_bytes=free,
        versions=versions,
        busy_cores=round(busy, 2),
        sandbox=sandbox,
        extras={name: not missing_modules(name) for name in EXTRAS},
        system=f"{platform.system()} {platform.release()}, {platform.machine()}",
        facilities={facility.name: facility.is_here() for facility in FACILITIES},
        accelerator_software=software(measured.device),
        warnings=(
            *disturbed,
            *find_obstacles(measured, free),
            *_open(context),
        ),
    )


def answer(context: Context, _: dict[str, Any]) -> dict[str, Any]:
    """What a page of a server shows of the machine, by the process that has the heavy libraries."""
    return examine(context, measures=False).as_json()


def _open(context: Context) -> list[Finding]:
    return [Finding(place.message, place.do) for place in exposed_paths(context.settings)]


def _changed(measured: Hardware, before: Hardware | None) -> list[Finding]:
    """That runs from now on are trained in another precision, so that their bytes differ from those of earlier ones."""
    # Precision follows measured speed, so a busy machine can flip it and change every later run.
    if before is None or before.precision == measured.precision:
        return []
    return [
        Finding(
            f"runs are planned with {measured.precision} from now on ({measured.why}); until now {before.precision} "
            f"({before.why})",
            "if other programs kept the machine busy just now, run `luthier doctor` again when they are done, or give "
            f"`training: {{precision: {before.precision}}}` in the recipe",
        )
    ]


def _busy(busy_cores: float) -> list[Finding]:
    """That other processes disturbed the measurement, which forecasts and precision follow."""
    from luthier.ml.planning.hardware import QUIET_CORES

    if busy_cores <= QUIET_CORES:
        return []
    return [
        Finding(
            f"other processes used {busy_cores:.1f} cores while this machine was measured: its rates may be too low",
            "run `luthier doctor` again when they are done; plans measure again by themselves on a quieter machine",
        )
    ]


def find_obstacles(hardware: Hardware, disk_free_bytes: int) -> list[Finding]:
    """What will get in the way on such a machine."""
    found = []
    if hardware.memory_available_bytes < _MEMORY_FLOOR_BYTES:
        total = hardware.memory_bytes
        found.append(
            Finding(
                f"{size(hardware.memory_available_bytes, total)} of {size(total)} memory are free",
                f"close other programs: even the smallest model needs about {size(_MEMORY_FLOOR_BYTES)}",
            )
        )
    if disk_free_bytes < _DISK_FLOOR_BYTES:
        found.append(
            Finding(
                f"{size(disk_free_bytes)} are free on the disk of the home",
                "free some space, or choose a home on another disk with --home or LUTHIER_HOME",
            )
        )
    if hardware.num_threads < hardware.num_cores:
        threads = counted(hardware.num_threads, "thread")
        found.append(
            Finding(
                f"torch uses {threads}, there are {hardware.num_cores} cores",
                "unset OMP_NUM_THREADS, or set training.num_threads in the recipe",
            )
        )
    return found
