"""A drawing as shapes of known places and colours, which becomes SVG or pixels."""

from __future__ import annotations

import textwrap
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from luthier.ml.charts.spec import Point, Role

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
    """Words whose baseline lies at a point. angle: degrees, clockwise, around it."""

    at: Point
    text: str
    ink: Ink = "muted"
    anchor: Anchor = "start"
    size: float = TEXT_PIXELS
    angle: float = 0.0
    is_bold: bool = False


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
    """A rectangle with its upper left corner at (x, y)."""
    return Area(((x, y), (x + width, y), (x + width, y + height), (x, y + height)), ink, opacity)


def text_width(text: str, size: float = TEXT_PIXELS) -> float:
    """About how wide a text is, in pixels. The reader's font is not known: an em of wide letters, a half of others."""
    return size * sum(1.0 if unicodedata.east_asian_width(c) in "WF" else 0.56 for c in text)


def short(text: str, most: int = 24) -> str:
    """The text on one line of at most so many characters."""
    line = " ".join(text.split())
    return line if len(line) <= most else f"{line[: most - 1]}\N{HORIZONTAL ELLIPSIS}"


def two_lines(text: str, most: int = 24) -> list[str]:
    """The text on at most two lines of at most so many characters."""
    lines = textwrap.wrap(text, most, max_lines=2, placeholder=" \N{HORIZONTAL ELLIPSIS}")
    return [short(line, most) for line in lines] or [""]
