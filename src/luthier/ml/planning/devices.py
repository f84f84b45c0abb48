"""The devices a run can be planned for: this machine's own, as measured, and a table of accelerators.

The table is `devices.yaml` beside this file: vendor data sheets, dense rates.
"""

from __future__ import annotations

import re
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml

from luthier.core.cost import Device
from luthier.core.errors import RequestError

if TYPE_CHECKING:
    from luthier.ml.planning.hardware import Hardware

Family = Literal["cpu", "small", "consumer", "workstation", "datacentre", "hopper"]

MAX_DEVICES = 1024
_TABLE = Path(__file__).with_name("devices.yaml")
_FORM = re.compile(r"(?P<name>[a-z0-9._-]+?)(?::(?P<count>[0-9]+))?")


def device_names() -> tuple[str, ...]:
    """Every name that `device_of` takes, `cpu` first; aliases are not among them."""
    return ("cpu", *_table())


def accelerators() -> tuple[Device, ...]:
    """One of each accelerator of the table; none of them needs to be in this machine."""
    return tuple(_tabled(name, 1) for name in _table())


def alternatives_to(device: Device) -> tuple[Device, ...]:
    """Where else a run might go: one of each accelerator, and 2, 4 or 8 of the same where that is more."""
    more = () if device.is_cpu else tuple(n for n in (2, 4, 8) if n > device.num_devices)
    return (*accelerators(), *(device.model_copy(update={"num_devices": count}) for count in more))


def device_of(text: str, hardware: Hardware) -> Device:
    """The device of `cpu` or `NAME[:COUNT]`, such as `a100-80g:4`; `cpu` is this machine as `hardware` measured it.

    Raises:
        RequestError: a name that the table does not have (it names the nearest), and for a count out of range.
    """
    name, count = _parsed(text)
    if name == "cpu":
        if count != 1:
            raise RequestError(
                f"device {text!r}: {count} CPUs", expected="cpu: one process on this machine", do="write --on cpu"
            )
        return _this_cpu(hardware)
    table, aliases = _table(), _aliases()
    name = aliases.get(name, name)
    if name not in table:
        raise _unknown(text, name)
    return _tabled(name, count)


def check_device_name(text: str) -> None:
    """Raise RequestError as `device_of` does for a name that there is not; nothing is measured for that."""
    name, _ = _parsed(text)
    name = _aliases().get(name, name)
    if name != "cpu" and name not in _table():
        raise _unknown(text, name)


def _unknown(text: str, name: str) -> RequestError:
    known = sorted({*_table(), *_aliases(), "cpu"})
    near = get_close_matches(name, known, n=3, cutoff=0.5)
    return RequestError(
        f"device {text!r}",
        expected=f"one of {', '.join(device_names())}, with :COUNT for more than one",
        do=f"did you mean {' or '.join(near)}?" if near else "choose one of these, or the one nearest in memory",
    )


def this_machine(hardware: Hardware) -> Device:
    """The device that a run on this machine uses: one accelerator where there is one, else the CPU.

    An accelerator is found in the table by the name that its driver gives.

    Raises:
        RequestError: it is not there.
    """
    if hardware.device == "cpu":
        return _this_cpu(hardware)
    # "NVIDIA A100-SXM4-80GB" becomes "nvidiaa100sxm480gb": drivers spell names with changing dashes and spaces.
    told = re.sub(r"[^a-z0-9]", "", hardware.accelerators[0].lower())
    spelled = {re.sub(r"[^a-z0-9]", "", name): name for name in (*_table(), *_aliases())}
    # the longest that fits: an L40S is no L4, and an A100 of 40 GB no other
    fitting = [short for short in spelled if re.search(f"{short.replace('a100', 'a100.*')}(gb|$|[^0-9])", told)]
    if not fitting:
        raise RequestError(
            f"this machine's accelerator {hardware.accelerators[0]!r}",
            expected=f"one of {', '.join(_table())}",
            do="name the nearest of these with --on",
        )
    return device_of(spelled[max(fitting, key=len)], hardware)


def family_of(device: Device) -> Family:
    """The class of a device, by which utilisations are tabled; an accelerator that the table lacks is `datacentre`."""
    if device.is_cpu:
        return "cpu"
    family: Family = _table().get(device.name, {}).get("family", "datacentre")
    return family


def _parsed(text: str) -> tuple[str, int]:
    match = _FORM.fullmatch(text.strip().lower().replace("_", "-"))
    if match is None:
        raise RequestError(
            f"device {text!r}", expected="NAME or NAME:COUNT, such as a100-80g:4", do="see the names: cpu, h100, ..."
        )
    count = int(match["count"] or 1)
    if not 1 <= count <= MAX_DEVICES:
        raise RequestError(
            f"device {text!r}: {count:,} devices", expected=f"1 to {MAX_DEVICES:,}", do="correct the count"
        )
    return match["name"], count


def _tabled(name: str, count: int) -> Device:
    row = _table()[name]
    return Device(
        name=name,
        title=row["title"],
        num_devices=count,
        memory_bytes=int(row["memory_gib"] * 2**30),
        bfloat16_tflops=row["bfloat16_tflops"],
        float32_tflops=row["float32_tflops"],
        memory_gb_per_second=row["memory_gb_per_second"],
        link_gb_per_second=row["link_gb_per_second"],
        power_watts=row["power_watts"],
        is_cpu=False,
        source=row["source"],
    )


def _this_cpu(hardware: Hardware) -> Device:
    return Device(
        name="cpu",
        title=f"{hardware.cpu_name}, {hardware.num_threads} threads",
        num_devices=1,
        memory_bytes=hardware.memory_bytes,
        bfloat16_tflops=hardware.bfloat16_gflops / 1e3,
        float32_tflops=hardware.float32_gflops / 1e3,
        memory_gb_per_second=hardware.memory_gb_per_second,
        link_gb_per_second=0.0,
        power_watts=_CPU_WATTS_PER_CORE * hardware.num_cores,
        is_cpu=True,
        source="measured; power assumed",
    )


# A server core under load with its share of memory and board: 280 W for 64 cores to 360 W for 96 (AMD EPYC data
# sheets), and as much again for memory, fans and conversion.
_CPU_WATTS_PER_CORE = 8.0


@lru_cache(maxsize=1)
def _table() -> dict[str, dict[str, Any]]:
    table: dict[str, dict[str, Any]] = yaml.safe_load(_TABLE.read_text(encoding="utf-8"))
    return table


@lru_cache(maxsize=1)
def _aliases() -> dict[str, str]:
    return {alias: name for name, row in _table().items() for alias in row.get("aliases", ())}
