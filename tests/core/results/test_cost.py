"""Estimates and their documents."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from luthier.core.estimate import Estimate
from luthier.core.results.cost import spread_out

AMOUNTS = st.floats(min_value=0, max_value=1e9)


def estimates() -> st.SearchStrategy[Estimate]:
    return (
        st.tuples(AMOUNTS, AMOUNTS, AMOUNTS)
        .map(sorted)
        .map(lambda ends: Estimate(low=ends[0], value=ends[1], high=ends[2]))
    )


@given(estimates(), estimates(), st.floats(min_value=0, max_value=1e6))
def test_sums_products_and_multiples_keep_their_order(one: Estimate, other: Estimate, factor: float) -> None:
    for made in (one.plus(other), one.by(other), one.times(factor)):
        assert made.low <= made.value <= made.high


def test_by_hand() -> None:
    one, other = Estimate(value=2, low=1, high=3), Estimate(value=5, low=4, high=7)
    assert one.plus(other) == Estimate(value=7, low=5, high=10)
    assert one.by(other) == Estimate(value=10, low=4, high=21)
    assert one.times(2) == Estimate(value=4, low=2, high=6)


def test_an_estimate_is_three_entries_and_none_is_three_nulls() -> None:
    assert spread_out("usd", Estimate(value=2, low=1, high=3)) == {"usd": 2, "usd_low": 1, "usd_high": 3}
    assert spread_out("usd", None) == {"usd": None, "usd_low": None, "usd_high": None}
