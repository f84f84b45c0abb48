"""The part of a recipe about judging."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from luthier.core.evaluation_plan import EvaluationRecipe, GoodEnoughRecipe, OptimisedPromptRecipe


def test_a_number_alone_is_the_budget_of_a_search() -> None:
    assert OptimisedPromptRecipe.model_validate(5_000) == OptimisedPromptRecipe(budget_tokens=5_000)
    for wrong in (True, -1, "many", {"reflection_model": "m"}, {"budget_tokens": 1, "reflection_model": ""}):
        with pytest.raises(ValidationError):
            OptimisedPromptRecipe.model_validate(wrong)


def test_a_reflection_model_needs_a_budget() -> None:
    with pytest.raises(ValidationError, match="no search"):
        OptimisedPromptRecipe(budget_tokens=0, reflection_model="m")


@pytest.mark.parametrize(
    ("name", "left"), [("http://h/v1#m", None), ("HTTPS://h/v1#m", None), ("a-model", "a-model"), ("/a/b", "/a/b")]
)
def test_a_server_is_left_out_where_rows_were_not_meant_for_it(name: str, left: str | None) -> None:
    search = OptimisedPromptRecipe(budget_tokens=9, reflection_model=name)
    kept = EvaluationRecipe(few_shot=2, optimised_prompt=search).without_server()
    assert kept.few_shot == 2
    assert kept.optimised_prompt == OptimisedPromptRecipe(budget_tokens=9, reflection_model=left)
    assert EvaluationRecipe().without_server() == EvaluationRecipe()


def test_a_bar_of_second_answers_is_none_for_rows_that_have_come_since() -> None:
    of_people = EvaluationRecipe(few_shot=2, good_enough=GoodEnoughRecipe(agreement="second"))
    assert of_people.second_answers == "second"
    assert of_people.for_other_rows() == EvaluationRecipe(few_shot=2)
    figure = EvaluationRecipe(good_enough=GoodEnoughRecipe(value=0.9))
    assert (figure.second_answers, figure.for_other_rows()) == ("", figure)


def test_a_bar_follows_from_what_an_error_and_an_answer_by_a_person_cost() -> None:
    """A hundred answers with 10 errors at 20 each cost as much as a hundred by people at 2 each."""
    found = GoodEnoughRecipe.model_validate({"cost_of_an_error": 20, "cost_of_an_answer": 2})
    assert found == GoodEnoughRecipe(metric="exact_match", value=0.9)
    num_errors = 100 * (1 - 0.9)
    assert num_errors * 20 == pytest.approx(100 * 2)
    labels = {"cost_of_an_error": 3.0, "cost_of_an_answer": 1, "metric": "label_accuracy"}
    bar = EvaluationRecipe.model_validate({"good_enough": labels}).good_enough
    assert bar is not None
    assert (bar.metric, bar.value) == ("label_accuracy", pytest.approx(2 / 3, abs=1e-6))


@pytest.mark.parametrize(
    "given",
    [
        {"cost_of_an_error": 20},
        {"cost_of_an_answer": 2},
        {"cost_of_an_error": 2, "cost_of_an_answer": 2},
        {"cost_of_an_error": 2, "cost_of_an_answer": 20},
        {"cost_of_an_error": -1, "cost_of_an_answer": -2},
        {"cost_of_an_error": float("inf"), "cost_of_an_answer": 2},
        {"cost_of_an_error": True, "cost_of_an_answer": 0.5},
        {"cost_of_an_error": "20", "cost_of_an_answer": "2"},
        {"cost_of_an_error": 20, "cost_of_an_answer": 2, "value": 0.5},
        {"cost_of_an_error": 20, "cost_of_an_answer": 2, "agreement": "second"},
        {"cost_of_an_error": 20, "cost_of_an_answer": 2, "metric": "rouge_l"},
        {"cost_of_an_error": 20, "cost_of_an_answer": 2, "cost_of_a_day": 1},
    ],
    ids=str,
)
def test_costs_that_give_no_bar_are_refused(given: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        GoodEnoughRecipe.model_validate(given)
