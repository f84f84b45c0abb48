"""A drawing as SVG: inside a page, coloured by the page's style, or as a separate file (SVG or PNG).

Text stays text, so that it takes the page's own font, and a screen reader and the browser's search can read it. Colours
are classes (`c-tuned`), so that one drawing is right on a light page, on a dark one and on paper, and so that it may
be in a page whose policy forbids inline styles. The same chart gives the same bytes each time. A file follows
the reader's light or dark screen as SVG, and is on white paper as PNG.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Final

from markupsafe import Markup, escape

from luthier.core.errors import ConflictError, RequestError
from luthier.core.system.files import replace_bytes, replace_text
from luthier.ml.charts.drawer import drawing_of
from luthier.ml.charts.drawing import TEXT_PIXELS, Area, Dot, Drawing, Line, Rule, Shape, Text
from luthier.ml.charts.page import TEMPLATES
from luthier.ml.charts.page import Chart as PageChart
from luthier.ml.charts.spec import OTHERS, Chart, Parallel, Plot, Point, Series
from luthier.ml.charts.visible import visible

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INKS: Final = (
    *("ink", "muted", "rule", "paper", "base", "tuned", *OTHERS),
    *("good", "bad", "quiet"),
)
"""Every colour of a drawing; each is the CSS variable of its name."""
COLOUR_RULES: Final = " ".join(f".c-{ink} {{ color: var(--{ink}); }}" for ink in INKS)


def drawn(chart: Chart, *, has_legend: bool = False, figure: Callable[[str], str] | None = None) -> Markup:
    """The chart as one `<svg>` element without outside references.

    Args:
        chart: what to draw.
        has_legend: whether names of series are in the picture; pages show them next to it.
        figure: writes a number of the axes as another language does; None for English.
    """
    drawing = drawing_of(chart, has_legend=has_legend)
    if drawing is None:
        return Markup('<p class="muted no-chart">Nothing to draw yet for <em>{}</em>.</p>').format(visible(chart.title))
    if figure is not None:
        shapes = [
            replace(one, text=figure(one.text)) if isinstance(one, Text) and one.is_figure else one
            for one in drawing.shapes
        ]
        drawing = replace(drawing, shapes=shapes)
    return svg_of(drawing)


def report_chart(chart: Chart, *, heading: str = "", caption: str = "") -> PageChart:
    """The chart as a report shows it.

    Args:
        chart: the chart.
        heading, caption: where they are not the chart's own.
    """
    return PageChart(heading or chart.title, caption or chart.caption, drawn(chart, has_legend=has_legend_of(chart)))


def has_legend_of(chart: Chart) -> bool:
    """Whether several series have names that differ."""
    return isinstance(chart, Plot) and len({s.name for s in named(chart)}) > 1


def named(chart: Plot) -> list[Series]:
    """The series that a legend names."""
    return [series for series in chart.series if series.name and series.points]


def svg_of(drawing: Drawing, attributes: str = "", style: str = "") -> Markup:
    """A drawing as an `<svg>` element.

    Args:
        drawing: the shapes.
        attributes, style: of one in a separate file.
    """
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


SUFFIXES: Final = (".svg", ".png")
_PIXELS_AN_INCH: Final = 96


def check_chart_path(path: Path) -> None:
    """Refuse a file that no chart can be written to; called before the work that the chart shows.

    Raises:
        RequestError: the name ends in neither .svg nor .png, or it is no file in an existing folder.
        ConflictError: a file is there already that is no picture.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise RequestError(
            f"chart {path} ends in {path.suffix!r}",
            expected=f"a file that ends in {' or '.join(SUFFIXES)}",
            do="rename it",
        )
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise RequestError(
            f"chart {path}: {'is a folder' if path.is_dir() else 'its folder does not exist'}",
            expected="a file in an existing folder",
            do="make the folder, or choose another place",
        )
    if path.is_file() and not _is_picture(path):
        raise ConflictError(
            f"chart {path} already exists, and is not a picture",
            expected="a name that is free, or a chart to replace",
            do="choose another name, or move that file away",
        )


def _is_picture(path: Path) -> bool:
    with path.open("rb") as file:
        head = file.read(1024)
    # Only pictures are replaced: a mistyped path must not overwrite anything else.
    return not head or head.startswith((b"\x89PNG", b"<svg", b"<?xml"))


def write_chart(chart: Chart, path: Path) -> None:
    """Write a chart, whole or not at all; an older file is replaced.

    Raises:
        RequestError: the name ends in neither .svg nor .png, or it is no file in an existing folder.
        ConflictError: a file is there already that is no picture.
        StorageFullError: the disk is full.
    """
    check_chart_path(path)
    drawing = drawing_of(chart, has_legend=has_legend_of(chart)) or _empty(chart)
    if path.suffix.lower() == ".png":
        replace_bytes(path, _png(drawing))
    else:
        replace_text(path, f"{_alone(drawing)}\n")


def _empty(chart: Chart) -> Drawing:
    """A drawing that says that there is nothing to draw, with the title of its axis."""
    axis = [] if isinstance(chart, Parallel) else chart.x.title.split("\n")
    lines = [f"{chart.title}: nothing to draw", *filter(None, axis)]
    shapes = [Text((16, 24.0 + 20 * number), line) for number, line in enumerate(lines)]
    return Drawing(chart.key, chart.title, chart.description, chart.width_pixels, 20.0 * len(lines) + 24, shapes)


def svg_alone(chart: Chart) -> Markup:
    """The chart as an `<svg>` that brings its colours; empty where there is nothing to draw."""
    drawing = drawing_of(chart, has_legend=has_legend_of(chart))
    return Markup() if drawing is None else _alone(drawing)


def _alone(drawing: Drawing) -> Markup:
    light, dark = (" ".join(f"--{ink}: {colour};" for ink, colour in palette.items()) for palette in _palettes())
    style = (
        f"<style>.drawn {{ {light} background: var(--paper); font-family: system-ui, sans-serif; }} {COLOUR_RULES} "
        f"@media (prefers-color-scheme: dark) {{ .drawn {{ {dark} }} }}</style>"
    )
    size = f' xmlns="http://www.w3.org/2000/svg" width="{drawing.width:g}" height="{drawing.height:g}"'
    return svg_of(drawing, size, style)


def _png(drawing: Drawing) -> bytes:
    """The same shapes on white paper, in the light colours, at two dots a pixel."""
    from matplotlib import rc_context, rcdefaults
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with rc_context(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font", category=UserWarning)
        rcdefaults()  # a person's matplotlibrc must not change the picture
        figure = Figure((drawing.width / _PIXELS_AN_INCH, drawing.height / _PIXELS_AN_INCH), facecolor="white")
        FigureCanvasAgg(figure)
        axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
        axes.set_axis_off()
        # The y axis is turned over: shapes count pixels downwards, as SVG does.
        axes.set(xlim=(0, drawing.width), ylim=(drawing.height, 0))
        for number, shape in enumerate(drawing.shapes):
            _paint(axes, shape, number)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=2 * _PIXELS_AN_INCH, metadata={"Title": drawing.title})
        return buffer.getvalue()


def _paint(axes: Axes, shape: Shape, order: int) -> None:
    from matplotlib.patches import Circle, Polygon

    colours = {**_palettes()[0], "paper": "#ffffff"}
    colour = colours[shape.ink]
    points = 72 / _PIXELS_AN_INCH  # matplotlib measures lines and letters in points
    if isinstance(shape, Rule | Line):
        x, y = zip(*((shape.start, shape.end) if isinstance(shape, Rule) else shape.points), strict=True)
        dashes = (0, (4, 3)) if shape.is_dashed else "-"
        opacity = 1.0 if isinstance(shape, Rule) else shape.opacity
        axes.plot(x, y, color=colour, lw=shape.width * points, ls=dashes, alpha=opacity, zorder=order)
    elif isinstance(shape, Area):
        axes.add_patch(Polygon(shape.points, fc=colour, ec="none", alpha=shape.opacity, zorder=order))
    elif isinstance(shape, Dot):
        face = "none" if shape.is_open else colour
        edge = colour if shape.is_open else "none"
        axes.add_patch(Circle(shape.at, shape.radius, fc=face, ec=edge, lw=1.2, alpha=shape.opacity, zorder=order))
    else:
        axes.text(
            *shape.at,
            visible(shape.text),
            color=colour,
            ha={"start": "left", "middle": "center", "end": "right"}[shape.anchor],
            va="baseline",
            fontsize=shape.size * points,
            fontweight="bold" if shape.is_bold else "normal",
            rotation=-shape.angle,
            rotation_mode="anchor",
            # A dollar sign in a label is text, not TeX.
            parse_math=False,
            zorder=order,
        )


@lru_cache(maxsize=1)
def _palettes() -> tuple[dict[str, str], dict[str, str]]:
    """The light and the dark colours of the report's own style, by name."""
    style = (TEMPLATES / "style.css").read_text(encoding="utf-8")
    light, dark = re.findall(r":root \{(.*?)\}", style, flags=re.DOTALL)[:2]
    found = [dict(re.findall(r"--([a-z0-9-]+): (#[0-9a-f]+);", block)) for block in (light, dark)]
    return found[0], found[1]
