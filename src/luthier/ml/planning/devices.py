"""The devices a run can be planned for, and their prices.

Devices are this machine's own, as measured, and the accelerators of `devices.yaml` (vendor data sheets, dense rates).
Prices are those of the dated table `prices.yaml`; a user's own file replaces entries of it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from datetime import date
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

import yaml

from luthier.core.errors import NotFoundError, RequestError
from luthier.core.estimate import Estimate
from luthier.core.results.cost import Device, DevicePrice, PeopleRate, PersonKind, PriceBasis, PriceTable
from luthier.core.text.counted import counted
from luthier.core.text.plain_yaml import parse_yaml

if TYPE_CHECKING:
    from luthier.ml.planning.hardware import Hardware

Family = Literal["cpu", "small", "consumer", "workstation", "datacentre", "hopper"]

MAX_DEVICES = 1024
OWN_GPU = "own-gpu"
"""The name of this machine's accelerator where the table has none like it."""
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
    if name == OWN_GPU and hardware.accelerator_gb_per_second:
        return _measured(hardware).model_copy(update={"num_devices": count})
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
    if name not in ("cpu", OWN_GPU) and name not in _table():
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

    An accelerator is found in the table by the name that its driver gives. One that is not there has measured rates,
    and so has one with far less memory than the table says: a slice of a card, or the card of a laptop.

    Raises:
        RequestError: it is not there, and its memory could not be measured.
    """
    if hardware.device == "cpu":
        return _this_cpu(hardware)
    # "NVIDIA A100-SXM4-80GB" becomes "nvidiaa100sxm480gb": drivers spell names with changing dashes and spaces.
    told = re.sub(r"[^a-z0-9]", "", hardware.accelerators[0].lower())
    spelled = {re.sub(r"[^a-z0-9]", "", name): name for name in (*_table(), *_aliases())}
    # the longest that fits: an L40S is no L4, and an A100 of 40 GB no other
    fitting = [short for short in spelled if re.search(f"{short.replace('a100', 'a100.*')}(gb|$|[^0-9])", told)]
    if not fitting and hardware.accelerator_gb_per_second:
        return _measured(hardware)
    if not fitting:
        raise RequestError(
            f"this machine's accelerator {hardware.accelerators[0]!r}",
            expected=f"one of {', '.join(_table())}",
            do="name the nearest of these with --on",
        )
    return _as_found(device_of(spelled[max(fitting, key=len)], hardware), hardware)


def family_of(device: Device) -> Family:
    """The class of a device in the table of utilisations; an accelerator that the table lacks is `datacentre`."""
    if device.is_cpu:
        return "cpu"
    family: Family = _table().get(device.name, {}).get("family", "datacentre")
    return family


def has_bfloat16(device: Device) -> bool:
    """Whether a device has units for bfloat16; without them a run computes in float32, which is faster there."""
    return bool(_table().get(device.name, {}).get("has_bfloat16", True))


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
        node_devices=row["node_devices"],
        network_gb_per_second=row["network_gb_per_second"],
        power_watts=row["power_watts"],
        is_cpu=False,
        source=row["source"],
    )


def cpu_for_memory(memory_bytes: int) -> Device:
    """A processor for predictions of memory alone: without rates, which take seconds to measure.

    Args:
        memory_bytes: that it has.
    """
    return Device(
        name="cpu",
        title="the processor",
        num_devices=1,
        memory_bytes=memory_bytes,
        bfloat16_tflops=0.0,
        float32_tflops=0.0,
        memory_gb_per_second=0.0,
        link_gb_per_second=0.0,
        power_watts=0.0,
        is_cpu=True,
        source="no rates",
    )


def _this_cpu(hardware: Hardware) -> Device:
    single, half = hardware.float32_gflops, hardware.bfloat16_gflops
    if hardware.device != "cpu":  # those are of the accelerator
        from luthier.ml.planning.hardware import cpu_rates

        single, half = (rates := cpu_rates()).float32, rates.bfloat16
    return Device(
        name="cpu",
        title=f"{hardware.cpu_name}, {counted(hardware.num_threads, 'thread')}",
        num_devices=1,
        memory_bytes=hardware.memory_bytes,
        bfloat16_tflops=half / 1e3,
        float32_tflops=single / 1e3,
        memory_gb_per_second=hardware.memory_gb_per_second,
        link_gb_per_second=0.0,
        power_watts=_CPU_WATTS_PER_CORE * hardware.num_cores,
        is_cpu=True,
        source="measured; power assumed",
    )


def _as_found(device: Device, hardware: Hardware) -> Device:
    """An accelerator of the table with the memory that it has here: its driver and error correction take some of it."""
    found = hardware.accelerator_memory_bytes
    if not 0 < found < device.memory_bytes:
        return device
    if found >= _WHOLE_CARD_SHARE * device.memory_bytes or not hardware.accelerator_gb_per_second:
        return device.model_copy(update={"memory_bytes": found})
    own = _measured(hardware)
    names = ("title", "memory_bytes", "bfloat16_tflops", "float32_tflops", "memory_gb_per_second", "source")
    return device.model_copy(update={name: getattr(own, name) for name in names})


def _measured(hardware: Hardware) -> Device:
    """This machine's accelerator, as measured."""
    return Device(
        name=OWN_GPU,
        title=hardware.accelerators[0],
        num_devices=1,
        memory_bytes=hardware.accelerator_memory_bytes,
        bfloat16_tflops=hardware.bfloat16_gflops / 1e3,
        float32_tflops=hardware.float32_gflops / 1e3,
        memory_gb_per_second=hardware.accelerator_gb_per_second,
        link_gb_per_second=_ASSUMED_LINK_GB_PER_SECOND,
        power_watts=_ASSUMED_GPU_WATTS,
        is_cpu=False,
        source="measured; link and power assumed",
    )


# A T4 or an A10G has 0.91 of its 16 or 24 GiB left for programs; the card of a laptop has two thirds of its namesake.
_WHOLE_CARD_SHARE = 0.85
# PCIe 4.0 x16 as it is reached between two cards, and the board of a middling desktop card: data sheets go from 40 W
# (Apple's M series) to 450 W.
_ASSUMED_LINK_GB_PER_SECOND = 16.0
_ASSUMED_GPU_WATTS = 150.0
# A server core under load with its share of memory and board: 280 W for 64 cores to 360 W for 96 (AMD EPYC data
# sheets), and as much again for memory, fans and conversion.
_CPU_WATTS_PER_CORE = 8.0


@lru_cache(maxsize=1)
def _table() -> dict[str, dict[str, Any]]:
    # libyaml where PyYAML was built with it: every plan reads this table, and PyYAML's own parser takes far longer.
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    table: dict[str, dict[str, Any]] = yaml.load(_TABLE.read_text(encoding="utf-8"), Loader=loader)  # noqa: S506
    return table


@lru_cache(maxsize=1)
def _aliases() -> dict[str, str]:
    return {alias: name for name, row in _table().items() for alias in row.get("aliases", ())}


_PRICES: Final = Path(__file__).with_name("prices.yaml")
_ENDS: Final = ("low", "typical", "high")
_TOP: Final = ("as_of", "devices", "people", "electricity_usd_per_kwh")
_DEVICE: Final = ("on_demand", "spot", "basis", "source", "as_of")
_PERSON: Final = ("usd_per_hour", "fixed_hours", "minutes_per_row", "rows_fraction", "basis", "source")
_POWER: Final = ("usd", "basis", "source")
_MOST: Final = 1e6
_NUM_SHOWN: Final = 8


def load_prices(path: Path | None = None) -> PriceTable:
    """The price table; entries of the file at `path` replace those of the same name whole.

    `as_of` is the date of the user's file where there is one; each device keeps the date of its own entry.

    Raises:
        NotFoundError: a missing file.
        RequestError: one that is no price file: every wrong place is named.
    """
    built_in = _built_in()
    if path is None:
        return built_in
    own = _read(path, name=str(path), is_own=True)
    return PriceTable(
        as_of=own.as_of or built_in.as_of,
        # Whole entries replace whole entries: mixing a user's price with our source would misname where it is from.
        devices=built_in.devices | own.devices,
        people=built_in.people | own.people,
        electricity_usd_per_kwh=own.power or built_in.electricity_usd_per_kwh,
    )


@lru_cache(maxsize=1)
def _built_in() -> PriceTable:
    found = _read(_PRICES, name=_PRICES.name, is_own=False)
    assert found.as_of is not None, "the table that is shipped has a date"
    assert found.power is not None, "the table that is shipped is complete"
    return PriceTable(
        as_of=found.as_of, devices=found.devices, people=found.people, electricity_usd_per_kwh=found.power
    )


class _Reader:
    """The valid content of a price file, and every place that is invalid."""

    def __init__(self, lines: Mapping[str, int], name: str, *, is_own: bool) -> None:
        self.problems: list[str] = []
        self.as_of: date | None = None
        self.devices: dict[str, DevicePrice] = {}
        self.people: dict[PersonKind, PeopleRate] = {}
        self.power: Estimate | None = None
        self._lines, self._basis, self._source = lines, "own" if is_own else None, name

    def read(self, document: Mapping[str, Any]) -> None:
        """Take a whole document in."""
        top = self._keys("", document, _TOP)
        self.as_of = self._date("as_of", top.get("as_of"))
        for name, entry in self._keys("devices", top.get("devices", {}), (*device_names(), OWN_GPU)).items():
            self._device(name, entry)
        for kind, entry in self._keys("people", top.get("people", {}), get_args(PersonKind)).items():
            self._person(kind, entry)
        if "electricity_usd_per_kwh" in top:
            place, found = "electricity_usd_per_kwh", top["electricity_usd_per_kwh"]
            if isinstance(found, Mapping) and "usd" in found:
                found, place = self._keys(place, found, _POWER)["usd"], f"{place}.usd"
            self.power = self._range(place, found)

    def _device(self, name: str, entry: Any) -> None:
        place = f"devices.{name}"
        found = self._keys(place, entry, _DEVICE)
        prices = {m: self._range(f"{place}.{m}", found[m]) for m in ("on_demand", "spot") if m in found}
        if found and not prices:
            self._wrong(place, "has no price, expected on_demand, spot or both")
        when = self._date(f"{place}.as_of", found["as_of"]) if "as_of" in found else self.as_of
        basis, source = self._origin(place, found)
        if prices and when and basis:
            self.devices[name] = DevicePrice(
                on_demand=prices.get("on_demand"), spot=prices.get("spot"), basis=basis, source=source, as_of=when
            )

    def _person(self, kind: PersonKind, entry: Any) -> None:
        place = f"people.{kind}"
        found = self._keys(place, entry, _PERSON)
        for key in ("usd_per_hour", "fixed_hours", "minutes_per_row", "rows_fraction"):
            if found and key not in found:
                self._wrong(f"{place}.{key}", "is missing, expected a number, or low, typical and high")
        ranges = {
            key: self._range(
                f"{place}.{key}",
                found[key],
                may_be_zero=key != "usd_per_hour",
                most=1.0 if key == "rows_fraction" else _MOST,
            )
            for key in ("usd_per_hour", "fixed_hours", "minutes_per_row", "rows_fraction")
            if key in found
        }
        basis, source = self._origin(place, found)
        right = {key: value for key, value in ranges.items() if value is not None}
        if len(right) == 4 and basis:
            self.people[kind] = PeopleRate(**right, basis=basis, source=source)

    def _origin(self, place: str, found: Mapping[str, Any]) -> tuple[PriceBasis | None, str]:
        basis, source = found.get("basis", self._basis), found.get("source", self._source)
        if basis not in get_args(PriceBasis):
            self._wrong(f"{place}.basis", f"has {basis!r}, expected one of {', '.join(get_args(PriceBasis))}")
            return None, ""
        return basis, str(source)

    def _keys(self, place: str, value: Any, known: Sequence[str]) -> dict[Any, Any]:
        """The entries with a known name; others are reported with the nearest one."""
        if not isinstance(value, Mapping):
            self._wrong(place, f"has {value!r}, expected keys among {', '.join(known)}")
            return {}
        for key in value:
            if key not in known:
                near = get_close_matches(str(key), known, n=1, cutoff=0.5)
                words = f"nearest known: {near[0]}" if near else f"known here: {', '.join(known)}"
                self._wrong(f"{place}.{key}" if place else str(key), f"unknown key; {words}")
        return {key: value[key] for key in value if key in known}

    def _range(self, place: str, value: Any, *, may_be_zero: bool = False, most: float = _MOST) -> Estimate | None:
        """A number, or low, typical and high in this order."""
        if isinstance(value, Mapping):
            known = self._keys(place, value, _ENDS)
            if missing := [end for end in _ENDS if end not in known]:
                self._wrong(place, f"lacks {' and '.join(missing)}, expected low, typical and high, or one number")
                return None
            ends = [self._number(f"{place}.{end}", known[end], may_be_zero, most) for end in _ENDS]
        else:
            ends = [self._number(place, value, may_be_zero, most)] * 3
        # A wrong end has been noted by `_number`; here only the range as a whole is dropped.
        numbers = [end for end in ends if end is not None]
        if len(numbers) < 3:
            return None
        if numbers != sorted(numbers):
            self._wrong(place, f"has {numbers}, expected low <= typical <= high")
            return None
        return Estimate(low=numbers[0], value=numbers[1], high=numbers[2])

    def _number(self, place: str, value: Any, may_be_zero: bool, most: float) -> float | None:
        # bool is a subclass of int, and YAML writes inf and nan as floats.
        is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if not is_number or value < 0 or value > most or (value == 0 and not may_be_zero):
            least = "0 or more" if may_be_zero else "above 0"
            self._wrong(place, f"has {str(value)[:60]!r}, expected a number {least} and at most {most:,.0f}")
            return None
        return float(value)

    def _date(self, place: str, value: Any) -> date | None:
        try:
            return date.fromisoformat(value)
        except (TypeError, ValueError):
            came = "is missing" if value is None else f"has {value!r}"
            self._wrong(place, f"{came}, expected the day of these prices, such as 2026-11-25")
            return None

    def _wrong(self, place: str, words: str) -> None:
        line = f"line {self._lines[place]}, " if place in self._lines else ""
        self.problems.append(f"{line}{place}: {words}")


def _read(path: Path, *, name: str, is_own: bool) -> _Reader:
    if not path.is_file():
        raise NotFoundError(f"no price file {path}", expected="an existing YAML file", do="check the path of --prices")
    try:
        # utf-8-sig drops the byte order mark that spreadsheet programs write.
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RequestError(f"price file {path} is not UTF-8", expected="UTF-8 text", do="save it as UTF-8") from error
    document, lines = parse_yaml(str(path), text)
    reader = _Reader(lines, name, is_own=is_own)
    if isinstance(document, Mapping):
        reader.read(document)
    else:
        reader.problems.append(f"holds {type(document).__name__}, not keys")
    if reader.problems:
        shown = "\n".join(f"    {problem}" for problem in reader.problems[:_NUM_SHOWN])
        more = len(reader.problems) - _NUM_SHOWN
        raise RequestError(
            f"price file {path}:\n{shown}" + (f"\n    ... and {more} more" if more > 0 else ""),
            expected="as_of and the entries to replace, such as devices: {a100-80g: {on_demand: 1.80}}",
            do="correct these places; docs/cost.md shows the whole form",
        )
    return reader
