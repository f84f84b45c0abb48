"""What axes span: every value and interval, round ends beyond them, and nothing that the value cannot be."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.vacuous import nonempty

from luthier.ml.charts.drawer import drawing_of
from luthier.ml.charts.drawing import Line, Text, linear_ticks
from luthier.ml.charts.judged_rows import metric_axis
from luthier.ml.charts.spec import Axis, Bar, Bars, IntervalRow, Intervals, Mark, Plot, Series
from luthier.ml.charts.svg import drawn

NUMBERS = st.floats(-1e6, 1e6).filter(lambda value: value == 0 or abs(value) > 1e-6)
ROWS = st.lists(st.tuples(NUMBERS, NUMBERS, NUMBERS).map(sorted), min_size=1, max_size=6)


@settings(max_examples=80, deadline=None)
@given(rows=ROWS, limit=st.none() | NUMBERS)
def test_rows_of_any_chart_lie_between_its_outermost_ticks(rows: list[list[float]], limit: float | None) -> None:
    mark = None if limit is None else Mark(limit, "")
    bars = Bars("k", "t", Axis(""), [Bar("a", value, interval=(low, high)) for low, value, high in rows], mark)
    whiskers = [IntervalRow("a", value, low, high) for low, value, high in rows]
    intervals = Intervals("k", "t", Axis(""), whiskers, zero=True, limit=mark)
    values = [0.0, *(end for row in rows for end in row), *([] if limit is None else [limit])]
    for chart in (bars, intervals):
        low, high = chart.ends
        assert low <= min(values)
        assert high >= max(values)
        assert chart.as_json()["ends"] == chart.ends, "both drawers span the same"
        if min(values) == max(values):
            continue
        ticks = linear_ticks(low, high)
        size = 1e-9 * (high - low)
        assert ticks[0] <= min(values) + size
        assert ticks[-1] >= max(values) - size


@pytest.mark.parametrize(
    ("low", "high", "ends"),
    [(-0.047, 0.045, (-0.06, 0.06)), (-5.0, 5.0, (-6.0, 6.0)), (5.0, 15.0, (4.0, 16.0)), (-45.0, 47.0, (-60.0, 60.0))],
)
def test_a_range_whose_steps_change_with_its_own_ends_has_ends(
    low: float, high: float, ends: tuple[float, float]
) -> None:
    """Steps of 2 reach from -6 to 6, which has steps of 5, which reach from -5 to 5, which has steps of 2 again."""
    found = Axis("").ends([low, high], is_round=True)
    assert found == pytest.approx(ends)
    ticks = linear_ticks(*found)
    assert ticks[0] <= low < high <= ticks[-1]


@settings(max_examples=60, deadline=None)
@given(size=st.sampled_from([1e-3, 1.0, 1e4]), low=st.floats(-0.5, -0.4), high=st.floats(0.4, 0.5))
def test_ranges_about_zero_have_ends(size: float, low: float, high: float) -> None:
    first, last = Axis("").ends([low * size, high * size], is_round=True)
    assert first <= low * size < high * size <= last


@settings(max_examples=60, deadline=None)
@given(values=st.lists(st.floats(0, 1), min_size=1, max_size=8), is_round=st.booleans())
def test_a_share_has_no_room_beyond_what_it_can_be(values: list[float], is_round: bool) -> None:
    low, high = Axis("", least=0.0, most=1.0).ends(values, is_round=is_round)
    assert 0 <= low <= min(values)
    assert max(values) <= high <= 1
    assert low < high


@settings(max_examples=60, deadline=None)
@given(values=st.lists(NUMBERS, min_size=1, max_size=6), low=NUMBERS, high=NUMBERS)
def test_ends_that_must_be_seen_are_seen_and_stay_exact(values: list[float], low: float, high: float) -> None:
    axis = Axis("", low=min(low, high), high=max(low, high))
    for is_round in (False, True):
        first, last = axis.ends(values, is_round=is_round)
        assert first <= min(values)
        assert last >= max(values)
        if axis.low != axis.high and min(low, high) <= min(values) and max(values) <= max(low, high):
            assert (first, last) == (axis.low, axis.high)


def test_the_axis_of_a_bar_reaches_beyond_its_interval() -> None:
    """The last tick was 0.4 beside an interval up to 0.47."""
    chart = Bars("k", "t", metric_axis("rouge_l"), [Bar("tuned", 0.4, interval=(0.33, 0.47)), Bar("base", 0.1)])
    assert chart.ends == (0.0, 0.5)
    made = drawing_of(chart)
    assert made is not None
    (whisker,) = [one for one in made.shapes if isinstance(one, Line) and one.ink == "ink"]
    last = max((one for one in made.shapes if isinstance(one, Text) and one.is_figure), key=lambda one: one.at[0])
    assert last.text == "0.5"
    assert whisker.points[1][0] < last.at[0] < chart.width_pixels


@pytest.mark.parametrize(
    ("metric", "ends"),
    [("exact_match", (0.0, 1.0)), ("bleu", (0.0, 100.0)), ("macro_f1", (0.0, 1.0)), ("perplexity", (1.0, None)),
     ("of_a_package_that_is_gone", (None, None))],
)  # fmt: skip
def test_the_axis_of_a_metric_ends_where_the_metric_does(metric: str, ends: tuple[float | None, float | None]) -> None:
    axis = metric_axis(metric, "name", "unit")
    assert (axis.title, axis.least, axis.most) == ("name (unit)", *ends)


def test_differences_of_a_metric_reach_from_minus_its_width_to_its_width() -> None:
    axis = metric_axis("rouge_l", of_differences=True)
    assert (axis.least, axis.most) == (-1.0, 1.0)
    assert metric_axis("perplexity", of_differences=True).most is None
    found = Intervals("k", "t", axis, [IntervalRow("a", 0.9, 0.7, 1.0)], zero=True)
    assert found.ends == (0.0, 1.0)


def test_a_value_that_should_not_be_is_still_drawn() -> None:
    assert Axis("", least=0.0, most=1.0).ends([-0.5, 1.25]) == (-0.5, 1.25)


def test_bands_stretch_an_axis_unless_both_of_its_ends_are_fixed() -> None:
    series = Series("s", [(0.0, 0.5), (1.0, 0.6)], intervals=[(0.25, 0.75), (0.25, 2.0)])
    plot = Plot("k", "t", Axis("x"), Axis("y", low=0.0), [series])
    assert plot.y_ends == (0.0, 2.0)
    # A forecast far out must not press the points flat.
    assert replace(plot, y=Axis("y", low=0.0, high=1.0)).y_ends == (0.0, 1.0)
    assert replace(plot, series=[Series("s", [(0.0, 3.0)], shape="columns")]).y_ends[0] == 0


@pytest.mark.parametrize("values", [[], [math.nan], [5.0], [0.0]])
def test_one_value_or_none_has_room_on_both_sides(values: list[float]) -> None:
    low, high = Axis("").ends(values)
    at = next((value for value in values if math.isfinite(value)), 0.0)
    assert low < at < high


def test_numbers_of_axes_are_written_as_a_language_does_and_words_are_left_alone() -> None:
    chart = Bars("k", "t", Axis(""), [Bar("a", 0.25, "0.25 of 1"), Bar("b", 0.125)])
    svg = drawn(chart, figure=lambda text: text.replace(".", ","))
    for text in nonempty([">0,05<", ">0,125<", ">0.25 of 1<"]):
        assert text in svg
    assert ">0.05<" in drawn(chart)
