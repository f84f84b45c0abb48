"""Axes have round numbers, few of them, and enough digits to tell them apart."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.ml.charts.drawing import linear_ticks, log_ticks, words

finite = st.floats(-1e9, 1e9, allow_nan=False)


@given(finite, st.floats(1e-6, 1e9))
def test_linear_ticks_lie_in_the_range_and_are_few(low: float, width: float) -> None:
    high = low + width
    if high == low:
        return
    ticks = linear_ticks(low, high)
    room = (high - low) * 1e-6 + abs(high) * 1e-9
    assert 1 <= len(ticks) <= 7
    assert all(low - room <= tick <= high + room for tick in ticks)
    assert ticks == sorted(ticks)


@given(st.floats(1e-12, 1e6), st.floats(1.01, 1e9))
def test_log_ticks_are_powers_of_ten_where_there_are_any(low: float, factor: float) -> None:
    ticks = log_ticks(low, low * factor)
    is_power = [math.isclose(math.log10(tick), round(math.log10(tick)), abs_tol=1e-9) for tick in ticks]
    assert all(is_power) or ticks == [low, low * factor]
    assert len(ticks) <= 7


@given(finite, st.floats(1e-3, 1e6))
def test_no_two_ticks_read_the_same(low: float, width: float) -> None:
    ticks = linear_ticks(low, low + width)
    if width > abs(low) * 1e-2:
        assert len(set(words(ticks))) == len(ticks)


@pytest.mark.parametrize(("low", "width"), [(12_140_000.0, 130_000.0), (1e-4, 2e-6), (0.0, 3e-9), (-5e8, 6e6)])
def test_neighbours_far_from_zero_differ_in_a_digit(low: float, width: float) -> None:
    ticks = linear_ticks(low, low + width)
    assert len(ticks) > 2
    assert len(set(words(ticks))) == len(ticks)


def test_numbers_read_as_people_write_them() -> None:
    assert words([0.0, 0.5, 1.0]) == ["0.0", "0.5", "1.0"]
    assert words([-2000.0, 0.0, 2000.0]) == ["\N{MINUS SIGN}2,000", "0", "2,000"]
    assert words([0.0, 1e-5, 2e-5]) == ["0", "1e\N{MINUS SIGN}05", "2e\N{MINUS SIGN}05"]
    assert words([]) == []
