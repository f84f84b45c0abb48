"""A chart as a file: real colours in PNG, colours by the reader's screen in SVG."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path

from luthier.ml.charts.spec import Axis, Bar, Bars, Mark, Note, Plot, Series, Span
from luthier.ml.charts.svg import svg_alone, write_chart

CHART = Plot(
    "test",
    "A title <>",
    Axis("step"),
    Axis("loss"),
    [
        Series("a line", [(0, 0.0), (1, 1.0)], "other-1", intervals=[(0.0, 0.2), (0.8, 1.0)]),
        Series("dots", [(0, 1.0), (1, 0.0)], "tuned", "dots", mark="square", is_open=True),
        Series("rings", [(0, 0.5)], "tuned", "dots", is_open=True),
    ],
    marks=[Mark(0.5, "half")],
    spans=[Span(0.2, 0.4)],
    notes=[Note(0.5, 0.5, "a word & more", is_bold=True)],
    description="as text",
)


def test_svg_follows_the_screen_and_needs_nothing_else(tmp_path: Path) -> None:
    write_chart(CHART, tmp_path / "a.svg")
    text = (tmp_path / "a.svg").read_text(encoding="utf-8")
    assert ".c-other-1 { color: var(--other-1); }" in text
    assert "prefers-color-scheme: dark" in text
    assert text.count("--ink: #") == 2
    assert "A title &lt;&gt;" in text
    assert "a word &amp; more" in text
    assert "http" not in text.replace("http://www.w3.org/", "")


def test_png_has_real_colours(tmp_path: Path) -> None:
    from matplotlib.image import imread

    write_chart(CHART, tmp_path / "a.png")
    pixels = imread(tmp_path / "a.png")
    assert pixels.shape[:2] == (2 * CHART.height_pixels, 2 * CHART.width_pixels)
    found = {tuple(pixel) for row in (255 * pixels[:, :, :3]).round().astype(int).tolist() for pixel in row}
    assert (255, 255, 255) in found
    assert (0x2F, 0x6B, 0xA8) in found, "the line"
    assert (0xB2, 0x55, 0x1A) in found, "the dots"


def test_the_same_chart_gives_the_same_bytes(tmp_path: Path) -> None:
    write_chart(CHART, tmp_path / "a.svg")
    write_chart(CHART, tmp_path / "b.svg")
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


def test_a_chart_of_nothing_says_so(tmp_path: Path) -> None:
    empty = Bars("k", "Costs", Axis("USD\n0 of 4 fit"), [Bar("a", float("nan"))])
    write_chart(empty, tmp_path / "a.svg")
    words = [element.text for element in ElementTree.parse(tmp_path / "a.svg").iter() if element.tag.endswith("text")]
    assert words == ["Costs: nothing to draw", "USD", "0 of 4 fit"]
    assert svg_alone(empty) == ""
