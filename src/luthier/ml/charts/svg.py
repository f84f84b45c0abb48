"""A matplotlib figure as SVG inside the page: themed by CSS, named for screen readers, repeatable byte for byte.

Text stays text (`svg.fonttype` "none"), for three reasons: it takes the page's own system font, a screen reader and the
browser's search can read it, and a chart takes a third to two thirds of the bytes. Colours are drawn as
stand-ins and become CSS variables, so that one chart is right on a light page, on a dark one and on paper.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import matplotlib as mpl
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from matplotlib.typing import RcKeyType

INK: Final = "#000101"
MUTED: Final = "#000102"
RULE: Final = "#000103"
PAPER: Final = "#000104"
BASE: Final = "#000105"
TUNED: Final = "#000106"
OTHERS: Final = ("#000107", "#000108", "#000109")
_VARIABLES: Final[Mapping[str, str]] = {
    INK: "--ink",
    MUTED: "--muted",
    RULE: "--rule",
    PAPER: "--paper",
    BASE: "--base",
    TUNED: "--tuned",
    OTHERS[0]: "--other-1",
    OTHERS[1]: "--other-2",
    OTHERS[2]: "--other-3",
}
_PIXELS_AN_INCH: Final = 96
_SETTINGS: Final[dict[RcKeyType, Any]] = {
    "svg.fonttype": "none",
    "font.family": ["DejaVu Sans"],
    "font.size": 9.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.edgecolor": RULE,
    "axes.labelcolor": MUTED,
    "axes.unicode_minus": True,
    "text.color": INK,
    "xtick.color": RULE,
    "ytick.color": RULE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "ytick.major.size": 0.0,
    "xtick.major.size": 3.0,
    "grid.color": RULE,
    "grid.linewidth": 0.75,
    "axes.axisbelow": True,
    "path.simplify": False,
    "text.parse_math": False,
}


@contextmanager
def canvas(width_pixels: int, height_pixels: int) -> Iterator[tuple[Figure, Axes]]:
    """A figure with one pair of axes in the style of the report, measured in CSS pixels."""
    with mpl.rc_context():
        mpl.rcdefaults()  # a person's matplotlibrc must not change the report
        mpl.rcParams.update(_SETTINGS)
        figure = Figure(figsize=(width_pixels / _PIXELS_AN_INCH, height_pixels / _PIXELS_AN_INCH), layout="constrained")
        FigureCanvasSVG(figure)
        yield figure, figure.add_subplot()


def inline_svg(figure: Figure, *, name: str, title: str, description: str) -> Markup:
    """The figure as one `<svg>` element without outside references.

    Args:
        name: unique in the page, prefix of all ids.
        title, description: what a screen reader says in place of the picture.
    """
    buffer = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": name}):
        metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(buffer, format="svg", transparent=True, metadata=metadata)
    text = buffer.getvalue()
    view = re.search(r'viewBox="([^"]+)"', text)
    if view is None:
        raise AssertionError("matplotlib wrote an SVG without viewBox")
    body = text[text.index(">", text.index("<svg")) + 1 : text.rindex("</svg>")]
    body = re.sub(r"<metadata>.*?</metadata>\s*", "", body, flags=re.DOTALL)
    body = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>\s*", "", body, flags=re.DOTALL)
    body = re.sub(r"<!--.*?-->\s*", "", body, flags=re.DOTALL)
    body = body.replace("xlink:href", "href")
    for colour, variable in _VARIABLES.items():
        body = body.replace(colour, f"var({variable})")
    head = (
        f'<svg class="chart" viewBox="{view[1]}" role="img" aria-labelledby="{name}-title {name}-text">'
        f'<title id="{name}-title">{escape(title)}</title><desc id="{name}-text">{escape(description)}</desc>'
    )
    body = re.sub(r">\s+<", "><", _own_ids(body, name)).strip()
    return Markup(f"{head}{body}</svg>")  # noqa: S704 - matplotlib escapes the text that it draws


def css_variable(colour: str) -> str:
    """The CSS variable that a stand-in colour becomes."""
    return _VARIABLES[colour]


def stand_ins() -> tuple[str, ...]:
    """Every stand-in colour that a chart may be drawn in."""
    return tuple(_VARIABLES)


def _own_ids(body: str, name: str) -> str:
    """Drop ids that nothing refers to, and give the others the chart's name: ids must be unique in a page."""
    used = set(re.findall(r'href="#([^"]+)"', body)) | set(re.findall(r"url\(#([^)]+)\)", body))
    body = re.sub(r' id="([^"]+)"', lambda m: f' id="{name}-{m[1]}"' if m[1] in used else "", body)
    body = re.sub(r'href="#([^"]+)"', rf'href="#{name}-\1"', body)
    return re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", body)
