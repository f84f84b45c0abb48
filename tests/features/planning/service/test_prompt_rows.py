"""Recipes of reinforcement take rows that end with a prompt, by the rule of the fine-tuning API."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.features.planning.service.test_streaming import planned
from tests.fixtures.service import chat_row, write_rows

from luthier.core.errors import ConflictError, DataError
from luthier.core.recipe import Recipe
from luthier.features.planning.service import prepare
from luthier.features.recipes.service import load_recipe
from luthier.features.workflows.retraining.rows import rows_of_run as rows_to_retrain
from luthier.platform.home.context import Context

MakeRecipe = Callable[..., Path]
LIKE = {"type": "string_check", "name": "g", "input": "{{sample.output_text}}", "operation": "like"}
TRAINING = {"max_steps": 1, "global_batch_size": 4, "precision": "float32", "num_threads": 1}


def prompts(start: int, num: int = 8) -> list[dict[str, Any]]:
    return [{"messages": chat_row(n)["messages"][:1], "answer": str(n)} for n in range(start, start + num)]


def asked(make_recipe: MakeRecipe, reward: dict[str, Any], objective: str = "grpo", **data: Any) -> Path:
    rewards = {"rewards": [reward], "num_generations": 2, "max_new_tokens": 3} if objective == "grpo" else {}
    recipe = make_recipe(
        data={"train": "prompts.jsonl"} | data,
        objective={"name": objective, **rewards},
        training=TRAINING,
        method={"name": "full"},
        evaluation={"few_shot": 0},
    )
    write_rows(recipe.parent / "prompts.jsonl", prompts(0))
    return recipe


def grader(field: str) -> dict[str, Any]:
    return {"grader": LIKE | {"reference": f"{{{{item.{field}}}}}"}}


def test_rows_without_answers_are_taken_where_no_reward_reads_one(context: Context, make_recipe: MakeRecipe) -> None:
    recipe = asked(make_recipe, grader("answer"), validation="more.jsonl", held_out="test.jsonl")
    write_rows(recipe.parent / "more.jsonl", prompts(20, 4))
    write_rows(recipe.parent / "test.jsonl", [chat_row(n) for n in range(40, 44)])
    made = prepare(context, load_recipe(recipe), base_dir=recipe.parent)
    assert made.plan.data.train.num_rows == 8
    assert made.plan.data.validation is not None
    assert made.plan.data.validation.num_rows == 4
    assert made.plan.data.train.file == str(recipe.parent / "prompts.jsonl")
    # Nothing shows what stands for the answer: no example in a prompt, no baseline.
    assert list(made.train.good_examples) == []
    write_rows(recipe.parent / "prompts.jsonl", [*prompts(0), *(chat_row(n) | {"answer": "x"} for n in range(60, 63))])
    mixed = prepare(context, load_recipe(recipe), base_dir=recipe.parent)
    assert [one.id for one in mixed.train.good_examples] == [f"prompts.jsonl:{n}" for n in (9, 10, 11)]


@pytest.mark.parametrize("reward", [grader("reference"), {"metric": "exact_match"}], ids=["grader", "metric"])
def test_a_reward_that_compares_with_the_answer_refuses_rows_without_one(
    context: Context, make_recipe: MakeRecipe, reward: dict[str, Any]
) -> None:
    recipe = asked(make_recipe, reward)
    with pytest.raises(DataError, match=r"8 of 8 rows of prompts\.jsonl are wrong"):
        planned(context, recipe)
    write_rows(recipe.parent / "prompts.jsonl", [one | {"reference": one["answer"]} for one in prompts(0)])
    assert planned(context, recipe).data.train.num_rows == 8


def test_rows_that_are_evaluated_or_learned_need_answers(context: Context, make_recipe: MakeRecipe) -> None:
    recipe = asked(make_recipe, grader("answer"), held_out=0.25)
    with pytest.raises(DataError, match=r"2 of 2 held-out rows end with a prompt, such as prompts\.jsonl:\d"):
        planned(context, recipe)
    recipe = asked(make_recipe, grader("answer"), held_out="test.jsonl")
    write_rows(recipe.parent / "test.jsonl", prompts(30, 3))
    with pytest.raises(DataError, match=r"3 of 3 rows of test\.jsonl are wrong"):
        planned(context, recipe)
    with pytest.raises(DataError, match=r"8 of 8 rows of prompts\.jsonl are wrong"):
        planned(context, asked(make_recipe, {}, "sft"))


def test_several_sources_may_end_with_a_prompt(context: Context, make_recipe: MakeRecipe) -> None:
    recipe = asked(make_recipe, grader("answer"), train=[{"path": "prompts.jsonl"}, {"path": "other.jsonl"}])
    write_rows(recipe.parent / "other.jsonl", prompts(20, 5))
    plan = planned(context, recipe)
    assert [one.num_rows for one in plan.data.sources] == [8, 5]
    other = [{"prompt": "How many?", "answer": "9"}, {"prompt": "Which?", "answer": "x"}]
    write_rows(recipe.parent / "other.jsonl", other)
    assert planned(context, recipe).data.train.num_rows == 10
    # The mixture is there, with answers in place of those that are missing: none is to be compared with.
    recipe = asked(make_recipe, {"metric": "exact_match"}, train=[{"path": "prompts.jsonl"}, {"path": "other.jsonl"}])
    with pytest.raises(DataError, match=r"8 of 8 rows of prompts\.jsonl are wrong"):
        planned(context, recipe)


def test_rows_without_answers_are_not_retrained_on_with_what_stands_for_them(
    context: Context, make_recipe: MakeRecipe
) -> None:
    recipe = asked(make_recipe, grader("answer"))
    plan = planned(context, recipe)
    with pytest.raises(ConflictError, match="8 rows of the run end with a prompt and have no answer"):
        rows_to_retrain(context, plan)
    write_rows(recipe.parent / "prompts.jsonl", [chat_row(n) for n in range(8)])
    assert len(rows_to_retrain(context, plan)["train"]) == 8


def absolute(path: Path) -> Recipe:
    recipe = load_recipe(path)
    return recipe.model_copy(update={"data": recipe.data.with_files({"train": str(path.parent / "prompts.jsonl")})})
