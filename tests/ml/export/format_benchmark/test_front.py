"""The Pareto front."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from luthier.ml.export.format_benchmark.page import pareto_front

POINTS = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=12)


def test_what_is_beaten_in_both_is_not_on_the_front() -> None:
    costs, qualities = [500.0, 270.0, 145.0, 105.0, 200.0], [1.0, 1.0, 0.9, 0.5, 0.8]
    assert pareto_front(costs, qualities) == [False, True, True, True, False]


def test_equals_share_their_place() -> None:
    assert pareto_front([1.0, 1.0, 2.0], [3.0, 3.0, 3.0]) == [True, True, False]


@given(POINTS)
def test_every_point_is_on_the_front_or_beaten_by_one_that_is(points: list[tuple[int, int]]) -> None:
    on_front = pareto_front([float(x) for x, _ in points], [float(y) for _, y in points])
    best = [point for point, is_on in zip(points, on_front, strict=True) if is_on]
    assert best
    for point, is_on in zip(points, on_front, strict=True):
        beaten = any(other != point and other[0] <= point[0] and other[1] >= point[1] for other in best)
        assert beaten is not is_on
