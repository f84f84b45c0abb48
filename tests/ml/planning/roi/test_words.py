"""Sums and times in words."""

from __future__ import annotations

import pytest

from luthier.ml.planning.roi import words


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (12_345, "12,300"),
        (-12_345, "−12,300"),
        (999.6, "1,000"),
        (0.01234, "0.0123"),
        (1.5, "1.5"),
        (99.96, "100"),
        (1e9, "1,000,000,000"),
    ],
)
def test_three_digits(value: float, text: str) -> None:
    assert words.three_digits(value) == text


def test_times_chances_and_points() -> None:
    assert [words.months(value) for value in (None, float("inf"), 1.0, 3.44, 120.2)] == [
        "never",
        "never",
        "1 month",
        "3.4 months",
        "120 months",
    ]
    assert [words.probability(value) for value in (0.0, 0.004, 0.5, 0.996, 1.0)] == [
        "under 1%",
        "under 1%",
        "50%",
        "over 99%",
        "over 99%",
    ]
    assert [words.points(value) for value in (0.042, -0.1, 0.0)] == ["+4.2 points", "−10 points", "0 points"]
    assert words.of_kind(0.62, "share", "USD") == "62%"
    assert words.of_kind(12.5, "money", "EUR") == "12.5 EUR"


def test_a_chance_below_a_limit_is_not_rounded_to_the_limit() -> None:
    # 0.8996 is 90% in whole per cents, and would read as if the 90% that are required were reached.
    assert [words.below(value, 0.9) for value in (0.5, 0.894, 0.896, 0.8999, 0.9)] == [
        "50%",
        "89%",
        "89.6%",
        "89.9%",
        "90%",
    ]
