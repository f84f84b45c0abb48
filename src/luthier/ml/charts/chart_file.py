"""A chart as a file of its own: SVG that follows the reader's light or dark screen, or PNG on white paper."""

from __future__ import annotations

import io
import re
import warnings
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Final

from markupsafe import Markup

from luthier.core.errors import ConflictError, RequestError
from luthier.ml.charts.drawer import drawing_of
from luthier.ml.charts.drawing import Area, Dot, Drawing, Line, Rule, Shape, Text
from luthier.ml.charts.page import TEMPLATES, replace_bytes, replace_text
from luthier.ml.charts.spec import Chart, Parallel
from luthier.ml.charts.svg import COLOUR_RULES, has_legend_of, svg_of
from luthier.ml.charts.visible import visible

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SUFFIXES: Final = (".svg", ".png")
_PIXELS_AN_INCH: Final = 96


def check_chart_path(path: Path) -> None:
    """Raises RequestError for a file that no chart can be written to; called before the work that it shows."""
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
            f"chart {path} is there already, and is no picture",
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
        RequestError: as `check_chart_path` does.
        ConflictError: as `check_chart_path` does.
        StorageFullError: the disk is full.
    """
    check_chart_path(path)
    drawing = drawing_of(chart, has_legend=has_legend_of(chart)) or _empty(chart)
    if path.suffix.lower() == ".png":
        replace_bytes(path, _png(drawing))
    else:
        replace_text(path, f"{_alone(drawing)}\n")


def _empty(chart: Chart) -> Drawing:
    """A drawing that says that there is nothing to draw, and what its axis would have said."""
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
