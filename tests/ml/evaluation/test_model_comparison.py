"""Which model a showdown recommends, why, and what it warns of."""

from __future__ import annotations

import re

import pytest
from tests.ml.evaluation.showdown_case import contender, showdown, spec
from tests.vacuous import nonempty

from luthier.ml.evaluation.report.workflow_pages import render_model_comparison_page

SECONDS = ((0.5, 0.8, 0.5), (1.0, 1.6, 1.0))


def test_the_best_tuned_one_is_recommended_where_it_beats_the_best_prompting():
    answer = showdown(((0.2, 0.3, 0.6), (0.25, 0.4, 0.8)), SECONDS).recommendation
    assert (answer.word, answer.system) == ("tuned", "large tuned")
    assert answer.headline.startswith("Tune large: ROUGE-L 0.800")
    assert "0.400" in answer.headline
    assert any("large tuned less large + 4 examples: +0.40 ROUGE-L" in line for line in answer.reasons)


def test_of_equal_ones_the_cheapest_to_ask_is_taken_and_the_best_is_named():
    answer = showdown(((0.2, 0.3, 0.78), (0.25, 0.4, 0.8)), SECONDS).recommendation
    assert (answer.word, answer.system) == ("tuned", "small tuned")
    assert any("cannot be told apart" in line and "0.800" in line and "large tuned" in line for line in answer.reasons)


def test_prompting_is_enough_where_no_tuned_one_is_shown_to_be_better():
    answer = showdown(((0.2, 0.3, 0.42), (0.25, 0.40, 0.44)), SECONDS).recommendation
    assert (answer.word, answer.system) == ("prompting", "large + 4 examples")
    assert answer.headline.startswith("None: prompting large is enough, as far as these rows tell.")
    assert any("900 held-out rows would settle it" in line for line in answer.reasons)


def test_prompting_is_enough_where_tuning_made_it_worse():
    answer = showdown(((0.6, 0.8, 0.3), (0.25, 0.4, 0.2)), SECONDS).recommendation
    assert (answer.word, answer.system) == ("prompting", "small + 4 examples")
    assert any("worse" in line for line in answer.reasons)


def test_many_questions_need_a_smaller_p_value_each():
    rouge = ((0.2, 0.3, 0.6), (0.25, 0.4, 0.62))
    assert showdown(rouge, SECONDS, p_value=0.02).recommendation.word == "tuned"
    assert showdown(rouge, SECONDS, p_value=0.03).recommendation.word == "prompting"  # times two is over 5%


def test_nothing_is_recommended_where_no_system_gets_anything_right():
    answer = showdown(((0.0, 0.0, 0.0), (0.0, 0.0, 0.0)), SECONDS).recommendation
    assert (answer.word, answer.system, answer.contender) == ("nothing", "", None)
    assert "is 0 for all of 6 systems" in answer.headline


def test_one_that_was_not_tuned_to_its_end_is_named_and_the_others_stay():
    found = showdown(((0.2, 0.3, 0.7), (0.25, 0.4, None)), SECONDS, reasons=("", "loss is nan"))
    assert found.recommendation.system == "small tuned"
    assert "large was not judged tuned: loss is nan." in found.recommendation.cautions
    none = showdown(((0.2, 0.3, None), (0.25, 0.4, None)), SECONDS, reasons=("loss is nan", "loss is nan"))
    assert none.recommendation.word == "prompting"
    assert "No contender was tuned." in none.recommendation.reasons


def test_what_it_rests_on_is_said():
    cautions = showdown(((0.2, 0.3, 0.6), (0.25, 0.4, 0.8)), SECONDS, given=spec(num_judged=30)).recommendation.cautions
    for said in ("Only 30 held-out rows", "best of 6", "320 examples, 32"):
        assert any(said in line.replace("\N{NARROW NO-BREAK SPACE}", " ") for line in cautions), said


def test_bits_per_byte_may_speak_for_another_system():
    found = showdown(((0.2, 0.3, 0.78), (0.25, 0.4, 0.8)), SECONDS)
    assert any(line.startswith("By bits per byte large tuned") for line in found.recommendation.reasons)


def test_what_was_not_equal_is_said_and_what_was_is_not():
    given = spec(contenders=(contender("small"), contender("large", num_tokens=28_000, has_chat_template=False)))
    lines = showdown(((0.2, 0.3, 0.6), (0.25, 0.4, 0.8)), SECONDS, given=given).not_equal
    assert any("30,000 for small and 28,000 for large" in line and "bits per byte are" in line for line in lines)
    assert any("the plain layout for large" in line for line in lines)
    assert not any(line.startswith("Learning rates") for line in lines)


@pytest.mark.parametrize(
    "rouge",
    [
        ((0.2, 0.3, 0.6), (0.25, 0.4, 0.8)),
        ((0.6, 0.8, 0.3), (0.25, 0.4, None)),
        ((0.0, 0.0, 0.0), (0.0, 0.0, 0.0)),
    ],
)
def test_the_page_is_whole_names_all_and_escapes_what_came(rouge):
    found = showdown(rouge, SECONDS)
    page = render_model_comparison_page(found)
    for standing in nonempty(found.standings):
        assert standing.result.name in page
    for said in ("Apache-2.0", "Answer with one SQL query.", "Quality against time", "540", found.tunings[0].run_id):
        assert said in page
    assert "<b>instruments</b>" not in page
    assert "http" not in re.sub(r'xmlns="[^"]+"', "", page)
    ids = re.findall(r' id="([^"]+)"', page)
    assert len(ids) == len(set(ids))
