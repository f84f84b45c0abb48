"""Costs of serving and cash flows."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.core.results.roi import Case
from luthier.ml.planning.roi.flows import TUNED, Economy, Flow
from luthier.ml.planning.roi.inputs import inputs_of, typical_values

OWN = {"price_per_hour": 0.5, "hours_per_month": 100, "input_tokens_per_second": 1_000, "output_tokens_per_second": 100}

amounts = st.floats(0, 1e5)
gains = st.floats(-0.5, 0.4)
hosted_prices = st.floats(0, 50)


def flow_of(case: Case) -> Flow:
    return Economy(case, None).flow(TUNED, typical_values(inputs_of(case, None)))


@pytest.mark.parametrize(
    ("calls", "num_devices", "cost"),
    [
        (10_000, 1, 50.0),  # 1.5 s a call: busy 4.2 h, on for 100
        (240_000, 1, 50.0),  # busy exactly 100 h
        (1_000_000, 1, 1_000_000 * 1.5 / 3600 * 0.5),
        (10_000, 4, 200.0),
    ],
)
def test_own_devices_cost_the_hours_that_they_run_or_are_busy(
    make_case: Any, calls: int, num_devices: int, cost: float
) -> None:
    case = make_case({"calls.per_month": calls, "tuned.self_served": {**OWN, "num_devices": num_devices}})
    assert float(flow_of(case).serving) == pytest.approx(cost)


def test_a_sum_a_call_is_that_sum_times_calls(make_case: Any) -> None:
    case = make_case({"tuned.saved_prompt_tokens": None, "tuned.cost_per_call": 0.01})
    assert float(flow_of(case).serving) == pytest.approx(100)


def test_training_on_devices_is_hours_by_devices_by_price_by_trials(make_case: Any) -> None:
    devices = {"hours": 24, "num_devices": 4, "price_per_hour": 2, "num_trials": 5}
    case = make_case({"training": devices})
    flow = flow_of(case)
    assert float(flow.once["training"]) == pytest.approx(24 * 4 * 2 * 5)
    assert float(flow.monthly["retraining"]) == pytest.approx(-(192 + 200 + 100) / 6)


@given(calls=amounts, more=amounts, gain=st.floats(0, 0.4), value=amounts, price=hosted_prices, own=st.booleans())
@settings(max_examples=150)
def test_more_calls_never_lower_the_value_where_a_call_is_worth_more_than_it_costs(
    make_changed: Any, calls: float, more: float, gain: float, value: float, price: float, own: bool
) -> None:
    hosted = {"input_price_per_million_tokens": price, "output_price_per_million_tokens": price}
    changes = {
        "tuned.gain": gain,
        "calls.value_of_one_more_correct": value,
        **({"tuned.self_served": OWN} if own else {"tuned.hosted": hosted}),
    }
    marginal = 1.5 / 3600 * 0.5 if own else (500 + 100) * price / 1e6
    if gain * value <= marginal:
        return
    few, many = (
        float(flow_of(make_changed({**changes, "calls.per_month": number})).value(12))
        for number in (calls, calls + more)
    )
    assert many >= few - 1e-9 * max(1.0, abs(few))


@given(gain=gains, spent=amounts, upkeep=amounts, launch=st.floats(0, 24))
@settings(max_examples=150)
def test_payback_is_the_month_in_which_nothing_is_left_to_pay(
    make_changed: Any, gain: float, spent: float, upkeep: float, launch: float
) -> None:
    case = make_changed(
        {
            "tuned.gain": gain,
            "training.cost": spent,
            "training.num_trials": 1,
            "upkeep.retrain_every_months": None,
            "upkeep.work_hours_per_retraining": None,
            "upkeep.cost_per_month": upkeep,
            "months_until_launch": launch,
        }
    )
    flow = flow_of(case)
    back, each = float(flow.payback_months()), float(flow.per_month)
    if each <= 0:
        assert back == float("inf")
        return
    assert back >= launch
    assert float(flow.value(back)) == pytest.approx(0, abs=1e-6 * max(1.0, float(flow.spent)))
    assert float(flow.value(back + 1)) - float(flow.value(back)) == pytest.approx(each)


@pytest.mark.parametrize(
    ("share", "hours_per_month", "rest"),
    [
        # 1,000,000 calls of 2 s keep devices busy for 555.6 hours, and half of them for 277.8.
        (0.5, 730, 365.0),
        (0.5, 300, 150.0),
        (0.5, 0, 1_000_000 * 0.5 * 2 / 3600 * 0.5),
        (0.2, 300, 1_000_000 * 0.8 * 2 / 3600 * 0.5),
    ],
)
def test_devices_that_are_rented_by_the_month_cost_as_much_for_the_rest_of_the_calls(
    make_case: Any, share: float, hours_per_month: float, rest: float
) -> None:
    case = make_case(
        {
            "calls.per_month": 1_000_000,
            "today": {"accuracy": 0.6, "self_served": {**OWN, "hours_per_month": hours_per_month}},
            "tuned": {"alone": {"share": share, "accuracy": 0.9}, "cost_per_call": 0},
        }
    )
    assert float(flow_of(case).serving) == pytest.approx(rest)


def test_a_rest_that_is_paid_by_the_call_costs_its_share(make_case: Any) -> None:
    case = make_case(
        {
            "today": {"accuracy": 0.9, "cost_per_call": 2},
            "tuned": {"alone": {"share": 0.25, "accuracy": 0.9}, "cost_per_call": 0.5},
        }
    )
    assert float(flow_of(case).serving) == pytest.approx(10_000 * (0.5 + 0.75 * 2))
