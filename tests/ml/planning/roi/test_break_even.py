"""Turning points really turn the answer."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from luthier.core.results.roi import Case
from luthier.core.results.roi_result import BreakEven
from luthier.ml.planning.roi.flows import TUNED, Economy
from luthier.ml.planning.roi.inputs import inputs_of, typical_values
from luthier.ml.planning.roi.run import break_even_gain, break_evens


def parts_of(case: Case) -> tuple[Economy, dict[str, Any]]:
    return Economy(case, None), typical_values(inputs_of(case, None))


def turning(case: Case) -> dict[str, BreakEven]:
    economy, values = parts_of(case)
    return {one.name: one for one in break_evens(economy, values, 12)}


@given(
    calls=st.floats(1, 1e6),
    value=st.floats(0.01, 100),
    hours=st.floats(0, 1_000),
    price=st.floats(0, 50),
    saved=st.floats(0, 1_000),
)
@settings(max_examples=150)
def test_at_the_break_even_gain_nothing_is_won_and_nothing_lost(
    make_changed: Any, calls: float, value: float, hours: float, price: float, saved: float
) -> None:
    changes = {
        "calls.per_month": calls,
        "calls.value_of_one_more_correct": value,
        "people.annotation_hours": hours,
        "today.hosted.input_price_per_million_tokens": price,
        "tuned.saved_prompt_tokens": saved,
        "today.accuracy": None,
    }
    economy, values = parts_of(make_changed(changes))
    gain = float(break_even_gain(economy, values, 12))
    assume(-1 <= gain <= 1)
    economy, values = parts_of(make_changed({**changes, "tuned.gain": gain}))
    flow = economy.flow(TUNED, values)
    assert float(flow.value(12)) == pytest.approx(0, abs=1e-8 * max(float(flow.spent), calls * value))


def test_turning_points_by_hand(make_case: Any) -> None:
    # 12 x (10,000 x (0.1 value + 0.001) - 400/6 - 50) = 2,500, solved for each in turn.
    found = turning(make_case())
    fixed = 400 / 6 + 50
    assert found["gain"].needed == pytest.approx(0.063)
    assert found["calls.per_month"].needed == pytest.approx((2_500 / 12 + fixed) / 0.051)
    assert found["calls.value_of_one_more_correct"].needed == pytest.approx(
        ((2_500 / 12 + fixed) / 10_000 - 0.001) / 0.1
    )
    assert found["once"].needed == pytest.approx(2_500 + 2_220)
    assert found["once"].sentence == "Spent once: at most 4,720 USD (now 2,500 USD)."
    assert found["gain"].sentence == "An accuracy gain of at least +6.3 points (now +10 points)."
    assert all(one.against == "doing nothing" for one in found.values())


def test_against_an_alternative_its_worth_has_to_be_reached(make_case: Any) -> None:
    found = turning(make_case({"alternatives.better_prompt": {"gain": 0.09, "work_hours": 8}}))
    # worth 12 x 450 - 400 = 5,000, which is 2,780 more than the tuned model: 60,000 correct answers a point of gain.
    assert found["gain"].needed == pytest.approx(0.1 + 2_780 / 60_000)
    assert found["once"].needed is None
    assert found["once"].sentence == "Even if nothing had to be spent at first, it would not be worth more."
    # one point more of gain and cheaper calls: 5 + 1 in 1,000 calls each month more than the prompt
    assert found["calls.per_month"].needed == pytest.approx((2_100 / 12 + 400 / 6 + 50) / (0.01 * 0.5 + 0.001))


def test_where_nothing_turns_the_answer_it_says_so(make_case: Any) -> None:
    found = turning(make_case({"calls.value_of_one_more_correct": 0, "tuned.saved_prompt_tokens": 0}))
    assert found["gain"].needed is None
    assert found["gain"].sentence.startswith("No accuracy gain would do it")
    assert found["calls.per_month"].needed is None
    assert found["calls.per_month"].sentence == "No number of calls a month changes the answer."


def test_a_gain_beyond_all_there_is_is_told(make_case: Any) -> None:
    found = turning(make_case({"calls.value_of_one_more_correct": 0.001}))
    assert (found["gain"].needed or 0) > 1
    assert found["gain"].sentence.endswith("That is more than there is to gain.")
