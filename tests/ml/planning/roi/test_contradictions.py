"""Cases that cannot be true, or that would say something without effect."""

from __future__ import annotations

from typing import Any

import pytest

from luthier.core.errors import RequestError
from luthier.core.results.roi_result import MeasuredGains
from luthier.ml.planning.roi import check_case

OWN = {"hours_per_month": 100, "input_tokens_per_second": 1_000, "output_tokens_per_second": 100}
PRICES = {"input_price_per_million_tokens": 1, "output_price_per_million_tokens": 1}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"tuned.accuracy": 0.5}, r"tuned.accuracy 0.5 less today.accuracy 0.6 is -0.1, and tuned.gain is \+0.1"),
        ({"today.accuracy": None, "tuned.accuracy": 0.7}, "today.accuracy is missing"),
        ({"today.accuracy": None, "tuned.gain": None, "tuned.accuracy": 0.7}, "no gain of the tuned model is given"),
        ({"tuned.gain": None}, "no gain of the tuned model is given"),
        ({"today.accuracy": 0.95}, "leaves 0..1"),
        ({"tuned.gain": {"low": -0.7, "typical": 0, "high": 0.1}}, "leaves 0..1"),
        ({"tuned.saved_prompt_tokens": 1_001}, "up to 1,001, and a call has 1,000 tokens in at the least"),
        ({"calls.input_tokens": {"low": 400, "typical": 1_000, "high": 2_000}}, "up to 500, and a call has 400"),
        ({"tuned.input_tokens": 500}, "saved_prompt_tokens and input_tokens"),
        ({"today.hosted": None}, "today does not say what a call costs"),
        ({"today.cost_per_call": 1}, "today has hosted and cost_per_call"),
        ({"tuned.cost_per_call": 0.1}, "cost_per_call and saved_prompt_tokens, which then changes nothing"),
        ({"tuned.self_served": OWN}, "tuned.self_served has neither device nor price_per_hour"),
        ({"tuned.self_served": {**OWN, "price_per_hour": 1, "market": "spot"}}, "market spot, which then changes"),
        ({"training.hours": 3}, "training has cost and hours"),
        ({"training.cost": None}, "training says neither cost nor hours"),
        ({"training": {"hours": 2}}, "training has neither device nor price_per_hour"),
        ({"upkeep.retrain_every_months": None}, "retrain_every_months is not"),
        ({"currency_per_usd": 1.1}, "currency is USD and currency_per_usd is 1.1"),
        ({"alternatives.few_shot": {}}, "alternatives.few_shot has neither gain nor accuracy"),
        ({"alternatives.few_shot": {"gain": 0.1, "input_tokens": 5, "extra_prompt_tokens": 5}}, "extra_prompt_tokens"),
        ({"alternatives.without_model": {"gain": 0.1}}, "without_model does not say what a call costs"),
        ({"alternatives.bigger_model": {"gain": 0.1}}, "bigger_model does not say what a call costs"),
        ({"alternatives.bigger_model": {"gain": 0.1, "accuracy": 0.9, "hosted": PRICES}}, "correct one of the three"),
        ({"today.counted": {"num_correct": 1, "num_answers": 2}}, "today has accuracy and counted"),
        ({"alternatives.baselines": {"cost_per_call": 0.1}}, "no baseline without a language model was measured"),
        ({"tuned.alone": {"share": 0.5, "accuracy": 0.9}}, "tuned has alone and gain"),
        ({"tuned": {"alone": {"share": 0.5, "accuracy": 0.9}}, "today.accuracy": None}, "today's accuracy is not"),
        ({"verdict.alone_at": 0.9}, "gains are assumed, and the keys of verdict then change nothing"),
        ({"verdict.metric": "exact_match"}, "gains are assumed, and the keys of verdict then change nothing"),
    ],
)
def test_each_contradiction_is_told_with_what_to_do(make_case: Any, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(RequestError, match=words) as caught:
        check_case(make_case(changes), None)
    assert caught.value.expected
    assert caught.value.do
    assert str(caught.value).startswith("case By hand")


def test_accuracies_that_agree_with_the_gain_are_no_contradiction(make_case: Any) -> None:
    check_case(make_case({"tuned.accuracy": 0.7}), None)
    check_case(make_case({"tuned.accuracy": 0.7, "tuned.gain": None}), None)


def test_all_contradictions_come_at_once(make_case: Any) -> None:
    with pytest.raises(RequestError, match="has 3 problems") as caught:
        check_case(make_case({"training.hours": 3, "tuned.saved_prompt_tokens": 2_000, "currency_per_usd": 2}), None)
    assert "training has cost" in caught.value.came


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "tuned.gain, today.accuracy assumed, and evaluation eval-"),
        (
            {"today.accuracy": None, "tuned.gain": None, "alternatives.few_shot": {"gain": 0.1}},
            "alternatives.few_shot.gain assumed",
        ),
        (
            {"today.accuracy": None, "tuned.gain": None, "verdict.correct_per_point": 0.5},
            "exact match is itself a share of correct answers",
        ),
        (
            {"today.accuracy": None, "tuned.gain": None, "verdict.today": "few_shot", "alternatives.few_shot": {}},
            "verdict.today is few_shot, and alternatives.few_shot is there too",
        ),
        (
            {
                "today.accuracy": None,
                "tuned.gain": None,
                "verdict.today": "few_shot",
                "tuned.saved_prompt_tokens": None,
                "calls.input_tokens": 200,
            },
            "the examples in the prompt have 300 tokens in the evaluation, calls.input_tokens is 200",
        ),
    ],
)
def test_what_is_measured_is_not_assumed_beside_it(
    make_case: Any, measured: MeasuredGains, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(RequestError, match=words):
        check_case(make_case(changes), measured)


NO_TOKENS = {"today.hosted": None, "today.cost_per_call": 0, "today.accuracy": None, "tuned.gain": None}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "today's way is a linear classifier, and tuned does not say what a call costs"),
        (
            {"today.cost_per_call": None, "today.hosted": PRICES, "tuned.hosted": PRICES},
            "a linear classifier, which reads no tokens, and today has hosted prices",
        ),
        (
            {"tuned.hosted": PRICES, "alternatives.better_prompt": {"gain": 0.01}},
            "alternatives.better_prompt does not say what a call costs",
        ),
    ],
)
def test_where_todays_way_reads_no_tokens_models_have_prices_of_their_own(
    make_case: Any, beside_baselines: MeasuredGains, changes: dict[str, Any], words: str
) -> None:
    simple = beside_baselines.model_copy(update={"today_kind": "linear", "today": "a linear classifier"})
    with pytest.raises(RequestError, match=words):
        check_case(make_case({**NO_TOKENS, **changes}), simple)
    check_case(make_case({**NO_TOKENS, "tuned.hosted": PRICES}), simple)


def test_today_is_measured_or_given(make_case: Any, beside_baselines: MeasuredGains) -> None:
    with pytest.raises(RequestError, match=r"(?s)today.accuracy assumed.*or set verdict.today: given"):
        check_case(make_case({"tuned.gain": None}), beside_baselines)
    check_case(
        make_case({"tuned.gain": None, "verdict.today": "given"}),
        beside_baselines.model_copy(update={"today_kind": "given"}),
    )


def test_what_is_answered_alone_is_measured_beside_a_given_today(make_case: Any, measured: MeasuredGains) -> None:
    with pytest.raises(RequestError, match=r"alone_at is given, and today's way is the base model"):
        check_case(make_case({"tuned.gain": None, "today.accuracy": None, "verdict.alone_at": 0.9}), measured)
    alone = {"share": 0.5, "accuracy": 0.9}
    with pytest.raises(RequestError, match="alone is assumed, and evaluation"):
        check_case(make_case({"tuned.gain": None, "today.accuracy": None, "tuned.alone": alone}), measured)


def test_costs_of_a_measured_alternative_may_be_said(make_case: Any, measured: MeasuredGains) -> None:
    changes = {"today.accuracy": None, "tuned.gain": None, "alternatives.few_shot": {"work_hours": 3}}
    check_case(make_case(changes), measured)
