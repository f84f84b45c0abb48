"""Whole answers, against figures reckoned by hand."""

from __future__ import annotations

from typing import Any

import pytest

from luthier.core.errors import RequestError
from luthier.core.estimate import Estimate
from luthier.core.results.roi_result import MeasuredGains
from luthier.ml.charts.figures import MINUS
from luthier.ml.planning.roi import worth

DOUBT = {
    "calls.per_month": {"low": 8_000, "typical": 10_000, "high": 15_000},
    "tuned.gain": {"low": 0.0, "typical": 0.1, "high": 0.2},
    "people.annotation_hours": {"low": 10, "typical": 20, "high": 60},
}


def test_a_case_without_doubt_is_what_one_reckons_by_hand(make_case: Any) -> None:
    # A call costs 0.003 today, 0.002 tuned: 10 a month saved. More correct answers: 10,000 x 0.1 x 0.5 = 500 a month.
    # Once: 40 h x 50 + 3 x 100 + 4 h x 50 = 2,500. Retraining: (100 + 200 + 2 h x 50) / 6. Reviewing: 50 a month.
    found = worth(make_case())
    assert found.today_per_month.typical == pytest.approx(30)
    assert found.tuned.serving_per_month.typical == pytest.approx(20)
    assert found.tuned.once.typical == pytest.approx(2_500)
    assert found.tuned.per_month.typical == pytest.approx(500 + 10 - 400 / 6 - 50)
    assert found.tuned.value.typical == pytest.approx(12 * (510 - 400 / 6 - 50) - 2_500)
    assert found.tuned.payback_months.typical == pytest.approx(2_500 / (460 - 400 / 6))
    # 12 x (5,000 gain + 10 - 400/6 - 50) = 2,500
    assert found.break_even_gain.typical == pytest.approx(0.063)
    assert found.tuned.probability_pays == 1.0
    assert found.answer == "yes"
    assert found.tornado == ()
    assert (found.tuned.value.low, found.tuned.value.high) == pytest.approx((2_220, 2_220))
    assert {part.name: part.amount.typical for part in found.once_parts} == pytest.approx(
        {"preparation": 500, "annotation": 1_000, "review": 500, "training": 300, "evaluation": 200}
    )
    assert {part.name: part.amount.typical for part in found.monthly_parts} == pytest.approx(
        {"answers": 500, "serving": 10, "retraining": -400 / 6, "review": -50, "upkeep": 0}
    )


def test_the_same_case_gives_the_same_answer_and_another_seed_nearly_the_same(make_case: Any) -> None:
    first, again, other = worth(make_case(DOUBT)), worth(make_case(DOUBT)), worth(make_case({**DOUBT, "seed": 7}))
    assert first.model_dump_json() == again.model_dump_json()
    assert other.tuned.value.mean == pytest.approx(first.tuned.value.mean, rel=0.01)
    assert other.tuned.value.mean != first.tuned.value.mean
    assert other.tuned.probability_pays == pytest.approx(first.tuned.probability_pays, abs=0.02)


def test_the_mean_of_the_draws_is_that_of_the_pert_means(make_case: Any) -> None:
    # The value is linear in each of the three, which are drawn apart: (low + 4 typical + high) / 6 of each goes in.
    calls, gain, hours = (8 + 40 + 15) / 6 * 1_000, 0.1, (10 + 80 + 60) / 6
    monthly = calls * gain * 0.5 + calls * 0.001 - (100 + 200 + 100) / 6 - 50
    once = (20 + hours) * 50 + 300 + 200
    found = worth(make_case(DOUBT))
    assert found.tuned.value.mean == pytest.approx(12 * monthly - once, rel=2e-3)
    assert found.tuned.value.low < found.tuned.value.typical < found.tuned.value.high


def test_the_tornado_moves_one_input_at_a_time_and_begins_with_the_widest(make_case: Any) -> None:
    found = worth(make_case(DOUBT))
    assert [bar.name for bar in found.tornado] == ["tuned.gain", "calls.per_month", "people.annotation_hours"]
    gain, calls, hours = found.tornado
    assert (gain.value_at_low, gain.value_at_high) == pytest.approx((2_220 - 6_000, 2_220 + 6_000))
    assert (calls.value_at_low, calls.value_at_high) == pytest.approx(
        (2_220 - 12 * 2_000 * 0.051, 2_220 + 12 * 5_000 * 0.051)
    )
    assert (hours.value_at_low, hours.value_at_high) == pytest.approx((2_220 + 500, 2_220 - 2_000))
    assert (hours.low, hours.typical, hours.high) == (10, 20, 60)


def test_no_calls_is_a_no_that_says_so(make_case: Any) -> None:
    found = worth(make_case({"calls.per_month": 0}))
    assert found.answer == "no"
    assert found.headline == "No: there are no calls, so nothing can be paid back."
    assert found.tuned.value.typical == pytest.approx(-2_500 - 12 * (400 / 6 + 50))
    assert found.tuned.payback_months.typical is None
    assert found.break_even_gain.typical is None
    assert any(text.startswith("Calls: at least") for text in found.changes)


def test_a_model_that_costs_more_than_it_brings_each_month_never_pays(make_case: Any) -> None:
    found = worth(make_case({"tuned.gain": 0.01, "upkeep.cost_per_month": 500}))
    assert found.answer == "no"
    assert found.headline == "No: each month costs 557 USD more than it earns, so its cost is never paid back."
    assert found.tuned.payback_months.typical is None
    assert found.tuned.payback_months.high is None


def test_a_model_that_pays_only_after_the_horizon_is_a_no_with_its_payback_time(make_case: Any) -> None:
    found = worth(make_case({"people.preparation_hours": 110}))  # 100 hours more: 5,000
    assert found.answer == "no"
    assert found.headline.startswith("No: it takes 19.1 months until the cost is paid back, and the horizon is")
    assert found.months[-1].month > 19
    assert found.tuned.payback_months.typical == pytest.approx(7_500 / (460 - 400 / 6))


def test_dearer_serving_is_an_answer_not_an_error(make_case: Any) -> None:
    own = {
        "price_per_hour": 1,
        "hours_per_month": 730,
        "input_tokens_per_second": 1_000,
        "output_tokens_per_second": 100,
    }
    found = worth(make_case({"tuned.self_served": own}))
    assert found.tuned.serving_per_month.typical == pytest.approx(730)
    assert {part.name: part.amount.typical for part in found.monthly_parts}["serving"] == pytest.approx(-700)
    assert found.answer == "no"
    assert "more expensive serving (700 USD)" in found.reasons[0]


def test_a_budget_of_nothing_is_overrun_by_anything_and_kept_by_nothing(make_case: Any) -> None:
    found = worth(make_case({"budget": 0}))
    assert found.answer == "no"
    assert found.headline == "No: it would pay, but costs 2,500 USD before it is in use; the budget is 0 USD."
    assert found.probability_within_budget == 0.0
    free = {f"people.{kind}_hours": 0 for kind in ("preparation", "annotation", "review")}
    kept = worth(make_case({**free, "budget": 0, "training.cost": 0, "evaluation.hours": 0}))
    assert kept.probability_within_budget == 1.0
    assert kept.answer == "yes"
    assert kept.tuned.payback_months.typical == 0
    assert "back at once" in kept.headline


def test_a_yes_of_the_draws_says_where_typical_values_do_not_pay(make_case: Any) -> None:
    """A month brings 1,000 times the value less 106.67: nothing at its typical value, and much at most others."""
    found = worth(make_case({"calls.value_of_one_more_correct": {"low": 0.1, "typical": 0.1, "high": 100}}))
    assert (found.answer, found.tuned.payback_months.typical) == ("yes", None)
    assert found.tuned.value.typical == pytest.approx(12 * (100 - 320 / 3) - 2_500)
    # It pays from a value of 0.315 on; of the PERT, a beta of 1 and 5 here, (1 - 0.215 / 99.9) ** 5 = 98.9% are above.
    assert found.headline == (
        f"Yes: it pays in 99% of the draws, though at typical values it is worth {MINUS}2,580 USD in 12 months."
    )
    assert (found.breaks_even_below, worth(make_case({})).breaks_even_below) == (False, True)


def test_nothing_comes_back_before_it_is_in_use(make_case: Any) -> None:
    found = worth(make_case({"months_until_launch": 3}))
    each = 460 - 400 / 6
    assert found.tuned.value.typical == pytest.approx(9 * each - 2_500)
    assert found.tuned.payback_months.typical == pytest.approx(3 + 2_500 / each)
    late = worth(make_case({"months_until_launch": 12}))
    assert late.tuned.value.typical == pytest.approx(-2_500)
    assert any("nothing can be paid back in 12 months" in text for text in late.reasons)


def test_an_alternative_that_is_worth_more_makes_it_a_no(make_case: Any) -> None:
    prompt = {"gain": 0.09, "work_hours": 8}
    found = worth(make_case({"alternatives.better_prompt": prompt}))
    (better,) = found.alternatives
    assert better.value.typical == pytest.approx(12 * 450 - 400)
    assert better.payback_months.typical == pytest.approx(400 / 450)
    assert better.probability_tuned_is_worth_more == 0.0
    assert found.answer == "no"
    assert found.headline == "No: it is worth 2,220 USD in 12 months, and a better prompt is worth 5,000 USD."
    assert {one.against for one in found.break_evens} == {"a better prompt"}
    assert [way.name for way in found.not_priced] == ["few_shot", "bigger_model", "without_model"]


def test_what_needs_no_model_may_be_worth_the_most(make_case: Any) -> None:
    counts = {"gain": 0.2, "work_hours": 20, "cost_per_call": 0, "cost_per_month": 10}
    found = worth(make_case({"alternatives.without_model": counts}))
    (without,) = found.alternatives
    assert without.title == "Without a model"
    assert without.per_month.typical == pytest.approx(10_000 * 0.2 * 0.5 + 30 - 10)
    assert found.answer == "no"
    assert "a way without a language model is worth" in found.headline


def test_alternatives_are_priced_with_their_own_tokens_and_prices(make_case: Any) -> None:
    bigger = {"accuracy": 0.68, "hosted": {"input_price_per_million_tokens": 10, "output_price_per_million_tokens": 30}}
    few_shot = {"gain": 0.02, "extra_prompt_tokens": 800, "cost": 20, "cost_per_month": 5}
    found = worth(make_case({"alternatives.bigger_model": bigger, "alternatives.few_shot": few_shot}))
    shown, large = found.alternatives
    assert (shown.name, large.name) == ("few_shot", "bigger_model")
    assert large.serving_per_month.typical == pytest.approx(130)  # 10,000 x (1,000 x 10 + 100 x 30) / 1e6
    assert large.per_month.typical == pytest.approx(10_000 * 0.08 * 0.5 + 30 - 130)
    assert large.once.typical == 0
    assert shown.serving_per_month.typical == pytest.approx(46)  # 1,800 x 2 + 100 x 10
    assert shown.per_month.typical == pytest.approx(100 + 30 - 46 - 5)


def test_an_open_answer_names_what_to_learn_first(make_case: Any) -> None:
    found = worth(make_case(DOUBT))
    assert found.answer == "open"
    assert 0.5 <= found.tuned.probability_pays < 0.9
    assert found.headline.startswith("Not settled: it pays with a probability of")
    assert (
        found.changes[0] == "Learn more about this first, as it changes the value most: accuracy gained, tuned model."
    )
    assert any("more correct answers (500 USD)" in text for text in found.reasons)


def test_measured_gains_take_the_place_of_assumed_ones(make_case: Any, measured: MeasuredGains) -> None:
    case = make_case({"today.accuracy": None, "tuned.gain": None, "tuned.saved_prompt_tokens": None})
    found = worth(case, measured)
    assert found.tuned.gain.typical == pytest.approx(0.1)
    assert (found.tuned.gain.low, found.tuned.gain.high) == pytest.approx((0.04, 0.16), abs=2e-3)
    (shown,) = found.alternatives
    assert shown.name == "few_shot"
    assert shown.gain.typical == pytest.approx(0.06)
    assert shown.serving_per_month.typical == pytest.approx(36)  # 300 tokens more: 1,300 x 2 + 100 x 10
    # As often as the tuned model's own advantage over few-shot, 0.04 with an interval of 0.05, outweighs its costs.
    assert found.answer in ("no", "open")
    assert any("evaluation eval-20261125-093000-aaaaaa" in note for note in found.notes)


def test_where_few_shot_is_todays_way_its_examples_are_saved(make_case: Any, measured: MeasuredGains) -> None:
    changes = {"today.accuracy": None, "tuned.gain": None, "tuned.saved_prompt_tokens": None}
    case = make_case({**changes, "verdict.today": "few_shot"})
    gains = measured.model_copy(update={"tuned": measured.over_few_shot, "over_few_shot": None, "today_value": 0.66})
    found = worth(case, gains)
    assert found.alternatives == ()
    assert "few_shot" not in {way.name for way in found.not_priced}
    assert found.tuned.serving_per_month.typical == pytest.approx(24)  # 700 x 2 + 100 x 10
    assert any("It is not certain that it is more accurate at all" in text for text in found.reasons)


def test_points_of_another_metric_are_turned_into_correct_answers(make_case: Any, measured: MeasuredGains) -> None:
    case = make_case({"today.accuracy": None, "tuned.gain": None, "verdict.correct_per_point": 0.5})
    rouge = measured.model_copy(update={"metric": "rouge_l", "is_share_of_correct": False, "today_value": None})
    found = worth(case, rouge)
    assert found.tuned.gain.typical == pytest.approx(0.05)
    assert found.alternatives[0].gain.typical == pytest.approx(0.03)


def test_a_measured_gain_stays_within_what_there_is_to_gain(make_case: Any, measured: MeasuredGains) -> None:
    case = make_case({"today.accuracy": None, "tuned.gain": None})
    wide = Estimate(value=0.3, low=-0.2, high=0.8)
    found = worth(case, measured.model_copy(update={"tuned": wide, "over_few_shot": None, "today_value": 0.6}))
    assert found.tuned.gain.high == pytest.approx(0.4)
    assert found.tuned.gain.low == pytest.approx(-0.2, abs=0.01)


MEASURED = {"today.accuracy": None, "tuned.gain": None}


def test_baselines_are_priced_with_the_hours_of_people_that_they_need_too(
    make_case: Any, beside_baselines: MeasuredGains
) -> None:
    found = worth(make_case(MEASURED), beside_baselines)
    commonest, linear = found.alternatives
    # 10,000 x 0.12 x 0.5 answers, 30 saved on tokens, and of the upkeep all but the training: (200 + 100) / 6 + 50
    assert linear.gain.typical == pytest.approx(0.12)
    assert linear.serving_per_month.typical == 0
    assert linear.once.typical == pytest.approx(40 * 50 + 200)
    assert linear.per_month.typical == pytest.approx(600 + 30 - 50 - 50)
    assert linear.title == "Without a language model: linear classifier"
    assert (linear.is_baseline, linear.seconds, linear.tuned_is) == (True, 0.7, "not_distinguishable")
    assert commonest.once.typical == 0
    assert commonest.per_month.typical == pytest.approx(250 + 30)
    assert [way.name for way in found.not_priced] == ["better_prompt", "few_shot", "bigger_model"]
    assert any("a CPU answers, for nothing a call" in note for note in found.notes)
    assert any("A linear classifier has 0.72 in exact match" in note for note in found.notes)


def test_a_baseline_that_is_as_good_is_what_to_use_instead(make_case: Any, beside_baselines: MeasuredGains) -> None:
    found = worth(make_case(MEASURED), beside_baselines)
    assert found.answer == "no"
    assert found.best_alternative == found.use_instead == "linear classifier"
    value = "4,160 USD"  # 12 x 530 - 2,200
    assert found.headline == (
        f"No: it is worth 2,220 USD in 12 months, and a linear classifier is worth {value}. "
        "Use a linear classifier instead."
    )
    (said,) = [text for text in found.reasons if text.startswith("A linear classifier, which takes 0.7 s")]
    assert said.endswith("That the tuned model answers better than it is not shown.")


def test_the_break_even_is_against_the_best_alternative(make_case: Any, beside_baselines: MeasuredGains) -> None:
    found = worth(make_case(MEASURED), beside_baselines)
    # 60,000 correct answers a unit of gain; the classifier is ahead by 4,160 - 2,220.
    needed = 0.1 + (4_160 - 2_220) / 60_000
    assert found.break_even_gain.typical == pytest.approx(0.063)
    assert found.break_even_gain_over_best is not None
    assert found.break_even_gain_over_best.typical == pytest.approx(needed)
    assert (found.break_even_gain_over_best.low or 0) > 0.063
    gain = next(one for one in found.break_evens if one.name == "gain")
    assert gain.needed == pytest.approx(needed)
    assert gain.against == "a linear classifier"
    assert worth(make_case()).break_even_gain_over_best is None


def test_a_gain_beyond_what_today_leaves_open_is_said_to_be_impossible(
    make_case: Any, beside_baselines: MeasuredGains
) -> None:
    high = beside_baselines.model_copy(update={"today_value": 0.88, "tuned": Estimate(value=0.1, low=0.04, high=0.12)})
    found = worth(make_case(MEASURED), high)
    assert found.break_even_gain_over_best is not None
    assert found.break_even_gain_over_best.typical is None
    gain = next(one for one in found.break_evens if one.name == "gain")
    assert (gain.needed or 0) > 0.12
    assert gain.sentence.endswith("That is more than there is to gain.")


def test_costs_of_a_baseline_are_those_of_the_case(make_case: Any, beside_baselines: MeasuredGains) -> None:
    costs = {"cost_per_call": 0.001, "work_hours": 2, "cost_per_month": 5}
    found = worth(make_case({**MEASURED, "alternatives.baselines": costs}), beside_baselines)
    commonest, linear = found.alternatives
    assert commonest.serving_per_month.typical == linear.serving_per_month.typical == pytest.approx(10)
    assert commonest.once.typical == pytest.approx(100)
    assert linear.once.typical == pytest.approx(2_300)
    assert linear.per_month.typical == pytest.approx(530 - 10 - 5)
    assert any("for 0.001 USD a call" in note for note in found.notes)


def test_a_model_that_beats_its_baselines_is_worth_it_against_them_too(
    make_case: Any, beside_baselines: MeasuredGains
) -> None:
    far = [
        one.model_copy(update={"tuned_less": Estimate(value=0.2, low=0.15, high=0.25), "tuned_is": "better"})
        for one in beside_baselines.baselines
    ]
    gains = {"tuned": Estimate(value=0.3, low=0.25, high=0.35), "baselines": tuple(far)}
    found = worth(make_case(MEASURED), beside_baselines.model_copy(update=gains))
    assert found.answer == "yes"
    assert found.use_instead is None
    assert "instead" not in found.headline
    assert found.break_even_gain_over_best is not None
    assert 0.063 < (found.break_even_gain_over_best.typical or 0) < 0.3
    assert any(text.startswith("Other baselines without a language model are worth less") for text in found.reasons)


def test_gains_of_baselines_stay_within_what_accuracies_can_be(make_case: Any, beside_baselines: MeasuredGains) -> None:
    wide = [
        one.model_copy(update={"tuned_less": Estimate(value=-0.02, low=-0.6, high=0.6)})
        for one in beside_baselines.baselines
    ]
    found = worth(make_case(MEASURED), beside_baselines.model_copy(update={"baselines": tuple(wide)}))
    assert len(found.alternatives) == 2
    for way in found.alternatives:
        assert way.gain.low >= -0.6
        assert way.gain.high <= 0.4 + 1e-12


def test_draws_beyond_all_that_there_is_are_not_credited_to_an_alternative(
    make_case: Any, beside_baselines: MeasuredGains
) -> None:
    # Half of the draws of the tuned model's gain would lie above 0.4, all that today's 0.6 leaves open.
    behind = [
        one.model_copy(update={"tuned_less": Estimate(value=0.1, low=0.1, high=0.1)})
        for one in beside_baselines.baselines
    ]
    gains = {"tuned": Estimate(value=0.4, low=0.2, high=0.6), "baselines": tuple(behind)}
    found = worth(make_case(MEASURED), beside_baselines.model_copy(update=gains))
    assert found.tuned.gain.high == pytest.approx(0.4)
    assert len(found.alternatives) == 2
    for way in found.alternatives:
        assert way.gain.high == pytest.approx(0.3)


def given(measured: MeasuredGains, accuracy: float = 0.6) -> MeasuredGains:
    """Today's way is what the case says."""
    tuned = Estimate(value=0.7 - accuracy, low=-1, high=1)
    return measured.model_copy(
        update={"today_kind": "given", "today_name": None, "today_figure": None, "today_value": None, "tuned": tuned}
    )


def test_today_as_the_case_counts_it_has_wilsons_interval(make_case: Any, beside_baselines: MeasuredGains) -> None:
    counted = {"today.counted": {"num_correct": 62, "num_answers": 100}, "verdict.today": "given"}
    found = worth(make_case({**MEASURED, **counted}), given(beside_baselines, 0.62))
    assert found.today_accuracy is not None
    # Wilson's interval of 62 in 100, by its formula
    assert found.today_accuracy.value == 0.62
    assert (found.today_accuracy.low, found.today_accuracy.high) == pytest.approx((0.5221, 0.7090), abs=1e-4)
    assert found.tuned.gain.typical == pytest.approx(0.08)
    # wider than either interval alone
    assert found.tuned.gain.high - found.tuned.gain.low > 0.19
    assert {bar.name for bar in found.tornado} == {"today.accuracy", "verdict.tuned_accuracy"}
    assert next(way for way in found.alternatives if way.name == "linear classifier").gain.typical == pytest.approx(0.1)
    assert any("on other rows than the tuned model's" in note for note in found.notes)


@pytest.mark.parametrize(("num_correct", "end"), [(0, 0.0), (5, 1.0)])
def test_counts_of_none_and_of_all_stay_within_bounds(
    make_case: Any, beside_baselines: MeasuredGains, num_correct: int, end: float
) -> None:
    counted = {"today.counted": {"num_correct": num_correct, "num_answers": 5}, "verdict.today": "given"}
    found = worth(make_case({**MEASURED, **counted}), given(beside_baselines, end))
    assert found.today_accuracy is not None
    assert found.today_accuracy.value == end
    assert 0 <= found.today_accuracy.low < found.today_accuracy.high <= 1
    ways = [found.tuned, *found.alternatives]
    assert len(ways) == 3
    for way in ways:
        assert -1 <= way.gain.low <= way.gain.high <= 1


def test_a_range_of_today_beside_a_verdict(make_case: Any, beside_baselines: MeasuredGains) -> None:
    range_of = {"today.accuracy": {"low": 0.5, "typical": 0.6, "high": 0.65}, "verdict.today": "given"}
    found = worth(make_case({"tuned.gain": None, **range_of}), given(beside_baselines))
    assert found.today_accuracy == Estimate(value=0.6, low=0.5, high=0.65)
    assert found.tuned.gain.typical == pytest.approx(0.1)


def test_a_count_serves_assumed_cases_too(make_case: Any) -> None:
    counted = {"today.accuracy": None, "today.counted": {"num_correct": 60, "num_answers": 100}}
    found = worth(make_case({**counted, "tuned.gain": None, "tuned.accuracy": 0.7}))
    assert found.tuned.gain.typical == pytest.approx(0.1)
    assert found.tuned.gain.low < 0.05
    assert worth(make_case({**counted, "tuned.gain": 0.4})).tuned.gain.typical == 0.4


def test_a_case_that_contradicts_itself_is_refused(make_case: Any) -> None:
    with pytest.raises(RequestError, match="what to do"):
        worth(make_case({"tuned.saved_prompt_tokens": 5_000}))


@pytest.mark.parametrize(("calls", "hours"), [(2_000_000, "833"), (1_500_000, None)])
def test_hours_beyond_a_month_are_those_of_the_tokens_that_are_priced(
    make_case: Any, calls: int, hours: str | None
) -> None:
    """A call of the tuned model saves 500 of 1,000 tokens in: 0.5 s to read, and 1 s to write 100."""
    own = {
        "price_per_hour": 1,
        "hours_per_month": 0,
        "input_tokens_per_second": 1_000,
        "output_tokens_per_second": 100,
    }
    found = worth(make_case({"tuned.self_served": own, "calls.per_month": calls}))
    assert found.tuned.serving_per_month.typical == pytest.approx(calls * 1.5 / 3600)
    notes = [note for note in found.notes if "hours of its devices a month" in note]
    assert [f"about {hours} hours" in note for note in notes] == ([True] if hours else [])
