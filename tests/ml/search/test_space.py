"""The space around a plan, and what a user's file makes of it."""

from __future__ import annotations

import pytest
from tests.vacuous import nonempty

from luthier.core.errors import RequestError
from luthier.core.plan import ObjectivePlan
from luthier.core.recipe import Recipe
from luthier.core.workflows.study import ALPHA_OVER_RANK, Parameter, Space, recipe_with
from luthier.ml.search.space import default_space, narrowed, narrowed_by
from luthier.testing.records import make_plan


def names(space):
    return [parameter.name for parameter in space.parameters]


@pytest.fixture
def space():
    return default_space(make_plan(), most_rank=16)


def test_the_plans_own_rate_lies_in_the_range(space):
    rate = next(p for p in space.parameters if p.name == "training.learning_rate")
    assert rate.log
    assert rate.low < make_plan().training.learning_rate < rate.high


def test_no_rank_is_larger_than_a_matrix(space):
    assert max(next(p for p in space.parameters if p.name == "method.rank").choices) == 16


def test_every_parameter_says_why(space):
    assert all(nonempty(parameter.why for parameter in space.parameters))


def test_a_file_replaces_fixes_and_leaves_out(space):
    document = {
        "parameters": {"training.learning_rate": {"low": 1e-4, "high": 1e-3, "log": True}, "method.rank": [8, 16]},
        "without": ["training.epochs"],
    }
    made = narrowed(space, document, place="space.yaml")
    by_name = {p.name: p for p in made.parameters}
    assert (by_name["training.learning_rate"].low, by_name["method.rank"].choices) == (1e-4, (8, 16))
    assert "training.epochs" not in by_name
    assert "training.schedule" in by_name


def test_only_what_is_named(space):
    made = narrowed(space, {"parameters": {"method.rank": {"low": 2, "high": 8}}, "only": True}, place="s")
    assert (names(made), made.parameters[0].kind) == (["method.rank"], "int")
    one = narrowed(space, {"parameters": {"method.rank": 8}, "only": True}, place="s")
    assert one.has_one_point


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ([], "no mapping"),
        ({"parameter": {}}, "unknown keys parameter"),
        ({"without": ["training.epoch"]}, "nearest known: training.epochs"),
        ({"parameters": {"method.rank": {"low": 8, "high": 2}}}, "low not above high"),
        ({"parameters": {"method.rank": {"low": 8}}}, "low and high"),
        ({"parameters": {"training.learning_rate": {"low": 0.0, "high": 0.1, "log": True}}}, "above 0"),
        ({"only": True}, "nothing to search"),
    ],
)
def test_a_wrong_file_is_refused_with_its_place(space, document, said):
    with pytest.raises(RequestError, match=said) as caught:
        narrowed(space, document, place="space.yaml")
    assert "space.yaml" in caught.value.came


def test_values_reach_the_recipe():
    recipe = Recipe.model_validate({"base_model": "m", "data": {"train": "t"}})
    made = recipe_with(recipe, {"method.name": "lora", "method.rank": 8, ALPHA_OVER_RANK: 2.0, "training.epochs": 3})
    assert made["method"] == {"name": "lora", "rank": 8, "alpha": 16.0}
    assert made["training"] == {"epochs": 3}


def test_values_take_the_place_of_what_cannot_be_beside_them():
    asked = {"base_model": "m", "data": {"train": "t"}, "training": {"warmup_steps": 5, "min_lr_ratio": 0.1}}
    recipe = Recipe.model_validate(asked)
    made = recipe_with(recipe, {"training.warmup_fraction": 0.1, "training.schedule": "linear"})
    assert made["training"] == {"min_lr_ratio": 0.1, "warmup_fraction": 0.1, "lr_schedule": "linear"}
    made = recipe_with(recipe, {"training.schedule": "constant"})
    assert made["training"] == {"warmup_steps": 5, "lr_schedule": "constant"}


def test_what_does_not_fit_into_memory_is_left_out_from_then_on():
    rank = Parameter(name="method.rank", kind="choice", choices=(4, 8, 16))
    rate = Parameter(name="training.learning_rate", kind="float", low=1e-4, high=1e-2)
    made, said = narrowed_by(Space(parameters=(rank, rate)), {"method.rank": 16, "training.learning_rate": 1e-3})
    assert made.parameters == (rank.model_copy(update={"choices": (4, 8)}), rate)
    assert "method.rank below 16" in said
    assert narrowed_by(made, {"method.rank": 4}) == (made, "")
    # A larger one that fails later takes out nothing more, and gives nothing back.
    assert narrowed_by(made, {"method.rank": 16})[0] == made
    batch = Parameter(name="training.global_batch_size", kind="int", low=2, high=31, why="memory")
    small = Space(parameters=(batch,))
    assert narrowed_by(small, {batch.name: 64})[0] == small
    assert narrowed_by(small, {batch.name: 16})[0].parameters[0].high == 15


@pytest.mark.parametrize(("size", "choices"), [(1, (1, 2)), (5, (2, 5, 10)), (8, (4, 8, 16))])
def test_every_batch_size_is_a_whole_number_of_rows(size, choices):
    plan = make_plan()
    plan = plan.model_copy(update={"training": plan.training.model_copy(update={"global_batch_size": size})})
    found = next(
        p for p in default_space(plan, most_rank=16).parameters if p.name == "training.global_batch_size"
    ).choices
    assert found == choices
    assert all(isinstance(one, int) for one in nonempty(found))


def test_values_reach_keys_at_any_depth_of_the_recipe():
    asked = {"base_model": "m", "data": {"train": "t"}, "training": {"optimizer": {"name": "adamw", "beta1": 0.9}}}
    made = recipe_with(Recipe.model_validate(asked), {"training.optimizer.beta2": 0.99, "training.average.kind": "ema"})
    assert made["training"]["optimizer"] == {"name": "adamw", "beta1": 0.9, "beta2": 0.99}
    assert made["training"]["average"] == {"kind": "ema"}


def test_what_a_method_declares_decides_what_of_it_is_searched():
    plan = make_plan()

    def searched(method):
        of_method = plan.model_copy(update={"method": plan.method.model_copy(update={"name": method})})
        return set(names(default_space(of_method, most_rank=16)))

    together = {"method.rank", ALPHA_OVER_RANK, "method.targets"}
    assert together | {"method.name"} <= searched("lora")
    for method in ("loraplus", "qlora", "pissa", "olora"):
        assert searched(method) >= together
        assert "method.name" not in searched(method), "chosen for a reason"
    for method in ("full", "ia3", "adalora", "prompt_tuning", "of a package that is gone"):
        assert not searched(method) & together
    assert "training.weight_decay" not in searched("ia3"), "its factors never decay"
    assert "training.weight_decay" in searched("lora") & searched("full") & searched("of a package that is gone")


@pytest.mark.parametrize(
    ("objective", "dropout", "is_searched"),
    [
        ({"name": "sft"}, 0.0, True),
        ({"name": "dpo", "beta": 0.1}, 0.0, False),
        ({"name": "kto", "beta": 0.1}, 0.0, False),
        ({"name": "orpo", "beta": 0.1}, 0.0, False),
        ({"name": "dpo", "beta": 0.1}, 0.05, True),
    ],
)
def test_dropout_is_searched_where_it_may_help_or_is_asked_for(objective, dropout, is_searched):
    """Of preferences, log-probabilities are compared with those of a model without any: plans have none by default."""
    plan = make_plan()
    plan = plan.model_copy(
        update={
            "objective": ObjectivePlan(**objective),
            "method": plan.method.model_copy(update={"dropout": dropout}),
        }
    )
    space = default_space(plan, most_rank=16)
    assert ("method.dropout" in names(space)) is is_searched
    left = narrowed(space, {"without": ["method.dropout"]}, place="s")
    assert set(names(left)) == set(names(space)) - {"method.dropout"}
