"""Caps, bills and the meter, on a clock that a test turns."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.clock import Clock

from luthier.core.estimate import Estimate
from luthier.core.plan import Plan, ReplayPlan
from luthier.core.run import BudgetPlan, FirstActions, Spent
from luthier.ml.training.budget import Limit, Meter, Remaining, bill_summary, limits, refusal, remaining
from luthier.ml.training.ledger import Ledger

PRICE = Estimate(value=2.0, low=1.0, high=3.6)
WATTS = Estimate(value=100.0, low=50.0, high=200.0)
FIRST = FirstActions(
    step_seconds=Estimate(value=10.0, low=5.0, high=20.0),
    step_tokens=100.0,
    validation_seconds=4.0,
    checkpoint_seconds=2.0,
    loading_seconds=3.0,
)


def budget(**caps: Any) -> BudgetPlan:
    rates = {"usd_per_hour": PRICE, "price_source": "a test", "watts": WATTS, "watts_source": "a test"}
    return BudgetPlan(device="a processor", first=FIRST, **(rates | caps))


def test_caps_are_counted_at_the_upper_end_of_their_rates() -> None:
    found = {limit.name: limit for limit in limits(budget(hours=2.0, usd=7.2, energy_kwh=0.4, tokens=500))}
    hour = Spent(seconds=3600.0, tokens=100)
    assert found["hours"].left(hour) == pytest.approx(1.0)
    assert found["usd"].left(hour) == pytest.approx(3.6)
    assert found["energy_kwh"].left(hour) == pytest.approx(0.2)
    assert found["tokens"].left(hour) == 400
    assert limits(None) == limits(budget()) == ()


@pytest.mark.parametrize(
    ("cap", "words"),
    [
        ({"hours": 1.0}, "budget of 1 h: 0.9997 h spent; the next step and its checkpoint should take 0.000556"),
        ({"usd": 3.6}, "budget of 3.6 USD: 3.599 USD spent"),
        ({"energy_kwh": 0.2}, "budget of 0.2 kWh: 0.1999 kWh spent"),
        ({"tokens": 1040}, "budget of 1040 tokens: 1000 tokens spent; the next step and its checkpoint should take 50"),
    ],
)
def test_a_refusal_begins_with_budget_and_says_cap_spent_and_need(cap: dict[str, Any], words: str) -> None:
    reason = refusal(budget(**cap), Spent(seconds=3599.0, tokens=1000), "step", 2.0, 50)
    assert reason is not None
    assert reason.words.startswith(words)
    assert [reason.limit] == list(cap)


def dumped(spent: Spent) -> dict[str, float]:
    """What was spent, without what is zero."""
    return spent.model_dump(exclude_defaults=True)


def test_what_just_fits_may_begin() -> None:
    assert refusal(budget(hours=1.0), Spent(seconds=3589.9), "step", 10.0, 50) is None
    assert refusal(budget(tokens=150), Spent(seconds=1e9, tokens=100), "step", 1e9, 50) is None
    assert refusal(budget(tokens=149), Spent(tokens=100), "step", 0.0, 50) is not None
    assert refusal(budget(hours=1.0), Spent(seconds=3600.0), "judging", 0.0, 0) is not None
    assert refusal(None, Spent(seconds=1e12), "step", 1e12, 10**12) is None


@given(cap=st.floats(1e-6, 1e6), spent=st.floats(0, 1e9), need=st.floats(0, 1e9))
def test_nothing_begins_that_would_end_over_the_cap_if_it_went_as_expected(
    cap: float, spent: float, need: float
) -> None:
    if refusal(budget(hours=cap), Spent(seconds=spent), "step", need, 0) is None:
        assert (spent + need) / 3600 <= cap * (1 + 1e-9)
        assert spent / 3600 < cap


def test_all_time_belongs_to_the_action_that_began_last() -> None:
    clock = Clock()
    meter = Meter(budget(), clock=clock, seconds_before=7.0)
    assert meter.spent.seconds == 7.0
    meter.begin("loading")
    clock.now += 3
    meter.begin("step", 50)
    clock.now += 5
    meter.begin("checkpoint")
    clock.now += 1
    assert meter.spent == Spent(seconds=16.0, tokens=50)
    assert meter.expected_seconds("step", 100) == pytest.approx(10.0)
    meter.begin("step", 50)
    assert meter.expected_seconds("checkpoint", 0) == 1.0
    assert meter.expected_seconds("preparing", 0) == 7.0


def test_before_anything_is_measured_the_plan_says_what_to_expect() -> None:
    meter = Meter(budget(), clock=Clock())
    expected = {"step": 20.0, "validation": 4.0, "checkpoint": 2.0, "saving": 2.0, "loading": 3.0, "judging": 0.0}
    assert {name: meter.expected_seconds(name, 200) for name in expected} == expected  # type: ignore[arg-type]
    assert Meter(None, clock=Clock()).expected_seconds("step", 200) == 0.0


def test_a_killed_process_is_counted_with_what_it_was_doing(tmp_path: Path) -> None:
    clock = Clock()
    first = Meter(budget(), Ledger(tmp_path), clock=clock)
    for _ in range(3):
        first.begin("step", 50)
        clock.now += 5
    first.begin("step", 100)  # expected: 10 seconds; killed here
    second = Meter(budget(), Ledger(tmp_path), clock=clock)
    assert dumped(second.spent) == pytest.approx({"seconds": 25.0, "tokens": 250, "interrupted_seconds": 10.0})
    assert second.expected_seconds("step", 50) == pytest.approx(5.0)
    second.begin("loading")
    clock.now += 1
    second.close()
    third = Meter(budget(), Ledger(tmp_path), clock=clock)
    assert dumped(third.spent) == pytest.approx({"seconds": 26.0, "tokens": 250, "interrupted_seconds": 10.0})


def test_what_is_cut_short_by_an_error_is_paid_but_teaches_nothing(tmp_path: Path) -> None:
    clock = Clock()
    meter = Meter(budget(), Ledger(tmp_path), clock=clock)
    for seconds in (5, 5, 5):
        meter.begin("step", 50)
        clock.now += seconds
    meter.begin("step", 50)
    clock.now += 0.1
    meter.close()
    again = Meter(budget(), Ledger(tmp_path), clock=clock)
    assert again.spent.seconds == pytest.approx(15.1)
    assert again.spent.tokens == 200
    assert again.expected_seconds("step", 50) == pytest.approx(5.0)


def test_a_lost_ledger_counts_at_least_what_survived(tmp_path: Path) -> None:
    meter = Meter(budget(), Ledger(tmp_path), clock=Clock())
    assert not meter.at_least(30.0, 400)
    assert meter.spent == Spent(seconds=30.0, tokens=400)
    assert meter.at_least(30.0, 400)
    assert Meter(budget(), clock=Clock()).at_least(30.0, 400)


def test_the_bill_weighs_what_is_ahead_by_tokens_and_counts_validations_and_checkpoints() -> None:
    clock = Clock()
    meter = Meter(budget(), clock=clock)
    for tokens in (100, 50, 150):
        meter.begin("step", tokens)
        clock.now += tokens / 10
    meter.begin("validation")
    clock.now += 6
    meter.begin("checkpoint")
    clock.now += 2
    meter.begin("reporting")
    bill = meter.bill(Remaining(num_steps=5, num_tokens=1000, num_validations=2, num_checkpoints=3))
    spent, ahead = 38.0, 1000 / 10 + 2 * 6 + 3 * 2 + 2 * 2 / 2
    assert bill.hours * 3600 == pytest.approx(spent)
    assert bill.final_hours.value * 3600 == pytest.approx(spent + ahead)
    assert bill.final_hours.low < bill.final_hours.value < bill.final_hours.high
    assert bill.left_seconds == pytest.approx(ahead)
    assert bill.usd is not None
    assert bill.final_usd is not None
    assert bill.energy_kwh is not None
    assert bill.usd.value == pytest.approx(spent / 3600 * 2.0)
    assert bill.final_usd.high == pytest.approx(bill.final_hours.high * 3.6)
    assert bill.energy_kwh.low == pytest.approx(spent / 3600 * 0.05)
    assert bill_summary(bill) == "38 s of about 2 min 38 s, 0.021 of 0.088 USD"
    done = meter.bill(Remaining(num_steps=0, num_tokens=0.0, num_validations=0, num_checkpoints=0))
    assert done.final_hours.low == done.final_hours.high == done.hours


def test_before_the_first_step_the_bill_is_the_plans() -> None:
    bill = Meter(budget(), clock=Clock()).bill(
        Remaining(num_steps=3, num_tokens=300.0, num_validations=0, num_checkpoints=0)
    )
    assert (bill.final_hours.low, bill.final_hours.high) == (pytest.approx(15 / 3600), pytest.approx(60 / 3600))


def test_without_rates_there_are_only_hours() -> None:
    bill = Meter(None, clock=Clock()).bill(
        Remaining(num_steps=3, num_tokens=300.0, num_validations=0, num_checkpoints=0)
    )
    assert (bill.usd, bill.final_usd, bill.energy_kwh, bill.final_energy_kwh) == (None, None, None, None)


def test_what_remains_is_counted_from_the_plan(make_plan: Callable[..., Plan]) -> None:
    plan = make_plan(num_steps=10, num_steps_per_epoch=6, validate_every_steps=4, checkpoint_every_steps=3)
    mean = plan.data.train.num_tokens / 6
    assert remaining(plan, 0, 0) == Remaining(10, pytest.approx(10 * mean), 3, 3)
    assert remaining(plan, 8, round(8 * mean)) == Remaining(2, pytest.approx(2 * mean, abs=1), 1, 1)
    assert remaining(plan, 9, round(9 * mean), has_just_ended=True).num_checkpoints == 1
    assert remaining(plan, 8, round(8 * mean), has_just_ended=True).num_validations == 2
    assert remaining(plan, 10, round(10 * mean), has_just_ended=True).num_validations == 1
    assert remaining(plan, 10, round(10 * mean)) == Remaining(0, pytest.approx(0.0, abs=1), 0, 0)
    assert remaining(plan, 4, round(10 * mean)).num_tokens == pytest.approx(0.25 * mean * 6)


def test_tokens_of_replayed_rows_remain_as_those_of_the_task_do(make_plan: Callable[..., Plan]) -> None:
    plan = make_plan(num_steps=10, num_steps_per_epoch=5)
    general = plan.data.train.model_copy(update={"num_examples": 50, "num_tokens": 50 * 90, "mean_tokens": 90.0})
    replay = ReplayPlan(num_per_step=3, fraction=0.5, rows=general)
    plan = plan.model_copy(update={"data": plan.data.model_copy(update={"replay": replay})})
    task = plan.data.train.num_tokens / 5
    assert remaining(plan, 0, 0).num_tokens == pytest.approx(10 * (task + 3 * 90))
    done = round(6 * (task + 3 * 90))
    assert remaining(plan, 6, done).num_tokens == pytest.approx(4 * (task + 3 * 90), abs=1)


def test_the_meter_remembers_which_cap_it_refused_for() -> None:
    clock = Clock()
    meter = Meter(budget(hours=1.0, usd=100.0, tokens=1000), clock=clock)
    assert meter.refuses("step", 100) is None
    assert meter.refused_by is None
    clock.now += 3599
    assert meter.refuses("step", 100) is not None
    assert meter.refused_by == "hours"
    assert Meter(budget(tokens=10), clock=clock).overrun() is None


def test_limits_are_plain_sums() -> None:
    assert Limit("usd", 10.0, 0.5, 0.1).used(4.0, 20) == pytest.approx(4.0)
