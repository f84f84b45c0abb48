"""`luthier doctor`: what this machine can do."""

from __future__ import annotations

from typing import TYPE_CHECKING

from luthier.core.text.counted import counted
from luthier.platform.cli.command import Answer, HomeOption, JsonOption, open_context

if TYPE_CHECKING:
    from rich.console import Console

    from luthier.features.doctor.service import Examination


def doctor(as_json: JsonOption = False, home: HomeOption = None) -> Answer:
    """Measure what this machine can do, and say what is missing."""
    from luthier.features.doctor.service import examine

    with open_context(home) as context:
        found = examine(context)
    return Answer(as_json, found.as_json(), lambda console: _show(console, found))


def _show(console: Console, found: Examination) -> None:
    from luthier.features.evaluations.verdict_format import print_warnings
    from luthier.platform.cli import figures
    from luthier.platform.cli.console import facts

    hardware = found.hardware
    facts(
        console,
        [
            ("processor", hardware.cpu_name),
            ("cores", f"{hardware.num_cores} usable, {counted(hardware.num_threads, 'thread')} in torch"),
            (
                "memory",
                f"{figures.size(hardware.memory_available_bytes, hardware.memory_bytes)} free of "
                f"{figures.size(hardware.memory_bytes)}",
            ),
            ("accelerators", _accelerators(found)),
            ("precision", f"{hardware.precision} ({hardware.why})"),
            ("load", f"{found.busy_cores:.1f} of {hardware.num_cores} cores in use by other processes"),
            ("system", _system(found)),
            ("home", found.home),
            ("free disk", figures.size(found.disk_free_bytes)),
            ("sandbox", found.sandbox),
            ("extras", _extras(found)),
            ("versions", ", ".join(f"{name} {version}" for name, version in found.versions.items())),
        ],
    )
    print_warnings(console, [f"{finding.message}; {finding.do}" for finding in found.warnings])
    if not found.warnings:
        console.print("No problems found.")


def _accelerators(found: Examination) -> str:
    if not found.hardware.accelerators:
        return "none: training runs on the processor"
    return f"{', '.join(found.hardware.accelerators)} ({found.hardware.device}: {found.accelerator_software})"


def _system(found: Examination) -> str:
    missing = [name for name, is_here in found.facilities.items() if not is_here]
    return found.system + (f"; without {', '.join(missing)} (docs/platforms.md)" if missing else "")


def _extras(found: Examination) -> str:
    from luthier.core.system.extras import install_command

    there = [name for name, is_there in found.extras.items() if is_there]
    others = [name for name, is_there in found.extras.items() if not is_there]
    words = ", ".join(there) or "none"
    return words + (f"; not installed: {', '.join(others)} ({install_command('NAME')})" if others else "")
