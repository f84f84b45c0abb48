"""How bars are laid out: where the words at their ends are."""

from __future__ import annotations

import math

from luthier.ml.charts.drawer import drawing_of
from luthier.ml.charts.drawing import Line, Shape, Text
from luthier.ml.charts.spec import Axis, Bar, Bars


def shapes_of(*rows: Bar) -> list[Shape]:
    made = drawing_of(Bars("k", "title", Axis("points"), rows))
    assert made is not None
    return list(made.shapes)


def text(shapes: list[Shape], words: str) -> Text:
    (found,) = [one for one in shapes if isinstance(one, Text) and one.text == words]
    return found


def interval(shapes: list[Shape]) -> tuple[float, float]:
    (found,) = [one for one in shapes if isinstance(one, Line) and one.ink == "ink"]
    return found.points[0][0], found.points[1][0]


def test_words_are_behind_the_interval_on_the_side_that_the_bar_grows_to() -> None:
    shapes = shapes_of(Bar("worse", -4.0, "minus four", interval=(-6.0, -2.0)), Bar("better", 3.0, "three"))
    low, high = interval(shapes)
    assert low < high
    words = text(shapes, "minus four")
    assert (words.at[0] < low, words.anchor) == (True, "end")
    shapes = shapes_of(Bar("better", 4.0, "four", interval=(2.0, 6.0)))
    words = text(shapes, "four")
    assert (words.at[0] > interval(shapes)[1], words.anchor) == (True, "start")


def test_a_second_bar_has_its_words_at_its_own_end() -> None:
    row = Bar("lr", 5.0, "up", other=(-3.0, "base"), other_words="down", interval=(4.0, 9.0))
    shapes = shapes_of(row)
    assert text(shapes, "up").at[0] > interval(shapes)[1]
    assert text(shapes, "down").at[0] < interval(shapes)[0]
    assert text(shapes, "down").anchor == "end"


def test_what_is_no_number_is_not_drawn() -> None:
    shapes = shapes_of(Bar("a", 2.0, "two", other=(math.nan, "base"), other_words="none", interval=(math.nan, 3.0)))
    assert [one.text for one in shapes if isinstance(one, Text) and one.text in ("two", "none")] == ["two"]
    assert not [one for one in shapes if isinstance(one, Line) and one.ink == "ink"]
