"""A chart as a file: real colours in PNG, colours by the reader's screen in SVG."""

from __future__ import annotations

from pathlib import Path

from matplotlib.colors import to_hex

from luthier.ml.charts.chart_file import write_chart
from luthier.ml.charts.svg import INK, OTHERS, canvas, css_variable, stand_ins


def draw(path: Path) -> list[str]:
    """Draws a line and a word; returns every colour that is on the figure once it is written."""
    with canvas(200, 100) as (figure, axes):
        axes.plot([0, 1], [0, 1], color=OTHERS[0])
        axes.annotate("a word & more", (0, 0), color=INK)
        write_chart(figure, path, name="test", title="A title <>", description="in words")
        found = []
        for artist in figure.findobj():
            for kind in ("color", "facecolor", "edgecolor"):
                get = getattr(artist, f"get_{kind}", None)
                if get is not None:
                    try:
                        found.append(to_hex(get()))
                    except (TypeError, ValueError):
                        continue
        return found


def test_svg_follows_the_screen_and_needs_nothing_else(tmp_path: Path) -> None:
    draw(tmp_path / "a.svg")
    text = (tmp_path / "a.svg").read_text(encoding="utf-8")
    assert f"var({css_variable(OTHERS[0])})" in text
    assert "prefers-color-scheme: dark" in text
    assert text.count("--ink: #") == 2
    assert "A title &lt;&gt;" in text
    assert not [colour for colour in stand_ins() if colour in text]
    assert "http" not in text.replace("http://www.w3.org/", "")


def test_png_has_real_colours_and_no_stand_in(tmp_path: Path) -> None:
    colours = draw(tmp_path / "a.png")
    assert not set(colours) & set(stand_ins())
    assert "#2f6ba8" in colours
    assert "#1d1b19" in colours


def test_the_same_figure_gives_the_same_bytes(tmp_path: Path) -> None:
    draw(tmp_path / "a.svg")
    draw(tmp_path / "b.svg")
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
