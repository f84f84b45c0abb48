"""Charts that stand in a page without a script: whole, escaped, and honest about what cannot be drawn."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree

import pytest

from luthier.platform.ui.charts.spec import (
    Axis,
    Bar,
    Bars,
    Chart,
    Column,
    Estimate,
    Intervals,
    Mark,
    Parallel,
    Plot,
    Point,
    Series,
    Thread,
)
from luthier.platform.ui.charts.svg import drawn

HOSTILE = '"><script>alert(1)</script>\u202e'
X, Y = Axis("step"), Axis("loss", "nats")


def plot(points: list[Point], **options: object) -> Plot:
    return Plot("k", HOSTILE, X, Y, [Series(HOSTILE, points)], **options)  # type: ignore[arg-type]


CHARTS: list[Chart] = [
    plot([(0, 1.0), (1, 0.5)], marks=[Mark(0.5, HOSTILE)]),
    Intervals("k", HOSTILE, Axis(HOSTILE), [Estimate(HOSTILE, 1.0, 0.5, 1.5)], zero=True),
    Bars("k", HOSTILE, Axis(HOSTILE, "s"), [Bar(HOSTILE, 3.0, HOSTILE)], limit=Mark(4.0, HOSTILE)),
    Parallel("k", HOSTILE, [Column(HOSTILE, HOSTILE, HOSTILE)] * 2, [Thread(HOSTILE, (0.0, 1.0), HOSTILE)]),
]


@pytest.mark.parametrize("chart", CHARTS, ids=lambda chart: type(chart).__name__)
def test_hostile_names_stay_text(chart: Chart) -> None:
    text = str(drawn(chart))
    tree = ElementTree.fromstring(text)
    assert "<script" not in text
    assert "\u202e" not in text, "what turns text around is shown, not obeyed"
    assert tree.attrib["role"] == "img"
    assert tree.attrib["aria-label"].startswith('"><script>')
    json.dumps(chart.as_json(), allow_nan=False)


@pytest.mark.parametrize(
    "chart", [plot([]), Intervals("k", "t", X, []), Bars("k", "t", X, []), Parallel("k", "t", [], [])]
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
