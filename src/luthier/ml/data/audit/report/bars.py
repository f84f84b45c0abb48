"""Horizontal bars with their names and counts, and the length histogram."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Final

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from luthier.ml.charts.figures import count, percent
from luthier.ml.charts.page import Chart
from luthier.ml.charts.svg import BASE, INK, MUTED, OTHERS, PAPER, TUNED, canvas, inline_svg
from luthier.ml.charts.visible import visible

WIDTH: Final = 460
NUM_BARS: Final = 10
_NAME_CHARACTERS: Final = 26
_BINS: Final = 40


@contextmanager
def page_canvas(height: int) -> Iterator[tuple[Figure, Axes]]:
    """A canvas on which text of any script may be drawn.

    matplotlib measures with its own font and warns of letters that it lacks; the page is drawn with the reader's.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font", category=UserWarning)
        warnings.filterwarnings("ignore", message="Matplotlib currently does not support", category=UserWarning)
        with canvas(WIDTH, height) as drawn:
            yield drawn


def short_name(text: str) -> str:
    """A name of unknown origin on one line, at most 26 characters."""
    line = " ".join(visible(text).split()) or "(empty)"
    return line if len(line) <= _NAME_CHARACTERS else f"{line[: _NAME_CHARACTERS - 1]}…"


def bar_chart(
    name: str, title: str, counts: Sequence[tuple[str, int]], *, what: str, whole: int, num_kinds: int, colour: str
) -> Chart:
    """Bars, longest first; of more than ten kinds the ten largest, and the caption says so.

    Args:
        counts: (name, count) with the largest first.
        what: what is counted, in the plural.
        whole: what the shares are of.
        num_kinds: how many kinds there are in all.
    """
    shown = counts[:NUM_BARS]
    with page_canvas(40 + 25 * max(len(shown), 2)) as (figure, axes):
        places = np.arange(len(shown))[::-1]
        axes.barh(places, [value for _, value in shown], height=0.62, color=colour)
        axes.set_yticks(places, [short_name(kind) for kind, _ in shown], color=INK)
        axes.set_xticks([])
        axes.spines["bottom"].set_visible(False)
        axes.set_ylim(-0.6, max(len(shown), 2) - 0.4)
        most = max((value for _, value in shown), default=1)
        axes.set_xlim(0, most * 1.32)
        for place, (_, value) in zip(places, shown, strict=True):
            text = f"{count(value)}  ({percent(value / whole)})" if whole else count(value)
            axes.annotate(text, (value, place), (5, 0), textcoords="offset points", va="center", color=MUTED)
        first = f"“{short_name(shown[0][0])}” has {count(shown[0][1])} {what}"
        first += f", the most of {count(num_kinds)}." if num_kinds > 1 else "."
        rest = f" The {len(shown)} largest are shown." if num_kinds > len(shown) else ""
        svg = inline_svg(figure, name=name, title=title, description=f"{title}. {first}{rest}")
    return Chart(title, f"{first}{rest}", svg)


def length_chart(lengths: npt.NDArray[np.int64], unit: str, limits: Mapping[str, float]) -> Chart:
    """How long rows are, on a logarithmic axis with marks.

    Args:
        lengths: one a row, in `unit`.
        limits: name -> length where a line is drawn, such as the context of the model.
    """
    title = f"Length of rows in {unit}"
    filled = lengths[lengths > 0]
    num_empty = len(lengths) - len(filled)
    with page_canvas(250) as (figure, axes):
        low, high = int(filled.min()), int(filled.max())
        edges = _edges(low, high)
        axes.hist(filled, bins=edges.tolist(), color=OTHERS[0], alpha=0.85)
        axes.set_xscale("log")
        reach = [low, high, *(value for value in limits.values() if value > 0)]
        axes.set_xlim(min(reach) / 1.25, max(reach) * 1.25)
        for place, (name, value) in enumerate(limits.items()):
            if value <= 0:
                continue
            colour = TUNED if "context" in name else BASE
            axes.axvline(value, color=colour, lw=1.4, ls="-" if "context" in name else (0, (4, 3)))
            late = np.log(value / min(reach)) > 0.6 * np.log(max(reach) / min(reach) + 1e-9)
            axes.annotate(
                f"{name}, {value:,.0f}",
                (value, 0.97 - 0.09 * place),
                (-5 if late else 5, 0),
                xycoords=("data", "axes fraction"),
                textcoords="offset points",
                ha="right" if late else "left",
                va="top",
                color=colour,
                bbox={"facecolor": PAPER, "edgecolor": "none", "pad": 1.0, "alpha": 0.8},
            )
        axes.grid(axis="y")
        axes.set_xlabel(f"{unit} (logarithmic)")
        axes.set_ylabel("rows")
        axes.xaxis.set_major_locator(LogLocator(base=10, subs=(1.0, 2.0, 5.0) if high < 300 * low else (1.0,)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
        text = (
            f"Half of the rows have {np.quantile(lengths, 0.5, method='nearest'):,.0f} {unit} or fewer; the shortest "
            f"has {int(lengths.min()):,}, the longest {int(lengths.max()):,}."
        )
        if num_empty:
            text += f" {num_empty:,} empty {'row is' if num_empty == 1 else 'rows are'} not drawn."
        svg = inline_svg(figure, name="chart-length", title=title, description=text)
    return Chart(title, text, svg)


def _edges(low: int, high: int) -> npt.NDArray[np.float64]:
    """Logarithmic bins that hold whole numbers each: none is empty only because no length fits in."""
    wide = np.geomspace(low, high + 1, min(_BINS, high + 1 - low) + 1)
    return np.unique(np.round(wide)).astype(np.float64) if high > low else np.array([low - 0.5, low + 0.5])
