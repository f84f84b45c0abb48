"""A batch that is set in tokens becomes examples a step, by the mean tokens of an example."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from luthier.core.errors import RecipeError
from luthier.core.plan import Plan
from luthier.ml.planning.resolve_for_device import with_steps_on

MakePlan = Callable[..., Plan]


def tokens(number: int, **more: Any) -> dict[str, Any]:
    return {"training": {"global_batch_tokens": number, **more}}


def test_examples_steps_and_warmup_follow_from_the_mean_length(make_plan: MakePlan) -> None:
    """100 examples of 30 tokens."""
    plan = make_plan(tokens(480, epochs=2, warmup_fraction=0.2))
    assert plan.training.global_batch_size == 16
    assert (plan.training.num_steps_per_epoch, plan.training.num_steps, plan.training.num_warmup_steps) == (7, 14, 3)
    source = plan.sources["training.global_batch_size"]
    assert source.source == "derived"
    assert "480 tokens / 30.0 tokens of an example" in source.why


def test_all_but_the_recipe_is_as_with_that_many_examples(make_plan: MakePlan) -> None:
    by_tokens, by_rows = make_plan(tokens(480)), make_plan({"training": {"global_batch_size": 16}})
    assert by_tokens.training == by_rows.training
    assert (by_tokens.method, by_tokens.evaluation) == (by_rows.method, by_rows.evaluation)
    assert by_tokens.recipe.training is not None
    assert by_tokens.recipe.training.global_batch_tokens == 480
    assert by_tokens.hash == by_rows.hash  # both train the same


@pytest.mark.parametrize(("number", "size"), [(1, 1), (44, 1), (46, 2), (3_000, 100), (30_000, 1_000)])
def test_the_nearest_number_of_examples_is_taken_and_at_least_one(make_plan: MakePlan, number: int, size: int) -> None:
    plan = make_plan(tokens(number, epochs=1))
    assert plan.training.global_batch_size == size
    assert plan.training.num_steps == -(-100 // size)


@pytest.mark.parametrize(("number", "size"), [(30, 4), (480, 16), (520, 16), (560, 20)])
def test_processes_share_each_step_evenly(make_plan: MakePlan, number: int, size: int) -> None:
    plan = make_plan(tokens(number), num_processes=4)
    assert plan.training.global_batch_size == size
    assert "multiple of 4 processes" in plan.sources["training.global_batch_size"].why


def test_all_sequences_of_an_example_count(make_plan: MakePlan) -> None:
    """Conversations of two sequences each, and pairs of two answers."""
    cut = make_plan(tokens(480), num_tokens=6_000, num_sequences=200, num_cut=100)
    assert cut.training.global_batch_size == 8
    pairs = make_plan(tokens(480) | {"objective": {"name": "dpo"}}, num_tokens=6_000, shape="preference")
    assert pairs.training.global_batch_size == 8


def test_another_device_keeps_the_examples(make_plan: MakePlan, device: Any) -> None:
    plan = make_plan(tokens(240), accelerator="an accelerator", validation=False)
    assert plan.training.global_batch_size == 8
    assert with_steps_on(plan, device).training.global_batch_size == 8


@pytest.mark.parametrize(
    ("more", "came"),
    [
        ({"training": {"global_batch_tokens": 480, "global_batch_size": 8}}, "global_batch_tokens 480 with training.g"),
        (
            tokens(480) | {"objective": {"name": "grpo", "rewards": ["exact_match"]}},
            "global_batch_tokens 480 with objective grpo",
        ),
    ],
)
def test_what_cannot_go_together_is_refused(make_plan: MakePlan, more: dict[str, Any], came: str) -> None:
    with pytest.raises(RecipeError, match=came) as caught:
        make_plan(more)
    assert "training.global_batch_size" in caught.value.do or "remove one" in caught.value.do
