"""Fewer points that look the same."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from tests.vacuous import nonempty

from luthier.ml.charts.spec import Point, thinned


@given(
    st.lists(
        st.tuples(st.integers(0, 10**6), st.floats(-1e6, 1e6)), min_size=2, max_size=3000, unique_by=lambda p: p[0]
    )
)
def test_thinning_keeps_ends_lows_and_highs(points: list[Point]) -> None:
    points = sorted(points)
    kept = thinned(points, 100)
    assert len(kept) <= 110
    assert (kept[0], kept[-1]) == (points[0], points[-1])
    assert set(kept) <= set(points)
    assert min(p[1] for p in kept) == min(p[1] for p in points)
    assert max(p[1] for p in kept) == max(p[1] for p in points)
    assert [p[0] for p in kept] == sorted({p[0] for p in kept}), "each once, in order"


def test_what_grows_and_is_thinned_again_and_again_stays_even() -> None:
    kept: list[Point] = []
    for step in range(20_000):
        kept.append((step, step % 7))
        if len(kept) >= 400:
            kept = thinned(kept, 200)
    halves = [sum(step < 10_000 for step, _ in kept), sum(step >= 10_000 for step, _ in kept)]
    assert min(halves) > 60
    assert all(nonempty(value in (0, 6) for step, value in kept[1:100]))


def test_points_at_one_place_are_kept() -> None:
    assert thinned([(1.0, 1.0)] * 9, 4)[0] == (1.0, 1.0)
