"""Charts that stand in a page without a script: whole, escaped, and honest about what cannot be drawn."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree

import pytest

from luthier.ml.charts.spec import (
    Axis,
    Bar,
    Bars,
    Cell,
    Chart,
    Column,
    IntervalRow,
    Intervals,
    Mark,
    Matrix,
    Note,
    Parallel,
    Plot,
    Point,
    Series,
    Span,
    Thread,
)
from luthier.ml.charts.svg import drawn

HOSTILE = '"><script>alert(1)</script>\u202e'
X, Y = Axis("step"), Axis("loss", "nats")


def plot(points: list[Point], **options: object) -> Plot:
    return Plot("k", HOSTILE, X, Y, [Series(HOSTILE, points)], **options)  # type: ignore[arg-type]


CHARTS: list[Chart] = [
    plot([(0, 1.0), (1, 0.5)], marks=[Mark(0.5, HOSTILE)]),
    Intervals("k", HOSTILE, Axis(HOSTILE), [IntervalRow(HOSTILE, 1.0, 0.5, 1.5)], zero=True),
    Bars("k", HOSTILE, Axis(HOSTILE, "s"), [Bar(HOSTILE, 3.0, HOSTILE)], limit=Mark(4.0, HOSTILE)),
    Matrix("k", HOSTILE, Axis(HOSTILE), Axis(HOSTILE), [HOSTILE], [HOSTILE], [[Cell(0.5, HOSTILE)]]),
    Parallel("k", HOSTILE, [Column(HOSTILE, HOSTILE, HOSTILE)] * 2, [Thread(HOSTILE, (0.0, 1.0), HOSTILE)]),
]


@pytest.mark.parametrize("chart", CHARTS, ids=lambda chart: type(chart).__name__)
def test_hostile_names_stay_text(chart: Chart) -> None:
    text = str(drawn(chart))
    tree = ElementTree.fromstring(text)
    assert "<script" not in text
    assert "\u202e" not in text, "what turns text around is shown, not obeyed"
    assert tree.attrib["role"] == "img"
    title, description = (tree[n] for n in range(2))
    assert tree.attrib["aria-labelledby"].split() == [title.attrib["id"], description.attrib["id"]]
    assert (title.text or "").startswith('"><script>')
    json.dumps(chart.as_json(), allow_nan=False)


@pytest.mark.parametrize(
    "chart",
    [
        plot([]),
        Intervals("k", "t", X, []),
        Bars("k", "t", X, []),
        Parallel("k", "t", [], []),
        Matrix("k", "t", X, Y, [], [], []),
    ],
)
def test_nothing_to_draw_is_said(chart: Chart) -> None:
    assert "Nothing to draw yet" in drawn(chart)


def test_points_that_are_no_numbers_are_left_out() -> None:
    text = drawn(plot([(0, 1.0), (1, float("nan")), (2, float("inf")), (3, 2.0)]))
    assert "nan" not in text
    assert "inf" not in text
    assert "polyline" in text


def test_one_point_is_a_dot_and_equal_ones_have_room() -> None:
    assert "circle" in drawn(plot([(1, 2.0)]))
    assert "polyline" in drawn(plot([(1, 2.0), (2, 2.0)]))


def test_a_log_axis_takes_what_is_positive() -> None:
    text = drawn(Plot("k", "t", X, Axis("rate", scale="log"), [Series("s", [(0, 1e-4), (1, 1e-2), (2, 1.0)])]))
    assert "1e\N{MINUS SIGN}04" in text or "0.0001" in text


def test_a_line_over_columns_is_broken_where_it_has_no_part() -> None:
    columns = [Column(name, "0", "1") for name in "abcd"]
    text = drawn(
        Parallel("k", "t", columns, [Thread("one", (0.0, 1.0, None, 0.5)), Thread("two", (1.0, 1.0, 0.0, 0.0))])
    )
    assert text.count("<polyline") == 3
    assert "None" not in text


def test_a_band_a_span_and_words_at_a_point_are_drawn() -> None:
    points = [(0.0, 1.0), (1.0, 2.0)]
    chart = Plot(
        "k",
        "t",
        X,
        Y,
        [Series("mean", points, intervals=[(0.5, 1.5), (1.0, 3.0)])],
        spans=[Span(0.5, 1.0)],
        notes=[Note(1.0, 2.0, "the best", "tuned", is_ringed=True)],
    )
    tree = ElementTree.fromstring(str(drawn(chart, has_legend=True)))
    words = [element.text for element in tree.iter("text")]
    assert {"mean", "the best", "step", "loss (nats)"} <= set(words)
    areas = [element.attrib["class"] for element in tree.iter("polygon")]
    assert areas == ["c-rule", "c-tuned", "c-paper"], "the span, the band, and what the words lie on"
    heights = [float(y) for y in (element.attrib["y"] for element in tree.iter("text") if "y" in element.attrib)]
    assert [y for y in heights if not 0 <= y <= chart.height_pixels] == []
    assert heights


def test_an_axis_has_the_ticks_that_it_names_and_may_be_turned_over() -> None:
    days = Axis("", low=0.0, high=2.0, ticks=[(0.0, "1 Nov"), (2.0, "3 Nov"), (9.0, "10 Nov")])
    turned = Axis("loss", is_reversed=True)
    tree = ElementTree.fromstring(str(drawn(Plot("k", "t", days, turned, [Series("s", [(0, 1.0), (2, 5.0)])]))))
    words = [element.text for element in tree.iter("text")]
    assert "1 Nov" in words
    assert "10 Nov" not in words
    line = next(tree.iter("polyline")).attrib["points"].split()
    first, last = (float(point.split(",")[1]) for point in line)
    assert first < last, "the smaller loss is the higher one on the screen"


def test_two_bars_of_a_row_begin_where_both_start() -> None:
    rows = [Bar("price", 8.0, "high", "tuned", 5.0, (3.0, "base"), "low")]
    tree = ElementTree.fromstring(str(drawn(Bars("k", "t", X, rows))))
    right, left = (
        [float(point.split(",")[0]) for point in element.attrib["points"].split()] for element in tree.iter("polygon")
    )
    assert min(right) == max(left)
    assert [element.text for element in tree.iter("text")][-2:] == ["high", "low"]


def test_ids_have_no_spaces() -> None:
    tree = ElementTree.fromstring(str(drawn(Plot("two words", "t", X, Y, [Series("s", [(0, 1.0)])]))))
    assert tree.attrib["aria-labelledby"] == "two-words-title two-words-text"
