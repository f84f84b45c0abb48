"""The fields of the form and the rules of the planner say the same: what a method takes, which rows fit what."""

from __future__ import annotations

import pytest
from tests.vacuous import nonempty

from luthier.core.aliases import stored_key
from luthier.core.recipe import MethodRecipe, ObjectiveRecipe, TrainingRecipe
from luthier.features.run_drafts import form as recipe_fields
from luthier.ml.training.methods.rules import RULES as METHODS
from luthier.ml.training.methods.rules import rules_of as method_rules
from luthier.ml.training.objectives.rules import RULES as OBJECTIVES
from luthier.ml.training.objectives.rules import rules_of as objective_rules


@pytest.mark.parametrize("name", METHODS)
def test_a_method_takes_each_of_its_fields(name: str) -> None:
    taken = set(method_rules(name).settings)
    fields = recipe_fields.method_fields()[name]
    assert {field.name.removeprefix("method.") for field in fields} <= taken & set(MethodRecipe.model_fields)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_an_objective_takes_each_of_its_fields_and_learns_from_its_shapes(name: str) -> None:
    rules = objective_rules(name)
    fields = recipe_fields.objective_fields()[name]
    assert {stored_key(field.name).removeprefix("objective.") for field in fields} <= set(rules.settings) & set(
        ObjectiveRecipe.model_fields
    )
    assert all(name in recipe_fields.fitting(shape) for shape in nonempty(rules.shapes))


def test_the_objectives_of_heads_have_fields_for_all_that_they_take() -> None:
    fields = recipe_fields.objective_fields()
    heads = [name for name, rules in OBJECTIVES.items() if rules.task_head is not None]
    for name in nonempty(heads):
        assert [stored_key(one.name) for one in fields[name]] == [f"objective.{s}" for s in OBJECTIVES[name].settings]
    temperature = {one.name: one for one in fields["embed"]}["objective.temperature"]
    low, default, high = temperature.low, OBJECTIVES["embed"].settings["temperature"][0], temperature.high
    assert low < default < high
    choices = [one for own in fields.values() for one in own if one.kind == "choice"]
    for one in nonempty(choices):
        assert len({option.name for option in one.options}) == len(one.options) > 1


def test_each_is_explained_once_and_its_sliders_have_ends() -> None:
    assert sorted(choice.name for choice in recipe_fields.methods()) == sorted(METHODS)
    assert sorted(choice.name for choice in recipe_fields.objectives()) == sorted(OBJECTIVES)
    fields = [*recipe_fields.MAIN, *recipe_fields.MORE]
    assert {field.name.removeprefix("training.") for field in fields} <= set(TrainingRecipe.model_fields)
    for field in fields + [one for section in recipe_fields.method_fields().values() for one in section]:
        assert field.high >= field.low
        assert field.scale == "linear" or field.low > 0
