import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.core.records.bounds import CORRELATION, REAL_LINE, UNIT, Bounds

PERCENT, PERPLEXITY, LOSS = Bounds(0.0, 100.0), Bounds(1.0, math.inf), Bounds(-math.inf, 0.0)
EVERY = [UNIT, PERCENT, CORRELATION, PERPLEXITY, LOSS, REAL_LINE]


@given(st.sampled_from(EVERY), st.floats(0, 1), st.floats(0, 1e6), st.floats(0, 100))
def test_an_interval_never_leaves_the_bounds(bounds, share, standard_error, quantile):
    lower = bounds.lower if math.isfinite(bounds.lower) else -200.0
    upper = bounds.upper if math.isfinite(bounds.upper) else 200.0
    value = lower + share * (upper - lower)
    low, high = bounds.around(value, standard_error, quantile)
    assert bounds.lower <= low <= value <= high <= bounds.upper


@pytest.mark.parametrize("bounds", EVERY)
def test_the_link_goes_there_and_back_and_has_the_slope_that_it_says(bounds):
    for value in (-0.9, -0.3, 0.2, 0.9, 1.5, 40.0):
        if not bounds.lower < value < bounds.upper:
            continue
        assert bounds.unlink(bounds.link(value)) == pytest.approx(value)
        step = 1e-5
        before, now, after = (bounds.link(value + at) for at in (-step, 0, step))
        assert (after - before) / (2 * step) == pytest.approx(bounds.slope(value), rel=1e-5)
        second = (after - 2 * now + before) / step**2
        assert second / bounds.slope(value) == pytest.approx(bounds.curvature(value), rel=1e-2, abs=1e-3)


def test_far_from_the_ends_it_is_the_plain_interval():
    low, high = PERCENT.around(50.0, 0.1, 2.0)
    assert (low, high) == (pytest.approx(49.8, abs=1e-3), pytest.approx(50.2, abs=1e-3))
    assert REAL_LINE.around(3.0, 0.5, 2.0) == (2.0, 4.0)


def test_near_an_end_the_side_towards_it_is_the_shorter_one():
    low, high = UNIT.around(0.05, 0.03, 2.0)
    assert low > 0
    assert 0.05 - low < high - 0.05
    assert UNIT.around(1.0, 0.05, 2.0)[1] == 1.0


def test_differences_of_percentages_reach_from_minus_100_to_100():
    assert PERCENT.of_differences == (-100.0, 100.0)
    assert UNIT.of_differences == CORRELATION
    assert PERPLEXITY.of_differences == REAL_LINE
    assert Bounds(1.0, 5.0).of_differences.width == 8.0


def test_rounding_is_no_step_outside():
    assert UNIT.hold(1 + 1e-12)
    assert not UNIT.hold(1.01)
    assert PERPLEXITY.hold(1e300)
    assert not PERPLEXITY.hold(0.99)
