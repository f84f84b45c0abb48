"""Which ways to prompt the base a plan tries: by what they cost in trained tokens, or as asked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from tests.ml.planning.conftest import profile

from luthier.core.errors import RecipeError
from luthier.core.evaluation_plan import EvaluationPlan, EvaluationRecipe
from luthier.core.plan import Plan
from luthier.ml.planning.inference_cost import judging_of
from luthier.ml.planning.prompt_variants import LEAST_SEARCH_TOKENS, MOST_SEARCH_TOKENS, with_prompt_variants
from luthier.ml.prompting.instructions import Instruction

LABELS = Instruction("labels", ("Answer with one of: a, b.",))
EXAMPLES = Instruction("examples", ("Answer as in these examples.",))
MakePlan = Callable[..., Plan]


@pytest.fixture
def decide(make_plan: MakePlan) -> Callable[..., Plan]:
    def decided(
        num_steps: int, lacks: Instruction | None = None, num_shown: int = 90, *, texts: bool = True, **asked: Any
    ) -> Plan:
        plan = make_plan({"evaluation": {"metrics": ["exact_match"], "max_new_tokens": 10} | asked})
        data = plan.data.model_copy(update={"held_out": profile("held_out", 50)})
        training = plan.training.model_copy(update={"num_steps": num_steps, "global_batch_size": 16, "device": "cpu"})
        whole = plan.model_copy(update={"data": data, "training": training})
        recipe = whole.recipe.evaluation or EvaluationRecipe()
        return with_prompt_variants(whole, recipe, are_texts_judged=texts, num_shown=num_shown, instruction=lacks)

    return decided


def ways(plan: Plan) -> tuple[int, bool, str, bool, int]:
    own = plan.evaluation
    return (
        own.few_shot_draws, own.few_shot_nearest, own.instruction, own.instruction_with_examples,
        own.optimised_prompt_tokens,
    )  # fmt: skip


def test_a_short_training_gets_one_draw_nearest_examples_and_the_instruction(decide: Callable[..., Plan]) -> None:
    assert ways(decide(5, LABELS)) == (1, True, LABELS.text, False, 0)


def test_a_longer_one_gets_four_draws_then_both_together_then_a_search(decide: Callable[..., Plan]) -> None:
    assert ways(decide(60, LABELS))[:4] == (4, True, LABELS.text, False)
    assert ways(decide(120, LABELS))[:4] == (4, True, LABELS.text, True)
    tokens = ways(decide(3_000, LABELS))[4]
    assert LEAST_SEARCH_TOKENS <= tokens <= MOST_SEARCH_TOKENS


def test_an_accelerator_writes_dearer_tokens(decide: Callable[..., Plan]) -> None:
    plan = decide(60, LABELS)
    assert plan.evaluation.few_shot_draws == 4
    on_gpu = plan.model_copy(update={"training": plan.training.model_copy(update={"device": "cuda"})})
    again = with_prompt_variants(on_gpu, EvaluationRecipe(), are_texts_judged=True, num_shown=90, instruction=LABELS)
    assert again.evaluation.few_shot_draws == 1


def test_what_is_asked_is_done_whatever_it_costs(decide: Callable[..., Plan]) -> None:
    asked = {"few_shot_draws": 8, "few_shot_nearest": False, "instruction": False}
    plan = decide(1, LABELS, **asked, optimised_prompt={"budget_tokens": 77})
    assert ways(plan) == (8, False, "", False, 77)
    assert {plan.sources[f"evaluation.{name}"].source for name in ("few_shot_draws", "instruction")} == {"asked"}
    # 0 is an answer: no search, however long the training.
    assert ways(decide(3_000, LABELS, optimised_prompt={"budget_tokens": 0}))[4] == 0


def test_rows_for_fewer_than_three_draws_get_one(decide: Callable[..., Plan]) -> None:
    plan = decide(3_000, num_shown=17)
    assert plan.evaluation.few_shot_draws == 1
    assert "17 rows" in plan.sources["evaluation.few_shot_draws"].why
    assert decide(3_000, num_shown=24).evaluation.few_shot_draws == 3


def test_an_instruction_that_needs_examples_is_nothing_without_them(decide: Callable[..., Plan]) -> None:
    assert ways(decide(120, EXAMPLES, few_shot=0)) == (1, False, "", False, 0)
    assert ways(decide(120, LABELS, few_shot=0)) == (1, False, "", False, 0)
    assert ways(decide(120, LABELS, few_shot=0, instruction=True)) == (1, False, LABELS.text, False, 0)


def test_every_way_says_where_it_comes_from_among_the_values_of_the_evaluation(decide: Callable[..., Plan]) -> None:
    names = [row["name"] for row in decide(60, LABELS).values()]
    own = [place for place, name in enumerate(names) if name.startswith("evaluation.")]
    assert own == list(range(own[0], own[-1] + 1))
    assert set(names) >= {f"evaluation.{name}" for name in EvaluationPlan.model_fields}


def test_where_no_texts_are_compared_nothing_is_tried_and_what_is_asked_is_refused(
    decide: Callable[..., Plan],
) -> None:
    assert ways(decide(120, LABELS, texts=False)) == (1, False, "", False, 0)
    with pytest.raises(RecipeError, match="optimised_prompt is set"):
        decide(120, LABELS, texts=False, optimised_prompt={"budget_tokens": 5_000})


def test_plans_of_before_keep_their_hash(make_plan: MakePlan, decide: Callable[..., Plan]) -> None:
    plan = make_plan()
    document = plan.model_dump(mode="json")
    for name in (
        "few_shot_draws",
        "few_shot_nearest",
        "instruction",
        "instruction_with_examples",
        "optimised_prompt_tokens",
        "reflection_model",
    ):
        del document["evaluation"][name]
    assert Plan.model_validate(document).hash == plan.hash
    with_more = plan.evaluation.model_copy(update={"few_shot_draws": 4})
    assert plan.model_copy(update={"evaluation": with_more}).hash != plan.hash


def test_a_reflection_model_may_be_named_by_a_path_and_is_no_part_of_the_hash(decide: Callable[..., Plan]) -> None:
    search = {"budget_tokens": 50_000}
    plans = [decide(120, optimised_prompt=search | {"reflection_model": name}) for name in ("/a/model", "/b/model")]
    assert [plan.evaluation.reflection_model for plan in plans] == ["/a/model", "/b/model"]
    assert plans[0].hash == plans[1].hash
    assert plans[0].sources["evaluation.reflection_model"].source == "asked"


def test_judging_counts_every_system_its_examples_and_the_search(decide: Callable[..., Plan]) -> None:
    found = judging_of(decide(120, LABELS, optimised_prompt={"budget_tokens": 5_000}), base_parameters=1000)
    assert found is not None
    # The base, four draws, nearest examples, those with the instruction, the instruction, the found prompt, the tuned.
    assert found.systems == (False,) * 9 + (True,)
    assert (found.num_drawn, found.num_nearest, found.search_tokens) == (4, 2, 5_000)
    assert [found.shots_of(place) for place in (0, 1, 4, 5, 6, 7)] == [
        (0.0, 0.0), (120.0, 0.0), (120.0, 0.0), (0.0, 120.0), (0.0, 120.0), (0.0, 0.0),
    ]  # fmt: skip
