"""Figures of a case: a number or a range, within bounds."""

from __future__ import annotations

import json

import pytest
from pydantic import ValidationError

from luthier.core.results.roi import Amount, Calls, Counted, Gain, Money, Positive, Range, Share


def test_a_number_stands_for_a_range_without_doubt() -> None:
    found = Amount.model_validate_json("5")
    assert (found.low, found.typical, found.high) == (5.0, 5.0, 5.0)
    assert found.is_exact
    assert not Range(low=1, typical=2, high=3).is_exact
    assert Money.exactly(2).high == 2


@pytest.mark.parametrize(
    ("kind", "given", "words"),
    [
        (Amount, -1, "at least 0"),
        (Amount, {"low": -1, "typical": 0, "high": 1}, "at least 0"),
        (Amount, 1e13, "at most"),
        (Positive, 0, "above 0"),
        (Share, 1.01, "at least 0 and at most 1"),
        (Gain, -1.5, "at least -1"),
        (Amount, {"low": 3, "typical": 2, "high": 4}, "low <= typical <= high"),
        (Amount, {"low": 1, "typical": 5, "high": 4}, "low <= typical <= high"),
        (Amount, "5", "a number, or low, typical and high"),
        (Amount, True, "a number, or low, typical and high"),
        (Amount, None, "a number, or low, typical and high"),
        (Amount, {"low": 1, "high": 2}, "Field required"),
        (Amount, {"low": 1, "typical": 1, "high": 2, "mean": 1}, "Extra inputs"),
    ],
)
def test_what_is_out_of_order_or_bounds_is_refused(kind: type[Range], given: object, words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        kind.model_validate_json(json.dumps(given), strict=True)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"num_correct": 3, "num_answers": 2}, "num_correct at most num_answers"),
        ({"num_correct": -1, "num_answers": 2}, "greater than or equal to 0"),
        ({"num_correct": 0, "num_answers": 0}, "greater than or equal to 1"),
        ({"num_correct": 1.5, "num_answers": 2}, "valid integer"),
        ({"num_correct": 1}, "Field required"),
    ],
)
def test_counts_that_cannot_be_are_refused(given: object, words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        Counted.model_validate_json(json.dumps(given), strict=True)


def test_nan_is_no_figure() -> None:
    with pytest.raises(ValidationError, match="a number, or low, typical and high"):
        Calls.model_validate(
            {"per_month": float("nan"), "input_tokens": 1, "output_tokens": 1, "value_of_one_more_correct": 1}
        )
