"""What a chart shows, apart from how it is drawn. `svg.drawn` and `static/js/charts.js` both draw it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Literal

Role = Literal["base", "tuned", "other-1", "other-2", "other-3", "good", "bad", "quiet"]
"""Colours by meaning, as reports have them: base and tuned model first."""
Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Axis:
    """name: what it measures. unit: empty for a plain number. low, high: ends that must be seen."""

    name: str
    unit: str = ""
    scale: Literal["linear", "log"] = "linear"
    low: float | None = None
    high: float | None = None

    @property
    def title(self) -> str:
        """Name and unit."""
        return f"{self.name} ({self.unit})" if self.unit else self.name


@dataclass(frozen=True, slots=True)
class Series:
    """Points (x, y) in the order of x. labels: what each is, to be read on hover; empty for none."""

    name: str
    points: Sequence[Point]
    role: Role = "tuned"
    shape: Literal["line", "dots", "steps"] = "line"
    labels: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Mark:
    """A vertical line with a word."""

    x: float
    name: str


@dataclass(frozen=True, slots=True)
class Plot:
    """Lines and dots over two axes. key: names it among the charts of a page, for what comes later.

    group: charts of one group show the same place at once. tools: whether a reader may smooth the lines and take the
    logarithm, where scripts run.
    """

    key: str
    title: str
    x: Axis
    y: Axis
    series: Sequence[Series]
    marks: Sequence[Mark] = ()
    caption: str = ""
    group: str = ""
    tools: bool = False

    def as_json(self) -> dict[str, Any]:
        """For the script."""
        return {"kind": "plot", **_fields(self), "x_title": self.x.title, "y_title": self.y.title}


@dataclass(frozen=True, slots=True)
class Estimate:
    """One row of an interval chart: a value with the ends of its interval."""

    name: str
    value: float
    low: float
    high: float
    role: Role = "tuned"


@dataclass(frozen=True, slots=True)
class Intervals:
    """Estimates one below the other. zero: whether a line at zero tells better from worse."""

    key: str
    title: str
    x: Axis
    rows: Sequence[Estimate]
    zero: bool = False
    caption: str = ""

    def as_json(self) -> dict[str, Any]:
        """For the script."""
        return {"kind": "intervals", **_fields(self), "x_title": self.x.title}


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar, with what is written at its end."""

    name: str
    value: float
    words: str = ""
    role: Role = "tuned"


@dataclass(frozen=True, slots=True)
class Bars:
    """Bars one below the other, all from zero. limit: a line that they are held against."""

    key: str
    title: str
    x: Axis
    rows: Sequence[Bar]
    limit: Mark | None = None
    caption: str = ""

    def as_json(self) -> dict[str, Any]:
        """For the script."""
        return {"kind": "bars", **_fields(self), "x_title": self.x.title}


@dataclass(frozen=True, slots=True)
class Column:
    """One axis of a parallel chart, and what its lower and its upper end stand for."""

    name: str
    low: str
    high: str


@dataclass(frozen=True, slots=True)
class Thread:
    """One line through all columns. heights: from 0 to 1 on each, None where it has no part. words: read on hover."""

    name: str
    heights: Sequence[float | None]
    words: str = ""
    role: Role = "tuned"


@dataclass(frozen=True, slots=True)
class Parallel:
    """A line for each thing over all that it is made of, each column with a scale of its own. The last lies on top."""

    key: str
    title: str
    columns: Sequence[Column]
    lines: Sequence[Thread]
    caption: str = ""

    def as_json(self) -> dict[str, Any]:
        """For the script."""
        return {"kind": "parallel", **_fields(self)}


Chart = Plot | Intervals | Bars | Parallel


def _fields(value: Any) -> dict[str, Any]:
    """A chart as plain values. Points, of which there may be many, are not copied."""
    return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        return _fields(value)
    is_of_parts = isinstance(value, list | tuple) and value and is_dataclass(value[0])
    return [_fields(one) for one in value] if is_of_parts else value
