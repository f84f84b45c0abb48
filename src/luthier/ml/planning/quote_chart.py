"""Quotes as pictures: memory part by part against what the device has, and what each way of training costs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from luthier.core.results.cost import Option, Quote
from luthier.ml.charts.figures import duration, size
from luthier.ml.charts.spec import OTHERS, Axis, Bar, Bars, IntervalRow, Intervals, Mark, Role
from luthier.ml.charts.svg import write_chart

_GB: Final = 10**9
_WIDTH: Final = 720
_MAX_ROWS: Final = 24
_ROLES: Final[tuple[Role, ...]] = ("base", *OTHERS, "tuned")


def write_memory_chart(path: Path, quote: Quote) -> None:
    """One bar for each part of the peak memory, their sum with its range, and a line at what the device has."""
    memory, device = quote.prediction.peak_memory, quote.prediction.device
    parts = [(name, value / _GB) for name, value in memory.parts().items() if value]
    total = memory.total_bytes.times(1 / _GB)
    capacity = device.memory_bytes / _GB
    rows, start = [], 0.0
    for name, value in parts:
        rows.append(Bar(name, start + value, size(round(value * _GB), _GB), "other-1", start=start))
        # Parts are drawn one behind the other, so that the last one ends at the sum.
        start += value
    whole = size(round(total.value * _GB), _GB)
    rows.append(Bar("all together", total.value, whole, "base", interval=(total.low, total.high)))
    chart = Bars(
        "memory",
        f"Peak memory on {device.title}: {'fits' if quote.prediction.fits else 'does not fit'}",
        Axis("peak memory of one device, GB; the thin line is the range of the sum", low=0.0),
        rows,
        limit=Mark(capacity, f"{device.name}: {size(device.memory_bytes, _GB)}", role="tuned", is_dashed=False),
        description=f"{total.value:.3g} GB ({total.low:.3g} to {total.high:.3g}) of {capacity:.3g} GB: "
        + ", ".join(f"{name} {value:.2g}" for name, value in parts),
        width_pixels=_WIDTH,
    )
    write_chart(chart, path)


def write_options_chart(path: Path, options: Sequence[Option]) -> None:
    """USD of each method on each device with its range, the cheapest first, with the hours.

    The first 24 are drawn, and those of a CPU; the axis says how many fit. Without any price the bars are hours.
    """
    fitting = [option for option in options if option.fits]
    shown = [o for place, o in enumerate(fitting) if place < _MAX_ROWS or o.prediction.device.is_cpu]
    # One option without a price turns all into hours: bars of two units cannot be compared.
    in_usd = all(option.prediction.usd is not None for option in shown)
    methods = list(dict.fromkeys(option.method for option in options))
    rows = []
    for option in shown:
        made = option.prediction
        found = made.usd if in_usd and made.usd is not None else made.hours
        name = f"{option.method.partition(' (')[0]}, {option.device}"
        time = f"{duration(made.hours.value * 3600)}{' *' if option.needs else ''}"
        role = _ROLES[methods.index(option.method) % len(_ROLES)]
        rows.append(IntervalRow(name, found.value, found.low, found.high, role, time))
    unit = "USD" if in_usd else "hours"
    first = shown[0] if shown else None
    chart = Intervals(
        "options",
        f"What each way of training costs, in {unit}",
        Axis(
            f"{unit}, logarithmic, with the range and the time; * in smaller micro-batches or with recomputation\n"
            f"{len(shown)} of {len(fitting)} that fit, of {len(options)} compared",
            scale="log",
        ),
        rows,
        description=f"cheapest: {first.method} on {first.device}" if first else "nothing fits",
        width_pixels=_WIDTH + 80,
    )
    write_chart(chart, path)
