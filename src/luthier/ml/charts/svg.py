"""A drawing as SVG inside a page: coloured by the page's style, named for screen readers, the same bytes each time.

Text stays text, so that it takes the page's own font, and a screen reader and the browser's search can read it. Colours
are classes (`c-tuned`), so that one drawing is right on a light page, on a dark one and on paper, and so that it may
stand in a page whose policy forbids styles at elements.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from markupsafe import Markup, escape

from luthier.ml.charts.drawer import drawing_of
from luthier.ml.charts.drawing import TEXT_PIXELS, Area, Dot, Drawing, Line, Rule, Shape
from luthier.ml.charts.page import Chart as PageChart
from luthier.ml.charts.spec import Chart, Plot, Point, Series
from luthier.ml.charts.visible import visible

INKS: Final = (
    *("ink", "muted", "rule", "paper", "base", "tuned", "other-1", "other-2", "other-3"),
    *("good", "bad", "quiet"),
)
"""Every colour of a drawing; each is the CSS variable of its name."""
COLOUR_RULES: Final = " ".join(f".c-{ink} {{ color: var(--{ink}); }}" for ink in INKS)


def drawn(chart: Chart, *, has_legend: bool = False) -> Markup:
    """The chart as one `<svg>` element without outside references.

    Args:
        chart: what to draw.
        has_legend: whether names of series are in the picture; pages have them beside it.
    """
    drawing = drawing_of(chart, has_legend=has_legend)
    if drawing is None:
        return Markup('<p class="muted no-chart">Nothing to draw yet for <em>{}</em>.</p>').format(visible(chart.title))
    return svg_of(drawing)


def report_chart(chart: Chart, *, heading: str = "", caption: str = "") -> PageChart:
    """The chart as a report shows it. heading, caption: where they are not the chart's own."""
    return PageChart(heading or chart.title, caption or chart.caption, drawn(chart, has_legend=has_legend_of(chart)))


def has_legend_of(chart: Chart) -> bool:
    """Whether several series have names to be told apart by."""
    return isinstance(chart, Plot) and len({s.name for s in named(chart)}) > 1


def named(chart: Plot) -> list[Series]:
    """The series that a legend names."""
    return [series for series in chart.series if series.name and series.points]


def svg_of(drawing: Drawing, attributes: str = "", style: str = "") -> Markup:
    """A drawing as an `<svg>` element. attributes, style: of one that lies in a file of its own."""
    key = re.sub(r"[^\w-]+", "-", drawing.key)  # ids have no spaces
    head = (
        f'<svg class="drawn" viewBox="0 0 {_number(drawing.width)} {_number(drawing.height)}" role="img" '
        f'font-size="{TEXT_PIXELS:g}" aria-labelledby="{key}-title {key}-text"{attributes}>{style}'
        f'<title id="{key}-title">{_text(drawing.title)}</title>'
        f'<desc id="{key}-text">{_text(drawing.description)}</desc>'
    )
    return Markup(f"{head}{''.join(map(_shape, drawing.shapes))}</svg>")  # noqa: S704 - every text went through `escape`


def _shape(shape: Shape) -> str:
    if isinstance(shape, Rule):
        (x1, y1), (x2, y2) = shape.start, shape.end
        places = f'x1="{_number(x1)}" y1="{_number(y1)}" x2="{_number(x2)}" y2="{_number(y2)}"'
        return f'<line class="c-{shape.ink}" {places} {_stroke(shape.width, shape.is_dashed)}/>'
    if isinstance(shape, Line):
        stroke = f"{_stroke(shape.width, shape.is_dashed)}{_opacity(shape.opacity)}"
        return f'<polyline class="c-{shape.ink}" points="{_coordinates(shape.points)}" fill="none" {stroke}/>'
    if isinstance(shape, Area):
        fill = f'fill="currentColor"{_opacity(shape.opacity)}'
        return f'<polygon class="c-{shape.ink}" points="{_coordinates(shape.points)}" {fill}/>'
    if isinstance(shape, Dot):
        x, y = shape.at
        paint = 'fill="none" stroke="currentColor" stroke-width="1.6"' if shape.is_open else 'fill="currentColor"'
        place = f'cx="{_number(x)}" cy="{_number(y)}" r="{_number(shape.radius)}"'
        return f'<circle class="c-{shape.ink}" {place} {paint}{_opacity(shape.opacity)}/>'
    x, y = shape.at
    place = f'x="{_number(x)}" y="{_number(y)}"'
    if shape.angle:
        place = f'transform="translate({_number(x)} {_number(y)}) rotate({_number(shape.angle)})"'
    look = "" if shape.anchor == "start" else f' text-anchor="{shape.anchor}"'
    look += "" if shape.size == TEXT_PIXELS else f' font-size="{shape.size:g}"'
    look += ' font-weight="600"' if shape.is_bold else ""
    return f'<text class="c-{shape.ink}" {place} fill="currentColor"{look}>{_text(shape.text)}</text>'


def _stroke(width: float, is_dashed: bool) -> str:
    dashes = ' stroke-dasharray="5 4"' if is_dashed else ""
    return f'stroke="currentColor" stroke-width="{width:g}"{dashes}'


def _opacity(opacity: float) -> str:
    return "" if opacity == 1 else f' opacity="{opacity:.3g}"'


def _coordinates(points: Sequence[Point]) -> str:
    return " ".join(f"{_number(x)},{_number(y)}" for x, y in points)


def _number(value: float) -> str:
    """At most one decimal: a tenth of a pixel is not seen."""
    return f"{value:.1f}".removesuffix(".0")


def _text(text: str) -> Markup:
    return escape(visible(text))
