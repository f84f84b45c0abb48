"""A drawing as shapes of known positions and colours, which becomes SVG or pixels, and the ticks of its axes."""

from __future__ import annotations

import itertools
import math
import textwrap
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from luthier.core.text.names import shortened
from luthier.ml.charts.figures import MINUS
from luthier.ml.charts.spec import Point, Role, tick_step

Ink = Role | Literal["paper"]
Anchor = Literal["start", "middle", "end"]
TEXT_PIXELS = 12.0


@dataclass(frozen=True, slots=True)
class Rule:
    """A straight line of the frame: a grid line, an axis, a mark."""

    start: Point
    end: Point
    ink: Ink = "rule"
    width: float = 1.0
    is_dashed: bool = False


@dataclass(frozen=True, slots=True)
class Line:
    """A line through points."""

    points: Sequence[Point]
    ink: Ink
    width: float = 1.8
    is_dashed: bool = False
    opacity: float = 1.0


@dataclass(frozen=True, slots=True)
class Area:
    """A filled polygon."""

    points: Sequence[Point]
    ink: Ink
    opacity: float = 1.0


@dataclass(frozen=True, slots=True)
class Dot:
    """A circle. is_open: a ring."""

    at: Point
    radius: float
    ink: Ink
    is_open: bool = False
    opacity: float = 1.0


@dataclass(frozen=True, slots=True)
class Text:
    """Text whose baseline is at a point.

    Attributes:
        angle: Degrees, clockwise, around the point.
        is_figure: Whether it is a number that the drawer wrote, which pages in other languages write their own way.
    """

    at: Point
    text: str
    ink: Ink = "muted"
    anchor: Anchor = "start"
    size: float = TEXT_PIXELS
    angle: float = 0.0
    is_bold: bool = False
    is_figure: bool = False


Shape = Rule | Line | Area | Dot | Text


@dataclass(frozen=True, slots=True)
class Drawing:
    """Shapes on a sheet, the last on top.

    Attributes:
        key: Unique in a page.
        title: Its name for screen readers.
        description: What they read in its place.
        width: In pixels.
        height: In pixels.
        shapes: From the bottom up.
    """

    key: str
    title: str
    description: str
    width: float
    height: float
    shapes: Sequence[Shape]


def box(x: float, y: float, width: float, height: float, ink: Ink, opacity: float = 1.0) -> Area:
    """A rectangle with its upper left corner at (x, y).

    Args:
        x: left edge, in pixels.
        y: upper edge, in pixels.
        width: in pixels.
        height: in pixels.
        ink: its colour.
        opacity: from 0 to 1.
    """
    return Area(((x, y), (x + width, y), (x + width, y + height), (x, y + height)), ink, opacity)


def text_width(text: str, size: float = TEXT_PIXELS) -> float:
    """About how wide a text is, in pixels. The reader's font is not known: an em of wide letters, a half of others."""
    return size * sum(1.0 if unicodedata.east_asian_width(c) in "WF" else 0.56 for c in text)


def short(text: str, most: int = 24) -> str:
    """The text on one line of at most that many characters."""
    return shortened(" ".join(text.split()), most)


def two_lines(text: str, most: int = 24) -> list[str]:
    """The text on at most two lines of at most that many characters."""
    lines = textwrap.wrap(text, most, max_lines=2, placeholder=" \N{HORIZONTAL ELLIPSIS}")
    return [short(line, most) for line in lines] or [""]


def linear_ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten in the range, at most `most`; `low` alone where it has no width.

    Args:
        low: lower end of the axis.
        high: upper end.
        most: ticks at most.
    """
    if not high > low:
        return [low]
    step = tick_step(low, high, most)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    # Multiplied, not added up: sums would drift by rounding, and 0.30000000000000004 would be written.
    return [0.0 if n == 0 else n * step for n in range(first, last + 1)]


def log_ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Powers of ten within the range; the range's ends where there are none."""
    first, last = math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9)
    # Whole decades are left out, so that the distance between ticks stays equal.
    every = max(1, math.ceil((last - first + 1) / most))
    return [10.0**n for n in range(first, last + 1, every)] or [low, high]


def words(ticks: Sequence[float]) -> list[str]:
    """Each tick with the decimals that all of them need; large and tiny ones with an exponent."""
    if not ticks:
        return []
    largest = max(abs(tick) for tick in ticks)
    smallest = min((abs(tick) for tick in ticks if tick), default=1.0)
    # The smallest gap decides: with fewer decimals two neighbours would read the same.
    gap = min((abs(b - a) for a, b in itertools.pairwise(ticks) if a != b), default=smallest)
    last = math.floor(math.log10(gap) + 1e-9)  # the decimal place in which neighbours differ
    if largest >= 1e6 or smallest < 1e-4:
        digits = max(3, math.floor(math.log10(largest)) - last + 1) if largest else 3
        return [_plain(f"{tick:.{digits}g}") for tick in ticks]
    decimals = max(0, -last)
    return [_plain(f"{tick:,.{decimals}f}") for tick in ticks]


def _plain(text: str) -> str:
    return text.replace("-", MINUS)
