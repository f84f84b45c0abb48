"""Horizontal bars with their names and counts, and the length histogram."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from luthier.ml.charts.drawing import short
from luthier.ml.charts.figures import count, percent
from luthier.ml.charts.page import Chart
from luthier.ml.charts.spec import Axis, Bar, Bars, Mark, Plot, Role, Series, points_of
from luthier.ml.charts.svg import report_chart
from luthier.ml.charts.visible import visible

WIDTH: Final = 460
NUM_BARS: Final = 10
_NAME_CHARACTERS: Final = 26
_BINS: Final = 40


def short_name(text: str) -> str:
    """A name of unknown origin on one line, at most 26 characters."""
    return short(visible(text), _NAME_CHARACTERS) or "(empty)"


def bar_chart(
    name: str, title: str, counts: Sequence[tuple[str, int]], *, what: str, whole: int, num_kinds: int, role: Role
) -> Chart:
    """Bars, longest first; of more than ten kinds the ten largest, and the caption says so.

    Args:
        name: id of the chart on its page.
        title: shown above it.
        counts: (name, count) with the largest first.
        what: what is counted, in the plural.
        whole: what the shares are of.
        num_kinds: how many kinds there are in all.
        role: colour of the bars.
    """
    shown = counts[:NUM_BARS]
    first = f"“{short_name(shown[0][0])}” has {count(shown[0][1])} {what}"
    first += f", the most of {count(num_kinds)}." if num_kinds > 1 else "."
    rest = f" The {len(shown)} largest are shown." if num_kinds > len(shown) else ""
    rows = [
        Bar(short_name(kind), value, f"{count(value)}  ({percent(value / whole)})" if whole else count(value), role)
        for kind, value in shown
    ]
    axis = Axis("", low=0.0, is_shown=False)
    described = f"{title}. {first}{rest}"
    chart = Bars(name, title, axis, rows, caption=f"{first}{rest}", description=described, width_pixels=WIDTH)
    return report_chart(chart)


def length_chart(lengths: npt.NDArray[np.int64], unit: str, limits: Mapping[str, float]) -> Chart:
    """How long rows are, on a logarithmic axis with marks.

    Args:
        lengths: int64 [rows], in `unit`.
        unit: what lengths are counted in.
        limits: name -> length where a line is drawn, such as the context of the model.
    """
    title = f"Length of rows in {unit}"
    filled = lengths[lengths > 0]
    num_empty = len(lengths) - len(filled)
    low, high = int(filled.min()), int(filled.max())
    edges = _edges(low, high)
    counts, _ = np.histogram(filled, bins=edges)
    reach = [low, high, *(value for value in limits.values() if value > 0)]
    text = (
        f"Half of the rows have {np.quantile(lengths, 0.5, method='nearest'):,.0f} {unit} or fewer; the shortest "
        f"has {int(lengths.min()):,}, the longest {int(lengths.max()):,}."
    )
    if num_empty:
        text += f" {num_empty:,} empty {'row is' if num_empty == 1 else 'rows are'} not drawn."
    chart = Plot(
        "chart-length",
        title,
        Axis(f"{unit} (logarithmic)", scale="log", low=min(reach) / 1.25, high=max(reach) * 1.25, ticks=_ticks(reach)),
        Axis("rows", low=0.0),
        [Series("", points_of(edges, [*counts, 0]), "other-1", "columns")],
        marks=[_limit(name, value) for name, value in limits.items() if value > 0],
        caption=text,
        width_pixels=WIDTH,
    )
    return report_chart(chart)


def _limit(name: str, value: float) -> Mark:
    is_context = "context" in name
    return Mark(value, f"{name}, {value:,.0f}", role="tuned" if is_context else "base", is_dashed=not is_context)


def _ticks(reach: Sequence[float]) -> list[tuple[float, str]]:
    """Powers of ten, and 2 and 5 times those where there is room."""
    factors = (1, 2, 5) if max(reach) < 300 * min(reach) else (1,)
    return [(factor * 10.0**power, f"{factor * 10**power:,}") for power in range(13) for factor in factors]


def _edges(low: int, high: int) -> npt.NDArray[np.float64]:
    """Logarithmic bins that hold whole numbers each: none is empty only because no length fits in."""
    wide = np.geomspace(low, high + 1, min(_BINS, high + 1 - low) + 1)
    # Rounded edges may coincide for short lengths; unique() joins such bins.
    return np.unique(np.round(wide)).astype(np.float64) if high > low else np.array([low - 0.5, low + 0.5])
