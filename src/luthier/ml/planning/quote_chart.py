"""Quotes as pictures: memory part by part against what the device has, and what each way of training costs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from matplotlib.axes import Axes

from luthier.core.cost import Option, Quote
from luthier.ml.charts.chart_file import write_chart
from luthier.ml.charts.figures import duration, size
from luthier.ml.charts.svg import BASE, INK, MUTED, OTHERS, PAPER, TUNED, canvas

_GB: Final = 1e9
_WIDTH: Final = 720
_ROW: Final = 26
_MAX_ROWS: Final = 24
_COLOURS: Final = (BASE, *OTHERS, TUNED)


def write_memory_chart(path: Path, quote: Quote) -> None:
    """One bar for each part of the peak memory, their sum with its range, and a line at what the device has."""
    memory, device = quote.prediction.peak_memory, quote.prediction.device
    parts = [(name, value / _GB) for name, value in memory.parts().items() if value]
    total = memory.total_bytes.times(1 / _GB)
    capacity = device.memory_bytes / _GB
    names = [*(name for name, _ in parts), "all together"]
    with canvas(_WIDTH, 110 + _ROW * len(names)) as (figure, axes):
        values = [value for _, value in parts]
        starts = [sum(values[:place]) for place in range(len(values))]
        axes.barh(range(len(parts)), values, left=starts, height=0.62, color=OTHERS[0])
        last = len(parts)
        axes.barh([last], [total.value], height=0.62, color=BASE)
        axes.plot([total.low, total.high], [last, last], color=INK, lw=1.4, solid_capstyle="butt")
        for place, (value, start) in enumerate(zip([*values, total.value], [*starts, 0.0], strict=True)):
            end = max(start + value, total.high if place == last else 0.0)
            _label(axes, size(round(value * _GB)), end, place)
        _rows(axes, names)
        axes.axvline(capacity, color=TUNED, lw=1.6)
        axes.annotate(
            f"{device.name}: {size(device.memory_bytes)}",
            (capacity, 1.0),
            xycoords=("data", "axes fraction"),
            va="bottom",
            ha="right" if capacity >= total.high else "left",
            color=TUNED,
        )
        axes.set_xlim(0, 1.16 * max(capacity, total.high))
        axes.set_xlabel("peak memory of one device, GB; the thin line is the range of the sum")
        title = f"Peak memory on {device.title}: {'fits' if quote.prediction.fits else 'does not fit'}"
        axes.set_title(title, loc="left", pad=18)
        write_chart(
            figure,
            path,
            name="memory",
            title=title,
            description=f"{total.value:.3g} GB ({total.low:.3g} to {total.high:.3g}) of {capacity:.3g} GB: "
            + ", ".join(f"{name} {value:.2g}" for name, value in parts),
        )


def write_options_chart(path: Path, options: Sequence[Option]) -> None:
    """USD of each method on each device with its range, the cheapest first; hours stand beside it.

    The first 24 are drawn, and those of a CPU; the axis says how many fit. Without any price the bars are hours.
    """
    fitting = [option for option in options if option.fits]
    shown = [o for place, o in enumerate(fitting) if place < _MAX_ROWS or o.prediction.device.is_cpu]
    in_usd = all(option.prediction.usd is not None for option in shown)
    methods = list(dict.fromkeys(option.method for option in options))
    with canvas(_WIDTH + 80, 110 + _ROW * max(2, len(shown))) as (figure, axes):
        lowest = 1.0
        for place, option in enumerate(shown):
            made = option.prediction
            figure_of = made.usd if in_usd and made.usd is not None else made.hours
            colour = _COLOURS[methods.index(option.method) % len(_COLOURS)]
            axes.plot([figure_of.low, figure_of.high], [place, place], color=colour, lw=3, solid_capstyle="round")
            axes.plot([figure_of.value], [place], "o", color=colour, ms=7, mec=PAPER)
            words = duration(made.hours.value * 3600)
            _label(axes, f"{words} *" if option.needs else words, figure_of.high, place)
            lowest = min(lowest, figure_of.low) if place else figure_of.low
        _rows(axes, [f"{option.method.partition(' (')[0]}, {option.device}" for option in shown])
        axes.set_xscale("log")
        highest = max((o.prediction.usd or o.prediction.hours).high for o in shown) if shown else 1.0
        axes.set_xlim(lowest / 1.5, highest * 3)
        unit = "USD" if in_usd else "hours"
        axes.set_xlabel(
            f"{unit}, logarithmic, with the range; time beside it; * in smaller micro-batches or with recomputation\n"
            f"{len(shown)} of {len(fitting)} that fit, of {len(options)} looked at"
        )
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}" if value >= 1 else f"{value:.2g}")
        first = shown[0] if shown else None
        title = f"What each way of training costs, in {unit}"
        axes.set_title(title, loc="left")
        write_chart(
            figure,
            path,
            name="options",
            title=title,
            description=f"cheapest: {first.method} on {first.device}" if first else "nothing fits",
        )


def _rows(axes: Axes, names: Sequence[str]) -> None:
    axes.set_yticks(range(len(names)), names)
    axes.tick_params(axis="y", labelcolor=INK)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.grid(axis="x")


def _label(axes: Axes, text: str, x: float, y: float) -> None:
    axes.annotate(text, (x, y), xytext=(6, 0), textcoords="offset points", va="center", ha="left", color=MUTED)
