"""A case from three questions."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from luthier.core.errors import RequestError
from luthier.core.results.roi import Counted
from luthier.ml.planning.roi import worth
from luthier.ml.planning.roi.questions import DEFAULTS, Questions, case_of

ASKED = Questions(answers_per_week=300, minutes_each=6, cost_of_an_error=20)


def test_three_figures_are_a_case_and_every_default_is_named() -> None:
    case, notes = case_of(ASKED, is_measured=False)
    assert case.calls.per_month.typical == pytest.approx(1_300)
    assert case.today.cost_per_call is not None
    # 6 minutes of an hour at 20 to 60.
    assert (case.today.cost_per_call.low, case.today.cost_per_call.high) == pytest.approx((2, 6))
    assert case.calls.value_of_one_more_correct.typical == 20
    (note,) = notes
    named = [one.key for one in DEFAULTS if f"({one.key})" in note]
    assert named == [one.key for one in DEFAULTS]
    assert "(tuned.alone.share)" in note
    assert "(people.rate_per_hour)" in note


def test_what_is_given_or_measured_is_no_default() -> None:
    case, (note,) = case_of(replace(ASKED, rate_per_hour=30, accuracy_today=0.97), is_measured=True)
    assert (case.verdict.today, case.verdict.alone_at) == ("given", 0.97)
    assert case.tuned.alone is None
    assert case.people.rate_per_hour.is_exact
    assert "rate_per_hour" not in note
    assert "today.accuracy" not in note
    assert "tuned.alone" not in note


def test_counted_answers_without_an_error_ask_for_what_their_number_shows() -> None:
    case, _ = case_of(replace(ASKED, counted_today=Counted(num_correct=48, num_answers=48)), is_measured=True)
    assert case.verdict.alone_at == pytest.approx(0.98)
    assert case.today.counted is not None


def test_half_of_the_work_done_alone_saves_half_of_its_cost() -> None:
    case, notes = case_of(replace(ASKED, rate_per_hour=40, accuracy_today=0.95), is_measured=False)
    found = worth(case, sources=notes)
    # 1,300 answers at 4 USD, half of them by people; the model's own cost is a tenth of a cent.
    assert found.today_per_month.typical == pytest.approx(5_200)
    assert found.tuned.serving_per_month.typical == pytest.approx(2_600 + 1.3)
    assert found.tuned.gain.typical == 0
    assert found.answer == "yes"
    assert "It answers 50%" in found.reasons[0]
    assert any("What it answers alone is assumed" in note for note in found.notes)
    assert notes[0] in found.notes


def test_a_few_answers_a_week_do_not_pay() -> None:
    case, _ = case_of(replace(ASKED, answers_per_week=2), is_measured=False)
    assert worth(case).answer == "no"


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"answers_per_week": 0}, "no answers a week"),
        ({"minutes_each": -1}, "minutes each -1"),
        ({"cost_of_an_error": float("nan")}, "cost of an error nan"),
        ({"rate_per_hour": float("inf")}, "rate an hour inf"),
        ({"accuracy_today": 95.0}, "write 0.95 for 95%"),
        ({"accuracy_today": 1.0}, "between 0 and 1"),
        ({"currency": "EU"}, "three capital letters"),
        ({"answers_per_week": 9e11}, "answers a month 3.9e+12"),
        ({"minutes_each": 9e11, "rate_per_hour": 9e11}, "cost of an answer 1.35e+22"),
    ],
)
def test_impossible_answers_are_refused(changes: dict[str, Any], what: str) -> None:
    with pytest.raises(RequestError) as caught:
        case_of(replace(ASKED, **changes), is_measured=False)
    assert what in str(caught.value)


def test_defaults_in_money_are_converted_at_the_given_rate_and_named_with_it() -> None:
    in_dollars, _ = case_of(ASKED, is_measured=False)
    case, (assumed, converted) = case_of(replace(ASKED, currency="JPY", currency_per_usd=150), is_measured=False)
    # An hour of 20 to 60 USD.
    assert (case.people.rate_per_hour.low, case.people.rate_per_hour.high) == pytest.approx((3_000, 9_000))
    assert case.training.cost is not None
    assert in_dollars.training.cost is not None
    assert case.training.cost.high == pytest.approx(50 * 150)
    assert case.tuned.cost_per_call is not None
    assert case.tuned.cost_per_call.high == pytest.approx(1.5)
    # Hours are no money, and what an error costs was given in yen.
    assert case.people.review_hours == in_dollars.people.review_hours
    assert case.calls.value_of_one_more_correct.typical == 20
    assert "3000 to 9000 (people.rate_per_hour)" in assumed
    assert "at 150 JPY for a dollar" in converted


def test_an_answer_in_another_currency_is_that_in_dollars_times_the_rate() -> None:
    dollars = worth(case_of(ASKED, is_measured=False)[0])
    asked = replace(ASKED, cost_of_an_error=20 * 0.5, currency="XXX", currency_per_usd=0.5)
    halves = worth(case_of(asked, is_measured=False)[0])
    assert halves.tuned.value.typical == pytest.approx(0.5 * dollars.tuned.value.typical)
    assert halves.answer == dollars.answer


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"currency": "EUR"}, "money in EUR, without the price of a US dollar in it"),
        ({"currency": "EUR", "rate_per_hour": 40}, "money in EUR"),
        ({"currency": "EUR", "currency_per_usd": 0}, "a price above 0"),
        ({"currency": "EUR", "currency_per_usd": -1}, "a price above 0"),
        ({"currency_per_usd": 0.9}, "leave the price of a US dollar out"),
    ],
)
def test_no_default_in_dollars_is_taken_for_one_in_another_currency(changes: dict[str, Any], what: str) -> None:
    with pytest.raises(RequestError) as caught:
        case_of(replace(ASKED, **changes), is_measured=False)
    assert what in str(caught.value)


def test_options_say_the_same_again() -> None:
    asked = replace(ASKED, counted_today=Counted(num_correct=47, num_answers=50), rate_per_hour=30, currency="EUR")
    asked = replace(asked, currency_per_usd=0.92)
    assert " ".join(asked.arguments) == (
        "--answers-per-week 300 --minutes-each 6 --cost-of-an-error 20 --accuracy-today 47/50 --rate-per-hour 30 "
        "--currency EUR --currency-per-usd 0.92"
    )
